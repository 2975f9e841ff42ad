"""A scene of two blocks in a volume of three different lengths: easy to learn, and wrong in every other axis order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from organdetr_monai.boxes import iou_giou, normalise

SHAPE = (32, 16, 48)
#: Corners in voxels; organ 1 is bright, 2 darker.
BOXES = torch.tensor([[3.0, 4, 6, 13, 12, 16], [18, 2, 24, 28, 8, 44]])
VALUES = (1.0, 0.5)


def scene(*, shown: tuple[int, ...] = (1, 2), annotated: tuple[int, ...] = (1, 2)) -> tuple[Tensor, dict[str, Tensor]]:
    """Image (1, 1, X, Y, Z) and its target. An organ that is shown but not annotated is background in the mask."""
    image, mask = torch.zeros(SHAPE), torch.zeros(SHAPE, dtype=torch.uint8)
    image += 0.02 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for organ in shown:
        x0, y0, z0, x1, y1, z1 = BOXES[organ - 1].int().tolist()
        image[x0:x1, y0:y1, z0:z1] += VALUES[organ - 1]
        if organ in annotated:
            mask[x0:x1, y0:y1, z0:z1] = organ
    labels = torch.tensor(sorted(set(shown) & set(annotated)), dtype=torch.int64)
    target = {
        "boxes": normalise(BOXES[labels - 1], SHAPE),
        "labels": labels,
        "annotated": torch.tensor([1 in annotated, 2 in annotated]),
        "mask": mask,
    }
    return image[None, None], target


def learn(network: nn.Module, loss: Callable[..., dict[str, Tensor]], *, steps: int, lr: float = 3e-3) -> None:
    """Train on the scene alone."""
    image, target = scene()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network(image), [target])["loss"].backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()


def overlaps(prediction: dict[str, Tensor]) -> list[float]:
    """IoU of the best box of each organ with the truth; 0 without a box."""
    found = []
    for organ, truth in enumerate(BOXES, start=1):
        mine = prediction["labels"] == organ
        iou = iou_giou(prediction["boxes"][mine], truth)[0]
        found.append(iou[prediction["scores"][mine].argmax()].item() if len(iou) else 0.0)
    return found


def idle(network: nn.Module) -> list[str]:
    """Parameters without a gradient."""
    return [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
