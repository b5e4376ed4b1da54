"""A stage whose connections each run one of their branches, chosen for every image."""

from collections.abc import Collection, Sequence
from functools import partial, reduce
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_det.drnet.branches import Cell, candidates
from dgnet_det.drnet.routing import RouterNet, select
from dgnet_det.errors import UserError
from dgnet_det.graph.aggregation import is_recording, weighted_sum
from dgnet_det.graph.decisions import DecisionPoint, Decisions
from dgnet_det.graph.routing import average, position_weights
from dgnet_det.graph.stage import Block, PlainStage

# The block's logit over that of the identity at the start: in training, it is chosen with
# probability sigmoid(3 / T), 0.95 at T = 1.
PREFERENCE = 3.0
IDENTITY = nn.Identity()


class RoutedStage(PlainStage):
    """One stage of n connections in a row, x_j = Σ_k w[b, j, k] · B_jk(x_{j-1}), where w selects
    one branch for each image.

    At inference a branch runs for the images that selected it, and for no others. In training every
    branch runs for every image: the derivative in w of a branch that was not selected needs its
    output. So a branch's batch statistics are those of all images, by which those that selected it
    were normalised, in training as at inference. Its parameters learn from the images that selected
    it alone.

    Module names are part of checkpoints: ``nodes.{1..n}``, as in the static network, and
    ``routers.{j}`` of the connections with several branches.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        branches: Sequence[str],
        temperature: tuple[float, float] = (1.0, 1.0),
        pruned: Collection[tuple[int, str]] = (),
    ) -> None:
        """
        Args:
            blocks: the stage's blocks, or :class:`.branches.Cell`, in order.
            branches: candidates of the connections that keep the shape.
            temperature: of the Gumbel-Softmax at the start and at the end of training; between them
                it falls geometrically.
            pruned: branches that are not there, as connection and name.

        Raises:
            UserError: a pruned branch is none, or the last of its connection.
        """
        super().__init__(blocks)
        self.temperature = temperature
        self.progress = 0.0  # the share of training that is done
        self.branches = {j: candidates(block, branches) for j, block in enumerate(blocks, start=1)}
        for j, name in pruned:
            if name not in self.branches.get(j, ()):
                raise UserError(f"{j}-{name} does not exist")
            if self.branches[j] == [name]:
                raise UserError(f"{j}-{name} is the last branch of its connection")
            self.branches[j].remove(name)
        for j, names in self.branches.items():
            if names == ["identity"]:
                del self.nodes[str(j)]
            elif "block" not in names:
                cast(Cell, self.nodes[str(j)]).keep(names)
        self.columns = tuple(branches)
        self.routers = nn.ModuleDict(
            {
                str(j): RouterNet(
                    blocks[j - 1].in_channels,
                    len(names),
                    preference=PREFERENCE if "block" in names else 0.0,
                )
                for j, names in self.branches.items()
                if len(names) > 1
            }
        )
        self.decisions = DecisionPoint()

    def module_name(self, j: int, name: str) -> str:
        """The name of a branch's module in this one; empty for the identity, which has none."""
        names = {"identity": "", "block": f"nodes.{j}"}
        return names.get(name, f"nodes.{j}.branches.{name}")

    def branch(self, j: int, name: str) -> nn.Module:
        """B_jk: [B, C, H, W] → [B, C', H', W']."""
        if name == "identity":
            return IDENTITY
        node = self.nodes[str(j)]
        return node if name == "block" else cast(Cell, node).branches[name]

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """
        Args:
            x: the stage's input, [B, C_in, H, W].
            valid: [B, 2], height and width of the part of the stage's *output* that is no padding;
                None for all of it.

        Returns:
            The stage's output, [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉].
        """
        positions: Tensor | None = None
        temperature = self._temperature()
        gates, logits = [], []
        for j, names in self.branches.items():
            branches = [self.branch(j, name) for name in names]
            if len(names) == 1:
                x = branches[0](x)
                continue
            positions = position_weights(x, valid) if positions is None else positions
            logits.append(self.routers[str(j)](average(x, positions)))
            if temperature is not None or is_recording(x):
                gates.append(select(logits[-1], temperature))
                x = weighted_sum([branch(x) for branch in branches], gates[-1])
            else:
                x = run_selected(branches, x, logits[-1].argmax(dim=1))
        if logits:
            self.decisions(partial(self._decided, gates, logits))
        return x

    def _temperature(self) -> float | None:
        """At which branches are drawn; None at inference, and in a frozen stage, which runs so."""
        if not (self.training and any(p.requires_grad for p in self.routers.parameters())):
            return None
        start, end = self.temperature
        return start * (end / start) ** self.progress

    def _decided(self, gates: Sequence[Tensor], logits: Sequence[Tensor]) -> Decisions:
        gates = gates or [select(row, None) for row in logits]

        def table(rows: Sequence[Tensor]) -> Tensor:
            """[B, C, K] of [B, |B_j|] for each connection."""
            columns = []
            for j, row in zip(map(int, self.routers), rows, strict=True):
                place = [
                    self.branches[j].index(n) if n in self.branches[j] else -1 for n in self.columns
                ]
                columns.append(F.pad(row, (0, 1))[:, place])
            return torch.stack(columns, dim=1)

        gate, probability = table(gates), table([row.softmax(dim=1) for row in logits])
        exists = [[n in self.branches[int(j)] for n in self.columns] for j in self.routers]
        learned = torch.tensor(exists, device=gate.device)
        return Decisions(gate, probability, gate, learned, tuple(self.routers), self.columns)


def run_selected(branches: Sequence[nn.Module], x: Tensor, selected: Tensor) -> Tensor:
    """Each image through the branch that it selected, and through no other.

    Args:
        branches: K, none of which changes the shape.
        x: [B, C, H, W].
        selected: 0 to K - 1, [B].
    """
    running = sorted(set(selected.tolist()))
    if len(running) == 1:
        return branches[running[0]](x)
    rows = [selected.eq(k).nonzero().squeeze(1) for k in running]
    parts = [branches[k](x[of_k]) for k, of_k in zip(running, rows, strict=True)]
    dtype = reduce(torch.promote_types, (part.dtype for part in parts))
    out = torch.empty_like(x, dtype=dtype)
    for of_k, part in zip(rows, parts, strict=True):
        out = out.index_copy_(0, of_k, part.to(dtype))
    return out
