import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "dgnet_det/__init__.py").read_text())[1]
# tools/export_model.py; tests and style
EXPORT = ["onnx", "onnxruntime"]
DEV = [
    "timm",
    "safetensors",
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "ruff",
    "mypy",
    "scikit-image",
]

setup(
    name="dgnet_det",
    version=VERSION,
    description="Dynamic Graph Networks (DG-Net) as Detectron2 backbones",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # The configs are beside the package in the repository, and in it once installed.
    packages=[*find_namespace_packages(include=["dgnet_det", "dgnet_det.*"]), "dgnet_det.configs"],
    package_dir={"dgnet_det.configs": "configs"},
    package_data={
        "dgnet_det.analysis.report": ["*.html"],
        "dgnet_det.configs": ["*/*.yaml", "*/*.py"],
    },
    python_requires=">=3.10",
    # Detectron2 is not listed: it has no package of its own name, and a user's own build must not
    # be replaced. OpenCV is not listed either: Detectron2's drawing wants `cv2` from whichever of
    # its packages the user has.
    install_requires=[
        "torch",
        "torchvision",
        "fvcore",
        "pycocotools",
        "matplotlib",
        "tabulate",
        "jinja2",
        "pydantic",
    ],
    extras_require={"export": EXPORT, "dev": [*EXPORT, *DEV]},
)
