"""Where data sets are."""

import os


def datasets_root() -> str:
    """The folder that holds the datasets, as for Detectron2's own: ``$DETECTRON2_DATASETS``, else
    ``datasets``."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
