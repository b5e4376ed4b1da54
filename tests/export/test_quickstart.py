"""docs/quickstart.md runs as it stands."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers.configs import ROOT
from helpers.detectors import save, small_predictor
from PIL import Image
from skimage import data

PAGE = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")


def test_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    predictor = small_predictor("faster", "MODEL.ROI_HEADS.NUM_CLASSES", "2")
    save(predictor, str(tmp_path / "model_final.pth"))
    (tmp_path / "config.yaml").write_text(predictor.cfg.dump())
    Image.fromarray(data.coffee()[::3, ::3]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)

    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.S)
    assert [kind for kind, _ in blocks] == ["sh", *["python"] * 3, "sh", "python", "sh"]
    scope: dict = {}
    printed = []
    for kind, code in blocks[1:]:  # the first installs
        if kind == "python":
            capsys.readouterr()
            exec(code.replace("scores > 0.5", "scores > 0"), scope)
            printed.append(capsys.readouterr().out)
            continue
        for line in code.replace("\\\n", "").splitlines():
            tool, *words = shlex.split(line)
            import_module(f"dgnet_cli.{Path(tool).stem}").main(words)
    boxes, _, weights, summary = printed
    count = boxes.count("\n")
    assert count > 0
    assert re.match(r"class [01] 0\.\d\d \[\d", boxes)
    assert len(re.findall(r"^res\d\.\d tensor", weights, re.M)) == 7
    assert summary.startswith(f"{count} detections of ['class 0', 'class 1']")
    for picture in ("seen.png", "graphs.png", "seen/photo.png"):
        assert (tmp_path / picture).is_file()
