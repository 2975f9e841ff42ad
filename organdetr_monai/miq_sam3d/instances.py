"""From the network's answer to disjoint instances of one window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Instances(NamedTuple):
    """Instances of one window, the clicked one first where there is one, the others by falling score."""

    #: (X, Y, Z) int64, 1..N.
    labels: Tensor
    #: (N,) objectness times quality, in [0, 1].
    scores: Tensor
    #: (N,) int64, the query of each.
    queries: Tensor
    #: (N, 6) normalised centre boxes, as the queries predict them.
    boxes: Tensor


@torch.no_grad()
def disjoint(
    output: Mapping[str, Tensor],
    size: Sequence[int],
    *,
    score: float = 0.5,
    clicked_score: float = 0.5,
    mask: float = 0.5,
    keep: float = 0.5,
    local: Sequence[bool] | None = None,
) -> list[Instances]:
    """Settle which query gets which voxel.

    A query takes part if its objectness reaches ``score``, the click's own ``clicked_score``. A voxel goes to the query
    whose score times mask is highest there, if that mask reaches ``mask``. A query that keeps less than ``keep`` of the
    cells of its mask is a double of others, and is dropped; what it had goes to the next best.

    Parameters
    ----------
    output : mapping
        As :class:`organdetr_monai.miq_sam3d.network.MIQSAM3D` gives it.
    size : (X, Y, Z)
        Of the window; masks are interpolated to it.
    score, clicked_score, mask, keep : float
        In [0, 1].
    local : sequence of bool, optional
        For each image whether query 0 is the clicked instance's; by default nowhere. It then comes first.

    Returns
    -------
    list of Instances
        One for each image.
    """
    found = []
    for image, objectness in enumerate(output["objectness"].float().sigmoid()):
        least = torch.full_like(objectness, score)
        here = bool(local is not None and local[image])
        if here:
            least[0] = clicked_score
        chosen = (objectness >= least).nonzero()[:, 0]
        scores = objectness[chosen] * output["quality"][image, chosen].float().sigmoid()
        clicked = (chosen == 0) & here
        order = (scores + clicked.float()).argsort(descending=True, stable=True)
        chosen, scores = chosen[order], scores[order]
        kept = _keep(output["masks"][image, chosen].float().sigmoid(), scores, mask=mask, keep=keep)
        chosen, scores = chosen[kept], scores[kept]
        labels = torch.zeros(tuple(size), dtype=torch.int64, device=objectness.device)
        if len(chosen):
            logits = output["masks"][image, chosen].float()[None]
            logits = F.interpolate(logits, size=tuple(size), mode="trilinear")[0]  # (N, X, Y, Z)
            p = (logits + output["detail"][image] if "detail" in output else logits).sigmoid()
            value, best = (p * scores[:, None, None, None]).masked_fill(p < mask, -1.0).max(0)
            labels = torch.where(value >= 0, best + 1, labels)
            # A mask of a single cell can fall below the threshold between the cells' centres: no id without a voxel.
            there = torch.bincount(labels.flatten(), minlength=len(chosen) + 1)[1:] > 0
            labels = F.pad(there.cumsum(0), (1, 0))[labels]
            chosen, scores = chosen[there], scores[there]
        found.append(Instances(labels, scores, chosen, output["boxes"][image, chosen].float()))
    return found


def _keep(p: Tensor, scores: Tensor, *, mask: float, keep: float) -> Tensor:
    """Which queries (N,) bool keep enough of their masks (N, X, Y, Z), each cell the best's; the worst goes first."""
    seen = p >= mask
    total = seen.flatten(1).sum(-1)
    kept = total > 0
    value = (p * scores[:, None, None, None]).masked_fill(~seen, -1.0)
    while kept.any():
        best = value.masked_fill(~kept[:, None, None, None], -1.0)
        won = (best.argmax(0)[None] == torch.arange(len(p), device=p.device)[:, None, None, None]) & (best >= 0)
        share = won.flatten(1).sum(-1) / total.clamp(min=1)
        share = share.masked_fill(~kept, 2.0)
        if share.min() >= keep:
            break
        kept[share.argmin()] = False
    return kept
