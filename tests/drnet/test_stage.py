"""Routed stages: step 0, the split batch, gradients, batch statistics, freezing, padding."""

import pytest
import torch
from routed import FAMILIES, STAGES, drnet, images, routed_backbone
from static_networks import NETWORKS, Static, assert_equal_features
from torch import nn

from dgnet_det.drnet.branches import CELL
from dgnet_det.drnet.stage import RoutedStage
from dgnet_det.errors import UserError
from dgnet_det.graph.decisions import Decisions
from dgnet_det.modeling.backbone import DGNet
from dgnet_det.modeling.backbone.resnet import BasicNode
from dgnet_det.modeling.observation import record_choices, routed_stages


@pytest.mark.parametrize("static", NETWORKS, ids=str)
def test_skip_starts_equal_to_the_static_network(static: Static) -> None:
    backbone = drnet(static.family, **static.network)
    backbone.load_state_dict(static.build().state_dict())
    image = torch.randn(2, 3, 64, 96)
    with record_choices(backbone) as choices, torch.no_grad():
        features = backbone(image)
    assert all(of_stage.gate[..., 0].all() for of_stage in choices.values())
    assert_equal_features(features, static.features(image))


def run_everything(backbone: DGNet, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every branch for every image, then what each image selected."""
    x, features = backbone.stem(x), {}
    for name, stage in backbone.stages().items():
        assert isinstance(stage, RoutedStage)
        for j, names in stage.branches.items():
            outputs = [stage.branch(j, branch)(x) for branch in names]
            if len(names) == 1:
                (x,) = outputs
                continue
            gap = x.mean(dim=(2, 3))
            selected = stage.routers[str(j)](gap).argmax(dim=1)
            x = torch.stack([outputs[k][b] for b, k in enumerate(selected.tolist())])
        features[name.split(".")[0]] = x
    return features


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_split_batch_is_every_branch_for_everybody_and_a_selection(
    family: str, layout: torch.memory_format
) -> None:
    backbone, x = routed_backbone(family), images().contiguous(memory_format=layout)
    with record_choices(backbone) as choices:
        features = backbone(x)
    assert any(of_stage.gate.std(dim=0).any() for of_stage in choices.values())
    expected = run_everything(backbone, x)
    assert_equal_features(features, expected)
    alone = [backbone(image[None]) for image in x]
    assert_equal_features({n: torch.cat([f[n] for f in alone]) for n in STAGES}, expected)


@torch.no_grad()
def test_a_branch_runs_for_the_images_that_selected_it_and_for_no_others() -> None:
    backbone = routed_backbone("cell")
    ran: dict[tuple[str, int, str], int] = {}
    for name, stage in routed_stages(backbone).items():
        for j in map(int, stage.routers):
            for branch in stage.branches[j]:
                if branch != "identity":
                    stage.branch(j, branch).register_forward_pre_hook(
                        lambda _, x, key=(name, j, branch): ran.update({key: len(x[0])})
                    )
    with record_choices(backbone) as choices:
        backbone(images())
    selected = {
        (name, j, branch): int(count)
        for name, of_stage in choices.items()
        for j, counts in zip(map(int, of_stage.rows), of_stage.gate.sum(dim=0), strict=True)
        for branch, count in zip(of_stage.columns, counts, strict=True)
        if branch != "identity" and count
    }
    assert ran == selected
    assert any(0 < count < 6 for count in ran.values())


def small_stage(norm: str = "") -> RoutedStage:
    """Three connections, two of which choose; in float64."""
    blocks = [BasicNode(4, 6, stride=2, norm=norm), *(BasicNode(6, 6, norm=norm) for _ in range(2))]
    stage = RoutedStage(blocks, branches=["block", "identity"], temperature=(0.9, 0.3)).double()
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.4)
    return stage


def seen_by(stage: RoutedStage, x: torch.Tensor) -> Decisions:
    seen: list[Decisions] = []
    with stage.decisions.register_forward_hook(lambda *args: seen.append(args[2]())):
        stage(x)
    return seen[0]


def test_gradients_are_those_of_the_relaxed_stage_at_the_selection() -> None:
    """Straight-through: with the noise fixed, the selection's derivative is that of the softmax,
    everything else's is the true one. So finite differences are of a stage whose gates are the
    selection at the first parameters, plus how the softmax has changed since."""
    stage, x = small_stage().train(), torch.randn(3, 4, 6, 6, dtype=torch.float64)
    slopes = torch.randn(3, 6, 3, 3, dtype=torch.float64)
    torch.manual_seed(1)
    stage.progress = 0.5
    (stage(x) * slopes).sum().backward()
    torch.manual_seed(1)
    temperature = (0.9 * 0.3) ** 0.5
    noise = [-torch.empty(3, 2, dtype=torch.float64).exponential_().log() for _ in range(2)]

    def forward(start: list[tuple[torch.Tensor, torch.Tensor]] | None) -> tuple[torch.Tensor, list]:
        out, gates = stage.nodes["1"](x), []
        for j in (2, 3):
            logits = stage.routers[str(j)](out.mean(dim=(2, 3)))
            soft = (logits / temperature + noise[j - 2]).softmax(dim=1)
            hard = torch.eye(2, dtype=torch.float64)[soft.argmax(dim=1)]
            gates.append((hard, soft))
            if start is not None:
                hard = start[j - 2][0] + soft - start[j - 2][1]
            block = stage.nodes[str(j)](out)
            out = hard[:, 0, None, None, None] * block + hard[:, 1, None, None, None] * out
        return (out * slopes).sum(), gates

    with torch.no_grad():
        _, start = forward(None)
        assert {tuple(row) for hard, _ in start for row in hard.tolist()} == {(0, 1), (1, 0)}
        for name, parameter in stage.named_parameters():
            flat, step = parameter.data.view(-1), 1e-6
            for k in range(0, len(flat), max(1, len(flat) // 5)):
                values = []
                for sign in (1, -1):
                    flat[k] += sign * step
                    values.append(forward(start)[0].item())
                    flat[k] -= sign * step
                numeric = (values[0] - values[1]) / (2 * step)
                exact = parameter.grad.view(-1)[k].item()
                assert exact == pytest.approx(numeric, rel=1e-4, abs=1e-6), f"{name}[{k}]"


def test_training_selects_one_branch_and_inference_draws_nothing() -> None:
    stage, x = small_stage(), torch.randn(8, 4, 6, 6, dtype=torch.float64)
    drawn = [seen_by(stage.train(), x).gate for _ in range(4)]
    assert all(set(gate.unique().tolist()) == {0, 1} for gate in drawn)
    assert all((gate.sum(dim=2) == 1).all() for gate in drawn)
    assert not all(torch.equal(gate, drawn[0]) for gate in drawn)
    chosen = [seen_by(stage.eval(), x) for _ in range(2)]
    assert torch.equal(chosen[0].gate, chosen[1].gate)
    assert torch.equal(chosen[0].gate.argmax(dim=2), chosen[0].value.argmax(dim=2))


def test_batch_statistics_are_those_of_all_images() -> None:
    """So the running statistics, by which inference normalises, are those of training."""
    stage, x = small_stage("BN").train(), torch.randn(8, 4, 6, 6, dtype=torch.float64)
    x.requires_grad_()
    inputs: list[torch.Tensor] = []
    conv = stage.nodes["2"].conv1
    conv.norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    stage(x)
    assert len(inputs[0]) == 8
    torch.testing.assert_close(conv.norm.running_mean, 0.1 * inputs[0].mean(dim=(0, 2, 3)))


@torch.no_grad()
def test_statistics_that_are_taken_anew_are_of_all_images_too() -> None:
    """As fvcore's ``update_bn_stats`` takes them: in training mode, without gradients."""
    stage, x = small_stage("BN").train(), torch.randn(8, 4, 6, 6, dtype=torch.float64)
    sizes: list[int] = []
    stage.nodes["2"].conv1.norm.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    stage(x)
    assert sizes == [8]


def test_every_parameter_has_a_gradient_but_what_no_image_selected() -> None:
    backbone = routed_backbone("cell", norm="BN").train()
    sum(f.square().mean() for f in backbone(images()).values()).backward()
    for name, parameter in backbone.named_parameters():
        if "routers" in name:
            assert parameter.grad.any(), name


def test_a_frozen_stage_runs_as_at_inference() -> None:
    backbone = routed_backbone("mobilenetv2", freeze_at=3).train()
    with record_choices(backbone) as choices:
        backbone(x := images())
        frozen = choices["res3.0"].gate
        backbone.eval()(x)
    assert torch.equal(frozen, choices["res3.0"].gate)
    routers = backbone.stages()["res3.0"].routers.parameters()
    assert not any(parameter.requires_grad for parameter in routers)


@torch.no_grad()
def test_routers_leave_padding_out() -> None:
    stage, x = small_stage().eval(), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    seen: list[Decisions] = []
    stage.decisions.register_forward_hook(lambda *args: seen.append(args[2]()))
    stage(x, torch.tensor([[4, 3], [2, 4]]))
    first = stage.nodes["1"](x)
    gap = torch.stack([first[0, :, :4, :3].mean(dim=(1, 2)), first[1, :, :2].mean(dim=(1, 2))])
    torch.testing.assert_close(seen[0].value[:, 0], stage.routers["2"](gap).softmax(dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_mixed_precision(dtype: torch.dtype) -> None:
    backbone, x = routed_backbone("mobilenetv2"), images()
    with torch.autocast("cpu", dtype):
        features = backbone(x)
    assert all(feature.isfinite().all() for feature in features.values())


@torch.no_grad()
def test_a_compiled_backbone_selects_for_each_image() -> None:
    backbone, x = routed_backbone("cell", out_features=("res2", "res3")), images(4)
    compiled = torch.compile(backbone, backend="eager")
    assert_equal_features(compiled(x), backbone(x))


def test_pruned_branches_are_not_there() -> None:
    whole = routed_backbone("cell")
    names = ["res3.0:2-sep5x5", "res3.0:2-pool3x3", *(f"res4.0:3-{x}" for x in CELL[:4])]
    pruned = routed_backbone("cell", pruned_branches=names)
    stages = pruned.stages()
    assert stages["res3.0"].branches[2] == ["sep3x3", "dilated3x3", "identity"]
    assert stages["res3.0"].routers["2"].linear.out_features == 3
    assert "3" not in stages["res4.0"].nodes
    assert "3" not in stages["res4.0"].routers
    gone = set(whole.state_dict()) - set(pruned.state_dict())
    assert gone
    prefixes = ("res3.0.nodes.2.branches.sep5x5.", "res4.0.nodes.3.", "res4.0.routers.3.")
    assert all(name.startswith(prefixes) for name in gone)
    with record_choices(pruned) as choices:
        pruned(images())
    assert not choices["res3.0"].gate[:, 0, [1, 3]].any()
    assert choices["res4.0"].rows == ("2", "4", "5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"branches": ["block", "sep3x3"]},
            r"MODEL.DRNET.BRANCHES .*: choose from block, identity",
        ),
        ({"branches": ["identity"]}, "the first must be block"),
        ({"temperature": (1.0, 0.0)}, "MODEL.DRNET.TEMPERATURE"),
        ({"routed_stages": ["res6"]}, "MODEL.DGNET.STAGES"),
        ({"pruned_branches": ["res3.0"]}, "give stage:connection-branch"),
        ({"pruned_branches": ["res3.0:9-block"]}, "res3.0: 9-block does not exist"),
        ({"pruned_branches": ["res3.0:1-block"]}, "1-block is the last branch"),
        ({"pruned_branches": ["res3.7:1-block"]}, "there is no such stage, or it is plain: res3.7"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        routed_backbone("mobilenetv2", **arguments)
