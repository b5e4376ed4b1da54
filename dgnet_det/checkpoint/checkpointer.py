"""Detectron2's checkpointer, which also loads static networks into graphs."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor, nn

from dgnet_det.checkpoint.reading import local_file, read_checkpoint
from dgnet_det.errors import UserError
from dgnet_det.modeling.backbone import DGNet
from dgnet_det.modeling.backbone.matching import match_backbone, misfit
from dgnet_det.utils.files import written_whole

BEST = "model_best"  # the name that BestCheckpointer gives
CLASS_NAMES = "class_names"  # the key under which a checkpoint keeps its data's class names


def saved_class_names(checkpoint: Mapping[str, Any]) -> list[str]:
    """The names of the classes that a checkpoint was trained for, in the order of the model's
    outputs; empty if it does not say."""
    names = checkpoint.get(CLASS_NAMES)
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    return []


def class_names_in(weights: str) -> list[str]:
    """The class names saved in the checkpoint that ``MODEL.WEIGHTS`` names; empty where there are
    none. What is wrong with a file is told by whoever loads it."""
    try:
        return saved_class_names(read_checkpoint(local_file(weights))) if weights else []
    except UserError:
        return []


class DGNetCheckpointer(DetectionCheckpointer):
    """Loads what Detectron2's checkpointer loads, and static backbones into :class:`DGNet`.

    The backbone's tensors may have any names that :mod:`dgnet_det.checkpoints` knows, alone or in
    a whole detector; everything else is loaded as by Detectron2. Unlike there, a backbone that gets
    other tensors than the source should hold is an error, and no file is executed.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        class_names: Sequence[str] = (),
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: to be loaded and saved.
            save_dir: where :meth:`save` writes.
            class_names: of the data, in the order of the model's outputs. They are saved; a
                checkpoint that was saved with others is told.
            checkpointables: as for :class:`DetectionCheckpointer`.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.class_names = list(class_names)
        self.misshaped: list[str] = []  # tensors that the last load left out for their shape

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As :meth:`DetectionCheckpointer.load`. An empty path loads nothing.

        Raises:
            UserError: the file is missing, cannot be fetched or read, or does not fit the model's
                backbone.
        """
        if not path:
            return super().load(path, *args, **kwargs)
        # A checkpoint that training goes on from is not what MODEL.WEIGHTS names.
        own = bool(self.save_dir) and Path(path).parent == Path(self.save_dir)
        self._source = path if own else f"MODEL.WEIGHTS {path}"
        self._resumes = own and not args and not kwargs
        # What a file does not say itself may stand after its name: "….pth?matching_heuristics=True"
        query = parse_qs(urlparse(path).query)
        self._heuristics = query.get("matching_heuristics") == ["True"]
        try:
            if comm.is_main_process():  # the only one that needs to see the file
                local_file(path)
            return super().load(path, *args, **kwargs)
        except UserError as error:
            message = str(error) if path in str(error) else f"{path}: {error}"
            raise UserError(message if own else f"MODEL.WEIGHTS {message}") from error
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it behind after an error

    def save(self, name: str, **kwargs: Any) -> None:
        """As :meth:`Checkpointer.save`, but whole or not at all; the best checkpoint is not the one
        that ``--resume`` goes on from."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs}
        if self.class_names:
            data[CLASS_NAMES] = self.class_names
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        with written_whole(path) as temporary:
            torch.save(data, temporary)
        if name != BEST:
            self.tag_last_checkpoint(path.name)

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        if self._heuristics:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self._compare_classes(saved_class_names(checkpoint))
        tensors = checkpoint["model"]
        folded_norm = checkpoint.pop("folded_norm", False)
        kept = set(tensors)
        renamed: dict[str, Tensor] = {}
        for name, backbone in self.model.named_modules():
            if not isinstance(backbone, DGNet):
                continue
            prefix = f"{name}." if name else ""
            match = match_backbone(tensors, backbone, prefix=prefix, folded_norm=folded_norm)
            if not match.fits:
                raise UserError(misfit(match, backbone))
            kept &= {*match.others, *match.unknown}
            renamed |= match.head
            renamed |= {prefix + target: tensor for target, tensor in match.tensors.items()}
            logging.getLogger(__name__).info(
                "Backbone: %d tensors from %s, format %s; %d tensors of the graph start untrained",
                len(match.tensors),
                match.kind,
                match.source.format.name,
                len(match.untrained),
            )
        if renamed:
            state = OrderedDict((name, x) for name, x in tensors.items() if name in kept)
            state.update(renamed)
            state._metadata = getattr(tensors, "_metadata", {})  # type: ignore[attr-defined]
            checkpoint["model"] = state
        return super()._load_model(checkpoint)

    def _compare_classes(self, saved: list[str]) -> None:
        """Note what is to be told of a checkpoint of other classes than the data's."""
        self._differ = ""
        if saved and self.class_names and saved != self.class_names:
            self._differ = (
                f"trained for {_listed(saved)}, but the data have {_listed(self.class_names)}"
            )
        if self._differ and self._resumes:
            raise UserError(
                f"{self._differ}: --resume needs the same; else choose another OUTPUT_DIR"
            )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        shapes = {name: (theirs, ours) for name, theirs, ours in incompatible.incorrect_shapes}
        self.misshaped = list(shapes)
        incompatible.incorrect_shapes.clear()
        # They are among these too, and told once.
        incompatible.missing_keys[:] = [n for n in incompatible.missing_keys if n not in shapes]
        super()._log_incompatible_keys(incompatible)
        outcome = "training starts from the other classes' layers"
        if shapes:
            outcome = "these start anew, being of another shape: " + ", ".join(
                f"{name} {list(theirs)} → {list(ours)}" for name, (theirs, ours) in shapes.items()
            )
        if shapes or self._differ:
            told = ": ".join(filter(None, (self._source, self._differ, outcome)))
            logging.getLogger(__name__).warning(told)


class WholeCheckpointer(DGNetCheckpointer):
    """For evaluation and export: what a checkpoint does not hold would be random, and other classes
    than the data's would be counted as theirs. Both are errors. A graph's tensors may be absent
    where :class:`DGNetCheckpointer` lets them: the network then equals its static source."""

    def __init__(self, model: nn.Module, save_dir: str = "", *, needed: str, **kwargs: Any) -> None:
        """
        Args:
            model, save_dir, kwargs: as for :class:`DGNetCheckpointer`.
            needed: what to name in ``MODEL.WEIGHTS``, for the errors.
        """
        super().__init__(model, save_dir, **kwargs)
        self.needed = needed

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As :meth:`DGNetCheckpointer.resume_or_load`.

        Raises:
            UserError: there is nothing to load, or it is not the whole model, of these classes.
        """
        if not path and not (resume and self.has_checkpoint()):
            raise UserError(f"MODEL.WEIGHTS: empty: this needs {self.needed}")
        return super().resume_or_load(path, resume=resume)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        graphs = tuple(f"{n}." for n, m in self.model.named_modules() if isinstance(m, DGNet))
        misshaped = [name for name, *_ in incompatible.incorrect_shapes]
        absent = sorted({*incompatible.missing_keys, *misshaped})
        absent = [name for name in absent if not name.startswith(graphs)]
        if absent:
            listed = ", ".join(absent[:6]) + (", …" if len(absent) > 6 else "")
            raise UserError(f"{listed} missing or of another shape: this needs {self.needed}")
        return incompatible

    def _compare_classes(self, saved: list[str]) -> None:
        self._resumes = False
        super()._compare_classes(saved)
        if self._differ:
            raise UserError(
                f"{self._differ}: evaluate on data of the same classes in the same order"
            )


def _listed(names: Sequence[str], limit: int = 6) -> str:
    """A number of classes and the first names."""
    more = ", …" if len(names) > limit else ""
    plural = "es" if len(names) > 1 else ""
    return f"{len(names)} class{plural} ({', '.join(names[:limit])}{more})"
