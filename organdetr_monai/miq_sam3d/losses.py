"""What an answer to a click costs: each instance's mask, box and score, their union; and what the voxels say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor, nn

from organdetr_monai.boxes import centre_to_corners, iou_giou
from organdetr_monai.matching import Matches
from organdetr_monai.miq_sam3d.matching import InstanceMatcher
from organdetr_monai.miq_sam3d.queries import squared_distance
from organdetr_monai.miq_sam3d.targets import Targets
from organdetr_monai.segmentation_loss import class_shares

DEFAULT_WEIGHTS = {
    "kinds": 1.0,
    "votes": 0.05,
    "middles": 0.1,
    # How much these weigh together is nothing to an optimiser such as AdamW: what clicks ask for trains weights of its
    # own. It matters to the clipping of gradients, which theirs must not rule.
    "objectness": 0.04,
    "focal": 0.04,
    "dice": 0.1,
    "l1": 0.1,
    "giou": 0.04,
    "quality": 0.02,
    "union": 0.04,
}
SMOOTH = 8.0  # cells: keeps the terms of small instances, and of none, within bounds
FOCUS = 2.0  # exponent of the focal terms


class MIQLoss(nn.Module):
    """Weighted sum of the terms over all decoder layers.

    Of matched queries: ``focal`` and ``dice`` of the mask, ``l1`` and ``giou`` of the box, ``quality``, the squared
    error of the predicted IoU. Of all queries: ``objectness``, focal, and ``union``, focal and Dice of where at least
    one query sees an instance. Of every voxel, whatever was clicked: ``kinds``, cross entropy and Dice of what it
    is. Of every cell: ``middles``, whether it is the middle of an instance, and if it is of one ``votes``, of its box.

    Parameters
    ----------
    matcher : InstanceMatcher
    weights : mapping, optional
        Weights of the terms; others keep `DEFAULT_WEIGHTS`.
    """

    def __init__(self, matcher: InstanceMatcher, *, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        unknown = set(weights or {}) - set(DEFAULT_WEIGHTS)
        if unknown:
            raise ValueError(f"unknown loss terms {sorted(unknown)}; the terms are {sorted(DEFAULT_WEIGHTS)}")
        self.matcher = matcher
        self.weights = {**DEFAULT_WEIGHTS, **(weights or {})}
        self.of_kinds = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)

    def forward(self, output: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """Cost of a batch.

        Parameters
        ----------
        output : mapping
            As :class:`organdetr_monai.miq_sam3d.network.MIQSAM3D` gives it in training.
        targets : Targets

        Returns
        -------
        dict
            ``loss``, the weighted sum, and the unweighted terms of the last layer; those of the earlier layers, which
            weigh as much, have the suffix ``_aux`` and are a mean. All scalars. Where nothing was asked the terms of
            queries are not there.
        """
        loss, terms = output["voxels"].new_zeros(()), {}
        if "masks" in output:
            layers = [output, *output.get("aux", ())]
            shares = targets.shares(output["masks"].shape[2:])
            matches = self.matcher(layers, targets, shares)
            per_layer = [self.layer_terms(o, m, targets, shares) for o, m in zip(layers, matches, strict=True)]
            loss = sum((self.weights[name] * t[name] for t in per_layer for name in t), start=loss)
            terms = dict(per_layer[0])
            for name in per_layer[0] if len(per_layer) > 1 else ():
                terms[f"{name}_aux"] = torch.stack([t[name] for t in per_layer[1:]]).mean()
        terms["kinds"] = self.of_kinds(output["voxels"], targets.voxel_kinds[:, None])
        terms["votes"] = votes(output["votes"], targets)
        terms["middles"] = middles(output["middles"], targets)
        for name in ("kinds", "votes", "middles"):
            loss = loss + self.weights[name] * terms[name]
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def layer_terms(
        self, layer: Mapping[str, Tensor], matches: Matches, targets: Targets, shares: Tensor
    ) -> dict[str, Tensor]:
        """Terms of one decoder layer; sums over pairs are divided by the number of pairs in the batch."""
        pairs = max(len(matches.image), 1)
        of_query, of_truth = (matches.image, matches.query), (matches.image, matches.organ)
        logits, truth = layer["masks"][of_query].flatten(1), shares[of_truth].flatten(1)  # (P, cells)
        p = logits.sigmoid()
        boxes, true_boxes = layer["boxes"][of_query], targets.boxes[of_truth]
        giou = iou_giou(centre_to_corners(boxes), centre_to_corners(true_boxes))[1]
        wanted = torch.zeros_like(layer["objectness"])
        wanted[of_query] = 1.0
        score = layer["objectness"]
        return {
            "objectness": focal(F.logsigmoid(score), F.logsigmoid(-score), wanted).sum() / pairs,
            "focal": per_size(focal(F.logsigmoid(logits), F.logsigmoid(-logits), truth), truth).sum() / pairs,
            "dice": dice(p, truth).sum() / pairs,
            "l1": (boxes - true_boxes).abs().sum() / pairs,
            "giou": (1 - giou).sum() / pairs,
            "quality": (layer["quality"][of_query].sigmoid() - iou(p, truth)).square().sum() / pairs,
            "union": union(layer, shares).mean(),
        }


def focal(log_p: Tensor, log_not_p: Tensor, truth: Tensor) -> Tensor:
    """Focal cross-entropy of each element, of log p and log (1 - p), for truths in [0, 1] (Li et al. 2020)."""
    entropy = -(truth * log_p + (1 - truth) * log_not_p)
    return (truth - log_p.exp()).abs() ** FOCUS * entropy


def per_size(values: Tensor, truth: Tensor) -> Tensor:
    """Sum over cells, in units of the size of the truth: (N, cells) to (N,). A mean would make small lesions free."""
    return values.sum(-1) / (truth.sum(-1) + SMOOTH)


def dice(p: Tensor, truth: Tensor) -> Tensor:
    """One minus soft Dice with squares in the denominator, (N, cells) to (N,); nothing for nothing costs nothing."""
    squares = p.square().sum(-1) + truth.square().sum(-1)
    return 1 - (2 * (p * truth).sum(-1) + SMOOTH) / (squares + SMOOTH)


@torch.no_grad()
def iou(p: Tensor, truth: Tensor) -> Tensor:
    """IoU of the cells above one half with the truth's shares, (N, cells) to (N,)."""
    hard = (p > 0.5).float()
    return (hard * truth).sum(-1) / torch.maximum(hard, truth).sum(-1).clamp(min=1e-6)


def union(layer: Mapping[str, Tensor], shares: Tensor) -> Tensor:
    """Focal plus Dice of the union of all queries, each as far as it is an instance: (B,)."""
    p = layer["objectness"].sigmoid()[..., None] * layer["masks"].flatten(2).sigmoid()  # (B, K, cells)
    log_none = torch.log1p(-p.clamp(max=1 - 1e-6)).sum(1)  # at least one: noisy or
    any_p = -torch.expm1(log_none)
    truth = shares.flatten(2).sum(1)
    return per_size(focal(any_p.clamp(min=1e-6).log(), log_none, truth), truth) + dice(any_p, truth)


def middles(logits: Tensor, targets: Targets) -> Tensor:
    """Focal loss of where the middles of all instances are: logits (B, X, Y, Z) to a scalar.

    The truth falls off like a Gaussian from each instance's middle and is zero beyond its cells (Zhou et al. 2019,
    Objects as Points); its highest cell is 1, however small the instance. The sum over the cells of an instance is
    divided by the sum of its truth, the one over all other cells by the number of instances: a large instance counts
    as much as a small one.
    """
    count = targets.all_boxes.shape[1]
    shares = class_shares(targets.all_labels, logits.shape[1:], count + 1)[:, 1:]  # (B, N, X, Y, Z)
    centre, size = targets.all_boxes.chunk(2, -1)
    distance = squared_distance(shares.shape[2:], centre, (size / 2).clamp(min=1e-3))
    heat = ((shares > 0) * torch.exp(-2 * distance)).flatten(2)
    heat = heat / heat.amax(-1, keepdim=True).clamp(min=1e-6)
    heat = torch.cat([heat.new_zeros(len(heat), 1, heat.shape[-1]), heat], 1)  # (B, 1 + N, cells), first of none
    truth, owner = heat.max(1)
    amount = heat.sum(-1)
    amount[:, 0] = 1.0
    flat = logits.flatten(1)
    each = focal(F.logsigmoid(flat), F.logsigmoid(-flat), truth) / amount.gather(1, owner)
    return each.sum() / max(int((targets.all_kinds > 0).sum()), 1)


def votes(boxes: Tensor, targets: Targets) -> Tensor:
    """GIoU and L1 loss of the cells inside instances: mean over the cells of an instance, then over the instances.

    Parameters
    ----------
    boxes : Tensor of shape (B, 6, X, Y, Z)
        Normalised centre boxes.
    targets : Targets

    Returns
    -------
    Tensor, scalar
        L1 in units of the true size.
    """
    count = targets.all_boxes.shape[1]
    shares = class_shares(targets.all_labels, boxes.shape[2:], count + 1)[:, 1:].flatten(2)  # (B, N, cells)
    inside = (shares > 0) & (shares >= 0.5 * shares.amax(-1, keepdim=True))
    image, instance, cell = inside.nonzero(as_tuple=True)
    said, truth = boxes.flatten(2)[image, :, cell], targets.all_boxes[image, instance]
    giou = iou_giou(centre_to_corners(said), centre_to_corners(truth))[1]
    each = 1 - giou + ((said - truth).abs() / truth[:, 3:].repeat(1, 2)).mean(-1)
    weight = 1 / inside.sum(-1)[image, instance]
    return (each * weight).sum() / weight.sum().clamp(min=1)
