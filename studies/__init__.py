"""Scripts that make this repository's own pages and demo data: ``python -m studies.NAME`` in its
root. No part of the package.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
