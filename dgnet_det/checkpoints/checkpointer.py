"""Detectron2's checkpointer, which also loads static networks into graphs."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast
from urllib.parse import ParseResult, parse_qs

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor

from ..backbones import DGNet
from ..errors import UserError
from .matching import match_backbone, misfit
from .reading import local_file, read_checkpoint


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
        try:
            local_file(path)
            return super().load(path, *args, **kwargs)
        except UserError as error:
            # A checkpoint that training goes on from is not what MODEL.WEIGHTS names.
            own = self.save_dir and Path(path).parent == Path(self.save_dir)
            message = str(error) if path in str(error) else f"{path}: {error}"
            raise UserError(message if own else f"MODEL.WEIGHTS {message}") from error
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        # What a file does not say itself may stand after its name: "….pth?matching_heuristics=True"
        url = cast(ParseResult, self._parsed_url_during_load)
        if parse_qs(url.query).get("matching_heuristics") == ["True"]:
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
            kept &= {*match.head, *match.others, *match.unknown}
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
