"""An image is the same alone and in a batch with larger images: its wiring, features, proposals,
detections and gradients."""

import copy
import pickle
from collections.abc import Callable, Sequence

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from dgnet_det.config import get_cfg
from dgnet_det.folding import optimize_for_inference
from dgnet_det.model import build_model
from dgnet_det.padding import Padding
from dgnet_det.wiring import dynamic_graphs, record_wiring

# Height and width: whole multiples of 32, not multiples, and narrower than one.
SIZES = ((64, 96), (50, 70), (33, 64), (96, 31))
MATE = (130, 160)

SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "build_dgnet_fpn_backbone",
    "MODEL.PIXEL_STD", [58.0, 57.0, 57.0], "MODEL.BACKBONE.FREEZE_AT", 0,
    "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]],
    "MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TEST", 100, "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 50, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50,
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES", 3,
    "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7,
]  # fmt: skip
RESNET = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 4]
FAMILIES = {
    "basic": ["MODEL.RESNETS.DEPTH", 18, *RESNET, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8],
    "bottleneck": ["MODEL.RESNETS.DEPTH", 50, *RESNET, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16],
    "mobilenetv2": ["MODEL.DGNET.FAMILY", "mobilenetv2"],
    # RegNetY: its squeeze-and-excitation averages over positions.
    "regnet": ["MODEL.DGNET.FAMILY", "regnet", "MODEL.DGNET.REGNET", "Y_400M"],
}
RETINANET = [
    "MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 3,
    "MODEL.BACKBONE.NAME", "build_dgnet_retinanet_fpn_backbone",
    "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.RETINANET.NUM_CONVS", 2,
]  # fmt: skip
MASK = ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
KEYPOINT = ["MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (16,)]
CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"]
DETECTORS = {
    "retinanet": RETINANET,
    "mask": [*MASK, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16],
    "keypoint": [*KEYPOINT, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 4],
    "cascade": [*CASCADE, True],
    "group norm": ["MODEL.FPN.NORM", "GN"],
    "plain": ["MODEL.DGNET.EDGE_WEIGHTS", "none"],
    "ROIAlign of old": ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"],
}


def make_model(family: str, wiring: str, *opts: object) -> nn.Module:
    """A small detector of which nothing is at a special value, so that padding would show."""
    cfg = get_cfg()
    cfg.merge_from_list([*SMALL, *FAMILIES[family], "MODEL.DGNET.WIRING", wiring, *opts])
    torch.manual_seed(0)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.GroupNorm):
            module.weight.data.uniform_(0.3, 0.7)
            module.bias.data.uniform_(-0.3, 0.3)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.data.uniform_(-0.3, 0.3)
    for name, module in model.named_modules():
        # Heads start so small that their detections would be all alike.
        if name.startswith(("proposal_generator", "head", "roi_heads")) and hasattr(
            module, "weight"
        ):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(std=fan_in**-0.5)
    for graph in dynamic_graphs(model).values():
        for parameter in graph.routers.parameters():
            parameter.data.normal_()
        graph.thresholds.data.fill_(0.4)
        for gamma in getattr(graph, "gammas", {}).values():
            gamma.data.normal_(std=0.2)
    return model.eval()


def make_images() -> list[Tensor]:
    """Smooth pictures, the mate last."""
    generator = torch.Generator().manual_seed(1)
    coarse = [torch.rand(1, 3, 6, 6, generator=generator) * 255 for _ in range(len(SIZES) + 1)]
    sizes = (*SIZES, MATE)
    return [nn.functional.interpolate(c, s)[0] for c, s in zip(coarse, sizes, strict=True)]


def run(model: nn.Module, images: Sequence[Tensor]) -> tuple[list[Instances], list[list[Tensor]]]:
    """For each image its detections and the wiring of each graph."""
    with torch.no_grad(), record_wiring(model) as wiring:
        outputs = model([{"image": image} for image in images])
    alphas = [[w.alpha[b] for w in wiring.values()] for b in range(len(images))]
    return [output["instances"] for output in outputs], alphas


def assert_same(alone: Instances, together: Instances) -> None:
    """Every detection has its twin; equal scores may come in another order."""
    assert len(alone) == len(together)
    gaps = torch.cdist(together.pred_boxes.tensor, alone.pred_boxes.tensor, p=torch.inf)
    gaps[together.pred_classes[:, None] != alone.pred_classes] = torch.inf
    twins = gaps.argmin(dim=1)
    assert sorted(twins.tolist()) == list(range(len(alone)))
    assert gaps[range(len(alone)), twins].max() < 1e-3
    torch.testing.assert_close(together.scores, alone.scores[twins], rtol=0, atol=1e-4)
    if alone.has("pred_masks"):
        assert together.pred_masks.equal(alone.pred_masks[twins])
    if alone.has("pred_keypoints"):
        got, want = together.pred_keypoints, alone.pred_keypoints[twins]
        torch.testing.assert_close(got[..., :2], want[..., :2], rtol=0, atol=1e-2)


def largest_change(model: nn.Module) -> float:
    """Largest change of an edge weight; asserts that detections are the same."""
    *images, mate = make_images()
    together, alphas = run(model, [*images, mate])
    change = 0.0
    assert sum(map(len, together[:-1])) > 5 * len(images)
    for image, instances, wiring in zip(images, together, alphas, strict=False):
        (alone,), (expected,) = run(model, [image])
        assert_same(alone, instances)
        for got, want in zip(wiring, expected, strict=True):
            change = max(change, (got - want).abs().max().item())
    return change


@pytest.mark.parametrize("wiring", ["paper", "residual"])
@pytest.mark.parametrize("family", FAMILIES)
def test_inference_is_the_same_alone_and_in_a_batch(family: str, wiring: str) -> None:
    assert largest_change(make_model(family, wiring)) < 5e-6
    unmasked = make_model(family, wiring, "MODEL.DGNET.MASK_PADDING", False)
    with pytest.raises(AssertionError):
        largest_change(unmasked)


def test_inference_is_the_same_where_nodes_are_absent_in_some_images() -> None:
    model = make_model("bottleneck", "paper")
    for graph in dynamic_graphs(model).values():
        graph.thresholds.data.fill_(0.7)
    _, alphas = run(model, make_images())
    absent = [torch.cat([a[1:-1].eq(0).all(dim=1) for a in alpha]) for alpha in alphas]
    assert any(0 < column.sum() < len(column) for column in torch.stack(absent, dim=1))
    assert largest_change(model) < 5e-6


@pytest.mark.parametrize("detector", DETECTORS)
def test_other_detectors_are_the_same_alone_and_in_a_batch(detector: str) -> None:
    opts = DETECTORS[detector]
    assert largest_change(make_model("basic", "residual", *opts)) < 5e-6
    unmasked = make_model("basic", "residual", *opts, "MODEL.DGNET.MASK_PADDING", False)
    with pytest.raises(AssertionError):
        largest_change(unmasked)


def make_instances(image: Tensor) -> Instances:
    """Ground truth, one box in the corner where the padding is."""
    height, width = image.shape[1:]
    boxes = [[2.0, 3.0, 20.0, 22.0], [width - 9.0, height - 12.0, width, height]]
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes))
    instances.gt_classes = torch.tensor([0, 2])
    return instances


def total_loss(model: nn.Module, images: Sequence[Tensor]) -> Tensor:
    """A loss in training mode that is a sum over images: the dense head's, with every anchor in the
    sample, and that of made-up targets, 0, for the outputs of the box head on all proposals."""
    truth = [make_instances(image) for image in images]
    items = [{"image": i, "instances": t} for i, t in zip(images, truth, strict=True)]
    with EventStorage():
        if not hasattr(model, "proposal_generator"):
            model._ema_update = lambda name, value, initial_value: 1.0  # what losses are divided by
            return sum(model(items).values())
        batch = model.preprocess_image(items)
        features = model.backbone(batch.tensor)
        proposals, losses = model.proposal_generator(batch, features, truth)
    heads = model.roi_heads
    maps = [features[name] for name in heads.box_in_features]
    pooled = heads.box_pooler(maps, [p.proposal_boxes for p in proposals])
    scores, deltas = heads.box_predictor(heads.box_head(pooled))
    return len(images) * sum(losses.values()) + scores.square().sum() + deltas.square().sum()


def losses_and_gradients(
    model: nn.Module, batches: Sequence[Sequence[Tensor]]
) -> tuple[float, dict[str, Tensor]]:
    """Of the sum over batches, in one backward pass."""
    model.zero_grad()
    loss = sum(total_loss(model, images) for images in batches)
    loss.backward()
    named = model.named_parameters()
    return loss.item(), {name: p.grad.clone() for name, p in named if p.grad is not None}


def assert_gradients_close(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, expected in want.items():
        error = (got[name] - expected).abs().max()
        assert error <= 1e-3 * expected.abs().max() + 1e-6, name


def make_training_model(family: str, wiring: str, *opts: object) -> nn.Module:
    sample_all = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**5]
    return make_model(family, wiring, *sample_all, *opts).train()


@pytest.mark.parametrize("wiring", ["paper", "residual"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_trains_as_its_images_alone(family: str, wiring: str) -> None:
    """Loss and gradients are sums over images: proposals, labels and features are the same."""
    model = make_training_model(family, wiring)
    images = make_images()
    want, expected = losses_and_gradients(model, [[image] for image in images])
    got, gradients = losses_and_gradients(model, [images])
    assert got == pytest.approx(want, rel=1e-5)
    assert {name.split(".")[0] for name in expected} == {
        "backbone", "proposal_generator", "roi_heads",
    }  # fmt: skip
    assert_gradients_close(gradients, expected)

    unmasked = make_training_model(family, wiring, "MODEL.DGNET.MASK_PADDING", False)
    want, expected = losses_and_gradients(unmasked, [[image] for image in images])
    got, gradients = losses_and_gradients(unmasked, [images])
    assert got != pytest.approx(want, rel=1e-3)
    with pytest.raises(AssertionError):
        assert_gradients_close(gradients, expected)


def test_retinanet_trains_on_a_batch_as_on_its_images_alone() -> None:
    model = make_training_model("basic", "residual", *RETINANET)
    images = make_images()
    want, expected = losses_and_gradients(model, [[image] for image in images])
    got, gradients = losses_and_gradients(model, [images])
    assert got == pytest.approx(want, rel=1e-5)
    assert_gradients_close(gradients, expected)


@pytest.mark.parametrize("wiring", ["paper", "residual"])
def test_checkpointed_stages_recompute_with_their_own_padding(wiring: str) -> None:
    """Also where another batch has passed since."""
    images = make_images()
    batches = [images, images[:0:-1]]
    results = [
        losses_and_gradients(
            make_training_model("basic", wiring, "MODEL.DGNET.CHECKPOINT_STAGES", on), batches
        )
        for on in (False, True)
    ]
    assert results[0][0] == results[1][0]
    assert_gradients_close(results[1][1], results[0][1])


@pytest.mark.parametrize("training", [False, True])
def test_wiring_features_and_proposals_are_the_same(training: bool) -> None:
    model = make_training_model("bottleneck", "paper").train(training)
    images = make_images()

    def look(images: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, Tensor], list[Instances]]:
        items = [{"image": image, "instances": make_instances(image)} for image in images]
        with EventStorage(), record_wiring(model) as wiring:
            batch = model.preprocess_image(items)
            features = model.backbone(batch.tensor)
            truth = [item["instances"] for item in items]
            proposals, _ = model.proposal_generator(batch, features, truth)
        return [w.alpha for w in wiring.values()], features, proposals

    alphas, features, proposals = look(images)
    for b, image in enumerate(images):
        own_alphas, own_features, (own_proposals,) = look([image])
        for got, want in zip(alphas, own_alphas, strict=True):
            torch.testing.assert_close(got[b], want[0], rtol=0, atol=5e-6)
        for name, want in own_features.items():
            height, width = want.shape[2:]
            got = features[name][b, :, :height, :width]
            torch.testing.assert_close(got, want[0], rtol=1e-4, atol=1e-5)
        assert len(proposals[b]) == len(own_proposals) > 10
        got, want = (p.proposal_boxes.tensor for p in (proposals[b], own_proposals))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-3)


def test_without_other_sizes_nothing_changes() -> None:
    """An image alone, of any size, and images of one own size: bit for bit as without masks."""
    images = make_images()
    for batch in ([images[1]], [images[3]], [images[0], images[1][:, :, :65]]):
        results = [
            run(make_model("basic", "residual", "MODEL.DGNET.MASK_PADDING", on), batch)
            for on in (True, False)
        ]
        for (got, want), (alphas, expected) in zip(
            zip(*(r[0] for r in results), strict=True),
            zip(*(r[1] for r in results), strict=True),
            strict=True,
        ):
            assert got.pred_boxes.tensor.equal(want.pred_boxes.tensor)
            assert got.scores.equal(want.scores)
            assert all(a.equal(b) for a, b in zip(alphas, expected, strict=True))


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), optimize_for_inference],
    ids=["deepcopy", "pickle", "folded"],
)
def test_copies_and_folded_models_mask_as_well(copied: Callable[[nn.Module], nn.Module]) -> None:
    assert largest_change(copied(make_model("regnet", "paper"))) < 5e-6


def test_a_trace_after_a_padded_batch_is_of_one_image_alone() -> None:
    model = make_model("basic", "residual")
    images = make_images()
    first, second = (model.preprocess_image([{"image": images[k]}]).tensor for k in (0, 4))
    with torch.no_grad():
        expected = model.backbone(second)
        run(model, images)
        traced = torch.jit.trace(model.backbone, first, strict=False, check_trace=False)
        got = traced(second)
    for name, want in expected.items():
        torch.testing.assert_close(got[name], want, rtol=1e-4, atol=1e-5)


def test_mixed_precision_trains() -> None:
    model = make_training_model("bottleneck", "residual")
    batch = model.preprocess_image([{"image": image} for image in make_images()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.backbone(batch.tensor)
        logits, deltas = model.proposal_generator.rpn_head(list(features.values()))
    sum(x.float().square().sum() for x in (*logits, *deltas)).backward()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_stock_backbones_are_left_alone() -> None:
    model = make_model("bottleneck", "residual", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_extents_are_those_of_the_image_alone() -> None:
    images = torch.zeros(3, 3, 160, 224)
    for image, (height, width) in zip(images, ((33, 70), (160, 1), (100, 224)), strict=True):
        image[:, :height, :width] = 1.0
    padding = Padding.of(images, 32)
    assert padding == ((160, 224), ((64, 96), (160, 32), (128, 224)))
    for stride in (1, 2, 4, 8, 16, 32, 64, 128):
        height, width = -(-160 // stride), -(-224 // stride)
        extents = [(-(-h // stride), -(-w // stride)) for h, w in padding.own]
        assert padding.extents(height, width) == extents
        inside = padding.inside(stride, images.device).unflatten(1, (height, width))
        for mask, (h, w) in zip(inside, extents, strict=True):
            assert mask[:h, :w].all()
            assert mask.sum() == h * w
    assert Padding.of(images[:1, :, :64, :96], 32) is None
