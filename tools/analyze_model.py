#!/usr/bin/env python
"""The command ``dgnet analyze``, run from a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dgnet_cli import analyze_model, arguments

if __name__ == "__main__":
    arguments.run(analyze_model.main)
