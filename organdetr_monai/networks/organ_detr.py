"""Organ-DETR: backbone, encoder, decoder and training-only segmentation heads, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from organdetr_monai.boxes import inverse_sigmoid
from organdetr_monai.matching import Targets
from organdetr_monai.networks.decoder import DeformableDecoder
from organdetr_monai.networks.queries import decode_together, spread_boxes, start_from
from organdetr_monai.networks.roi_refiner import ROIRefiner


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
    proposals : nn.Module, optional
        ``proposals(maps, N)`` to ``{"logits", "boxes"}``: where the queries start in an image, in place of learned
        boxes, e.g. :class:`organdetr_monai.networks.Proposals`.
    extra_queries : nn.Module, optional
        ``extra_queries(targets)`` to :class:`organdetr_monai.networks.queries.ExtraQueries`; called while training
        only. ``needs_targets`` says whether the trainer must hand over the targets.
    refiner : ROIRefiner, optional
        Looks at the best box of each organ once more. It learns beside the rest of the network, from the truth alone.
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
        proposals: nn.Module | None = None,
        extra_queries: nn.Module | None = None,
        refiner: ROIRefiner | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.encoder, self.decoder, self.segmentation = backbone, encoder, decoder, segmentation
        self.content = nn.Parameter(torch.randn(num_queries, decoder.dim))
        self.reference = nn.Parameter(inverse_sigmoid(spread_boxes(num_queries))) if proposals is None else None
        self.proposals, self.extra_queries, self.refiner = proposals, extra_queries, refiner
        if reference_boxes is not None:
            self.set_reference_boxes(torch.as_tensor(reference_boxes, dtype=torch.float32))

    @property
    def needs_targets(self) -> bool:
        """Whether :meth:`forward` wants the targets while training."""
        return any(getattr(part, "needs_targets", False) for part in (self.extra_queries, self.refiner))

    def set_reference_boxes(self, boxes: Tensor) -> None:
        """Start the queries from ``boxes`` (M, 6), normalised centre boxes; query ``i`` takes box ``i % M``."""
        if boxes.ndim != 2 or boxes.shape[1] != 6 or not len(boxes):
            raise ValueError(f"reference boxes must have shape (M, 6) with M > 0, got {tuple(boxes.shape)}")
        if self.reference is not None:
            start_from(self.reference, boxes)
        for part in (self.proposals, self.extra_queries):
            start = getattr(part, "set_reference_boxes", None)
            if start is not None:
                start(boxes)

    def forward(self, image: Tensor, targets: Targets | None = None) -> dict[str, Any]:
        """Detect.

        Parameters
        ----------
        image : Tensor of shape (B, 1, X, Y, Z)
            Intensities in [0, 1].
        targets : sequence of dict, optional
            As :class:`organdetr_monai.losses.DetectionLoss` takes them; read by extra queries and refiner alone.

        Returns
        -------
        dict
            ``logits`` (B, N, K + 1), index 0 is "no organ"; ``boxes`` (B, N, 6), (cx, cy, cz, w, h, d) in [0, 1] of the
            volume, axes in array order. In training also ``aux``, the same for the proposals and each earlier decoder
            layer, ``segmentation``, logits (B, K + 1, x, y, z) for each map, finest first, and ``extra``, the extra
            queries' ``logits``, ``boxes``, ``aux`` and, if they are known, ``matches``, and ``refined``, what
            :func:`organdetr_monai.roi_loss.refiner_terms` takes. Outside of training a refiner leaves K queries, one
            for each organ.
        """
        maps = self.backbone(image)
        if self.encoder is not None:
            maps = self.encoder(maps)
        reference, proposed = self._start(maps)
        others: dict[str, Any] = {}
        if self.training and self.extra_queries is not None:
            extra = self.extra_queries(targets)
            layers, others["extra"] = decode_together(self.decoder, maps, self.content, reference, extra)
        else:
            layers = self.decoder(maps, self.content, reference)
        *aux, last = layers
        output: dict[str, Any] = dict(last)
        if self.training:
            output.update(aux=proposed + aux, **others)
            if self.segmentation is not None:
                output["segmentation"] = self.segmentation(maps)
            if self.refiner is not None:
                output["refined"] = self.refiner(image, targets)
        elif self.refiner is not None:
            output = self.refiner.refine(image, output)
        return output

    def _start(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Reference boxes as logits, (N, 6), or (B, N, 6) with the proposals that they are."""
        if self.proposals is None:
            return cast(Tensor, self.reference), []
        proposed = self.proposals(maps, len(self.content))
        return inverse_sigmoid(proposed["boxes"].detach()), [proposed]
