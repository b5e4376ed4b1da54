"""Whether a detector uses what its routers decide: it is evaluated with edge weights of other
images."""

import contextlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import pycocotools.mask
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation.evaluator import inference_context
from torch import Tensor, nn
from tqdm import tqdm

from dgnet_det.drnet.routing import RouterNet
from dgnet_det.errors import UserError
from dgnet_det.evaluation.coco import Evaluator, ResampledAP, build_image_loader
from dgnet_det.modeling.observation import check_decides, deciding_stages, record_spread

RESAMPLES = 1000  # of the bootstrap
INTERVAL = (2.5, 97.5)  # per cent
MATCH_IOU = 0.5
SEED = 0
ALONE = 1000.0  # a logit that bypasses all other branches


@torch.no_grad()
def intervene(
    model: nn.Module,
    cfg: CfgNode,
    dataset_name: str,
    images: Sequence[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Evaluate a detector with each image's own edge weights, with the mean over all images, and
    with those of another image, which is drawn once from a fixed seed.

    The routers' output is replaced (Eq. 4), before the threshold (Eq. 5). Where a node is absent in
    an image, its router gives nothing: the mean is over the other images, and stands in where the
    other image has none. In routed stages the choice is replaced; their mean is the most frequent.

    Args:
        model: a detector with graphs or routed stages.
        cfg: its config.
        dataset_name: a registered dataset in COCO's format.
        images: some of its images in Detectron2's format; default: all.

    Returns:
        Figures for JSON, of ``own``, ``mean`` and ``other`` edge weights:

        - ``num_images``;
        - ``ap``: box AP, per cent, of each;
        - ``own_minus``: own AP less that of ``mean`` and of ``other``, each as ``value``, and
          ``low`` and ``high`` of its interval of 95 % over resampled images;
        - ``score_change``: of ``mean`` and ``other``, see :func:`mean_score_change`;
        - ``spread``: over the images, as :class:`AlphaSpread` or :class:`ChoiceSpread` gives it.

    Raises:
        UserError: the network is plain, there are fewer than two images, or nothing is found.
    """
    check_decides(model)
    images = DatasetCatalog.get(dataset_name) if images is None else images
    if len(images) < 2:
        raise UserError(f"{dataset_name}: one image has no other's edge weights: give at least two")
    loader = build_image_loader(cfg, images)
    evaluators = {name: Evaluator(dataset_name) for name in ("own", "mean", "other")}
    with inference_context(model):
        with record_spread(model) as spread:
            alpha = _stacked(_detect(model, loader, evaluators["own"]))
        mean = {name: values.nanmean(dim=0, keepdim=True) for name, values in alpha.items()}
        _detect(model, loader, evaluators["mean"], lambda name, _: mean.get(name))
        rows = torch.as_tensor(another_of_each(len(images)))
        # By router, and then by image.
        other = {
            n: torch.where(v[rows].isnan(), mean[n], v[rows]).split(1) for n, v in alpha.items()
        }
        _detect(
            model, loader, evaluators["other"], lambda n, k: other[n][k] if n in other else None
        )
    ap, own_minus = _average_precisions(evaluators, [image["image_id"] for image in images])
    found = {name: evaluator.found for name, evaluator in evaluators.items()}
    return {
        "num_images": len(images),
        "ap": ap,
        "own_minus": own_minus,
        "score_change": {n: mean_score_change(found["own"], found[n]) for n in own_minus},
        "spread": spread.pop(),
    }


@contextmanager
def router_hooks(model: nn.Module, hook: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``hook(name, output)`` whenever a router of ``model`` has run. Its name is like
    ``res4.0.routers.1``. Its output is α before the threshold, [B, K]; of a RouterNet, 1 for each
    connection's largest logit, [B, C, K]. The hook may return a tensor to use instead; of a
    RouterNet, the branch where that is largest runs."""

    def largest(values: Tensor) -> Tensor:
        return F.one_hot(values.argmax(dim=-1), values.shape[-1]).to(values.dtype)

    def answer(name: str, router: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if not isinstance(router, RouterNet):
            return hook(name, output)
        instead = hook(name, largest(output))
        return None if instead is None else largest(instead) * ALONE

    with ExitStack() as handles:
        for stage_name, stage in deciding_stages(model).items():
            for i, router in stage.routers.items():
                name = f"{stage_name}.routers.{i}"
                handles.enter_context(router.register_forward_hook(partial(answer, name)))
        yield


def another_of_each(count: int) -> np.ndarray:
    """A permutation of ``range(count)`` that leaves nothing in its place, [count]."""
    circle = np.random.default_rng(SEED).permutation(count)
    another = np.empty(count, dtype=int)
    another[circle] = np.roll(circle, 1)
    return another


def mean_score_change(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> float:
    """The mean change of the scores of detections in COCO's result format. The counterpart of a
    detection is that of the same image and class which overlaps it most; its score counts as 0
    where none overlaps by half."""
    candidates = defaultdict(list)
    for box in after:
        candidates[box["image_id"], box["category_id"]].append(box)
    changes = []
    for box in before:
        others = candidates[box["image_id"], box["category_id"]]
        score = 0.0
        if others:
            boxes = [other["bbox"] for other in others]
            overlap = pycocotools.mask.iou([box["bbox"]], boxes, [0] * len(boxes))[0]
            if overlap.max() >= MATCH_IOU:
                score = others[overlap.argmax()]["score"]
        changes.append(abs(box["score"] - score))
    return float(np.mean(changes))


def _detect(
    model: nn.Module,
    loader: Iterable[list[dict[str, Any]]],
    evaluator: Evaluator,
    instead: Callable[[str, int], Tensor | None] = lambda name, k: None,
) -> list[dict[str, Tensor]]:
    """Detect in images with ``instead(name, k)`` for the output of router ``name`` on image k.
    Returns the routers' own outputs, [1, K] by name, for each image."""
    returned: list[dict[str, Tensor]] = []

    def hook(name: str, output: Tensor) -> Tensor | None:
        returned[-1][name] = output
        return instead(name, len(returned) - 1)

    evaluator.reset()
    with router_hooks(model, hook):
        for inputs in tqdm(loader, desc="images", unit="image"):
            returned.append({})
            evaluator.process(inputs, model(inputs))
    return returned


def _stacked(returned: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The routers' outputs for n images, [n, K] by name, NaN where a router did not run."""
    unknown = {n: torch.full_like(x, torch.nan) for outputs in returned for n, x in outputs.items()}
    return {n: torch.cat([row.get(n, x) for row in returned]) for n, x in unknown.items()}


def _average_precisions(
    evaluators: Mapping[str, Evaluator], image_ids: list[int]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """``ap`` and ``own_minus`` of :func:`intervene`."""
    number = len(image_ids)
    draws = np.random.default_rng(SEED).multinomial(number, [1 / number] * number, size=RESAMPLES)
    ap, resampled = {}, {}
    for name, evaluator in evaluators.items():
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.evaluate(img_ids=image_ids)
        if name == "own" and not evaluator.found:
            raise UserError(f"{evaluator.dataset_name}: the detector finds nothing in its images")
        ap_of = ResampledAP(evaluator.truth, evaluator.found, image_ids)
        ap[name] = ap_of(np.ones(number))
        resampled[name] = np.array([ap_of(counts) for counts in draws])
    own_minus = {}
    for name in ("mean", "other"):
        low, high = np.nanpercentile(resampled["own"] - resampled[name], INTERVAL)
        value = ap["own"] - ap[name]
        own_minus[name] = {"value": value, "low": float(low), "high": float(high)}
    return ap, own_minus
