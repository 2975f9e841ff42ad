"""What a detection costs: class, box and segmentation terms, each blind to organs that a case does not annotate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.boxes import centre_to_corners, iou_giou
from organdetr_monai.matching import Matches, Targets

DEFAULT_WEIGHTS = {"class": 2.0, "l1": 5.0, "giou": 2.0, "segmentation": 2.0}


class Counts(NamedTuple):
    """What the sums over a batch are divided by: numbers, or scalar tensors where several processes share a batch."""

    images: float | Tensor
    #: Matched queries, for each decoder layer.
    positives: Sequence[float | Tensor]
    #: Pairs of an image and an organ that it annotates and shows; None: count them in the masks at hand.
    organs: Tensor | None = None


class DetectionLoss(nn.Module):
    """``2 class + 5 L1 + 2 GIoU + 2 segmentation`` over all decoder layers (Organ-DETR, loss section).

    Parameters
    ----------
    matcher : nn.Module
        Assigns queries to organs, e.g. :class:`organdetr_monai.matching.DenseQueryMatcher`.
    weights : mapping, optional
        Weights of the terms ``class``, ``l1``, ``giou``, ``segmentation``; others keep the paper's.
    organ_weight : float
        Weight of organs in the cross-entropy; "no organ" weighs 1.
    average : callable, optional
        For a batch that several processes share: the mean over the processes of a tensor of counts, such as
        :func:`organdetr_monai.distributed.mean`, called once for each batch. The terms are then divided by the numbers
        of the whole batch, so that the mean over the processes, of the terms and of the gradients, is what one process
        with the whole batch has. Divided by its own numbers, an image beside few organs would weigh more.
    """

    def __init__(
        self,
        matcher: nn.Module,
        *,
        weights: Mapping[str, float] | None = None,
        organ_weight: float = 10.0,
        average: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        unknown = set(weights or {}) - set(DEFAULT_WEIGHTS)
        if unknown:
            raise ValueError(f"unknown loss terms {sorted(unknown)}; the terms are {sorted(DEFAULT_WEIGHTS)}")
        self.matcher = matcher
        self.weights = {**DEFAULT_WEIGHTS, **(weights or {})}
        self.organ_weight = organ_weight
        self.average = average

    def forward(self, output: Mapping, targets: Targets) -> dict[str, Tensor]:
        """Cost of a batch.

        Parameters
        ----------
        output : mapping
            As :class:`organdetr_monai.networks.OrganDETR` gives it; ``aux`` and ``segmentation`` where there.
        targets : sequence of dict
            For each image ``boxes`` (M, 6) normalised centre boxes, ``labels`` (M,) in 1..K, ``annotated`` (K,) bool,
            and ``mask`` (X, Y, Z) ids where the output has a segmentation. ``segmented`` (K,) bool says which organs
            the mask speaks of, if others than ``annotated``: none where the organs are known by boxes only.

        Returns
        -------
        dict
            ``loss``, the weighted sum, and the unweighted terms it is made of: ``class``, ``l1``, ``giou`` of the last
            layer, the same with suffix ``_aux`` for the mean of the earlier layers, and ``segmentation``. All scalars.
        """
        annotated = torch.stack([t["annotated"] for t in targets])  # (B, K)
        layers = [
            {"logits": mask_unannotated(o["logits"], annotated), "boxes": o["boxes"]}
            for o in (output, *output.get("aux", ()))
        ]
        matches = self.matcher(layers, targets)
        masks, segmented = None, annotated
        if "segmentation" in output:
            masks = torch.stack([t["mask"] for t in targets])
            segmented = torch.stack([t.get("segmented", t["annotated"]) for t in targets])
        counts = self.counts(matches, masks, segmented)
        terms: dict[str, Tensor] = {}
        per_layer = [
            self.layer_terms(o, m, targets, images=counts.images, positives=p)
            for o, m, p in zip(layers, matches, counts.positives, strict=True)
        ]
        terms.update(per_layer[0])
        for name in per_layer[0] if len(per_layer) > 1 else ():
            terms[f"{name}_aux"] = torch.stack([t[name] for t in per_layer[1:]]).mean()
        first, *others = (self.weights[name] * t[name] for t in per_layer for name in t)
        loss = sum(others, start=first)
        if masks is not None:
            terms["segmentation"] = multiscale_segmentation_loss(
                output["segmentation"], masks, segmented, images=counts.images, organs=counts.organs
            )
            loss = loss + self.weights["segmentation"] * terms["segmentation"]
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def counts(self, matches: Sequence[Matches], masks: Tensor | None, segmented: Tensor) -> Counts:
        """Numbers of a batch with ``masks`` (B, X, Y, Z) of the organs ``segmented`` (B, K); with `average`, their mean
        over the processes.
        """
        images, positives = len(segmented), [len(m.image) for m in matches]
        if self.average is None:
            return Counts(images, positives)
        organs = torch.zeros((), device=segmented.device)
        if masks is not None:
            organs = shown_organs(masks, segmented).sum().float()
        own = torch.tensor([images, *positives], dtype=torch.float32).to(segmented.device, non_blocking=True)
        mean_images, *mean_positives, mean_organs = self.average(torch.cat([own, organs[None]])).unbind()
        return Counts(mean_images, mean_positives, mean_organs)

    def layer_terms(
        self,
        layer: Mapping[str, Tensor],
        matches: Matches,
        targets: Targets,
        *,
        images: float | Tensor,
        positives: float | Tensor,
    ) -> dict[str, Tensor]:
        """``class``, ``l1`` and ``giou`` of one decoder layer; ``images`` and ``positives`` as in :class:`Counts`.

        The box terms are divided by the number of positives of the batch: a larger matching ratio gives more
        positives, not a larger box loss. The class term is the mean over the queries, each weighing as its class does.
        """
        logits, boxes = layer["logits"], layer["boxes"].float()
        labels = torch.cat([t["labels"] for t in targets])
        truth = torch.cat([t["boxes"] for t in targets]).float()
        first = torch.tensor([0, *(len(t["labels"]) for t in targets)]).cumsum(0).to(boxes.device, non_blocking=True)
        flat = first[matches.image] + matches.organ  # row of each match among all organs of the batch
        wanted = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
        wanted[matches.image, matches.query] = labels[flat]
        class_weight = torch.full((logits.shape[-1],), float(self.organ_weight), device=logits.device)
        class_weight[0] = 1.0
        entropy = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), class_weight, reduction="sum")
        terms = {"class": entropy / (images * logits.shape[1] + (self.organ_weight - 1) * positives)}
        matched, truth = boxes[matches.image, matches.query], truth[flat]
        count = _or_any(positives)
        terms["l1"] = (matched - truth).abs().sum() / count
        terms["giou"] = (1 - iou_giou(centre_to_corners(matched), centre_to_corners(truth))[1]).sum() / count
        return terms


def mask_unannotated(logits: Tensor, annotated: Tensor) -> Tensor:
    """Take the classes that an image does not annotate out of its softmax.

    With a logit of minus infinity such a class has no probability and no gradient: a query may call itself that organ
    and is neither right nor wrong.

    Parameters
    ----------
    logits : Tensor of shape (B, N, K + 1)
    annotated : Tensor of shape (B, K), bool

    Returns
    -------
    Tensor of shape (B, N, K + 1), float32
    """
    return logits.float().masked_fill(~F.pad(annotated, (1, 0), value=True)[:, None], float("-inf"))


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


def _or_any(count: float | Tensor) -> float | Tensor:
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
        losses.append(entropy + (dice * present).sum() / _or_any(present.sum() if organs is None else organs))
    return torch.stack(losses).mean()
