"""Organ-DETR: backbone, encoder, decoder and training-only segmentation heads, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from organdetr_monai.boxes import inverse_sigmoid
from organdetr_monai.networks.decoder import DeformableDecoder


class OrganDETR(nn.Module):
    """Organ detection in a CT volume by a set of queries (Ghahremani et al., IEEE TMI 2025).

    Parameters
    ----------
    backbone : nn.Module
        Image (B, 1, X, Y, Z) to a list of maps (B, dim, …), finest first.
    encoder : nn.Module or None
        Maps to maps of the same shapes; None leaves them as they are.
    decoder : DeformableDecoder
        ``decoder(maps, content, reference)`` to a list of ``{"logits", "boxes"}``, one for each layer; has ``dim``.
    segmentation : nn.Module or None
        Maps to a list of logits; called while training only.
    num_queries : int
        N.
    reference_boxes : sequence of 6 floats each, optional
        Normalised centre boxes that the queries start from, repeated to N; they are learned from there on. Without them
        the queries start spread over the volume.
    """

    def __init__(
        self,
        backbone: nn.Module,
        encoder: nn.Module | None,
        decoder: DeformableDecoder,
        segmentation: nn.Module | None = None,
        *,
        num_queries: int = 100,
        reference_boxes: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.encoder, self.decoder, self.segmentation = backbone, encoder, decoder, segmentation
        self.content = nn.Parameter(torch.randn(num_queries, decoder.dim))
        self.reference = nn.Parameter(inverse_sigmoid(_spread(num_queries)))
        if reference_boxes is not None:
            self.set_reference_boxes(torch.as_tensor(reference_boxes, dtype=torch.float32))

    @torch.no_grad()
    def set_reference_boxes(self, boxes: Tensor) -> None:
        """Start the queries from ``boxes`` (M, 6), normalised centre boxes; query ``i`` takes box ``i % M``."""
        if boxes.ndim != 2 or boxes.shape[1] != 6 or not len(boxes):
            raise ValueError(f"reference boxes must have shape (M, 6) with M > 0, got {tuple(boxes.shape)}")
        index = torch.arange(len(self.reference)) % len(boxes)
        self.reference.copy_(inverse_sigmoid(boxes)[index])

    def forward(self, image: Tensor) -> dict[str, Any]:
        """Detect.

        Parameters
        ----------
        image : Tensor of shape (B, 1, X, Y, Z)
            Intensities in [0, 1].

        Returns
        -------
        dict
            ``logits`` (B, N, K + 1), index 0 is "no organ"; ``boxes`` (B, N, 6), (cx, cy, cz, w, h, d) in [0, 1] of the
            volume, axes in array order. In training also ``aux``, the same for each earlier decoder layer, and
            ``segmentation``, logits (B, K + 1, x, y, z) for each map, finest first.
        """
        maps = self.backbone(image)
        if self.encoder is not None:
            maps = self.encoder(maps)
        *aux, last = self.decoder(maps, self.content, self.reference)
        output: dict[str, Any] = dict(last)
        if self.training:
            output["aux"] = aux
            if self.segmentation is not None:
                output["segmentation"] = self.segmentation(maps)
        return output


def _spread(n: int) -> Tensor:
    """``n`` boxes (n, 6) of a fifth of the volume, their centres spread evenly by a Sobol sequence (seeded)."""
    centres = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(n) * 0.8 + 0.1
    return torch.cat([centres, torch.full((n, 3), 0.2)], dim=1)
