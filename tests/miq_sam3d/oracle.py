"""A network that knows the answer, so that what is left to test is geometry. It stands alone: a server gets a copy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

TISSUE = 0.25
"""Intensity of what is neither air nor lesion, and all that lies below: no lesion."""


class Seen(NamedTuple):
    """The window itself."""

    image: Tensor


class Prompt(NamedTuple):
    """The intensity under the click, (1, 1)."""

    token: Tensor


class Oracle(nn.Module):
    """Every blob of the intensity under the click, brighter than tissue; in a window of its own, the clicked one first.

    Counts what it is asked, so that tests see what a cache saves.
    """

    def __init__(self, queries: int = 12) -> None:
        super().__init__()
        self.queries, self.encoded, self.retrieved = queries, 0, 0
        self.weight = nn.Parameter(torch.zeros(1))

    def encode(self, image: Tensor) -> Seen:
        self.encoded += 1
        return Seen(image.clone())

    def prompt(self, encoding: Seen, click: Tensor, *, voxels: Tensor | None = None) -> Prompt:
        return Prompt(encoding.image[0, 0][self._voxel(encoding, click)].reshape(1, 1))

    def voxels(self, encoding: Seen) -> None:
        return None

    def retrieve(self, encoding: Seen, prompt: Prompt, click: Tensor | None = None, *, local=None) -> dict[str, Tensor]:
        self.retrieved += 1
        image, wanted = encoding.image[0, 0].numpy(), float(prompt.token)
        blobs = np.abs(image - wanted) < 0.02 if wanted > TISSUE + 0.02 else np.zeros(image.shape, dtype=bool)
        labels, count = ndimage.label(blobs)
        order = list(range(1, count + 1))
        first = int(labels[self._voxel(encoding, click)]) if click is not None else 0
        if first:
            order.remove(first)
            order.insert(0, first)
        elif click is not None:
            order = []
        masks = torch.full((1, self.queries, *image.shape), -20.0)
        objectness = torch.full((1, self.queries), -20.0)
        for query, number in enumerate(order[: self.queries]):
            masks[0, query][torch.from_numpy(labels == number)] = 20.0
            objectness[0, query] = 20.0
        quality = torch.linspace(4.0, 2.0, self.queries)[None]
        return {
            "masks": masks,
            "objectness": objectness,
            "quality": quality,
            "boxes": torch.full((1, self.queries, 6), 0.5),
        }

    @staticmethod
    def _voxel(encoding: Seen, click: Tensor) -> tuple[int, ...]:
        size = torch.tensor(encoding.image.shape[2:])
        return tuple((click[0] * size).floor().long().tolist())
