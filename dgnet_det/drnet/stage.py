"""A stage whose connections weigh several branches for every image, and run those that matter."""

import copy
from collections.abc import Collection, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from dgnet_det.drnet.branches import Cell, candidates
from dgnet_det.drnet.routing import RouterNet, bypass, soften
from dgnet_det.errors import UserError
from dgnet_det.graph.aggregation import is_recording
from dgnet_det.graph.decisions import DecisionPoint, Decisions
from dgnet_det.graph.routing import average, position_weights
from dgnet_det.graph.stage import Block, PlainStage

# By how much the block's logit exceeds the identity's at the start. At T = 0.2 the identity then
# weighs 0.00005 and is bypassed; at T = 1 it weighs 0.12, and learns.
PREFERENCE = 2.0
# By how much of their standard deviation the weights of a block's copies differ at the start.
DIFFERENCE = 0.1
IDENTITY = nn.Identity()


class RoutedStage(PlainStage):
    """One stage of n connections in a row, x_j = Σ_k w[b, j, k] · B_jk(x_{j-1}), where the stage's
    RouterNet weighs the branches for each image.

    Training has two phases. In the soft phase all branches run, weighed by :func:`.soften`, whose
    temperature and noise fall, and RouterNets learn. In the second phase RouterNets no longer
    learn, and branches run as at inference: those whose weight :func:`.bypass` leaves above 0, each
    for the images that need it. So the statistics of a branch's batch norms are those of the images
    that it serves.

    The RouterNet reads the input of the first connection that has a choice.

    Module names are part of checkpoints: ``nodes.{1..n}``, as in the static network;
    ``copies.{j}.block2`` and so on; and ``routers.block-identity``, which says the branches that
    the router's rows mean.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        branches: Sequence[str],
        temperature: tuple[float, float] = (1.0, 0.2),
        threshold: float = 0.1,
        soft_phase: float = 0.6,
        pruned: Collection[tuple[int, str]] = (),
    ) -> None:
        """
        Args:
            blocks: the stage's blocks, or :class:`.branches.Cell`, in order.
            branches: candidates, see :func:`.branches.candidates`.
            temperature: T at the start and at the end of the soft phase; between them it falls
                geometrically, as the noise's share falls from 1 to 0. The last one is that of
                inference.
            threshold: θ, below which a branch is bypassed.
            soft_phase: the share of training in which RouterNets learn.
            pruned: branches that are not there, as connection and name: all but one of every
                connection, or none.

        Raises:
            UserError: a pruned branch is none, or a choice or nothing is left.
        """
        super().__init__(blocks)
        self.temperature, self.threshold, self.soft_phase = temperature, threshold, soft_phase
        self.progress = 0.0  # the share of training that is done
        self.branches = {j: candidates(block, branches) for j, block in enumerate(blocks, start=1)}
        self.copies = nn.ModuleDict(
            {
                str(j): nn.ModuleDict({name: differing_copy(self.nodes[str(j)]) for name in others})
                for j, names in self.branches.items()
                if (others := [name for name in names[1:] if name.startswith("block")])
            }
        )
        self._prune(pruned)
        self.connections = tuple(j for j, names in self.branches.items() if len(names) > 1)
        self.columns = tuple(self.branches[self.connections[0]]) if self.connections else ()
        self.routers = nn.ModuleDict()
        if self.connections:
            self.routers["-".join(self.columns)] = RouterNet(
                blocks[self.connections[0] - 1].in_channels,
                len(self.connections),
                len(self.columns),
                preference=PREFERENCE if self.columns == ("block", "identity") else 0.0,
            )
        self.decisions = DecisionPoint()

    def module_name(self, j: int, name: str) -> str:
        """The name of a branch's module in this one; empty for the identity, which has none."""
        if name == "identity":
            return ""
        if name.startswith("block"):
            return f"nodes.{j}" if name == "block" else f"copies.{j}.{name}"
        return f"nodes.{j}.branches.{name}"

    def branch(self, j: int, name: str) -> nn.Module:
        """B_jk: [B, C, H, W] → [B, C', H', W']."""
        return self.get_submodule(self.module_name(j, name)) if name != "identity" else IDENTITY

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """
        Args:
            x: the stage's input, [B, C_in, H, W].
            valid: [B, 2], height and width of the part of the stage's *output* that is no padding;
                None for all of it.

        Returns:
            The stage's output, [B, C_out, ⌈H / stride⌉, ⌈W / stride⌉].
        """
        weights: Sequence[Tensor] | None = None  # of each connection that has a choice, [B, K]
        table: list[list[list[float]]] | None = None  # the same as numbers, by image
        for j, names in self.branches.items():
            branches = [self.branch(j, name) for name in names]
            if len(names) == 1:
                x = branches[0](x)
                continue
            if weights is None:
                decided, soft = self._decide(x, valid, self.stride if j == 1 else 1)
                weights = decided.unbind(1)
                table = None if soft or is_recording(x) else decided.tolist()
            c = self.connections.index(j)
            rows = None if table is None else [of_image[c] for of_image in table]
            x = mixture(branches, x, weights[c], rows, training=self.training)
        return x

    def freeze(self) -> None:
        """As :meth:`PlainStage.freeze`: copies and router freeze with the blocks. A frozen stage
        runs as at inference."""
        for of_connection in self.copies.values():
            for block in cast(nn.ModuleDict, of_connection).values():
                cast(Block, block).freeze()
        super().freeze()

    def _decide(self, x: Tensor, valid: Tensor | None, stride: int) -> tuple[Tensor, bool]:
        """The weights of all branches, [B, C, K], and whether all branches run, given the input
        ``x`` of the first connection that has a choice, which has ``stride``."""
        (router,) = self.routers.values()
        learns = self.training and any(p.requires_grad for p in router.parameters())
        soft = learns and self.progress < self.soft_phase
        temperature = self.temperature[1]
        with torch.set_grad_enabled(soft and torch.is_grad_enabled()):
            logits = router(pooled(x, valid, stride))
            if soft:
                done = self.progress / self.soft_phase
                temperature = self.temperature[0] * (temperature / self.temperature[0]) ** done
                weights = soften(logits, temperature, noise=1 - done)
            else:
                weights = bypass(logits, temperature, self.threshold)
        self.decisions(partial(self._decided, logits, temperature, weights, soft))
        return weights, soft

    def _decided(
        self, logits: Tensor, temperature: float, weights: Tensor, soft: bool
    ) -> Decisions:
        # The budget counts what runs; while all branches run, it counts a branch by its weight.
        gate = weights if soft else weights.ne(0).to(weights.dtype)
        value = (logits / temperature).softmax(dim=2)
        learned = torch.ones_like(weights[0], dtype=torch.bool)
        rows = tuple(map(str, self.connections))
        return Decisions(gate, value, weights, learned, rows, self.columns)

    def _prune(self, pruned: Collection[tuple[int, str]]) -> None:
        for j, name in pruned:
            if name not in self.branches.get(j, ()):
                raise UserError(f"{j}-{name} does not exist")
            if self.branches[j] == [name]:
                raise UserError(f"{j}-{name} is the last branch of its connection")
            self.branches[j].remove(name)
        if pruned and any(len(names) > 1 for names in self.branches.values()):
            raise UserError("leave one branch of every connection: the network is to be static")
        for j, names in self.branches.items() if pruned else ():
            if str(j) in self.copies:
                of_connection = cast(nn.ModuleDict, self.copies[str(j)])
                for name in set(of_connection) - set(names):
                    del of_connection[name]
            node = self.nodes[str(j)]
            if isinstance(node, Cell) and names != ["identity"]:
                node.keep(names)
            elif names != ["block"]:
                del self.nodes[str(j)]


def mixture(
    branches: Sequence[nn.Module],
    x: Tensor,
    weights: Tensor,
    rows: Sequence[Sequence[float]] | None,
    *,
    training: bool = False,
) -> Tensor:
    """Σ_k w[b, k] · B_k(x[b]), [B, C', H', W'].

    Args:
        branches: K.
        x: [B, C, H, W].
        weights: w, [B, K].
        rows: the same as numbers: a branch runs for the images whose weight is not 0. Without
            them, all branches run for all images.
        training: a branch that one image alone needs runs for all, since a norm's statistics take
            several.
    """
    total: Tensor | None = None
    everybody, ours = list(range(len(x))), False
    for k, branch in enumerate(branches):
        need = [b for b in everybody if rows[b][k]] if rows is not None else everybody
        if not need:
            continue
        if training and len(need) == 1:
            need = everybody
        everywhere = len(need) == len(x)
        part = branch(x if everywhere else x[need])
        if rows is None or any(rows[b][k] != 1 for b in need):
            factors = weights[:, k] if everywhere else weights[need, k]
            part = part * factors.to(part.dtype)[:, None, None, None]
        if everywhere:
            total, ours = part if total is None else total + part, total is not None
            continue
        if total is None:
            total, ours = part.new_zeros(len(x), *part.shape[1:]), True
        index = torch.tensor(need, device=x.device)
        add = total.index_add_ if ours else total.index_add  # a hook may hold a branch's output
        total, ours = add(0, index, part.to(total.dtype)), True
    return cast(Tensor, total)


def pooled(x: Tensor, valid: Tensor | None, stride: int) -> Tensor:
    """GAP without padding, [B, C], float32 at least.

    Args:
        x: [B, C, H, W].
        valid: [B, 2], height and width of its part that is no padding, divided by ``stride`` and
            rounded up; None for all of it.
    """
    if valid is None:
        return x.mean(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
    return average(x, position_weights(x, valid * stride))


def differing_copy(block: nn.Module) -> nn.Module:
    """A copy of a block whose weights differ a little."""
    copied = copy.deepcopy(block)
    for parameter in copied.parameters():
        parameter.data = differing(parameter.data)
    return copied


def differing(weights: Tensor) -> Tensor:
    """Weights of a layer that differ a little from ``weights``; those of norms, and biases, do
    not."""
    if weights.dim() < 2:
        return weights.clone()
    return weights + DIFFERENCE * weights.std() * torch.randn_like(weights)
