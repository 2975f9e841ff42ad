"""From a semantic mask to instances: each connected component of a kind is one lesion."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from organdetr_monai.errors import InputError
from organdetr_monai.mask_boxes import boxes_from_mask

TOUCHING = np.ones((3, 3, 3), dtype=bool)
"""Voxels that touch by a face, an edge or a corner are connected (26-connectivity)."""

MIN_VOLUME = 100.0
"""mm³; the least volume of a lesion, by default. A ball of that volume is 5.8 mm across."""


def label_components(
    mask: np.ndarray, kinds: Mapping[int, int], *, voxel_volume: float, min_volume: float = MIN_VOLUME
) -> tuple[np.ndarray, np.ndarray]:
    """Instances of a semantic mask.

    Parameters
    ----------
    mask : ndarray of shape (X, Y, Z)
        Integer values.
    kinds : mapping of int to int
        Value in the mask to kind, from 1 up. Other values are background.
    voxel_volume : float
        mm³.
    min_volume : float
        mm³; a component that is smaller is a speck of the annotation and becomes background.

    Returns
    -------
    instances : ndarray of shape (X, Y, Z), int32
        0 is background, then ids 1..M: in the order of `kinds`, and within a kind of their first voxels in the array.
    kinds : ndarray of shape (M,), int64
        Kind of instance ``i + 1``.

    Raises
    ------
    InputError
        For a mask that is not three-dimensional or not of integers.
    """
    boxes, present = boxes_from_mask(mask)  # checks the mask
    place = {int(value): box.astype(int) for value, box in zip(present, boxes, strict=True)}
    instances = np.zeros(mask.shape, dtype=np.int32)
    found: list[int] = []
    for value, kind in kinds.items():
        if value not in place:
            continue
        low, high = place[value][:3], place[value][3:]
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        components, count = ndimage.label(mask[box] == value, structure=TOUCHING)
        sizes = np.bincount(components.reshape(-1), minlength=count + 1)
        kept = np.flatnonzero(sizes * voxel_volume >= min_volume)
        kept = kept[kept > 0]
        table = np.zeros(count + 1, dtype=np.int32)
        table[kept] = len(found) + 1 + np.arange(len(kept))
        instances[box] += table[components]
        found += [kind] * len(kept)
    return instances, np.asarray(found, dtype=np.int64)


def check_min_volume(min_volume: float) -> float:
    """The least volume of a lesion in mm³; :class:`InputError` unless it is a finite number from 0 up."""
    if not 0 <= min_volume < np.inf:
        raise InputError(f"The least volume of a lesion is {min_volume!r} mm³.", "Give 0 or more.")
    return float(min_volume)
