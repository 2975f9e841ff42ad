"""Denoising queries: noisy copies of the true organs, to be put right; in training only.

Which query stands for which organ is known, so the decoder learns to move boxes and to name organs before the matching
of the other queries has settled (DN-DETR, Li et al. 2022). With negatives it also learns which of two queries near an
organ is too far off (CDN, in DINO, Zhang et al. 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from organdetr_monai.boxes import inverse_sigmoid
from organdetr_monai.matching import Matches, Targets
from organdetr_monai.networks.queries import ExtraQueries


class DenoisingQueries(nn.Module):
    """``groups`` noisy copies of all organs of an image; a group sees itself and the matched queries, nobody else.

    Each box has its centre moved along each axis by at most ``box_noise`` half sizes and each size changed by at most
    the share ``box_noise``. Each label is replaced, with probability ``label_noise``, by one drawn evenly from the
    organs that the image annotates. With ``contrastive`` each group holds as many negatives besides, which are to
    become "no organ": their box noise is one to two times ``box_noise``.

    A batch adds ``groups * M`` queries, twice as many with ``contrastive``, for M the most organs of any of its images.

    Parameters
    ----------
    dim : int
        Width of the decoder.
    num_classes : int
        K.
    groups : int
        Copies of each organ.
    box_noise : float
        In [0, 1); with ``contrastive`` in (0, 0.5): a size must stay positive.
    label_noise : float
        In [0, 1].
    contrastive : bool
        With negatives.
    """

    needs_targets = True

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        groups: int = 5,
        box_noise: float = 0.4,
        label_noise: float = 0.5,
        contrastive: bool = False,
    ) -> None:
        super().__init__()
        if groups < 1:
            raise ValueError(f"groups must be positive, got {groups}; without denoising queries leave them out")
        if not 0 <= box_noise < 1 or (contrastive and not 0 < box_noise < 0.5):
            limits = "(0, 0.5) with contrastive" if contrastive else "[0, 1)"
            raise ValueError(f"box_noise must lie in {limits}, got {box_noise}")
        if not 0 <= label_noise <= 1:
            raise ValueError(f"label_noise must lie in [0, 1], got {label_noise}")
        self.groups, self.kinds = groups, 2 if contrastive else 1
        self.box_noise, self.label_noise = box_noise, label_noise
        self.label_embedding = nn.Embedding(num_classes, dim)

    def forward(self, targets: Targets | None) -> ExtraQueries:
        """Queries from the truth of a batch.

        Parameters
        ----------
        targets : sequence of dict
            For each image ``boxes`` (M, 6) normalised centre boxes, ``labels`` (M,) in 1..K and ``annotated`` (K,).

        Returns
        -------
        ExtraQueries
            E = groups * kinds * M of them in this order, M the most organs of an image and kinds 1, or 2: positives,
            then negatives. Places beyond an image's own organs are seen by nobody and have no part in the loss.
        """
        if targets is None:
            raise ValueError("denoising queries are made from the truth: call network(image, targets) in training")
        counts = [len(t["labels"]) for t in targets]
        slots = max(*counts, 1)  # never none, so that every process of a distributed run has a gradient for all weights
        layout = (len(targets), self.groups, self.kinds, slots)
        boxes = pad_sequence([t["boxes"].float() for t in targets], batch_first=True)
        labels = pad_sequence([t["labels"] for t in targets], batch_first=True)
        if not any(counts):
            boxes, labels = boxes.new_zeros(len(targets), 1, 6), labels.new_zeros(len(targets), 1)
        annotated = torch.stack([t["annotated"] for t in targets])  # (B, K)

        noisy = self.noisy_boxes(boxes[:, None, None].expand(*layout, 6)).flatten(1, 3)  # (B, E, 6)
        called = self.noisy_labels(labels[:, None, None].expand(layout), annotated).flatten(1)  # (B, E)
        content = self.label_embedding((called - 1).clamp(min=0))  # (B, E, dim)

        device = boxes.device
        own = torch.tensor(counts).to(device, non_blocking=True)
        real = torch.arange(slots, device=device) < own[:, None]  # (B, slots)
        real = real[:, None].expand(-1, self.groups * self.kinds, -1).flatten(1)  # (B, E)
        group = torch.arange(self.groups, device=device).repeat_interleave(self.kinds * slots)
        visible = (group[:, None] == group) & real[:, None]  # (B, E, E)
        image, query, organ = self._matches(counts, slots).to(device, non_blocking=True)
        matches = Matches(image, query, organ, ignored=~real)
        return ExtraQueries(content, inverse_sigmoid(noisy), visible, see_matched=True, matches=matches)

    def noisy_boxes(self, boxes: Tensor) -> Tensor:
        """Normalised centre boxes (B, groups, kinds, M, 6) with noise; the second kind gets that of negatives."""
        size = boxes[..., 3:]
        kind = torch.arange(self.kinds, device=boxes.device)[:, None, None]
        sign = 1 - 2 * torch.randint(2, boxes.shape, device=boxes.device)
        noise = self.box_noise * sign * (torch.rand(boxes.shape, device=boxes.device) + kind)
        # An organ inside the volume keeps its centre inside: half its size is more than the centre ever moves.
        return torch.cat([boxes[..., :3] + noise[..., :3] * size / 2, size * (1 + noise[..., 3:])], dim=-1)

    def noisy_labels(self, labels: Tensor, annotated: Tensor) -> Tensor:
        """Labels (B, groups, kinds, M), 1..K, some of them replaced by others of ``annotated`` (B, K)."""
        lots = torch.rand(*labels.shape, annotated.shape[1], device=labels.device)
        drawn = lots.masked_fill(~annotated[:, None, None, None], -1.0).argmax(-1) + 1
        return torch.where(torch.rand(labels.shape, device=labels.device) < self.label_noise, drawn, labels)

    def _matches(self, counts: list[int], slots: int) -> Tensor:
        """Image, query and organ of every positive, (3, groups * organs of the batch), on the host."""
        first = torch.arange(self.groups)[:, None] * (self.kinds * slots)  # query of each group's first organ
        parts = []
        for image, count in enumerate(counts):
            organ = torch.arange(count).expand(self.groups, -1)
            parts.append(torch.stack([torch.full_like(organ, image), first + organ, organ]).flatten(1))
        return torch.cat(parts, dim=1)
