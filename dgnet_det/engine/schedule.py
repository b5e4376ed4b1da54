"""The learning rate and the schedule for this run's batch and data, by the linear rule."""

import math
from collections.abc import Collection, Sequence

from detectron2.config import CfgNode
from tabulate import tabulate

from dgnet_det.config import check_choices, leaves
from dgnet_det.errors import UserError

# The share of the iterations that a warm-up takes at most, unless the recipe's takes more: one that
# is meant for many images must not use up the training on few.
LARGEST_WARMUP = 0.1
MANY_EPOCHS = 500
# Detectron2's own learning rate per image of the batch, and the multiple of it that is warned of.
USUAL_RATE, DOUBTFUL = 0.02 / 16, 1.5
# The least value of keys of a training.
LEAST = {
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.BASE_LR": 0,
    "SOLVER.ROUTER_LR_FACTOR": 0,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.EPOCHS": 0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 0,
    "CLASSIFICATION.EPOCHS": 1,
    "CLASSIFICATION.WARMUP_EPOCHS": 0,
    "CLASSIFICATION.ACCUMULATION": 1,
    "CLASSIFICATION.SIZE": 1,
}
# The values that Detectron2 knows, of keys that it reads once a training has begun.
CHOICES = {
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "DATALOADER.SAMPLER_TRAIN": (
        "TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler",
        "WeightedTrainingSampler", "WeightedCategoryTrainingSampler",
    ),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
}  # fmt: skip


def fit_schedule(
    cfg: CfgNode,
    processes: int,
    num_images: int,
    *,
    recipe: CfgNode | None = None,
    given: Collection[str] = (),
) -> CfgNode:
    """The frozen config with ``SOLVER`` and the periods fitted to this run.

    A YAML's ``SOLVER`` keys are a recipe for a batch of ``IMS_PER_BATCH`` images that
    ``REFERENCE_WORLD_SIZE`` processes share. Keys that the command line gives stay; the others
    follow from the recipe:

    - each process takes as many images as in the recipe;
    - the learning rate grows with the batch, and the iterations shrink;
    - ``EPOCHS``, or given iterations, set the length of the training. ``STEPS`` and the periods of
      checkpoints and evaluation keep their places in it, but no period is shorter than an epoch;
      the warm-up takes as many images as in the recipe, but at most ``LARGEST_WARMUP`` of the
      training, or the recipe's share.

    With ``REFERENCE_WORLD_SIZE`` 0, Detectron2's default, batch, learning rate and iterations stay;
    ``EPOCHS`` still sets the length. Steps after the end are left out. Fitting a fitted config to
    the same run changes nothing.

    Args:
        cfg: the YAML's config with the command line's overrides.
        processes: their number on all machines.
        num_images: the number of training images.
        recipe: the YAML's config; default: ``cfg``.
        given: keys that the command line overrides.

    Raises:
        UserError: the batch cannot be shared evenly, both ``EPOCHS`` and ``MAX_ITER`` are given, or
            as :func:`check_solver`.
    """
    check_solver(cfg)
    recipe = recipe or cfg
    cfg = cfg.clone()
    cfg.defrost()
    solver, old = cfg.SOLVER, recipe.SOLVER

    factor = 1.0
    if solver.REFERENCE_WORLD_SIZE:
        if "SOLVER.IMS_PER_BATCH" not in given:
            per_process, rest = divmod(solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE)
            if rest:
                raise UserError(
                    f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}: not a multiple of"
                    f" SOLVER.REFERENCE_WORLD_SIZE {solver.REFERENCE_WORLD_SIZE}, the processes"
                    " that it is meant for"
                )
            solver.IMS_PER_BATCH = per_process * processes
        solver.REFERENCE_WORLD_SIZE = processes
        factor = solver.IMS_PER_BATCH / old.IMS_PER_BATCH
    if solver.IMS_PER_BATCH % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}: not a multiple of the {processes}"
            " processes that share it"
        )
    if "SOLVER.BASE_LR" not in given:
        solver.BASE_LR = old.BASE_LR * factor
    if "SOLVER.BASE_LR_END" not in given and old.BASE_LR:
        solver.BASE_LR_END = old.BASE_LR_END * solver.BASE_LR / old.BASE_LR

    if "SOLVER.MAX_ITER" in given:
        if "SOLVER.EPOCHS" in given and solver.EPOCHS:
            raise UserError("SOLVER.EPOCHS and SOLVER.MAX_ITER: give one of them")
        solver.EPOCHS = 0
    elif solver.EPOCHS:
        solver.MAX_ITER = math.ceil(solver.EPOCHS * num_images / solver.IMS_PER_BATCH)
    else:
        solver.MAX_ITER = round(old.MAX_ITER / factor)
    if solver.REFERENCE_WORLD_SIZE or solver.EPOCHS:
        _stretch(cfg, recipe, factor, math.ceil(num_images / solver.IMS_PER_BATCH), given)
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and solver.BASE_LR_END > solver.BASE_LR:
        raise UserError(
            f"SOLVER.BASE_LR_END {solver.BASE_LR_END:g}: more than SOLVER.BASE_LR"
            f" {solver.BASE_LR:g}, where the cosine starts: lower it"
        )
    # Detectron2 refuses one at the very end.
    solver.STEPS = tuple(dict.fromkeys(step for step in solver.STEPS if step < solver.MAX_ITER))
    cfg.freeze()
    return cfg


def fit_classifier_schedule(
    cfg: CfgNode,
    processes: int,
    num_images: int,
    *,
    recipe: CfgNode | None = None,
    given: Collection[str] = (),
) -> CfgNode:
    """As :func:`fit_schedule`, with the epochs, and those of the warm-up, of ``CLASSIFICATION``.

    Raises:
        UserError: as :func:`fit_schedule`; the length is given in iterations, or is not longer than
            the warm-up.
    """
    check_solver(cfg)
    for key, instead in (("MAX_ITER", "EPOCHS"), ("WARMUP_ITERS", "WARMUP_EPOCHS")):
        if f"SOLVER.{key}" in given:
            raise UserError(f"SOLVER.{key}: of a classifier, give CLASSIFICATION.{instead}")
    cfg = cfg.clone()
    cfg.defrost()
    options = cfg.CLASSIFICATION
    if "SOLVER.EPOCHS" in given:
        options.EPOCHS = cfg.SOLVER.EPOCHS
    if options.WARMUP_EPOCHS >= options.EPOCHS:
        raise UserError(
            f"CLASSIFICATION.WARMUP_EPOCHS {options.WARMUP_EPOCHS}: it must be less than"
            f" CLASSIFICATION.EPOCHS {options.EPOCHS}"
        )
    cfg.SOLVER.EPOCHS = options.EPOCHS
    cfg = fit_schedule(cfg, processes, num_images, recipe=recipe, given=given)
    cfg.defrost()
    cfg.SOLVER.WARMUP_ITERS = math.ceil(
        options.WARMUP_EPOCHS * num_images / cfg.SOLVER.IMS_PER_BATCH
    )
    cfg.freeze()
    return cfg


def _stretch(
    cfg: CfgNode, recipe: CfgNode, factor: float, epoch: int, given: Collection[str]
) -> None:
    """Move the recipe's steps and periods to the same places among ``cfg``'s iterations. In a
    shorter training, no period falls below an ``epoch``, or the recipe's own."""
    solver, old = cfg.SOLVER, recipe.SOLVER
    ratio = solver.MAX_ITER / old.MAX_ITER
    if round(old.MAX_ITER / factor) == solver.MAX_ITER:
        ratio = 1 / factor  # without the rounding
    if "SOLVER.STEPS" not in given:
        solver.STEPS = tuple(round(step * ratio) for step in old.STEPS)
    if "SOLVER.WARMUP_ITERS" not in given:
        share = max(LARGEST_WARMUP, old.WARMUP_ITERS / old.MAX_ITER)
        solver.WARMUP_ITERS = round(min(old.WARMUP_ITERS / factor, share * solver.MAX_ITER))
    for group, key in (("SOLVER", "CHECKPOINT_PERIOD"), ("TEST", "EVAL_PERIOD")):
        period = recipe[group][key]
        if f"{group}.{key}" not in given and period > 0 and ratio != 1:
            least = epoch if solver.EPOCHS else min(epoch, round(period / factor))
            cfg[group][key] = max(1, least, round(period * ratio))


def check_solver(cfg: CfgNode) -> None:
    """Raise a :class:`UserError` if a key is out of the range or choices that are known here."""
    values = dict(leaves(cfg))
    for name, least in LEAST.items():
        if not values[name] >= least:
            raise UserError(f"{name} {values[name]}: give at least {least}")
    check_choices(cfg, CHOICES)


def describe_schedule(
    cfg: CfgNode, processes: int, num_images: int, class_names: Sequence[str], *, evaluates: bool
) -> str:
    """A small table of what a fitted config will do; ``evaluates`` tells whether there is data to
    evaluate on."""
    solver = cfg.SOLVER
    batch, epochs = solver.IMS_PER_BATCH, solver.MAX_ITER * solver.IMS_PER_BATCH / num_images
    shared = f" ({processes} processes × {batch // processes})" if processes > 1 else ""
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = ", ".join(map(str, solver.STEPS))
        decay = f"× {solver.GAMMA:g} at iterations {steps}" if steps else "constant"
    else:
        decay = solver.LR_SCHEDULER_NAME
    evaluation = (
        f"every {cfg.TEST.EVAL_PERIOD} iterations" if cfg.TEST.EVAL_PERIOD else "at the end"
    )
    rows = [
        ("images", num_images),
        ("classes", f"{len(class_names)}: {', '.join(class_names[:10])}"
         + (", …" if len(class_names) > 10 else "")),
        ("batch", f"{batch}{shared}"),
        ("learning rate", f"{solver.BASE_LR:.4g}, after {solver.WARMUP_ITERS} iterations of"
         f" warm-up; {decay}"),
        ("iterations", f"{solver.MAX_ITER}: {epochs:.4g} passes over the images"),
        ("evaluation", evaluation if evaluates else "none: no data to evaluate on"),
        ("checkpoint", f"every {solver.CHECKPOINT_PERIOD} iterations"),
    ]  # fmt: skip
    return tabulate(rows, tablefmt="plain")


def doubts(cfg: CfgNode, num_images: int) -> list[str]:
    """Warnings of likely mistakes in a fitted config, a line each."""
    solver = cfg.SOLVER
    batch, epochs = solver.IMS_PER_BATCH, solver.MAX_ITER * solver.IMS_PER_BATCH / num_images
    lines, usual = [], USUAL_RATE * batch
    if not solver.REFERENCE_WORLD_SIZE and DOUBTFUL * usual < solver.BASE_LR:
        lines.append(
            f"SOLVER.BASE_LR {solver.BASE_LR:g} is not scaled to the batch of {batch}: Detectron2's"
            f" 0.02 for 16 images would be {usual:.4g}. SOLVER.REFERENCE_WORLD_SIZE 8"
            " scales the rate and the schedule of a config for 8 GPUs"
        )
    if epochs > MANY_EPOCHS:
        lines.append(f"{epochs:.4g} passes are many: SOLVER.EPOCHS sets their number")
    if batch > num_images:
        lines.append(f"SOLVER.IMS_PER_BATCH {batch} is more than all {num_images} images")
    return lines
