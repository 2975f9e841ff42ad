"""The windows of a volume and their encodings, each computed once however many clicks ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["Encodings"]


class Encodings:
    """A volume cut into overlapping windows; ``encodings[k]`` is what the network makes of window `k`.

    The windows do not depend on clicks. Those that a click looks through are the same for every click, which is why a
    second one needs no encoder.

    Parameters
    ----------
    network : module with ``encode(image (1, 1, x, y, z))`` and ``voxels(encoding)``
    image : Tensor of shape (1, X, Y, Z)
        In [0, 1], where 0 is air or fat. Smaller than a window it is padded with 0 at its far ends.
    window : (x, y, z)
    overlap : float
        Share of a window that the next one covers again.
    min_tissue : float
        Windows in which fewer voxels than this share are above 0 are passed over.
    limit : int
        Bytes of encodings that are kept, those that came first. What does not fit is computed at every click: of
        windows that are visited in turn, a cache that keeps the last ones would never meet one again.

    Attributes
    ----------
    starts : ndarray of shape (W, 3)
        First voxel of each window.
    occupied : tuple of int
        The windows with tissue.
    """

    def __init__(
        self,
        network: Any,
        image: Tensor,
        window: Sequence[int],
        *,
        overlap: float,
        min_tissue: float = 0.0,
        limit: int = 0,
    ) -> None:
        self.network, self.window, self.shape = network, tuple(window), tuple(image.shape[1:])
        missing = [max(w - s, 0) for w, s in zip(self.window, self.shape, strict=True)]
        self.image = F.pad(image, (0, missing[2], 0, missing[1], 0, missing[0])) if any(missing) else image
        step = [max(int(w * (1 - overlap)), 1) for w in self.window]
        slices = dense_patch_slices(self.image.shape[1:], self.window, step, return_slice=True)
        self.starts = np.array([[s.start for s in where] for where in slices])  # (W, 3)
        shares = [float((self.view(k) > 0).float().mean()) for k in range(len(self.starts))]
        self.occupied = tuple(k for k, share in enumerate(shares) if share > 0 and share >= min_tissue)
        self.limit, self.kept_bytes = limit, 0
        self._kept: dict[int, Any] = {}
        self._voxels: Tensor | None = None

    def where(self, k: int) -> tuple[slice, slice, slice]:
        """Place of window `k` in the image, or in what it is padded to."""
        x, y, z = (slice(int(a), int(a) + n) for a, n in zip(self.starts[k], self.window, strict=True))
        return x, y, z

    def view(self, k: int) -> Tensor:
        """Window `k` of the image, (1, x, y, z)."""
        return self.image[(slice(None), *self.where(k))]

    def around(self, click: ArrayLike) -> int:
        """The window in which a click (3,), a voxel of the image, lies most central."""
        offset = np.abs(np.asarray(click) + 0.5 - (self.starts + np.asarray(self.window) / 2)) / self.window  # (W, 3)
        # Where a window's centre is out of reach, at the scan's end, the other axes decide.
        return int(np.lexsort((offset.sum(axis=1), offset.max(axis=1)))[0])

    def voxels(self) -> Tensor | None:
        """What the network says of all voxels, (C, X, Y, Z) on the host; None if it says nothing.

        The mean over the windows that show a voxel, which counts for more the closer it is to their middle; 0 where
        there is no tissue.
        """
        if self._voxels is None and self.occupied:
            weight = compute_importance_map(self.window, mode="gaussian").cpu()
            total = torch.zeros(self.image.shape[1:])
            for k in self.occupied:
                said = self.network.voxels(self[k])
                if said is None:
                    return None
                if self._voxels is None:
                    self._voxels = torch.zeros(said.shape[1], *total.shape)
                self._voxels[(slice(None), *self.where(k))] += said[0].cpu() * weight
                total[self.where(k)] += weight
            assert self._voxels is not None
            self._voxels /= total.clamp(min=1e-6)
            self._voxels = self._voxels[:, : self.shape[0], : self.shape[1], : self.shape[2]]
        return self._voxels

    def voxels_in(self, k: int) -> Tensor | None:
        """Window `k` of `voxels`, (1, C, x, y, z) on the network's device, 0 in what the image is padded with."""
        said = self.voxels()
        if said is None:
            return None
        part = said[(slice(None), *self.where(k))]
        missing = [w - n for w, n in zip(self.window, part.shape[1:], strict=True)]
        return F.pad(part, (0, missing[2], 0, missing[1], 0, missing[0]))[None].to(self.image.device)

    def __getitem__(self, k: int) -> Any:
        if k in self._kept:
            return self._kept[k]
        encoding = self.network.encode(self.view(k)[None])
        size = _bytes_of(encoding)
        if self.kept_bytes + size <= self.limit:
            self._kept[k] = encoding
            self.kept_bytes += size
        return encoding


def _bytes_of(part: Any) -> int:
    """Size of all tensors in nested tuples and lists."""
    if torch.is_tensor(part):
        return part.numel() * part.element_size()
    return sum(map(_bytes_of, part))
