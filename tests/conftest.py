"""What several tests share. Every test that draws random numbers starts from this seed."""

import logging

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loggers_that_propagate() -> None:
    """``caplog`` listens at the root. Detectron2's ``setup_logger``, which a tool's test called in
    this process, keeps its loggers from there."""
    for name in ("dgnet_det", "detectron2", "fvcore"):
        logging.getLogger(name).propagate = True


def pytest_configure() -> None:
    # Tests run in parallel processes: more threads each would only get in each other's way.
    torch.set_num_threads(1)
