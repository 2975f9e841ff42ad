"""Hybrid matching: a second set of queries, in training only, of which each organ gets many (Jia et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from organdetr_monai.boxes import inverse_sigmoid
from organdetr_monai.networks.queries import ExtraQueries, spread_boxes, start_from


class HybridQueries(nn.Module):
    """The one-to-many branch of H-DETR: queries with the decoder of the others, that neither see these nor are seen.

    They pull at decoder and encoder with many positives for each organ, and leave before inference, so that the
    one-to-one branch needs no suppression of duplicates. To be matched by a
    :class:`organdetr_monai.matching.RepeatedMatcher`, the loss's ``extra_matcher``.

    Parameters
    ----------
    dim : int
        Width of the decoder.
    num_queries : int
        T.
    """

    needs_targets = False

    def __init__(self, dim: int, *, num_queries: int = 300) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries must be positive, got {num_queries}")
        self.content = nn.Parameter(torch.randn(num_queries, dim))
        self.reference = nn.Parameter(inverse_sigmoid(spread_boxes(num_queries, seed=1)))

    def set_reference_boxes(self, boxes: Tensor) -> None:
        """Start from ``boxes`` (M, 6), normalised centre boxes, as the other queries do."""
        start_from(self.reference, boxes)

    def forward(self, targets: object = None) -> ExtraQueries:
        """The T queries, the same for every image."""
        everyone = torch.ones(1, len(self.content), len(self.content), dtype=torch.bool, device=self.content.device)
        return ExtraQueries(self.content[None], self.reference[None], everyone, see_matched=False)
