"""Detectron2's checkpointer, strict about the backbone and about classes."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from dgnet_det.checkpoint.reading import local_file, read_checkpoint
from dgnet_det.errors import UserError, first_few
from dgnet_det.modeling.backbone.base import StagedBackbone
from dgnet_det.modeling.backbone.matching import match_backbone
from dgnet_det.utils.files import written_whole

BEST = "model_best"  # the name that BestCheckpointer gives
CLASS_NAMES = "class_names"  # the key under which a checkpoint keeps its data's class names
LISTED = 6  # names in a message


def saved_class_names(checkpoint: Mapping[str, Any]) -> list[str]:
    """A checkpoint's class names, in the order of the model's outputs; empty if it holds none."""
    names = checkpoint.get(CLASS_NAMES)
    is_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_names else []  # type: ignore[return-value]


def class_names_in(weights: str) -> list[str]:
    """The class names in the checkpoint that ``MODEL.WEIGHTS`` names; empty also where the file
    cannot be read: loading it raises the error."""
    try:
        return saved_class_names(read_checkpoint(local_file(weights))) if weights else []
    except UserError:
        return []


def write_checkpoint(data: dict[str, Any], path: str | Path) -> None:
    """Write a file by ``torch.save``, whole or not at all. Raises an OSError where it cannot be
    written."""
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(data, file)
        except RuntimeError as error:  # torch's own, of a file that cannot be written
            raise error.__context__ or error from None


class DGNetCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which also loads a bare backbone's file into a detector or
    classifier, and executes no file. A backbone that does not fit is an error. Class names are
    saved, and compared when a checkpoint is loaded."""

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        class_names: Sequence[str] = (),
        needed: str = "",
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model, save_dir, checkpointables: as for :class:`DetectionCheckpointer`.
            class_names: of the data, in the order of the model's outputs.
            needed: for evaluation and export: what ``MODEL.WEIGHTS`` must name. Then nothing to
                load, a missing tensor, which would stay random, and other classes are errors.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.class_names, self.needed = list(class_names), needed
        self.missing: list[str] = []  # names that the last load did not find
        self.misshaped: list[str] = []  # tensors that it left out, with both shapes

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """As :meth:`DetectionCheckpointer.load`. An empty path loads nothing.

        Raises:
            UserError: the file is missing, cannot be fetched or read, does not fit the model's
                backbone, or is not what is ``needed``; or training would resume with data of other
                classes.
        """
        if not path:
            return super().load(path, checkpointables)
        # The folder's own checkpoint is one to resume from, not the one in MODEL.WEIGHTS.
        own = bool(self.save_dir) and Path(path).parent == Path(self.save_dir)
        source = path if own else f"MODEL.WEIGHTS {path}"
        self._heuristics = urlparse(path).query == "matching_heuristics=True"
        try:
            local_file(path)
            checkpoint = super().load(path, checkpointables)
            saved = saved_class_names(checkpoint)
            warnings = self._judge(saved, resumes=own and checkpointables is None)
        except UserError as error:
            raise UserError(f"{source}: {str(error).removeprefix(f'{path}: ')}") from error
        if warnings:
            logging.getLogger(__name__).warning("%s: %s", source, "; ".join(warnings))
        return checkpoint

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As :meth:`Checkpointer.resume_or_load`. Errors are those of :meth:`load`."""
        if self.needed and not path and not (resume and self.has_checkpoint()):
            raise UserError(f"MODEL.WEIGHTS: empty: this needs {self.needed}")
        return super().resume_or_load(path, resume=resume)

    def save(self, name: str, **kwargs: Any) -> None:
        """As :meth:`Checkpointer.save`, but whole or not at all. Training does not resume from the
        best checkpoint."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs}
        if self.class_names:
            data[CLASS_NAMES] = self.class_names
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        write_checkpoint(data, path)
        if name != BEST:
            # Not Detectron2's, which would leave an empty file where it is killed.
            with written_whole(Path(self.save_dir) / "last_checkpoint") as temporary:
                temporary.write_text(path.name)

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        if self._heuristics:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        for name, backbone in self.model.named_modules():
            if isinstance(backbone, StagedBackbone):
                prefix = f"{name}." if name else ""
                match = match_backbone(checkpoint["model"], backbone, prefix)
                if misfit := match.misfit():
                    raise UserError(misfit)
                state = OrderedDict(match.rest | match.head | match.left_out)
                state.update({prefix + target: x for target, x in match.state().items()})
                state._metadata = getattr(checkpoint["model"], "_metadata", {})  # type: ignore[attr-defined]
                checkpoint["model"] = state
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        shapes = {name: (theirs, ours) for name, theirs, ours in incompatible.incorrect_shapes}
        self.misshaped = [f"{x} {list(a)} → {list(b)}" for x, (a, b) in shapes.items()]
        incompatible.incorrect_shapes.clear()  # load logs them
        incompatible.missing_keys[:] = [x for x in incompatible.missing_keys if x not in shapes]
        self.missing = incompatible.missing_keys
        super()._log_incompatible_keys(incompatible)

    def _judge(self, saved: Sequence[str], *, resumes: bool) -> list[str]:
        """Judge the load of a checkpoint of the classes ``saved``, and return what to warn of.

        Raises:
            UserError: it cannot be used.
        """
        differ = anew = ""
        if saved and self.class_names and saved != self.class_names:
            theirs, ours = first_few(saved, LISTED), first_few(self.class_names, LISTED)
            differ = f"trained for the classes {theirs}, but the data have {ours}"
        if differ and self.needed:
            raise UserError(f"{differ}: evaluate on data of the same classes in the same order")
        if differ and resumes:
            raise UserError(f"{differ}: resuming needs the same; else choose another OUTPUT_DIR")
        if self.needed and (absent := sorted([*self.missing, *self.misshaped])):
            names = first_few(absent, LISTED)
            raise UserError(f"missing or of another shape: {names}: this needs {self.needed}")
        if self.misshaped:
            anew = f"of another shape, so they start anew: {', '.join(self.misshaped)}"
        return list(filter(None, (differ, anew)))
