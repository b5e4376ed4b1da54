"""What several tests share. Every test that draws random numbers starts from this seed."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def pytest_configure() -> None:
    # Tests run in parallel processes: more threads each would only get in each other's way.
    torch.set_num_threads(1)
