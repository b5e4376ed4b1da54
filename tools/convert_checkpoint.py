#!/usr/bin/env python
"""The command ``dgnet convert``, run from a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dgnet_cli import arguments, convert_checkpoint

if __name__ == "__main__":
    arguments.run(convert_checkpoint.main)
