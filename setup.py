import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "dgnet_det/__init__.py").read_text())[1]
# dgnet export; tests and style
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
    author="dgnet_det maintainers",
    keywords=["object detection", "dynamic networks", "Detectron2", "DG-Net", "PyTorch"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/2010.01097"},
    # The configs are beside the package in the repository, and in it once installed. Those for data
    # that only a checkout can make (Mixed-Kinds, Study, Tree-Crowns) stay in the repository.
    packages=[
        "dgnet_cli",
        "dgnet_det.configs",
        *find_namespace_packages(include=["dgnet_det", "dgnet_det.*"]),
    ],
    package_dir={"dgnet_det.configs": "configs"},
    package_data={
        "dgnet_det.analysis.report": ["*.html"],
        "dgnet_det.configs": [
            f"{folder}/*.{suffix}"
            for folder in ("COCO-*", "ImageNet-Classification", "Misc", "common")
            for suffix in ("yaml", "py")
        ],
    },
    entry_points={"console_scripts": ["dgnet = dgnet_cli.__main__:main"]},
    python_requires=">=3.10",
    # Detectron2 is not listed: it has no package of its own name, and a user's own build must not
    # be replaced. OpenCV is not listed either: Detectron2's drawing wants `cv2` from whichever of
    # its packages the user has. The last three are Detectron2's, which may have come without them.
    install_requires=[
        "torch",
        "torchvision",
        "fvcore",
        "pycocotools",
        "matplotlib",
        "tabulate",
        "jinja2",
        "pydantic",
        "cloudpickle",
        "omegaconf",
        "tensorboard",
    ],
    extras_require={"export": EXPORT, "dev": [*EXPORT, *DEV]},
)
