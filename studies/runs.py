"""The study's runs: the real tools, one process each, several at a time, finished ones kept."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from dgnet_det.config import load_cfg
from dgnet_det.errors import UserError
from dgnet_det.utils.environment import describe_environment
from dgnet_det.utils.files import write_json
from studies.design import ARMS, Chain, Scale


class Runner:
    """Runs chains below one folder. ``<chain>/classification.json`` and ``<chain>/detection.json``
    there are finished runs; they are repeated only if their settings have changed."""

    def __init__(self, root: Path, folder: Path, scale: Scale, scenes: str) -> None:
        """
        Args:
            root: the project's folder, with ``tools`` and ``configs``.
            folder: of the runs.
            scale: the overrides of all runs.
            scenes: digest of the composed scenes.
        """
        self.root = root
        self.folder = folder.resolve()
        self.scale = scale
        self.scenes = scenes

    def run(self, chains: Sequence[Chain], jobs: int) -> dict[Chain, dict[str, Any]]:
        """Run what is not finished, ``jobs`` chains at a time, and report progress.

        Returns:
            For each chain its two results, as ``classification`` and ``detection``.

        Raises:
            UserError: a run failed.
        """
        pending = [chain for chain in chains if not self._is_finished(chain)]
        print(f"{len(chains) - len(pending)} of {len(chains)} chains are finished", flush=True)
        start, done = time.monotonic(), 0
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(self._run_chain, chain): chain for chain in pending}
            try:
                for future in as_completed(futures):
                    chain, done = futures[future], done + 1
                    result = future.result()
                    left = (time.monotonic() - start) / done * (len(pending) - done) / 60
                    print(
                        f"[{done}/{len(pending)}] {chain.name}:"
                        f" top-1 {result['classification']['metrics']['top1']:.1f},"
                        f" AP {result['detection']['metrics']['AP']:.1f};"
                        f" about {left:.0f} min left",
                        flush=True,
                    )
            except BaseException:
                # Those that run are let finish: their results are kept.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return {
            chain: {name: self._read(chain, name) for name in ("classification", "detection")}
            for chain in chains
        }

    def _is_finished(self, chain: Chain) -> bool:
        settings = self._settings(chain)
        return all(self._finished(chain, name, key) for name, (_, _, key) in settings.items())

    def _finished(self, chain: Chain, name: str, key: str) -> bool:
        return self._path(chain, name).exists() and self._read(chain, name)["settings"] == key

    def _path(self, chain: Chain, name: str) -> Path:
        return self.folder / chain.name / f"{name}.json"

    def _read(self, chain: Chain, name: str) -> dict[str, Any]:
        path = self._path(chain, name)
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path}: no valid JSON; remove it to repeat the run") from error

    def _settings(self, chain: Chain) -> dict[str, tuple[Path, list[str], str]]:
        """For both runs: the YAML file, its overrides, and a digest of all that the result depends
        on, this code aside."""
        work = self.folder / chain.name
        common = [*ARMS[chain.arm].overrides, "SEED", str(chain.seed)]
        configs = self.root / "configs/Study"
        runs = {
            "classification": (
                configs / f"classifier_{chain.network}.yaml",
                [*common, *self.scale.classifier],
            ),
            "detection": (
                configs / f"faster_rcnn_{chain.network}_FPN.yaml",
                [*common, *self.scale.detector],
            ),
        }
        settings, key = {}, self.scenes
        for name, (config, overrides) in runs.items():
            cfg = load_cfg(str(config), overrides)
            # The digest of a detector includes its classifier's.
            key = hashlib.sha256(f"{key}\n{cfg.dump()}".encode()).hexdigest()
            settings[name] = (config, [*overrides, "OUTPUT_DIR", str(work / name)], key)
        return settings

    def _run_chain(self, chain: Chain) -> dict[str, Any]:
        work = self.folder / chain.name
        settings = self._settings(chain)
        classifier, backbone = work / "classification/model_final.pth", work / "backbone.pth"
        config, overrides, key = settings["classification"]
        if not (self._finished(chain, "classification", key) and classifier.exists()):
            self._train(chain, "train_classifier.py", "classification", config, overrides, key)
        config, overrides, key = settings["detection"]
        if not self._finished(chain, "detection", key):
            self._call(
                work / "conversion.log",
                ["convert_checkpoint.py", str(classifier), str(backbone)],
                config,
                overrides,
            )
            overrides = [*overrides, "MODEL.WEIGHTS", str(backbone)]
            self._train(chain, "train_net.py", "detection", config, overrides, key)
            backbone.unlink()
            shutil.rmtree(work / "detection")
            shutil.rmtree(work / "classification")
        return {name: self._read(chain, name) for name in settings}

    def _train(
        self, chain: Chain, tool: str, name: str, config: Path, overrides: list[str], key: str
    ) -> None:
        """Train from the start and write the result, whole."""
        work = self.folder / chain.name
        shutil.rmtree(work / name, ignore_errors=True)
        figures = work / name / "figures.json"
        start = time.monotonic()
        self._call(work / f"{name}.log", [tool, "--json", str(figures)], config, overrides)
        metrics = json.loads(figures.read_text())
        metrics = metrics.get("bbox", metrics)
        if metrics.get("AP", 0) is None:  # Detectron2's NaN: there is no detection at all
            metrics |= {"AP": 0.0, "AP50": 0.0}
        write_json(
            self._path(chain, name),
            {
                "settings": key,
                "metrics": metrics,
                "seconds": time.monotonic() - start,
                "environment": describe_environment(),
            },
        )

    def _call(self, log: Path, tool: list[str], config: Path, overrides: list[str]) -> None:
        """Run one tool with its output in ``log``."""
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, str(self.root / "tools" / tool[0]), *tool[1:]),
            *("--config-file", str(config), *overrides),
        ]
        with log.open("w", encoding="utf-8") as output:
            code = subprocess.run(
                command,
                env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise UserError(f"{tool[0]} failed, see {log}: {' '.join(last)}")
