"""A second look at each organ: its box, cut out and enlarged, shows where its walls are.

The decoder reads maps of at least four voxels per cell and finer than that it guesses. The refiner reads the image:
around each box it samples a cube of fixed size, segments the organ in it, and finds along each axis where the organ
begins and ends (two stages, as in Faster R-CNN and Mask R-CNN, He et al. 2017). In training the boxes are the true
ones, moved at random, so that it learns from the first step on and waits for no decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from organdetr_monai.boxes import centre_to_corners, corners_to_centre
from organdetr_monai.matching import Targets

__all__ = ["ROIRefiner", "expected_iou", "expected_walls", "sample_boxes"]

MINIMUM = 16  # cells; of half as many the coarsest map would be one cell, which has no variance to normalise by
SPREAD = 2.0  # cells; how far from where it was a wall is looked for before anything is learned
SHARE_OF_IOU = 0.25  # in the score; with more, of several windows the surest wins, not the one that sees the organ best
IMPOSSIBLE = -30.0  # logit of a class that a refined box is not of; finite, so that an exported graph stays so


def sample_boxes(volume: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cubes of ``size`` cells, one for each box, by trilinear interpolation; coarser cells average what they cover.

    A box has faces along the axes, so that interpolation is a product of three matrices: any device computes it alike,
    and any format of exported networks has it; in float32 also under autocast, so that training and detection see the
    same. A cell whose middle is beyond the volume shows what the outermost voxels do.

    Parameters
    ----------
    volume : Tensor of shape (B, X, Y, Z)
    boxes : Tensor of shape (B, R, 6)
        Corners in voxels of the volume.
    size : int

    Returns
    -------
    Tensor of shape (B, R, size, size, size), float32
    """
    with torch.autocast(volume.device.type, enabled=False):
        x, y, z = (
            _weights(boxes[..., axis].float(), boxes[..., axis + 3].float(), volume.shape[axis + 1], size)
            for axis in range(3)
        )  # (B, R, size, X), (B, R, size, Y), (B, R, size, Z)
        batch, count = boxes.shape[:2]
        slabs = x.flatten(1, 2) @ volume.float().flatten(2)  # (B, R * size, Y * Z)
        slabs = slabs.view(batch, count, size, *volume.shape[2:])
        return y[:, :, None] @ slabs @ z[:, :, None].transpose(-1, -2)


def _weights(start: Tensor, stop: Tensor, length: int, size: int) -> Tensor:
    """What each voxel of an axis has in each cell between ``start`` and ``stop`` (B, R): (B, R, size, length)."""
    step = ((stop - start) / size)[..., None]  # (B, R, 1), voxels per cell
    cells = torch.arange(size, device=start.device, dtype=torch.float32) + 0.5
    middle = (start[..., None] + cells * step - 0.5).clamp(0, length - 1)  # index of the voxel, 0 is the first's centre
    voxels = torch.arange(length, device=start.device, dtype=torch.float32)
    distance = (middle[..., None] - voxels).abs() / step.clamp(min=1)[..., None]
    share = (1 - distance).clamp(min=0)
    return share / share.sum(-1, keepdim=True)


class ROIRefiner(nn.Module):
    """Walls of organs from cubes around their boxes.

    Parameters
    ----------
    num_classes : int
        K.
    size : int
        Cells of the cube along each axis, a multiple of 8, at least 16.
    channels : sequence of 4 ints
        Of the maps of the small U-Net, finest first.
    margin : float
        How far the cube reaches beyond each face of the box, as a share of the box's size along that axis,
    least : float
        and at least so many voxels.
    per_image : int
        Organs of each image that it is trained on at a step, drawn anew each time; where there are fewer, some twice.
    noise : (float, float)
        Standard deviation by which the walls of training boxes are moved: voxels, and a share of the box's size, added.
        It is scaled by 0.5 to 1.5, drawn for each box.
    """

    needs_targets = True

    def __init__(
        self,
        num_classes: int,
        *,
        size: int = 24,
        channels: Sequence[int] = (8, 24, 48, 64),
        margin: float = 0.25,
        least: float = 3.0,
        per_image: int = 2,
        noise: tuple[float, float] = (0.75, 0.06),
    ) -> None:
        super().__init__()
        if size % 8 or size < MINIMUM:
            raise ValueError(f"size must be a multiple of 8 and at least {MINIMUM}, got {size}")
        self.num_classes, self.size, self.margin, self.least = num_classes, size, margin, least
        self.per_image, self.noise = per_image, noise
        before = (1, *channels[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(_block(a, b, 1 if level == 0 else 2), _block(b, b))
            for level, (a, b) in enumerate(zip(before, channels, strict=True))
        )
        self.organ_embedding = nn.Embedding(num_classes, channels[-1])
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.mask = nn.Conv3d(channels[0], num_classes, 1)
        width = 48
        self.profile = nn.Sequential(
            nn.Conv1d(2 * channels[0] + 2, width, 5, padding=2),
            nn.LeakyReLU(0.01),
            nn.Conv1d(width, width, 5, padding=2),
        )
        self.axis_embedding = nn.Embedding(num_classes, 3 * width)
        self.walls = nn.Conv1d(width, 2, 1, bias=False)  # one would shift all places alike, which softmax does not see
        # Hardly a say at the start: the first walls are those of the box that it looks at.
        nn.init.normal_(self.walls.weight, std=1e-3)

    def forward(self, image: Tensor, targets: Targets | None) -> dict[str, Tensor]:
        """Look at some organs of each image, their boxes moved; in training.

        Parameters
        ----------
        image : Tensor of shape (B, 1, X, Y, Z)
        targets : sequence of dict
            As :class:`organdetr_monai.losses.DetectionLoss` takes them; ``seed``, an int, where an image has one,
            decides which organs it looks at and how their boxes are moved, whichever process has the image.

        Returns
        -------
        dict
            What :func:`organdetr_monai.roi_loss.refiner_terms` takes, for R = B * per_image organs: ``walls`` (R, 3,
            2, size), logits of where along each axis the organ begins and ends, and ``wanted`` (R, 3, 2), where it
            does, in [0, 1] of the cube, or beyond; ``cells`` (R, 3), voxels per cell; ``mask`` (R, size, size, size),
            logits, ``shown``, the share of the organ in each cell, and ``masked`` (R,), whether that is known;
            ``there`` (R,), 0 where an image has no organ.
        """
        if targets is None:
            raise ValueError("the refiner needs the targets in training")
        shape = _corner(image)
        drawn = [self._draw(target) for target in targets]
        boxes, labels, there, masked, off = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        truth = centre_to_corners(boxes) * shape  # (B, R, 6)
        moved = self._moved(truth, off)
        cubes = self.around(moved)
        mask, walls = self._look(image, moved, cubes, labels)
        organ = (torch.stack([t["mask"] for t in targets])[:, None] == labels[:, :, None, None, None]).float()
        shown = sample_boxes(organ.flatten(0, 1), cubes.flatten(0, 1)[:, None], self.size)[:, 0]
        return {
            "walls": walls,
            "wanted": _places(truth, cubes).flatten(0, 1),
            "cells": (cubes[..., 3:] - cubes[..., :3]).flatten(0, 1) / self.size,
            "mask": mask,
            "shown": shown,
            "masked": masked.flatten(),
            "there": there.flatten(),
        }

    def refine(self, image: Tensor, output: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Look at the best box of each organ once more.

        Parameters
        ----------
        image : Tensor of shape (B, 1, X, Y, Z)
        output : mapping
            ``logits`` (B, N, K + 1) and ``boxes`` (B, N, 6) of the decoder.

        Returns
        -------
        dict
            The same for K queries: query ``k`` is organ ``k + 1``, else none. Its probability is a weighted geometric
            mean: that of the decoder's best query and, by :data:`SHARE_OF_IOU`, the IoU that is expected of the new
            box. What is sure ranks before what is vague (as in FCOS, Tian et al. 2022). An organ that is surely there
            has more than 0.5 if an IoU of more than 1/16 is expected. Of an organ that is not there, of which no cube
            is seen in training, the IoU means nothing.
        """
        score, query = output["logits"].float().softmax(-1)[..., 1:].max(dim=1)  # (B, K)
        boxes = output["boxes"].float().gather(1, query[..., None].expand(-1, -1, 6))
        shape = _corner(image)
        corners = centre_to_corners(boxes) * shape
        cubes = self.around(corners)
        labels = torch.arange(1, self.num_classes + 1, device=image.device).expand(image.shape[0], -1)
        _, walls = self._look(image, corners, cubes, labels)
        place, deviation = expected_walls(walls)
        place = place.sort(dim=-1).values  # begin and end
        score = score ** (1 - SHARE_OF_IOU) * expected_iou(place, deviation).view_as(score) ** SHARE_OF_IOU
        place = place.transpose(1, 2).reshape(*labels.shape, 2, 3)
        low, high = cubes.view(*labels.shape, 2, 3).unbind(2)
        corners = (low[:, :, None] + place * (high - low)[:, :, None]).flatten(2) / shape
        eye = torch.eye(self.num_classes, device=image.device, dtype=torch.bool)[None]
        sure = score.clamp(1e-6, 1 - 1e-6)
        own = torch.where(eye, sure.log()[..., None], IMPOSSIBLE)
        logits = torch.cat([(1 - sure).log()[..., None], own], dim=-1)
        return {"logits": logits, "boxes": corners_to_centre(corners.clamp(0, 1))}

    def around(self, boxes: Tensor) -> Tensor:
        """Cubes around boxes, both (..., 6) corners in voxels."""
        start, stop = boxes.chunk(2, dim=-1)
        margin = (self.margin * (stop - start)).clamp(min=self.least)
        return torch.cat([start - margin, stop + margin], dim=-1)

    def _draw(self, target: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Boxes (R, 6), labels (R,), whether there is one (R,), whether the mask shows it (R,), and how far each wall
        is moved (R, 6), in deviations.
        """
        boxes, labels = target["boxes"].float(), target["labels"]
        device, count = boxes.device, self.per_image
        # On the host: a GPU's generator draws other numbers from the same seed.
        random = torch.Generator().manual_seed(target["seed"]) if "seed" in target else None
        spread = 0.5 + torch.rand(count, 1, generator=random)
        off = (torch.randn(count, 6, generator=random) * spread).to(device, non_blocking=True)
        if not len(labels):  # a place in the batch all the same: shapes depend on no image
            whole = boxes.new_tensor([[0.5] * 3 + [1.0] * 3]).expand(count, -1)
            none = boxes.new_zeros(count)
            return whole, labels.new_ones(count), none, none, off
        some = torch.randperm(len(labels), generator=random)
        chosen = some[torch.arange(count) % len(labels)].to(device, non_blocking=True)
        labels = labels[chosen]
        known = target.get("segmented", target["annotated"])[labels - 1].float()
        return boxes[chosen], labels, boxes.new_ones(count), known, off

    def _moved(self, boxes: Tensor, off: Tensor) -> Tensor:
        """Boxes with walls moved by so many deviations, both (..., 6), no smaller than a few voxels."""
        size = boxes[..., 3:] - boxes[..., :3]
        moved = boxes + off * (self.noise[0] + self.noise[1] * torch.cat([size, size], dim=-1))
        centre = (moved[..., :3] + moved[..., 3:]) / 2
        half = ((moved[..., 3:] - moved[..., :3]) / 2).clamp(min=1.5)
        return torch.cat([centre - half, centre + half], dim=-1)

    def _look(self, image: Tensor, boxes: Tensor, cubes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and cubes around them (B, r, 6) and labels (B, r) from 1 up to logits of masks (R, n, n, n) and walls
        (R, 3, 2, n), with R = B * r.
        """
        x = (sample_boxes(image[:, 0], cubes, self.size).flatten(0, 1)[:, None] - 0.5) * 4
        labels = labels.flatten()
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        x = kept.pop() + self.organ_embedding(labels - 1)[:, :, None, None, None]
        for block in self.up:
            finer = kept.pop()
            x = block(torch.cat([F.interpolate(x, size=finer.shape[2:], mode="trilinear"), finer], dim=1))
        # Of all organs' masks the asked one alone: a row of the convolution for each cube.
        weight = self.mask.weight[labels - 1, :, 0, 0, 0].to(x.dtype)  # (R, C)
        mask = torch.einsum("rcxyz,rc->rxyz", x, weight) + self.mask.bias[labels - 1, None, None, None]  # type: ignore[index]
        p = mask.float().sigmoid()[:, None]
        axes = self.axis_embedding(labels - 1).unflatten(-1, (3, -1))  # (R, 3, width)
        found = []
        for axis in range(3):
            others = [other + 2 for other in range(3) if other != axis]
            inside = (x * p).sum(others) / p.sum(others).clamp(min=1)
            seen = torch.cat([inside, x.mean(others), p.amax(others), 10 * p.mean(others)], dim=1)  # (R, 2 C + 2, n)
            found.append(self.walls(F.leaky_relu(self.profile(seen) + axes[:, axis, :, None], 0.01)))
        place = _places(boxes, cubes).flatten(0, 1)[..., None]  # (R, 3, 2, 1)
        before = -(((_cells(place, self.size) - place) * self.size / SPREAD) ** 2) / 2
        return mask, torch.stack(found, dim=1).float() + before


def _cells(like: Tensor, size: int) -> Tensor:
    """Middles of the cells in [0, 1] of a cube, (size,)."""
    return (torch.arange(size, device=like.device, dtype=torch.float32) + 0.5) / size


def _places(boxes: Tensor, cubes: Tensor) -> Tensor:
    """Where boxes begin and end along each axis, in [0, 1] of their cubes, both (..., 6): (..., 3, 2)."""
    low, high = cubes.unflatten(-1, (2, 3)).unbind(-2)
    return ((boxes.unflatten(-1, (2, 3)) - low[..., None, :]) / (high - low)[..., None, :]).transpose(-1, -2)


def _corner(image: Tensor) -> Tensor:
    """(X, Y, Z, X, Y, Z) of an image; no constant of an exported graph, and no copy from the host."""
    one = torch.ones((), device=image.device)
    return torch.stack([one * n for n in image.shape[2:]] * 2)


def _block(inside: int, outside: int, stride: int = 1) -> nn.Module:
    return Convolution(
        3,
        inside,
        outside,
        strides=stride,
        kernel_size=3,
        act=("leakyrelu", {"negative_slope": 0.01}),
        norm=("instance", {"affine": True}),
        bias=False,
    )


def expected_walls(walls: Tensor) -> tuple[Tensor, Tensor]:
    """Mean place of each wall in [0, 1] of the cube, and its mean absolute deviation: (R, 3, 2, n) to (R, 3, 2)."""
    cells = _cells(walls, walls.shape[-1])
    share = walls.float().softmax(-1)
    mean = (share * cells).sum(-1)
    return mean, (share * (cells - mean[..., None]).abs()).sum(-1)


def expected_iou(place: Tensor, deviation: Tensor) -> Tensor:
    """IoU with the truth of a box whose walls may be off by so much: (R, 3, 2) of begin and end to (R,).

    Along each axis as if the walls were off by their deviations and half of that lay inside the box, the other
    half outside; the product over the axes. Cautious: a wall is trained to be a Gaussian of one cell, so that even one
    that is known as well as training asks for counts as off by 0.8 cells.
    """
    size, off = place[..., 1] - place[..., 0], deviation.sum(-1) / 2
    return ((size - off).clamp(min=0) / (size + off).clamp(min=1e-6)).prod(-1)
