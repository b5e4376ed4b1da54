"""What the tests of data share."""

from pathlib import Path

import pytest
from coco_sets import Splits


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    return Splits(tmp_path)
