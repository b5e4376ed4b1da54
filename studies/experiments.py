"""What the study compares. An arm differs in one thing from the arm that it goes against."""

from typing import NamedTuple

from studies import ROOT


class Arm(NamedTuple):
    """A network."""

    name: str  # on the page
    wiring: str
    edge_weights: str
    against: str = "plain"  # key of the arm that it is compared with; its own: with none
    others: tuple[str, ...] = ()  # further overrides of the detector's config


class Experiment(NamedTuple):
    """Arms that learn from the same images."""

    title: str
    method: str  # for the page
    detector: str  # YAML
    classifier: str | None  # YAML of the pretraining; None: MobileNetV2's ImageNet weights
    arms: dict[str, Arm]


class Scale(NamedTuple):
    """How long the runs are: the number of composed scenes, and overrides."""

    num_scenes: dict[str, int]
    detector: tuple[str, ...] = ()
    classifier: tuple[str, ...] = ()


ALL_STAGES = ("MODEL.DGNET.STAGES", "('res2', 'res3', 'res4', 'res5')")
# Where no weights are loaded, no stage and no statistics of a norm can be frozen.
FROM_NOTHING = (
    "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.RESNETS.NORM", "BN", *ALL_STAGES,
)  # fmt: skip
RES2_LEARNS = ("MODEL.BACKBONE.FREEZE_AT", "1")

EXPERIMENTS = {
    "tree_crowns": Experiment(
        "Tree crowns: a fine-tuning as users do it",
        "MobileNetV2 with torchvision's ImageNet weights becomes a Faster R-CNN on the tiles of"
        " `make demo`. The paper wiring cannot start from static weights, and there are no others"
        " of ImageNet here: its arms start from nothing, and so does a plain network beside them.",
        "configs/Study/tree_crowns_detector.yaml",
        None,
        {
            "plain": Arm("plain", "residual", "none"),
            "static": Arm("residual, static", "residual", "static"),
            "dynamic": Arm("residual, dynamic", "residual", "dynamic"),
            "untrained-routers": Arm(
                "residual, routers stay at their start", "untrained-routers", "dynamic"
            ),
            "res2-plain": Arm(
                "residual, dynamic, res2 learns and is plain",
                "residual",
                "dynamic",
                "dynamic",
                RES2_LEARNS,
            ),
            "res2-graph": Arm(
                "residual, dynamic, res2 learns and is a graph",
                "residual",
                "dynamic",
                "res2-plain",
                (*RES2_LEARNS, *ALL_STAGES),
            ),
            "plain-from-nothing": Arm(
                "plain, from nothing", "residual", "none", "plain-from-nothing", FROM_NOTHING
            ),
            "paper-static": Arm(
                "paper, static, from nothing", "paper", "static", "plain-from-nothing", FROM_NOTHING
            ),
            "paper-dynamic": Arm(
                "paper, dynamic, from nothing",
                "paper",
                "dynamic",
                "plain-from-nothing",
                FROM_NOTHING,
            ),
        },
    ),
    "scenes": Experiment(
        "Composed scenes: every arm has a pretraining of its own",
        "A narrow ResNet-18 learns Fashion-MNIST as a classifier; its backbone becomes a Faster"
        " R-CNN on scenes of 128 × 128 pixels: up to five of Fashion-MNIST's product images pasted"
        " onto crops of photographs of `skimage.data`, 600 to train and 300 to test, which share"
        " neither products nor photographs. The scenes are no photographs.",
        "configs/Study/scenes_detector.yaml",
        "configs/Study/scenes_classifier.yaml",
        {
            "plain": Arm("plain", "residual", "none"),
            "static": Arm("residual, static", "residual", "static"),
            "dynamic": Arm("residual, dynamic", "residual", "dynamic"),
            "paper-structure": Arm("paper, α ≡ 1", "structure-alone", "static"),
            "paper-static": Arm("paper, static", "paper", "static"),
            "paper-dynamic": Arm("paper, dynamic", "paper", "dynamic"),
            "paper-half-open": Arm(
                "paper, dynamic, α starts at 0.5", "half-open", "dynamic", "paper-dynamic"
            ),
            "paper-strided": Arm(
                "paper, dynamic, P without pooling",
                "strided-projection",
                "dynamic",
                "paper-dynamic",
            ),
        },
    ),
}
TINY_DETECTOR = (
    "SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "2", "TEST.EVAL_PERIOD", "0",
    "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
)  # fmt: skip
TINY_CLASSIFIER = (
    "CLASSIFICATION.EPOCHS", "1", "CLASSIFICATION.SIZE", "8", "SOLVER.IMS_PER_BATCH", "2000",
)  # fmt: skip
SCALES = {
    "full": Scale({"train": 600, "test": 300}),
    # Shows that everything works. Its figures mean nothing.
    "tiny": Scale({"train": 8, "test": 4}, TINY_DETECTOR, TINY_CLASSIFIER),
}


class Run(NamedTuple):
    """One network and seed. The seed sets what is random at the start and, alike in all arms, the
    order of the images and their augmentation."""

    experiment: str
    arm: str
    seed: int
    scale: str

    def classifier(self) -> list[str] | None:
        """Config and overrides of the pretraining, as the tools take them, if there is one."""
        config = EXPERIMENTS[self.experiment].classifier
        return self._command(config, SCALES[self.scale].classifier) if config else None

    def detector(self) -> list[str]:
        """Config and overrides of the detector."""
        experiment = EXPERIMENTS[self.experiment]
        others = experiment.arms[self.arm].others
        return self._command(experiment.detector, (*others, *SCALES[self.scale].detector))

    def _command(self, config: str, overrides: tuple[str, ...]) -> list[str]:
        arm = EXPERIMENTS[self.experiment].arms[self.arm]
        return [
            "--config-file", str(ROOT / config), "SEED", str(self.seed),
            "MODEL.DGNET.WIRING", arm.wiring, "MODEL.DGNET.EDGE_WEIGHTS", arm.edge_weights,
            *overrides,
        ]  # fmt: skip
