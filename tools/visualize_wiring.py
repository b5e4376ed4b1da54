#!/usr/bin/env python
"""Draw the wiring that a DG-Net detector chooses for images.

Writes one picture per image: the image, and each stage as a graph whose nodes are on a line and
whose edges are arcs, with every edge's weight in the cell below its arc. Closed edges and absent
nodes are grey. All pictures have one scale. Weights are those of MODEL.WEIGHTS.

Example:
    python tools/visualize_wiring.py --input photo.jpg folder/ --output output/wiring \\
        --config-file configs/COCO-Detection/faster_rcnn_DG_R_50_FPN_1x.yaml \\
        MODEL.WEIGHTS output/model_final.pth
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dgnet_det.config import load_cfg, mark_overrides
from dgnet_det.data import check_datasets, find_images, read_image, spread_images
from dgnet_det.errors import UserError, run_tool
from dgnet_det.export.predictor import load_predictor
from dgnet_det.modeling.observation import dynamic_graphs, graph_statistics, record_edge_weights
from dgnet_det.utils.files import write_json
from dgnet_det.utils.graph_pictures import draw_wiring, largest_weight
from dgnet_det.utils.pictures import picture_paths, save_figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML of the detector")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, folders of images, or quoted patterns"
    )
    source.add_argument(
        "--dataset", help="the same images of a dataset that visualize_detections.py takes"
    )
    parser.add_argument(
        "--num", type=int, default=8, help="number of images of the dataset (default: %(default)s)"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="folder for the pictures"
    )
    parser.add_argument("--json", metavar="FILE", help="write the edge weights to this file")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="overrides of the config, last"
    )
    args = parser.parse_args(mark_overrides(argv))

    cfg = load_cfg(args.config_file, args.opts)
    if args.dataset:
        check_datasets(cfg, [args.dataset])
        files = [Path(image["file_name"]) for image in spread_images(args.dataset, args.num)]
    else:
        files = find_images(args.input)
    targets = picture_paths(args.output, files)
    predictor = load_predictor(cfg)
    if not dynamic_graphs(predictor.model):
        raise UserError(f"{args.config_file}: the plain network has no wiring to draw")

    wirings = []
    with record_edge_weights(predictor.model) as latest:
        for file in files:
            predictor(read_image(file, "BGR"))
            wirings.append(dict(latest))
            print(f"[{len(wirings)}/{len(files)}] {file}", flush=True)
    # One scale for all pictures, so that they can be compared.
    limit = max(map(largest_weight, wirings))
    for file, target, wiring in zip(files, targets, wirings, strict=True):
        save_figure(draw_wiring(read_image(file, "RGB"), wiring, limit=limit), target)
    print(f"{len(files)} pictures written to {args.output}")

    if args.json:
        write_json(
            args.json,
            {
                "config_file": args.config_file,
                "weights": cfg.MODEL.WEIGHTS,
                "wiring": cfg.MODEL.DGNET.WIRING,
                "images": [
                    {
                        "file": str(file),
                        "graphs": {
                            name: {
                                **graph_statistics(graph),
                                "alpha": graph.alpha[0].tolist(),
                                "weight": graph.weight[0].tolist(),
                            }
                            for name, graph in wiring.items()
                        },
                    }
                    for file, wiring in zip(files, wirings, strict=True)
                ],
            },
        )


if __name__ == "__main__":
    run_tool(main)
