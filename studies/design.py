"""What the study compares: networks, arms and seeds, and the settings of each run.

An arm differs from the others in the wiring keys alone. Seeds set the start of the weights, the
order of the data and its augmentation; the order and the augmentation are the same in all arms.
"""

from typing import NamedTuple


class Arm(NamedTuple):
    """One way to wire a network: values of ``MODEL.DGNET.WIRING`` and ``EDGE_WEIGHTS``."""

    wiring: str
    edge_weights: str

    @property
    def overrides(self) -> list[str]:
        """The config overrides that make a network this arm's."""
        return ["MODEL.DGNET.WIRING", self.wiring, "MODEL.DGNET.EDGE_WEIGHTS", self.edge_weights]


PLAIN = "plain"
ARMS = {
    PLAIN: Arm("residual", "none"),
    "static-paper": Arm("paper", "static"),
    "dynamic-paper": Arm("paper", "dynamic"),
    "static-residual": Arm("residual", "static"),
    "dynamic-residual": Arm("residual", "dynamic"),
}
# By the ending of their YAML files under configs/Study.
NETWORKS = {"R_18": "ResNet-18", "R_50": "ResNet-50"}


class Scale(NamedTuple):
    """How much of everything."""

    num_scenes: dict[str, int]
    # Overrides of the classifier's and of the detector's YAML.
    classifier: list[str]
    detector: list[str]


SCALES = {
    "full": Scale({"train": 600, "test": 300}, [], []),
    # Shows that the chain runs. Its figures mean nothing.
    "tiny": Scale(
        {"train": 8, "test": 4},
        ["CLASSIFICATION.EPOCHS", "1", "SOLVER.IMS_PER_BATCH", "16"],
        ["SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)", "SOLVER.IMS_PER_BATCH", "2"],
    ),
}


class Chain(NamedTuple):
    """One network, arm and seed: pretraining, conversion, fine-tuning."""

    network: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Unique, and fit for a folder's name."""
        return f"{self.network}/{self.arm}/seed{self.seed}"
