"""Multiscale segmentation loss: organs in the cells of coarse maps, blind to organs that a case does not annotate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["class_shares", "multiscale_segmentation_loss", "or_any", "shown_organs"]


def class_shares(mask: Tensor, shape: Sequence[int], num_classes: int) -> Tensor:
    """Share of each class in the cells of a coarser grid.

    A cell of a coarse map holds several organs; the share says so, where a nearest neighbour would pick one by chance
    and lose thin organs.

    Parameters
    ----------
    mask : Tensor of shape (B, X, Y, Z), ids 0..K
    shape : (x, y, z), the size of the map; its stride is a power of two, and the last cells may be ragged
    num_classes : int, K + 1

    Returns
    -------
    Tensor of shape (B, K + 1, x, y, z), float32, summing to 1 over the classes
    """
    ragged = max(-(-size // n) for size, n in zip(mask.shape[1:], shape, strict=True))
    stride = 1 << (ragged - 1).bit_length()
    cell = torch.zeros((), dtype=torch.int64, device=mask.device)
    for axis, n in enumerate(shape):
        size = mask.shape[axis + 1]
        index = torch.arange(size, device=mask.device) // stride
        view = [1, 1, 1]
        view[axis] = size
        cell = cell * n + index.view(view)  # (X, Y, Z) by broadcasting
    cells = int(shape[0] * shape[1] * shape[2])
    batch = mask.shape[0]
    image = torch.arange(batch, device=mask.device).view(-1, 1, 1, 1)
    flat = (image * num_classes + mask.long()) * cells + cell
    counts = torch.zeros(batch * num_classes * cells, device=mask.device)
    counts.scatter_add_(0, flat.flatten(), torch.ones((), device=mask.device).expand(flat.numel()))
    counts = counts.view(batch, num_classes, *shape)
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


def shown_organs(mask: Tensor, annotated: Tensor) -> Tensor:
    """Which organs an image annotates and shows: mask (B, X, Y, Z) and annotated (B, K) to bool (B, K)."""
    shown = F.pad(torch.zeros_like(annotated), (1, 0))  # (B, K + 1)
    return annotated & shown.scatter_(1, mask.flatten(1).long(), True)[:, 1:]


def or_any(count: float | Tensor) -> float | Tensor:
    """A divisor for a sum over ``count`` things: the sum over none is 0 and stays it."""
    return count.clamp(min=1e-6) if isinstance(count, Tensor) else max(count, 1)


def multiscale_segmentation_loss(
    logits: Sequence[Tensor],
    mask: Tensor,
    annotated: Tensor,
    *,
    images: float | Tensor | None = None,
    organs: Tensor | None = None,
) -> Tensor:
    """Cross-entropy plus soft Dice at each scale, mean over the scales.

    Organs that an image does not annotate look like background in its mask. Their probability is added to that of
    background, so that predicting them there costs nothing, and their Dice is left out.

    Parameters
    ----------
    logits : sequence of Tensor of shape (B, K + 1, x, y, z)
    mask : Tensor of shape (B, X, Y, Z), ids 0..K
    annotated : Tensor of shape (B, K), bool
    images, organs : number or scalar Tensor, optional
        As in :class:`Counts`, where they are not those of this batch.

    Returns
    -------
    Tensor, scalar
    """
    images = len(mask) if images is None else images
    counted = F.pad(annotated, (1, 0), value=True)[:, :, None, None, None]  # (B, K + 1, 1, 1, 1)
    losses = []
    for scale in logits:
        share = class_shares(mask, scale.shape[2:], scale.shape[1])
        log_p = scale.float().log_softmax(1)
        merged = log_p.masked_fill(F.pad(annotated, (1, 0), value=False)[:, :, None, None, None], float("-inf"))
        background = merged.logsumexp(1, keepdim=True)  # background or not annotated
        log_p = torch.cat([background, log_p[:, 1:].masked_fill(~counted[:, 1:], 0.0)], dim=1)
        entropy = -(share * log_p).sum(1).mean((1, 2, 3)).sum() / images
        p = log_p.exp()
        axes = (2, 3, 4)
        overlap, total = (p * share).sum(axes), (p * p + share * share).sum(axes)
        present = counted[:, 1:, 0, 0, 0] & (share[:, 1:].sum(axes) > 0)
        dice = 1 - (2 * overlap[:, 1:]) / total[:, 1:].clamp(min=1e-6)
        losses.append(entropy + (dice * present).sum() / or_any(present.sum() if organs is None else organs))
    return torch.stack(losses).mean()
