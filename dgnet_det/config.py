"""The keys that this project adds, and how a YAML file becomes a config."""

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from dgnet_det.errors import UserError, check_choice

PACKAGE = Path(__file__).parent
# This project's configs: a wheel carries them in the package; in a checkout they are beside it.
CONFIGS = next(f for f in (PACKAGE / "configs", PACKAGE.parent / "configs") if f.is_dir())
# Where each meta-architecture keeps its number of classes. Others' is not checked.
NUM_CLASSES_KEYS = {"GeneralizedRCNN": "ROI_HEADS", "RetinaNet": "RETINANET"}
CHANNELS = {"BGR": 3, "RGB": 3, "L": 1}  # of an image in each INPUT.FORMAT
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
POOLERS = ("ROIAlign", "ROIAlignV2", "ROIAlignRotated", "ROIPool")
# The values that Detectron2 knows, of keys that it reads as it builds a model.
CHOICES = {
    "INPUT.FORMAT": tuple(CHANNELS),
    "MODEL.RESNETS.NORM": NORMS,
    "MODEL.FPN.NORM": NORMS,
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.RETINANET.NORM": NORMS,
    "MODEL.ROI_BOX_HEAD.NORM": NORMS,
    "MODEL.ROI_MASK_HEAD.NORM": NORMS,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": POOLERS,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": POOLERS,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": POOLERS,
}


def add_dgnet_config(cfg: CfgNode) -> None:
    """Add this project's keys to ``cfg``; ``docs/config.md`` says more of each. Depth, groups,
    widths, norm and strides stay in ``MODEL.RESNETS``."""
    # Whether torch compiles the backbone for training and evaluation.
    cfg.MODEL.COMPILE = False
    cfg.MODEL.DGNET = CfgNode()
    # FAMILY, REGNET and STAGES are also those of the DRNet-style backbones, build_drnet_backbone.
    # Blocks of the nodes: "resnet" (and ResNeXt), "mobilenetv2", "regnet"; in DRNet also "cell".
    cfg.MODEL.DGNET.FAMILY = "resnet"
    # Which RegNet: "X_" or "Y_" and its multiply-adds; "X_400M_TV", "Y_800M_TV": torchvision's.
    cfg.MODEL.DGNET.REGNET = "X_600M"
    # "paper": edges replace shortcuts. "residual": starts equal to a static checkpoint.
    cfg.MODEL.DGNET.WIRING = "paper"
    # "dynamic": α per image. "static": one learned α per edge. "none": the plain network.
    cfg.MODEL.DGNET.EDGE_WEIGHTS = "dynamic"
    # Which stages are graphs, or routed; the others are plain. In the paper wiring all of them.
    cfg.MODEL.DGNET.STAGES = ["res2", "res3", "res4", "res5"]
    # Weight of a loss on the share of the edges' multiply-adds that is open above the budget.
    cfg.MODEL.DGNET.SPARSITY_WEIGHT = 0.0
    cfg.MODEL.DGNET.SPARSITY_BUDGET = 0.0

    cfg.MODEL.DRNET = CfgNode()
    # What each connection weighs: a block or nothing; copies of a block, "block" K times; or with
    # the family "cell", its branches.
    cfg.MODEL.DRNET.BRANCHES = ["block", "identity"]
    # Of the softmax at the start of training and at the end of the soft phase, and at inference.
    cfg.MODEL.DRNET.TEMPERATURE = [1.0, 0.2]
    # A branch of a lower weight does not run. From 0.5 on exactly one branch runs.
    cfg.MODEL.DRNET.THRESHOLD = 0.1
    # The share of training in which all branches run and RouterNets learn. After it these are
    # frozen, and branches learn from the images that need them.
    cfg.MODEL.DRNET.SOFT_PHASE = 0.6
    # The share of the dearest choices' multiply-adds to come to, and the weight of the loss on the
    # distance to it, which grows from 0 in the first half of the soft phase.
    cfg.MODEL.DRNET.BUDGET = 1.0
    cfg.MODEL.DRNET.BUDGET_WEIGHT = 0.0
    # For a static network: branches that are not there, such as "res4.0:2-identity": stage,
    # connection, branch. One of every connection is to stay.
    cfg.MODEL.DRNET.PRUNED_BRANCHES = []

    # Your own data; DATASETS.TRAIN, DATASETS.TEST and the number of classes follow from them.
    cfg.DATASETS.TRAIN_JSON = ""
    cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.VAL_JSON = ""
    cfg.DATASETS.VAL_IMAGES = ""
    # Passes over the training images, instead of SOLVER.MAX_ITER.
    cfg.SOLVER.EPOCHS = 0
    # Learning rate of routers, thresholds and gammas, as a multiple of the others'.
    cfg.SOLVER.ROUTER_LR_FACTOR = 1.0

    # dgnet train-classifier, which takes what is not here from SOLVER and TEST.
    cfg.CLASSIFICATION = CfgNode()
    cfg.CLASSIFICATION.DATASET = "imagefolder"  # or "fashion_mnist"
    cfg.CLASSIFICATION.ROOT = "datasets/imagenet"
    cfg.CLASSIFICATION.NUM_CLASSES = 1000
    cfg.CLASSIFICATION.SIZE = 224  # pixels, as TEST_RESIZE
    cfg.CLASSIFICATION.TEST_RESIZE = 256
    cfg.CLASSIFICATION.CROP_AREA = [0.08, 1.0]
    cfg.CLASSIFICATION.EPOCHS = 100
    cfg.CLASSIFICATION.WARMUP_EPOCHS = 5
    cfg.CLASSIFICATION.LABEL_SMOOTHING = 0.1
    cfg.CLASSIFICATION.DROPOUT = 0.0
    cfg.CLASSIFICATION.ACCUMULATION = 1


def get_cfg() -> CfgNode:
    """Detectron2's default config with this project's keys."""
    cfg = get_detectron2_cfg()
    add_dgnet_config(cfg)
    return cfg


def read_yaml(config_file: str) -> CfgNode:
    """The config of a YAML file as it stands there.

    Args:
        config_file: its path, or the name of one of this project's, such as
            ``COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml``, with or without ``configs/``.

    Raises:
        UserError: the file is missing or is no config, or a key or value is not one of Detectron2's
            or this project's.
    """
    own = CONFIGS / config_file.removeprefix("configs/")
    if not os.path.isfile(config_file) and own.is_file():
        config_file = str(own)
    if not os.path.isfile(config_file):
        raise UserError(f"{config_file}: no such config file")
    try:
        # As it stands, before Detectron2 looks for its _BASE_.
        content = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content = CfgNode.load_yaml_with_base(config_file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        file, line = (mark.name, mark.line + 1) if mark else (config_file, 0)
        file = file if os.path.isfile(file) else config_file
        raise UserError(f"{file}, line {line}: no valid YAML: {error.problem}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{config_file}: not UTF-8 text") from error
    except Exception as error:  # a _BASE_ that is missing or unlike its heir
        raise UserError(f"{config_file}: {one_line(error)}") from error
    if not isinstance(content, dict):
        kind = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise UserError(f"{config_file}: {kind}: a config is a tree of KEY: VALUE lines")
    cfg = get_cfg()
    _merge(cfg, dict(leaves(content)), source=f"{config_file}: ")
    return cfg


def load_cfg(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Load the frozen config of a YAML file and ``KEY VALUE`` overrides, for the CPU if there is no
    GPU. :func:`dgnet_det.data.load_cfg_with_data` reads the data that it names as well.

    Raises:
        UserError: as :func:`read_yaml`, also of an override, or as :func:`check_supported`.
    """
    cfg = read_yaml(config_file)
    if len(opts) % 2:
        raise UserError(f"{opts[-1]}: an override needs a value: give KEY VALUE pairs")
    _merge(cfg, dict(zip(opts[::2], opts[1::2], strict=True)))
    if re.fullmatch(r"cuda(:\d+)?", cfg.MODEL.DEVICE) and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    check_supported(cfg)
    cfg.freeze()
    return cfg


def check_supported(cfg: CfgNode) -> None:
    """Refuse a model that Detectron2 does not know, or that could perhaps be trained and then not
    be evaluated, shown or exported.

    Raises:
        UserError: such a device, image format, meta-architecture, part or norm, or
            ``MODEL.COMPILE`` for a backbone that it does not hold for.
    """
    # Not at the top: a tool that reads no model need not import all of them.
    from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN, RetinaNet

    check_choices(cfg, CHOICES | _registered_parts(cfg))

    device = re.fullmatch(r"cpu|cuda(?::(\d+))?", cfg.MODEL.DEVICE)
    if device is None:
        raise UserError(f"MODEL.DEVICE {cfg.MODEL.DEVICE!r}: choose cpu, cuda or cuda:NUMBER")
    if int(device[1] or 0) >= max(torch.cuda.device_count(), 1):
        count = torch.cuda.device_count()
        raise UserError(f"MODEL.DEVICE {cfg.MODEL.DEVICE}: this machine has {count} GPUs")
    allowed = {3, CHANNELS[cfg.INPUT.FORMAT]}
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[key]) not in allowed:
            numbers = " or ".join(map(str, sorted(allowed)))
            raise UserError(
                f"MODEL.{key} {cfg.MODEL[key]}: give {numbers} numbers, for INPUT.FORMAT"
                f" {cfg.INPUT.FORMAT}"
            )
    name = cfg.MODEL.META_ARCHITECTURE
    kind = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else object
    if not issubclass(kind, (GeneralizedRCNN, RetinaNet)) or issubclass(kind, PanopticFPN):
        raise UserError(
            f"MODEL.META_ARCHITECTURE {name}: choose GeneralizedRCNN or RetinaNet: no other is"
            " evaluated, shown and exported here"
        )
    if cfg.MODEL.LOAD_PROPOSALS:
        raise UserError("MODEL.LOAD_PROPOSALS: images in use have no proposals: set it to False")
    if cfg.MODEL.COMPILE:
        _check_compile(cfg)


def _check_compile(cfg: CfgNode) -> None:
    has_edges, norm = cfg.MODEL.DGNET.EDGE_WEIGHTS != "none", cfg.MODEL.RESNETS.NORM
    if is_routed(cfg) or (has_edges and cfg.MODEL.DGNET.WIRING != "residual"):
        raise UserError(
            "MODEL.COMPILE: in the paper wiring and in DRNet-style backbones the images decide"
            " which blocks run, which torch.compile cannot record: set it to False"
        )
    if "SyncBN" in norm:
        raise UserError(f"MODEL.COMPILE: not tried with MODEL.RESNETS.NORM {norm}: set it to False")


def check_choices(cfg: CfgNode, choices: Mapping[str, Collection[str]]) -> None:
    """Raise a :class:`UserError` where a key has none of the values that ``choices`` has for it."""
    values = dict(leaves(cfg))
    for key, known in choices.items():
        check_choice(key, values[key], known)


def _registered_parts(cfg: CfgNode) -> dict[str, Collection[str]]:
    """The names that Detectron2's registries know of each part of the model."""
    from detectron2 import modeling
    from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
    from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY

    registries = {
        "MODEL.BACKBONE.NAME": modeling.BACKBONE_REGISTRY,
        "MODEL.PROPOSAL_GENERATOR.NAME": modeling.PROPOSAL_GENERATOR_REGISTRY,
        "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
        "MODEL.ANCHOR_GENERATOR.NAME": modeling.ANCHOR_GENERATOR_REGISTRY,
        "MODEL.ROI_HEADS.NAME": modeling.ROI_HEADS_REGISTRY,
        "MODEL.ROI_MASK_HEAD.NAME": modeling.ROI_MASK_HEAD_REGISTRY,
        "MODEL.ROI_KEYPOINT_HEAD.NAME": modeling.ROI_KEYPOINT_HEAD_REGISTRY,
    }
    if cfg.MODEL.ROI_HEADS.NAME in ("StandardROIHeads", "CascadeROIHeads"):  # others may have none
        registries["MODEL.ROI_BOX_HEAD.NAME"] = ROI_BOX_HEAD_REGISTRY
    return {key: [name for name, _ in registry] for key, registry in registries.items()}


def feature_maps(cfg: CfgNode) -> list[str]:
    """The names of the backbone's feature maps; empty for a backbone that is neither this
    project's nor Detectron2's ResNet."""
    kind = re.fullmatch(
        r"build_(retinanet_)?(?:dgnet|drnet|resnet)_(retinanet_)?(fpn_)?backbone",
        cfg.MODEL.BACKBONE.NAME,
    )
    if kind is None or not kind[3]:
        return list(cfg.MODEL.RESNETS.OUT_FEATURES) if kind else []
    levels = [int(name[-1]) for name in cfg.MODEL.FPN.IN_FEATURES if name.startswith("res")]
    more = 2 if kind[1] or kind[2] else 1  # P6 and P7, or P6
    return [f"p{k}" for k in range(min(levels), max(levels) + 1 + more)] if levels else []


def with_own_weights(config_file: str, opts: Sequence[str]) -> list[str]:
    """Add ``MODEL.WEIGHTS`` to ``opts`` that do not set it, if ``config_file`` is the
    ``config.yaml`` of an output folder: its ``model_final.pth`` or last checkpoint."""
    file, given = Path(config_file), list(opts)
    last = file.with_name("last_checkpoint")
    names = ["model_final.pth", *([last.read_text().strip()] if last.is_file() else [])]
    beside = [path for path in map(file.with_name, names) if path.is_file()]
    if file.name == "config.yaml" and beside and "MODEL.WEIGHTS" not in given[::2]:
        given += ["MODEL.WEIGHTS", str(beside[0])]
    return given


def score_threshold(value: float, option: str) -> list[str]:
    """``KEY VALUE`` overrides that make any detector report detections of scores above ``value``.

    Raises:
        UserError: ``value``, which ``option`` gave, is not from 0 to 1.
    """
    if not 0 <= value <= 1:
        raise UserError(f"{option} {value:g}: give a number from 0 to 1")
    groups = sorted(set(NUM_CLASSES_KEYS.values()))
    return [word for g in groups for word in (f"MODEL.{g}.SCORE_THRESH_TEST", str(value))]


def is_classifier(cfg: CfgNode) -> bool:
    """Whether a config is a classifier's: its backbone has ``res5`` and no FPN, and no detector
    could read its outputs."""
    outputs, readers = set(cfg.MODEL.RESNETS.OUT_FEATURES), (cfg.MODEL.RPN, cfg.MODEL.RETINANET)
    return (
        cfg.MODEL.BACKBONE.NAME in ("build_dgnet_backbone", "build_drnet_backbone")
        and "res5" in outputs
        and not any(outputs.issuperset(reader.IN_FEATURES) for reader in readers)
    )


def is_routed(cfg: CfgNode) -> bool:
    """Whether a config's backbone is DRNet-style."""
    return "drnet" in cfg.MODEL.BACKBONE.NAME


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a tree in full, such as ``SOLVER.BASE_LR``, and its value."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _merge(cfg: CfgNode, values: Mapping[str, Any], source: str = "") -> None:
    """Set keys of ``cfg``. Messages start with ``source``."""
    known = dict(leaves(cfg))
    for key, value in values.items():
        if value is None and any(name.startswith(f"{key}.") for name in known):
            raise UserError(f"{source}{key}: this section is empty: remove the line")
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise UserError(f"{source}{key}: there is no such key; the nearest is {nearest[0]}")
        try:
            cfg.merge_from_list([key, value])
        except Exception as error:
            raise UserError(
                f"{source}{key} {value}: not a {type(known[key]).__name__}, such as {known[key]!r}"
            ) from error


def one_line(error: Exception) -> str:
    """The type and message of another library's error, in one line."""
    message = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return f"{type(error).__name__}: {' '.join(message.split())}"
