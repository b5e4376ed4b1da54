"""What the study compares."""

from typing import NamedTuple

from studies.domains.networks import ARMS


class Run(NamedTuple):
    """One network and seed. The seed sets what is random at the start and, alike in all arms, the
    order of the images and their augmentation."""

    experiment: str
    arm: str
    seed: int
    num_domains: int = 0  # of `domains` alone
    epochs: int = 0

    @property
    def name(self) -> str:
        """The folder of its files."""
        size = f"-{self.num_domains}-domains-{self.epochs}-epochs" if self.num_domains else ""
        return f"{self.experiment}/{self.arm}{size}-seed{self.seed}"


# Of each experiment the arms and their names on the page. An arm of `kinds` is a network by the
# value of MODEL.DGNET.EDGE_WEIGHTS.
EXPERIMENTS = {
    "domains": {key: arm.name for key, arm in ARMS.items()},
    "kinds": {"none": "plain", "static": "residual, static", "dynamic": "residual, dynamic"},
}
DOMAINS = (8, 4, 2, 1)
EPOCHS = (2, 6, 20)
