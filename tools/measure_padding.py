#!/usr/bin/env python
"""Measure how much an image's batch-mates change its wiring and its detections.

Cuts a piece out of every image of a dataset, of the given sizes in turn, runs the detector on each
piece alone and in a batch with others and a larger image, and compares: with routers that average
over the padding, too, with routers that leave it out (MODEL.DGNET.MASK_PADDING False), and with the
padding masked. Weights are those of MODEL.WEIGHTS. A detection stays where its nearest of the same
class in the other run overlaps it by half; others disappear or appear. The JSON has the figures of
the table, boxes in pixels and AP in per cent.

Example:
    tools/measure_padding.py --sizes 200x256,256x180,160x240 --mate 256x320 --config-file \\
        configs/Tree-Crowns/faster_rcnn_DG_MobileNetV2_residual_FPN_tree_crowns.yaml \\
        MODEL.WEIGHTS output/demo/training/model_final.pth
"""

import argparse
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog
from tabulate import tabulate

from dgnet_det.checkpoints import DGNetCheckpointer
from dgnet_det.config import load_cfg
from dgnet_det.data import check_datasets
from dgnet_det.errors import UserError, run_tool
from dgnet_det.files import write_json
from dgnet_det.model import build_model
from dgnet_det.padding_effect import VARIANTS, Size, cut, measure
from dgnet_det.wiring import dynamic_graphs


def size(text: str) -> Size:
    """``HEIGHTxWIDTH``."""
    height, width = map(int, text.split("x"))
    if min(height, width) < 1:
        raise ValueError
    return height, width


def sizes(text: str) -> list[Size]:
    """Several of them, with commas between."""
    return [size(part) for part in text.split(",")]


def row(name: str, result: dict[str, Any]) -> dict[str, str]:
    """A line of the table."""

    def both(key: str, digits: str) -> str:
        return " / ".join(format(value, digits) for value in result[key].values())

    return {
        "": name,
        "edge weight": both("edge_weight", ".1e"),
        "score": both("score", ".1e"),
        "box, pixels": both("box_pixels", ".1e"),
        "appeared": str(result["appeared"]),
        "disappeared": f"{result['disappeared']} of {result['detections_alone']}",
        "AP alone": f"{result['ap_alone']:.2f}",
        "AP in batches": f"{result['ap_together']:.2f}",
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML of the detector")
    parser.add_argument(
        "--sizes", required=True, type=sizes, metavar="HxW,HxW,…", help="of the pieces, pixels"
    )
    parser.add_argument(
        "--mate", required=True, type=size, metavar="HxW", help="of the larger image, pixels"
    )
    parser.add_argument(
        "--batch", type=int, default=3, help="pieces in a batch (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config"
    )
    args = parser.parse_args(argv)
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give at least 1")

    cfg = load_cfg(args.config_file, args.opts)
    dataset = next(iter(cfg.DATASETS.TEST), None)
    if dataset is None:
        raise UserError("DATASETS.TEST: empty: name a dataset there")
    check_datasets(cfg, [dataset])
    crops = cut(DatasetCatalog.get(dataset), args.sizes, cfg.INPUT.FORMAT)
    print(f"{len(crops)} pieces of {dataset}, {sum(len(crop.boxes) for crop in crops)} boxes")
    results = {}
    for name, (mask_padding, plain_pooling) in VARIANTS.items():
        cfg.defrost()
        cfg.MODEL.DGNET.MASK_PADDING = mask_padding
        model = build_model(cfg).eval()
        if not dynamic_graphs(model):
            raise UserError(f"{args.config_file}: the plain network has no wiring to measure")
        DGNetCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        results[name] = measure(model, crops, args.mate, args.batch, plain_pooling=plain_pooling)
        print(f"measured: {name}", flush=True)
    print(
        "\nChange of edge weights, and of scores and boxes of detections that stay: mean / maximum"
    )
    print(tabulate([row(*item) for item in results.items()], headers="keys", tablefmt="github"))
    if args.json:
        write_json(
            args.json,
            {
                "config_file": args.config_file,
                "weights": cfg.MODEL.WEIGHTS,
                "dataset": dataset,
                "sizes": args.sizes,
                "mate": args.mate,
                "batch": args.batch,
                "results": results,
            },
        )


if __name__ == "__main__":
    run_tool(main)
