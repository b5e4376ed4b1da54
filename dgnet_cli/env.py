"""Print what a report of a problem should say of this machine: versions, hardware, builds."""

from collections.abc import Sequence
from pathlib import Path

from dgnet_cli import arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments.Parser(__doc__).parse_args(argv)

    import dgnet_det
    from dgnet_det.utils.environment import describe_environment

    machine = describe_environment()
    print(f"dgnet_det {dgnet_det.__version__} @{Path(dgnet_det.__file__).parent}")
    print(f"{machine['CPU']}, {machine['threads']} threads")

    from detectron2.utils.collect_env import collect_env_info

    print(collect_env_info())
