#!/usr/bin/env python
"""The command ``dgnet train``, run from a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dgnet_cli import arguments, train_net

if __name__ == "__main__":
    arguments.run(train_net.main)
