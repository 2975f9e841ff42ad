"""RetinaNet and Retina U-Net: a dense one-stage detector of MONAI's parts, for one box of each organ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.apps.detection.networks.retinanet_network import RetinaNetClassificationHead, RetinaNetRegressionHead
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.apps.detection.utils.hard_negative_sampler import HardNegativeSampler
from torch import Tensor, nn

from organdetr_monai.boxes import denormalise, iou_giou, normalise
from organdetr_monai.matching import Targets
from organdetr_monai.networks.pyramid import PyramidBackbone
from organdetr_monai.peers.shared import Average, counts_of_batch, organ_queries
from organdetr_monai.segmentation_loss import multiscale_segmentation_loss, shown_organs

DEFAULT_WEIGHTS = {"class": 1.0, "giou": 1.0, "segmentation": 1.0}


class OrganRetinaNet(nn.Module):
    """The heads of MONAI's ``RetinaNet`` on a feature pyramid, with anchors that fit the organs.

    Parameters
    ----------
    backbone : PyramidBackbone
        Image (B, 1, X, Y, Z) to a list of maps (B, dim, …), finest first.
    segmentation : nn.Module or None
        Maps to a list of logits; called while training only. With it this is the Retina U-Net (Jaeger et al. 2020), at
        the resolution of the maps.
    dim : int
        Width of the maps, a multiple of 8.
    num_classes : int
        K.
    num_anchors : int
        A, anchors of each cell.

    Notes
    -----
    Boxes are coded as MONAI's ``BoxCoder`` has it. Of each organ the best-scoring anchor's box is the answer: the box
    that non-maximum suppression would put first. Without `set_anchor_shapes` the anchors are cubes of 4 to 64 voxels.
    """

    anchor_shapes: Tensor

    def __init__(
        self,
        backbone: PyramidBackbone,
        segmentation: nn.Module | None = None,
        *,
        dim: int = 64,
        num_classes: int = 12,
        num_anchors: int = 6,
    ) -> None:
        super().__init__()
        self.backbone, self.segmentation = backbone, segmentation
        self.classification_head = RetinaNetClassificationHead(dim, num_anchors, num_classes, spatial_dims=3)
        self.regression_head = RetinaNetRegressionHead(dim, num_anchors, spatial_dims=3)
        sides = torch.logspace(2, 6, num_anchors, base=2.0)
        self.register_buffer("anchor_shapes", sides[:, None].repeat(1, 3))  # voxels
        self.coder = BoxCoder((1.0,) * 6)

    @torch.no_grad()
    def set_anchor_shapes(self, boxes: Tensor, window: Sequence[int]) -> None:
        """Take the shapes of the anchors, on all levels, from training boxes.

        Parameters
        ----------
        boxes : Tensor of shape (M, 6)
            Normalised centre boxes, M > 0.
        window : (X, Y, Z)
            Voxels that they are normalised by.
        """
        sizes = boxes[:, 3:] * torch.as_tensor(window, dtype=torch.float32)
        self.anchor_shapes.copy_(typical_sizes(sizes, len(self.anchor_shapes)))

    def forward(self, image: Tensor) -> dict[str, Any]:
        """Detect.

        Parameters
        ----------
        image : Tensor of shape (B, 1, X, Y, Z)
            Intensities in [0, 1].

        Returns
        -------
        dict
            As :func:`organdetr_monai.peers.shared.organ_queries` gives it: a query for each organ. In training, for N
            anchors: ``scores`` (B, N, K) logits, ``codes`` (B, N, 6), ``anchors`` (N, 6) corners in voxels, ``places``
            the number of cells of each map, ``window`` (X, Y, Z), and where there are heads ``segmentation``.
        """
        window = tuple(image.shape[2:])
        maps: list[Tensor] = self.backbone(image)
        scores, codes = self._rows(self.classification_head(maps)), self._rows(self.regression_head(maps))
        strides = [2**level for level in self.backbone.levels]
        anchors = torch.cat(
            [grid_anchors(m.shape[2:], stride, self.anchor_shapes) for m, stride in zip(maps, strides, strict=True)]
        )
        if not self.training:
            return self._best(scores, codes, anchors, window)
        output = {"scores": scores, "codes": codes, "anchors": anchors, "window": window}
        output["places"] = [m.shape[2:].numel() for m in maps]
        if self.segmentation is not None:
            output["segmentation"] = self.segmentation(maps)
        return output

    def _rows(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, A * C, X, Y, Z) to (B, N, C), float32: cell by cell, the anchors of a cell one after the other."""
        per_cell = (m.unflatten(1, (len(self.anchor_shapes), -1)).permute(0, 3, 4, 5, 1, 2) for m in maps)
        return torch.cat([m.flatten(1, 4) for m in per_cell], dim=1).float()

    def _best(self, scores: Tensor, codes: Tensor, anchors: Tensor, window: tuple[int, ...]) -> dict[str, Tensor]:
        best, index = scores.max(dim=1)  # (B, K)
        code = codes.gather(1, index[..., None].expand(-1, -1, 6))
        corners = self.coder.decode_single(code.flatten(0, 1), anchors[index].flatten(0, 1)).unflatten(0, best.shape)
        limit = torch.tensor([*window, *window], dtype=torch.float32, device=corners.device)
        return organ_queries(best, normalise(corners.clamp(min=0).minimum(limit), window))


def grid_anchors(cells: Sequence[int], stride: int, shapes: Tensor) -> Tensor:
    """Anchors of a map: corners in voxels, (X * Y * Z * A, 6), for ``shapes`` (A, 3) around the centre of each cell.

    MONAI's generator derives the stride from the sizes of image and map, and is wrong where that does not divide.
    """
    axes = [(torch.arange(n, device=shapes.device) + 0.5) * stride for n in cells]
    centre = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 1, 3)
    return torch.cat([centre - shapes / 2, centre + shapes / 2], dim=-1).flatten(0, 1)


def typical_sizes(sizes: Tensor, count: int, *, steps: int = 50) -> Tensor:
    """``count`` sizes (count, 3) that stand for many (M, 3): k-means of the logarithms, started along the volume."""
    points = sizes.float().clamp(min=1.0).log()
    order = points.sum(1).argsort()
    start = (torch.arange(count) + 0.5) / count * len(points)
    centres = points[order[start.long()]]
    for _ in range(steps):
        nearest = torch.cdist(points, centres).argmin(1)
        centres = torch.stack(
            [points[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(count)]
        )
    return centres.exp()


class RetinaNetLoss(nn.Module):
    """Binary cross-entropy of sampled anchors, GIoU of matched ones, segmentation where the output has one.

    Anchors are matched by MONAI's ``ATSSMatcher`` (Zhang et al. 2020); hard negatives are drawn by its
    ``HardNegativeSampler``. There is a sigmoid for each organ. Those that an image does not annotate enter neither
    the cross-entropy nor the choice of hard negatives.

    Parameters
    ----------
    candidates : int
        Of the matcher: cells nearest to an organ's centre that are looked at on each level.
    sampled, positive_share : int, float
        Anchors of an image that enter the cross-entropy, and how many of them may be matched ones.
    weights : mapping, optional
        Weights of the terms ``class``, ``giou``, ``segmentation``; others keep their 1.
    average : callable, optional
        For a batch that several processes share, as :class:`organdetr_monai.losses.DetectionLoss` has it.
    """

    def __init__(
        self,
        *,
        candidates: int = 4,
        sampled: int = 128,
        positive_share: float = 0.33,
        weights: Mapping[str, float] | None = None,
        average: Average | None = None,
    ) -> None:
        super().__init__()
        unknown = set(weights or {}) - set(DEFAULT_WEIGHTS)
        if unknown:
            raise ValueError(f"unknown loss terms {sorted(unknown)}; the terms are {sorted(DEFAULT_WEIGHTS)}")
        self.weights = {**DEFAULT_WEIGHTS, **(weights or {})}
        self.matcher = ATSSMatcher(candidates, center_in_gt=False)
        self.sampler = HardNegativeSampler(sampled, positive_share, pool_size=20)
        self.coder, self.average = BoxCoder((1.0,) * 6), average

    def forward(self, output: Mapping[str, Any], targets: Targets) -> dict[str, Tensor]:
        """Cost of a batch.

        Parameters
        ----------
        output : mapping
            As `OrganRetinaNet` gives it in training.
        targets : sequence of dict
            As :class:`organdetr_monai.losses.DetectionLoss` takes them.

        Returns
        -------
        dict
            ``loss``, the weighted sum, and the unweighted terms it is made of, all scalars.
        """
        anchors, device = output["anchors"], output["scores"].device
        entropy, giou = output["scores"].sum() * 0, output["codes"].sum() * 0
        chosen = positives = 0
        for scores, codes, target in zip(output["scores"], output["codes"], targets, strict=True):
            truth = denormalise(target["boxes"], output["window"])
            matches = self._match(truth, anchors, output["places"])
            matched = matches >= 0
            wanted = torch.zeros_like(scores)
            wanted[matched, target["labels"][matches[matched]] - 1] = 1.0
            used = self._sample(matched, scores.detach(), target["annotated"])
            terms = F.binary_cross_entropy_with_logits(scores[used], wanted[used], reduction="none")
            entropy = entropy + (terms * target["annotated"]).sum()
            boxes = self.coder.decode_single(codes[matched], anchors[matched])
            giou = giou + (1 - iou_giou(boxes, truth[matches[matched]])[1]).sum()
            chosen, positives = chosen + len(used), positives + len(boxes)
        masks, segmented, shown = None, None, 0.0
        if "segmentation" in output:
            masks = torch.stack([t["mask"] for t in targets])
            segmented = torch.stack([t.get("segmented", t["annotated"]) for t in targets])
            shown = float(shown_organs(masks, segmented).sum())
        counts = [len(targets), chosen, positives, shown]
        images, all_chosen, all_positives, organs = counts_of_batch(counts, self.average, device)
        sums = {"class": entropy / all_chosen, "giou": giou / all_positives}
        if masks is not None and segmented is not None:
            sums["segmentation"] = multiscale_segmentation_loss(
                output["segmentation"], masks, segmented, images=images, organs=organs
            )
        loss = torch.stack([self.weights[name] * term for name, term in sums.items()]).sum()
        return {"loss": loss, **{name: term.detach() for name, term in sums.items()}}

    @torch.no_grad()
    def _match(self, truth: Tensor, anchors: Tensor, places: Sequence[int]) -> Tensor:
        """For each anchor the organ (row of ``truth``) that it is matched with, or less than 0: (N,)."""
        if not len(truth):
            return torch.full((len(anchors),), -1, device=anchors.device)
        return self.matcher(truth, anchors, places, len(anchors) // sum(places))[1]

    def _sample(self, matched: Tensor, scores: Tensor, annotated: Tensor) -> Tensor:
        """Indices of anchors for the cross-entropy: some matched ones, and hard ones of the others."""
        hardness = scores.masked_fill(~annotated, float("-inf")).max(dim=1).values
        positive, negative = self.sampler.select_samples_per_img(matched.long(), hardness)
        return torch.cat([positive.nonzero(), negative.nonzero()])[:, 0]
