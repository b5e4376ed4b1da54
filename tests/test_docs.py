"""The pages name keys, files and options that exist."""

import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg as get_detectron2_cfg
from helpers.configs import ROOT

from dgnet_cli.__main__ import TOOLS
from dgnet_det.config import get_cfg, leaves

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]
# The changelog also names what is gone.
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]


def test_all_keys_are_in_the_page_with_their_defaults() -> None:
    rows = re.findall(
        r"^\| `([A-Z._]+)` \| `(.*?)` \|", (ROOT / "docs/config.md").read_text(), re.M
    )
    theirs, ours = dict(leaves(get_detectron2_cfg())), dict(leaves(get_cfg()))
    shown = {key: value if isinstance(value, str) else str(value) for key, value in ours.items()}
    added = {key: value or "''" for key, value in shown.items() if key not in theirs}
    assert dict(rows) == added


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_commands_name_tools_options_and_configs_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    known = (ROOT / "dgnet_cli/arguments.py").read_text()
    for tool, rest in re.findall(r"(?<!detectron2/)\btools/(\w+\.py)(.*)", text):
        assert (ROOT / "tools" / tool).is_file()
        source = known + (ROOT / "dgnet_cli" / tool).read_text()
        options = re.findall(r"(?<=\s)--[a-z][a-z-]+", rest.split("`")[0].split("#")[0])
        assert [option for option in options if f'"{option}"' not in source] == []
    assert set(re.findall(r"\bdgnet ([a-z][a-z-]*)", text)) <= set(TOOLS)
    for config in re.findall(r"\bconfigs/[\w/-]+\.(?:yaml|py)", text):
        assert (ROOT / config).is_file()


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


def test_imports_point_up_the_list_of_rooms() -> None:
    rows = re.findall(
        r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M
    )
    order = [re.findall(r"`(\w+)", row) for row in rows]
    known: set[str] = set()
    for rooms in order:
        known |= set(rooms)
        for room in rooms:
            path = ROOT / "dgnet_det" / room
            files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
            source = "\n".join(file.read_text(encoding="utf-8") for file in files)
            imported = set(re.findall(r"^\s*from dgnet_det\.(\w+)", source, re.M))
            assert imported <= known, f"{room} imports {imported - known}"
