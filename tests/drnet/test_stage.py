"""Routed stages: step 0, the split batch, gradients, the two phases, freezing, padding."""

import math

import pytest
import torch
from helpers.routed import FAMILIES, STAGES, drnet, images, routed_backbone
from helpers.static_networks import NETWORKS, RESNET18, Static, assert_equal_features
from torch import nn

import dgnet_det.drnet.stage as stage_module
from dgnet_det.drnet.branches import CELL
from dgnet_det.drnet.stage import RoutedStage
from dgnet_det.errors import UserError
from dgnet_det.graph.decisions import Decisions
from dgnet_det.modeling.backbone.drnet import DRNet
from dgnet_det.modeling.backbone.resnet import BasicNode
from dgnet_det.modeling.observation import record_decisions, routed_stages


@pytest.mark.parametrize("static", NETWORKS, ids=str)
def test_skip_starts_equal_to_the_static_network(static: Static) -> None:
    backbone = drnet(static.family, **static.network)
    backbone.load_state_dict(static.build().state_dict())
    image = torch.randn(2, 3, 64, 96)
    with record_decisions(backbone) as choices, torch.no_grad():
        features = backbone(image)
    assert all(of_stage.gate[..., 0].all() for of_stage in choices.values())
    assert not any(of_stage.gate[..., 1].any() for of_stage in choices.values())
    assert_equal_features(features, static.features(image))


def test_copies_start_from_the_static_network(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = drnet("resnet", branches=["block"] * 3, **RESNET18.network)
    backbone.load_state_dict(RESNET18.build().state_dict())
    state, copies = backbone.state_dict(), 0
    for name, tensor in state.items():
        if ".copies." in name:
            stage, rest = name.split(".copies.")
            j, _, inside = rest.split(".", 2)
            block, copies = state[f"{stage}.nodes.{j}.{inside}"], copies + 1
            if tensor.dim() < 2:
                assert torch.equal(tensor, block)
            else:
                assert 0.05 * block.std() < (tensor - block).std() < 0.15 * block.std()
    assert copies == 2 * sum(".nodes." in name for name in state)
    again = drnet("resnet", branches=["block"] * 3, **RESNET18.network)
    again.load_state_dict(state)  # a checkpoint of its own
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())

    monkeypatch.setattr(stage_module, "DIFFERENCE", 0.0)
    backbone.load_state_dict(RESNET18.build().state_dict())
    image = torch.randn(2, 3, 64, 96)
    with record_decisions(backbone) as choices, torch.no_grad():
        features = backbone(image)
    assert all(of_stage.gate.all() for of_stage in choices.values())
    assert_equal_features(features, RESNET18.features(image))


@torch.no_grad()
def run_everything(backbone: DRNet, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every branch for every image, then the sum by each image's weights, with a bypass of what is
    below 0.1 at a temperature of 0.2."""
    x, features = backbone.stem(x), {}
    for name, stage in backbone.stages().items():
        assert isinstance(stage, RoutedStage)
        weights = None
        for j, names in stage.branches.items():
            outputs = [stage.branch(j, branch)(x) for branch in names]
            if len(names) == 1:
                (x,) = outputs
                continue
            if weights is None:
                (router,) = stage.routers.values()
                weights = (router(x.mean(dim=(2, 3))) / 0.2).softmax(dim=2)
                weights[weights < 0.1] = 0
                weights = iter((weights / weights.sum(dim=2, keepdim=True)).unbind(1))
            x = torch.einsum("bk,kbchw->bchw", next(weights), torch.stack(outputs))
        features[name.split(".")[0]] = x
    return features


BACKBONES = {
    **{family: (family, {}) for family in FAMILIES},
    "copies": ("resnet", {"branches": ["block"] * 3}),
    "one branch": ("cell", {"threshold": 0.5}),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kind", [*FAMILIES, "copies"])
@torch.no_grad()
def test_a_split_batch_is_every_branch_for_everybody_and_a_weighted_sum(
    kind: str, layout: torch.memory_format
) -> None:
    family, arguments = BACKBONES[kind]
    backbone, x = routed_backbone(family, **arguments), images().contiguous(memory_format=layout)
    with record_decisions(backbone) as choices:
        features = backbone(x)
    weights = torch.cat([of_stage.weight.flatten() for of_stage in choices.values()])
    assert {0, 1} < set(weights.tolist())  # and some in between
    expected = run_everything(backbone, x)
    assert_equal_features(features, expected)
    alone = [backbone(image[None]) for image in x]
    assert_equal_features({n: torch.cat([f[n] for f in alone]) for n in STAGES}, expected)


@pytest.mark.parametrize("kind", ["cell", "copies", "one branch"])
@torch.no_grad()
def test_a_branch_runs_for_the_images_that_need_it_and_for_no_others(kind: str) -> None:
    family, arguments = BACKBONES[kind]
    backbone = routed_backbone(family, **arguments)
    ran: dict[tuple[str, int, str], int] = {}
    for name, stage in routed_stages(backbone).items():
        for j in stage.connections:
            for branch in stage.branches[j]:
                if branch != "identity":
                    stage.branch(j, branch).register_forward_pre_hook(
                        lambda _, x, key=(name, j, branch): ran.update({key: len(x[0])})
                    )
    with record_decisions(backbone) as choices:
        backbone(images())
    needed = {
        (name, j, branch): int(count)
        for name, of_stage in choices.items()
        for j, counts in zip(map(int, of_stage.rows), of_stage.gate.sum(dim=0), strict=True)
        for branch, count in zip(of_stage.columns, counts, strict=True)
        if branch != "identity" and count
    }
    assert ran == needed
    assert any(0 < count < 6 for count in ran.values())
    if kind == "one branch":
        assert all(of_stage.gate.sum(dim=2).eq(1).all() for of_stage in choices.values())


def small_stage(norm: str = "", **arguments: object) -> RoutedStage:
    """Three connections in float64, two of which choose."""
    blocks = [BasicNode(4, 6, stride=2, norm=norm), *(BasicNode(6, 6, norm=norm) for _ in range(2))]
    options = {"branches": ["block", "identity"], "temperature": (0.9, 0.3), **arguments}
    stage = RoutedStage(blocks, **options).double()
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.4)
    for router in stage.routers.values():
        nn.init.normal_(router.linear.weight)
        nn.init.zeros_(router.linear.bias)
    return stage


def seen_by(stage: RoutedStage, x: torch.Tensor) -> Decisions:
    seen: list[Decisions] = []
    with stage.decisions.register_forward_hook(lambda *args: seen.append(args[-1]())):
        stage(x)
    return seen[0]


def written_out(stage: RoutedStage, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The soft phase, half done."""
    x = stage.nodes["1"](x)
    (router,) = stage.routers.values()
    logits = router(x.mean(dim=(2, 3)))
    weights = ((logits + 0.5 * noise) / math.sqrt(0.9 * 0.3)).softmax(dim=2)
    for c, j in enumerate(("2", "3")):
        block, identity = weights[:, c, :, None, None, None].unbind(1)
        x = block * stage.nodes[j](x) + identity * x
    return x


def test_the_soft_phase_and_its_gradients_are_the_written_out_formula() -> None:
    stage, x = small_stage(soft_phase=0.6).train(), torch.randn(3, 4, 6, 6, dtype=torch.float64)
    slopes = torch.randn(3, 6, 3, 3, dtype=torch.float64)
    stage.progress = 0.3
    torch.manual_seed(1)
    out = stage(x.requires_grad_())
    torch.manual_seed(1)
    noise = -torch.empty(3, 2, 2, dtype=torch.float64).exponential_().log()
    expected = written_out(stage, x, noise)
    torch.testing.assert_close(out, expected)
    learning = [x, *stage.parameters()]
    ours, theirs = (torch.autograd.grad((y * slopes).sum(), learning) for y in (out, expected))
    for gradient, other in zip(ours, theirs, strict=True):
        assert gradient.any()
        torch.testing.assert_close(gradient, other)

    def forward(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return stage(x)

    assert torch.autograd.gradcheck(forward, x)


def test_in_the_second_phase_routers_rest_and_training_is_inference() -> None:
    stage, x = small_stage(), torch.randn(8, 4, 6, 6, dtype=torch.float64)
    stage.train().progress = 0.6
    out = stage(x)
    with torch.no_grad():
        torch.testing.assert_close(out, stage.eval()(x))
    out.square().sum().backward()
    routers = set(stage.routers.parameters())
    for parameter in stage.parameters():
        assert (parameter.grad is None) == (parameter in routers)
    assert seen_by(stage, x).gate.unique().tolist() == [0, 1]


def test_batch_statistics_of_the_phases() -> None:
    """At first those of all images, then of those that need the branch; where that is one alone, of
    all."""
    stage, x = small_stage("BN").train(), torch.randn(8, 4, 6, 6, dtype=torch.float64)
    sizes: list[int] = []
    stage.nodes["2"].conv1.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    stage(x)
    stage.progress = 0.9
    needing = int(seen_by(stage, x).gate[:, 0, 0].sum())
    assert 1 < needing < 8
    (router,) = stage.routers.values()
    alone = 100 * torch.eye(2, dtype=torch.float64)[[0, 1, 1, 1, 1, 1, 1, 1]]
    router.register_forward_hook(lambda *_: torch.stack([alone, alone], dim=1))
    stage(x)
    assert sizes == [8, needing, 8]
    with torch.no_grad():
        stage.eval()(x)
    assert sizes[-1] == 1


def test_a_frozen_stage_runs_as_at_inference() -> None:
    backbone = routed_backbone("resnet", branches=["block"] * 2, freeze_at=3).train()
    with record_decisions(backbone) as choices:
        backbone(x := images())
        frozen, learning = choices["res3.0"], choices["res4.0"]
        backbone.eval()(x)
    assert torch.equal(frozen.weight, choices["res3.0"].weight)
    assert (
        set(frozen.gate.unique().tolist()) <= {0, 1} < set(learning.gate.unique().tolist()) | {0, 1}
    )
    assert not any(p.requires_grad for p in backbone.stages()["res3.0"].parameters())


@pytest.mark.parametrize("branches", [["block", "identity"], ["block", "block"]])
@torch.no_grad()
def test_routers_leave_padding_out(branches: list[str]) -> None:
    stage = small_stage(branches=branches).eval()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    seen: list[Decisions] = []
    stage.decisions.register_forward_hook(lambda *args: seen.append(args[-1]()))
    stage(x, torch.tensor([[4, 3], [2, 4]]))
    first, scale = (stage.nodes["1"](x), 1) if "identity" in branches else (x, 2)
    gap = torch.stack(
        [
            first[0, :, : 4 * scale, : 3 * scale].mean(dim=(1, 2)),
            first[1, :, : 2 * scale].mean(dim=(1, 2)),
        ]
    )
    (router,) = stage.routers.values()
    torch.testing.assert_close(seen[0].value, (router(gap) / 0.3).softmax(dim=2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_mixed_precision(dtype: torch.dtype) -> None:
    backbone, x = routed_backbone("mobilenetv2"), images()
    with torch.autocast("cpu", dtype):
        features = backbone(x)
    assert all(feature.isfinite().all() for feature in features.values())


@torch.no_grad()
def test_a_compiled_backbone_decides_for_each_image() -> None:
    backbone, x = routed_backbone("cell", out_features=("res2", "res3")), images(4)
    compiled = torch.compile(backbone, backend="eager")
    assert_equal_features(compiled(x), backbone(x))


@torch.no_grad()
def test_pruned_branches_leave_a_static_network() -> None:
    whole = routed_backbone("cell", out_features=["res2"])
    names = [f"res2.0:2-{x}" for x in CELL[:4]] + [f"res2.0:3-{x}" for x in CELL if x != "sep5x5"]
    pruned = drnet("cell", out_features=["res2"], pruned_branches=names)
    pruned.load_state_dict(
        {name: x for name, x in whole.state_dict().items() if name in pruned.state_dict()}
    )
    x = images()
    expected = whole.stages()["res2.0"].branch(3, "sep5x5")(whole.res2[0].nodes["1"](whole.stem(x)))
    torch.testing.assert_close(pruned(x)["res2"], expected)
    assert not any("routers" in name or "sep3x3" in name for name in pruned.state_dict())

    copies = {"branches": ["block"] * 2, "depth": 18, "res2_out_channels": 64}
    left = [f"res2.0:{j}-block" for j in (1, 2)]
    (stage,) = drnet("resnet", out_features=["res2"], pruned_branches=left, **copies).res2
    assert not stage.nodes
    assert stage(torch.randn(1, 64, 8, 8)).shape == (1, 64, 8, 8)


def test_a_checkpoint_says_which_branches_its_routers_mean() -> None:
    state = drnet("cell", branches=["sep3x3", "pool3x3"]).state_dict()
    for others in (["pool3x3", "sep3x3"], ["sep3x3", "identity"]):
        other = drnet("cell", branches=others).state_dict()
        assert {".".join(name.split(".")[:4]) for name in state.keys() - other.keys()} == {
            f"res{k}.0.routers.sep3x3-pool3x3" for k in (2, 3, 4, 5)
        }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"branches": ["block", "sep3x3"]}, r"MODEL.DRNET.BRANCHES .*: give .*, or block several"),
        ({"branches": ["identity"]}, r"MODEL.DRNET.BRANCHES"),
        ({"branches": ["block", "block", "identity"]}, "MODEL.DRNET.BRANCHES"),
        ({"temperature": (1.0, 0.0)}, "MODEL.DRNET.TEMPERATURE"),
        ({"threshold": 0.0}, "MODEL.DRNET.THRESHOLD"),
        ({"soft_phase": 1.5}, "MODEL.DRNET.SOFT_PHASE"),
        ({"norm": "SyncBN"}, "MODEL.RESNETS.NORM SyncBN"),
        ({"routed_stages": ["res6"]}, "MODEL.DGNET.STAGES"),
        ({"pruned_branches": ["res3.0"]}, "give stage:connection-branch"),
        ({"pruned_branches": ["res3.0:9-block"]}, "res3.0: 9-block does not exist"),
        ({"pruned_branches": ["res3.0:1-block"]}, "1-block is the last branch"),
        ({"pruned_branches": ["res3.0:2-block"]}, "res3.0: leave one branch of every connection"),
        ({"pruned_branches": ["res3.7:1-block"]}, "there is no such stage, or it is plain: res3.7"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        routed_backbone("mobilenetv2", **arguments)
