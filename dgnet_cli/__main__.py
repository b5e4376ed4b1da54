"""The command ``dgnet``, whose subcommands are the tools."""

import sys
from importlib import import_module, metadata

from dgnet_cli import arguments

TOOLS = {
    "import": "import_dataset",
    "check": "check_dataset",
    "convert": "convert_checkpoint",
    "train": "train_net",
    "train-classifier": "train_classifier",
    "demo": "demo",
    "export": "export_model",
    "report": "wiring_report",
    "analyze": "analyze_model",
    "benchmark": "benchmark",
    "env": "env",
}


def main() -> None:
    """Run the tool that the command line names."""
    name, sys.argv[0] = "".join(sys.argv[1:2]), "dgnet"
    if name in TOOLS:
        sys.argv[:2] = [f"dgnet {name}"]
        arguments.run(import_module(f"dgnet_cli.{TOOLS[name]}").main)
        return
    description = "Detectron2 backbones whose edges are weighed anew for every image.\n\nCommands:"
    for name, module in TOOLS.items():
        summary = (import_module(f"dgnet_cli.{module}").__doc__ or "").partition("\n")[0]
        description += f"\n  {name:<18}{summary}"
    parser = arguments.Parser(description)
    version = metadata.version("dgnet_det")
    parser.add_argument("--version", action="version", version=f"dgnet {version}")
    parser.add_argument("command", choices=TOOLS, metavar="COMMAND", help="its --help says more")
    parser.parse_args()


if __name__ == "__main__":
    main()
