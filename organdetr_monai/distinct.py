"""Distinct queries: of queries that say nearly the same, one is matched and learns (DDQ, Zhang et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from organdetr_monai.boxes import centre_to_corners, iou_giou
from organdetr_monai.matching import HungarianMatcher


class DistinctMatcher(HungarianMatcher):
    """One-to-one matching among distinct queries.

    In each decoder layer class-agnostic non-maximum suppression, by the probability of a query's likeliest organ, drops
    the queries whose box overlaps that of a better one. They are neither positives nor "no organ": one-to-one matching
    would tell two queries that agree to disagree. Where the distinct ones are fewer than the organs, the cheapest of
    the dropped ones help out.

    Parameters
    ----------
    iou : float
        Overlap, in (0, 1), above which the worse query is dropped.
    class_weight, l1_weight, giou_weight : float
        Weights of the pair cost.
    """

    def __init__(
        self, iou: float = 0.8, *, class_weight: float = 2.0, l1_weight: float = 5.0, giou_weight: float = 2.0
    ) -> None:
        super().__init__(class_weight=class_weight, l1_weight=l1_weight, giou_weight=giou_weight)
        if not 0 < iou < 1:
            raise ValueError(f"iou must lie in (0, 1), got {iou}")
        self.iou = iou

    def left_out(self, output: dict[str, Tensor]) -> Tensor:
        """Queries whose box a better one has already, (B, N) bool."""
        scores = output["logits"].float().softmax(-1)[..., 1:].amax(-1)
        return duplicates(centre_to_corners(output["boxes"].float()), scores, self.iou)


@torch.no_grad()
def duplicates(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Greedy non-maximum suppression of many sets of boxes at once, without a transfer to the host.

    Parameters
    ----------
    boxes : Tensor of shape (..., N, 6)
        Corners.
    scores : Tensor of shape (..., N)
    iou : float
        A box is dropped if it overlaps a kept one of higher score by more; of equal scores the first comes first.

    Returns
    -------
    Tensor of shape (..., N), bool
        True where a box is dropped.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranked = boxes.gather(-2, order[..., None].expand_as(boxes))
    close = iou_giou(ranked[..., :, None, :], ranked[..., None, :, :])[0] > iou  # (..., N, N)
    dropped = torch.zeros_like(order, dtype=torch.bool)
    for rank in range(order.shape[-1] - 1):  # when its turn comes, whether a box is dropped is settled
        dropped[..., rank + 1 :] |= close[..., rank, rank + 1 :] & ~dropped[..., rank, None]
    return torch.zeros_like(dropped).scatter_(-1, order, dropped)
