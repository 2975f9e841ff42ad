"""What an answer to a click costs: each instance's mask, box and score, their union, and the contrast of the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from organdetr_monai.boxes import centre_to_corners, iou_giou
from organdetr_monai.matching import Matches
from organdetr_monai.miq_sam3d.matching import InstanceMatcher
from organdetr_monai.miq_sam3d.queries import ALIKE, squared_distance
from organdetr_monai.miq_sam3d.targets import Targets
from organdetr_monai.segmentation_loss import class_shares

DEFAULT_WEIGHTS = {
    "objectness": 2.0,
    "focal": 2.0,
    "dice": 5.0,
    "l1": 5.0,
    "giou": 2.0,
    "quality": 1.0,
    "union": 2.0,
    "contrast": 1.0,
    "kinds": 1.0,
    "presence": 2.0,
    "votes": 2.0,
}
SMOOTH = 8.0  # cells: keeps the terms of small instances, and of none, within bounds
FOCUS = 2.0  # exponent of the focal terms


class MIQLoss(nn.Module):
    """Weighted sum of the terms over all decoder layers.

    Of matched queries: ``focal`` and ``dice`` of the mask, ``l1`` and ``giou`` of the box, ``quality``, the squared
    error of the predicted IoU. Of all queries: ``objectness``, focal, and ``union``, focal and Dice of where at least
    one query sees an instance. Of the prompt: ``contrast``, InfoNCE (van den Oord et al. 2018). Of every
    instance in the window, whatever was clicked: ``kinds``, the same with the instance as prompt. Of every cell:
    ``presence``, whether it belongs to an instance of whatever kind, and if so ``votes``, of its box.

    Parameters
    ----------
    matcher : InstanceMatcher
    weights : mapping, optional
        Weights of the terms; others keep `DEFAULT_WEIGHTS`.
    temperature : float
        Of InfoNCE.
    """

    def __init__(
        self, matcher: InstanceMatcher, *, weights: Mapping[str, float] | None = None, temperature: float = 0.1
    ) -> None:
        super().__init__()
        unknown = set(weights or {}) - set(DEFAULT_WEIGHTS)
        if unknown:
            raise ValueError(f"unknown loss terms {sorted(unknown)}; the terms are {sorted(DEFAULT_WEIGHTS)}")
        self.matcher, self.temperature = matcher, temperature
        self.weights = {**DEFAULT_WEIGHTS, **(weights or {})}

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
            weigh as much, have the suffix ``_aux`` and are a mean. All scalars.
        """
        layers = [output, *output.get("aux", ())]
        shares = targets.shares(output["masks"].shape[2:])
        matches = self.matcher(layers, targets, shares)
        per_layer = [self.layer_terms(o, m, targets, shares) for o, m in zip(layers, matches, strict=True)]
        loss = sum((self.weights[name] * t[name] for t in per_layer for name in t), start=output["masks"].new_zeros(()))
        terms = dict(per_layer[0])
        for name in per_layer[0] if len(per_layer) > 1 else ():
            terms[f"{name}_aux"] = torch.stack([t[name] for t in per_layer[1:]]).mean()
        terms["contrast"] = contrast(output["similarity"], targets, temperature=self.temperature)
        terms["kinds"] = kind_contrast(output["keys"], targets, temperature=self.temperature)
        terms["presence"] = presence(output["presence"], targets)
        terms["votes"] = votes(output["votes"], targets)
        for name in ("contrast", "kinds", "presence", "votes"):
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


def presence(logits: Tensor, targets: Targets) -> Tensor:
    """Focal plus Dice of where any lesion is, of whatever kind: logits (B, X, Y, Z) to a scalar."""
    truth = class_shares(targets.all_labels.clamp(max=1), logits.shape[1:], 2)[:, 1].flatten(1)
    flat = logits.flatten(1)
    return (per_size(focal(F.logsigmoid(flat), F.logsigmoid(-flat), truth), truth) + dice(flat.sigmoid(), truth)).mean()


def contrast(similarity: Tensor, targets: Targets, *, temperature: float) -> Tensor:
    """InfoNCE of the prompt's similarity: the cores of the wanted instances against everything that is none of them.

    The rest of an instance counts for neither, so that the similarity has its peak in the middle, one for each. A fixed
    contender of similarity `ALIKE` takes part. What is wanted must beat it, and where nothing is wanted it must win:
    so the similarity says not only where something is most alike, but whether it is alike.

    Parameters
    ----------
    similarity : Tensor of shape (B, X, Y, Z)
        Cosine of prompt and keys.
    targets : Targets
    temperature : float

    Returns
    -------
    Tensor, scalar
        Mean over the cells of a core, then over the instances; an image without counts as one.
    """
    logits = (similarity / temperature).flatten(1)[:, None]  # (B, 1, cells)
    rival = logits.new_full((len(logits), 1, 1), ALIKE / temperature)
    none = torch.tensor([not count for count in targets.counts], device=logits.device)
    silence = F.softplus(logits.logsumexp(-1) - rival[:, 0])[none, 0]
    if not any(targets.counts):
        return silence.mean()
    shares = targets.shares(similarity.shape[1:])  # (B, M, X, Y, Z)
    core, shares = cores(shares, targets.boxes), shares.flatten(2)  # (B, M, cells)
    others = logits.masked_fill(shares.sum(1, keepdim=True) > 0, float("-inf"))
    others = torch.cat([others, rival], -1).logsumexp(-1, keepdim=True)
    each = (F.softplus(others - logits) * core).sum(-1) / core.sum(-1).clamp(min=1)  # (B, M)
    return torch.cat([each[targets.valid], silence]).mean()


def cores(shares: Tensor, boxes: Tensor) -> Tensor:
    """Cells in the middle of each instance, of its shares (B, M, X, Y, Z) and boxes (B, M, 6): bool (B, M, cells)."""
    centre, size = boxes.chunk(2, -1)
    distance = squared_distance(shares.shape[2:], centre, (size / 2).clamp(min=1e-3))
    inside = (shares * torch.exp(-2 * distance)).flatten(2)
    return (inside > 0) & (inside >= 0.5 * inside.amax(-1, keepdim=True))


def kind_contrast(keys: Tensor, targets: Targets, *, temperature: float) -> Tensor:
    """What :func:`contrast` asks of the one prompt, asked of every instance in the window, of whatever kind.

    The mean key of an instance's core is its prompt: the cores of all instances of its kind, its own included, against
    everything that is of no instance of the kind, and the fixed contender. A window has one click and several lesions,
    so that keys learn from it several times as much (a supervised contrastive loss, Khosla et al. 2020).

    Parameters
    ----------
    keys : Tensor of shape (B, d, X, Y, Z)
        Of length 1.
    targets : Targets
    temperature : float

    Returns
    -------
    Tensor, scalar
        Mean over the pairs of instances of one kind.
    """
    shares = class_shares(targets.all_labels, keys.shape[2:], targets.all_boxes.shape[1] + 1)[:, 1:]  # (B, N, X, Y, Z)
    core, shares = cores(shares, targets.all_boxes).float(), shares.flatten(2)  # (B, N, cells)
    kinds = targets.all_kinds
    alike = ((kinds[:, :, None] == kinds[:, None]) & (kinds[:, None] > 0)).float()  # (B, N, N)
    if not alike.any():
        return keys.sum() * 0
    with torch.autocast(keys.device.type, enabled=False):  # bfloat16 cannot tell 0.995 from 1
        flat = keys.float().flatten(2)  # (B, d, cells)
        prompts = F.normalize(core @ flat.transpose(1, 2), dim=-1)  # (B, N, d)
        logits = prompts @ flat / temperature  # (B, N, cells)
        of_kind = alike @ shares > 0
        rival = logits.new_full((*logits.shape[:2], 1), ALIKE / temperature)
        others = torch.cat([logits.masked_fill(of_kind, float("-inf")), rival], -1).logsumexp(-1, keepdim=True)
        each = F.softplus(others - logits) @ core.transpose(1, 2) / core.sum(-1).clamp(min=1)[:, None]  # (B, N, N)
    return (each * alike).sum() / alike.sum()


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
