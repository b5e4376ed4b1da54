"""Detectron2's checkpointer, which also loads static networks into graphs."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor

from ..backbones import DGNet
from ..errors import UserError
from ..files import written_whole
from .matching import match_backbone, misfit
from .reading import local_file, read_checkpoint

BEST = "model_best"  # the name that BestCheckpointer gives


class DGNetCheckpointer(DetectionCheckpointer):
    """Loads what Detectron2's checkpointer loads, and static backbones into :class:`DGNet`.

    The backbone's tensors may have any names that :mod:`dgnet_det.checkpoints` knows, alone or in
    a whole detector; everything else is loaded as by Detectron2. Unlike there, a backbone that gets
    other tensors than the source should hold is an error, and no file is executed.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As :meth:`DetectionCheckpointer.load`. An empty path loads nothing.

        Raises:
            UserError: the file is missing, cannot be fetched or read, or does not fit the model's
                backbone.
        """
        if not path:
            return super().load(path, *args, **kwargs)
        # What a file does not say itself may stand after its name: "….pth?matching_heuristics=True"
        query = parse_qs(urlparse(path).query)
        self._heuristics = query.get("matching_heuristics") == ["True"]
        try:
            if comm.is_main_process():  # the only one that needs to see the file
                local_file(path)
            return super().load(path, *args, **kwargs)
        except UserError as error:
            # A checkpoint that training goes on from is not what MODEL.WEIGHTS names.
            own = self.save_dir and Path(path).parent == Path(self.save_dir)
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
