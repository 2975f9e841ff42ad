"""What a click asks for, as tensors: the instances of the clicked kind, on the grids that the losses need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from organdetr_monai.boxes import corners_to_centre
from organdetr_monai.segmentation_loss import class_shares


class Targets(NamedTuple):
    """Wanted instances of a batch, M the largest number in one image; what lies beyond an image's own is void."""

    #: (B, X, Y, Z) int64, 1..M where a wanted instance is, 0 elsewhere, other kinds included.
    labels: Tensor
    #: (B, M, 6) normalised centre boxes.
    boxes: Tensor
    #: How many each image has.
    counts: list[int]
    #: For each image the clicked instance, counted from 0; -1 where the click lies on none of them.
    clicked: list[int]
    #: (B, X, Y, Z) int64 and (B, N, 6): the same of all instances, of whatever kind.
    all_labels: Tensor
    all_boxes: Tensor
    #: (B, N), the kind of each of them, 0 for what is void.
    all_kinds: Tensor

    def shares(self, shape: Sequence[int]) -> Tensor:
        """Share of each instance in the cells of a coarser grid: (B, M, *shape), float32."""
        return class_shares(self.labels, shape, self.boxes.shape[1] + 1)[:, 1:]

    @property
    def voxel_kinds(self) -> Tensor:
        """(B, X, Y, Z), the kind of every voxel, 0 for background."""
        table = torch.cat([self.all_kinds.new_zeros(len(self.all_kinds), 1), self.all_kinds], 1)
        image = torch.arange(len(table), device=table.device).view(-1, 1, 1, 1)
        return table[image, self.all_labels]

    @property
    def valid(self) -> Tensor:
        """(B, M) bool, where there is an instance."""
        index = torch.arange(self.boxes.shape[1], device=self.boxes.device)
        return index < torch.tensor(self.counts, device=self.boxes.device)[:, None]


def wanted_instances(
    instances: Tensor, kinds: Sequence[Tensor], kind: Sequence[int], clicked: Sequence[int]
) -> Targets:
    """Keep the instances of one kind in each image.

    Parameters
    ----------
    instances : Tensor of shape (B, X, Y, Z)
        Ids, 0 for background.
    kinds : sequence of Tensor of shape (M,)
        Kind of instance ``i + 1`` of each image.
    kind : sequence of int
        Wanted in each image; 0 wants nothing.
    clicked : sequence of int
        Id of the clicked instance in each image, 0 for none.
    """
    ids = [((k == want).nonzero()[:, 0] + 1).tolist() if want else [] for k, want in zip(kinds, kind, strict=True)]
    instances = instances.long()
    all_boxes = torch.zeros(len(ids), max(len(k) for k in kinds), 6, device=instances.device)
    boxes = all_boxes.new_zeros(len(ids), max(len(i) for i in ids), 6)
    all_kinds = torch.zeros(all_boxes.shape[:2], dtype=torch.int64)
    labels = torch.zeros_like(instances)
    for image, of_image in enumerate(ids):
        count = len(kinds[image])
        all_kinds[image, :count] = kinds[image]
        all_boxes[image, :count] = boxes_of(instances[image], count)
        boxes[image, : len(of_image)] = all_boxes[image, [i - 1 for i in of_image]]
        table = torch.zeros(count + 1, dtype=torch.int64)
        table[of_image] = torch.arange(1, len(of_image) + 1)
        labels[image] = table.to(instances.device)[instances[image]]
    first = [of_image.index(c) if c in of_image else -1 for of_image, c in zip(ids, clicked, strict=True)]
    counts = [len(i) for i in ids]
    return Targets(labels, boxes, counts, first, instances, all_boxes, all_kinds.to(instances.device))


def boxes_of(labels: Tensor, count: int) -> Tensor:
    """Normalised centre boxes (count, 6) of the labels 1..count, all there, of a volume (X, Y, Z)."""
    place = labels.nonzero()  # (voxels, 3)
    row = (labels[tuple(place.T)] - 1)[:, None].expand(-1, 3)
    size = torch.tensor(labels.shape, device=labels.device)
    start = size.expand(count, 3).scatter_reduce(0, row, place, "amin")
    stop = torch.zeros_like(start).scatter_reduce(0, row, place + 1, "amax")
    return corners_to_centre(torch.cat([start / size, stop / size], -1))
