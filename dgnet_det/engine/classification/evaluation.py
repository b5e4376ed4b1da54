"""Single-crop top-1 and top-5 accuracy."""

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn
from torch.utils.data import DataLoader


def count_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels [B] are the best of the logits [B, K], and how many among the best five:
    [2], int64."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best.eq(labels[:, None])
    return torch.stack([hits[:, 0].sum(), hits.sum()])


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device) -> dict[str, float]:
    """``top1`` and ``top5`` in per cent, over the shares of all processes.

    Every process takes over the buffers of the first, whose running statistics are those that a
    checkpoint holds.

    Args:
        model: from RGB images [b, 3, H, W], 0 to 255, to logits. Its mode is left as it was.
        loader: this process's share, of images and labels.
        device: where the model is.
    """
    distributed = comm.get_world_size() > 1
    if distributed:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    was_training = model.training
    model.eval()
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    for images, labels in loader:
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        counts[:2] += count_hits(model(images), labels)
        counts[2] += len(labels)
    model.train(was_training)
    if distributed:
        dist.all_reduce(counts)
    top1, top5, total = counts.tolist()
    return {"top1": 100 * top1 / total, "top5": 100 * top5 / total}
