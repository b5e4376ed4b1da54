#!/usr/bin/env python
"""The command ``dgnet export``, run from a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dgnet_cli import arguments, export_model

if __name__ == "__main__":
    arguments.run(export_model.main)
