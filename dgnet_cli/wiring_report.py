"""Report the wiring that a DG-Net detector chooses over many images, as one HTML page.

The page holds everything it needs: mean and spread of every edge, AP with weights that are not the
image's own (with --dataset), the multiply-adds that images really use, and examples. Of a
DRNet-style detector it shows which branches run, and names those that no image takes.

Examples:
    C=output/config.yaml
    %(prog)s --config-file $C --dataset coco_2017_val --num 500 \\
        --output report.html --json report.json MODEL.WEIGHTS output/model_final.pth
    %(prog)s --config-file $C --input photos/ --output report.html \\
        MODEL.WEIGHTS output/model_final.pth
"""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from dgnet_cli import arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, survey, intervene, write the page and the figures."""
    parser = arguments.ConfigParser(__doc__, config_help="YAML of the detector")
    parser.add_images("images, folders of images, or quoted patterns")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="the page, .html"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    parser.add_argument(
        "--examples", type=int, default=4, help="images to show (default: %(default)s)"
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="what a detection's score must be above, and above the config's own limit, but for AP"
        " (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    from dgnet_det.analysis.report.page import render_choices, render_page
    from dgnet_det.analysis.report.survey import (
        choose_examples,
        summarize,
        summarize_choices,
        survey_images,
    )
    from dgnet_det.config import score_threshold, with_own_weights
    from dgnet_det.data import load_cfg_with_data, read_image
    from dgnet_det.errors import UserError
    from dgnet_det.evaluation.interventions import intervene
    from dgnet_det.export.demo import annotate
    from dgnet_det.export.predictor import load_predictor
    from dgnet_det.modeling.folding import optimize_for_inference
    from dgnet_det.modeling.observation import check_decides, routed_stages
    from dgnet_det.utils.files import check_writable, write_json, written_whole

    if args.examples < 1:
        raise UserError(f"--examples {args.examples}: give at least 1")
    score_threshold(args.confidence, "--confidence")
    check_writable(args.output)
    cfg = load_cfg_with_data(args.config_file, with_own_weights(args.config_file, args.opts))
    images = arguments.chosen_images(cfg, args, evaluated=True)
    predictor = load_predictor(cfg, args.dataset or "", allow_untrained=True)
    model, cfg = predictor.model, predictor.cfg
    check_decides(model)
    routed = bool(routed_stages(model))
    optimize_for_inference(model)

    interventions: dict[str, Any] = {"not_tested": "AP needs annotations: give --dataset"}
    if args.dataset:
        try:
            interventions = intervene(model, cfg, args.dataset, images)
        except UserError as error:
            interventions = {"not_tested": str(error)}
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "config_file": args.config_file,
        "weights": cfg.MODEL.WEIGHTS,
        "images_from": args.dataset or ", ".join(args.input),
        "confidence": args.confidence,
        "interventions": interventions,
    }
    survey = survey_images(model, cfg, images, confidence=args.confidence)
    if routed:
        report |= summarize_choices(survey)
    else:
        report |= {
            "wiring": cfg.MODEL.DGNET.WIRING,
            "edge_weights": cfg.MODEL.DGNET.EDGE_WEIGHTS,
            **summarize(survey),
        }
    examples = []
    for image in choose_examples(report, args.examples):
        pixels = read_image(image["file"], "BGR")
        picture, _ = annotate(predictor, pixels, confidence=args.confidence, graphs=True)
        name = Path(image["file"]).name
        examples.append({**image, "file": name, "picture": picture})

    page = render_choices(report, examples) if routed else render_page(report, survey, examples)
    with written_whole(args.output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    if "ap" in interventions:
        ap, spread = interventions["ap"], interventions["spread"]
        own, mean = ("choices", "the most frequent") if routed else ("edge weights", "their mean")
        print(
            f"AP with each image's own {own} {ap['own']:.2f}, with {mean} {ap['mean']:.2f}, with"
            f" another image's {ap['other']:.2f}"
        )
        print("over the images: " + ", ".join(f"{k} {v:.3f}" for k, v in spread.items()))
    print(f"written to {args.output}")
    if args.json:
        write_json(args.json, report)
        print(f"figures: {args.json}")
