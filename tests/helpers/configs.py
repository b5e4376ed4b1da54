"""The project's YAML files, for tests that must hold for all of them."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DETECTORS = sorted(
    path
    for folder in (
        "COCO-Detection",
        "COCO-InstanceSegmentation",
        "COCO-Keypoints",
        "Misc",
        "Mixed-Kinds",
        "Tree-Crowns",
    )
    for path in (ROOT / "configs" / folder).glob("*.yaml")
    if not path.name.startswith("Base")
)
