"""A mask to the grid of an image: nearest neighbour, once, and no organ is lost."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from organdetr_monai.data.transforms import Data, affine_of, plain, with_affine
from organdetr_monai.geometry import boxes_from_mask


class MatchImaged(MapTransform):
    """Bring a mask to the grid of an image, whatever led to that grid: nearest neighbour, once.

    An organ too thin to be met by any working voxel centre is written into the working voxels that hold it, so that
    none is lost.

    Parameters
    ----------
    keys : masks of ids 0..K
    reference : key of the image
    """

    def __init__(self, keys: KeysCollection, reference: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference = reference

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Resample each mask."""
        d = dict(data)
        image = d[self.reference]
        target, shape = affine_of(image), tuple(image.shape[1:])
        for key in self.key_iterator(d):
            mask = plain(d[key])[0].numpy()
            to_mask = np.linalg.solve(affine_of(d[key]), target)  # indices of the image to indices of the mask
            matched = sample_nearest(mask, to_mask, shape)
            restore_lost(matched, mask, np.linalg.inv(to_mask))
            d[key] = with_affine(torch.from_numpy(matched)[None], target, image)
        return d


def sample_nearest(mask: np.ndarray, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Values of the nearest voxels, 0 outside.

    Parameters
    ----------
    mask : ndarray of shape (X, Y, Z)
    matrix : ndarray of shape (4, 4)
        From indices of the result to indices of ``mask``.
    shape : (x, y, z)

    Returns
    -------
    ndarray of shape (x, y, z), of the mask's dtype
    """
    axes = [np.arange(n, dtype=np.float64) for n in shape]
    flat, inside = np.zeros((1, 1, 1), dtype=np.int64), np.ones((1, 1, 1), dtype=bool)
    for row, size in zip(matrix[:3], mask.shape, strict=True):
        # A row that depends on one axis stays one-dimensional: broadcasting makes the usual, axis-parallel case cheap.
        index = np.full((1, 1, 1), row[3])
        for k, axis in enumerate(axes):
            if abs(row[k]) * shape[k] > 1e-6:
                view = [1, 1, 1]
                view[k] = -1
                index = index + row[k] * axis.reshape(view)
        index = np.floor(index + 0.5 + 1e-6).astype(np.int64)  # halves go up on every machine, rounding or not
        inside = inside & (index >= 0) & (index < size)
        flat = flat * size + np.clip(index, 0, size - 1)
    return mask.reshape(-1)[np.broadcast_to(flat, shape)] * np.broadcast_to(inside, shape)


def restore_lost(matched: np.ndarray, mask: np.ndarray, matrix: np.ndarray) -> None:
    """Write the organs of ``mask`` that are not in ``matched`` into the voxels of ``matched`` that hold them, in place.

    Parameters
    ----------
    matched : ndarray of shape (x, y, z)
    mask : ndarray of shape (X, Y, Z), unsigned ids
    matrix : ndarray of shape (4, 4)
        From indices of ``mask`` to indices of ``matched``.
    """
    boxes, present = boxes_from_mask(mask)
    lost = ~np.isin(present, np.unique(matched))
    for organ, box in zip(present[lost], boxes[lost].astype(int), strict=True):
        inside = mask[tuple(map(slice, box[:3], box[3:]))] == organ
        voxels = (np.argwhere(inside) + box[:3]) @ matrix[:3, :3].T + matrix[:3, 3]  # (n, 3)
        index = np.floor(voxels + 0.5 + 1e-6).astype(np.int64)
        index = index[((index >= 0) & (index < matched.shape)).all(axis=1)]
        matched[tuple(index.T)] = organ
