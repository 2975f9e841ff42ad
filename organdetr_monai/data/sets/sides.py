"""Parting a mask that holds both of a pair of organs into the patient's left and right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from organdetr_monai.data.headers import load_nifti

_APART = 40.0  # mm between the centres of two kidneys, sideways; the pieces of one lie closer, those of two far wider
_SMALLEST = 0.05  # share of the larger organ's volume that a shrunken fellow still has; less is a stray piece
_NEAR_MIDLINE = 20.0  # mm; a single piece centred there is a horseshoe, any single kidney lies further out
_SOFT_TISSUE = -300.0  # HU; above it is body


def is_left(mask: np.ndarray, affine: np.ndarray, midline: Callable[[], float]) -> np.ndarray:
    """Which voxels of a pair of organs belong to the patient's left one.

    The pair is parted by the sagittal plane in the middle between the two organs' centres, in patient space. A piece
    belongs to one side as a whole, so that a large organ may reach over the plane. Where there is one piece only, the
    midline of the body decides; a piece around that midline (a horseshoe kidney) is cut by it.

    Parameters
    ----------
    mask : bool ndarray of shape (X, Y, Z)
        At least one voxel is set.
    affine : ndarray of shape (4, 4)
        From array indices to RAS+ mm.
    midline : callable
        Gives the body's midline as an x in mm; only called where it is needed.

    Returns
    -------
    bool ndarray of shape (mask.sum(),)
        In the order of ``mask[mask]``.
    """
    from scipy import ndimage

    lows, highs = _bounds(mask)
    crop = mask[tuple(slice(low, high) for low, high in zip(lows, highs, strict=True))]
    pieces = ndimage.label(crop, np.ones((3, 3, 3)))[0][crop] - 1
    # x in mm of each voxel; + is the patient's right.
    axes = (affine[0, axis] * np.arange(lows[axis], highs[axis]) for axis in range(3))
    x = (sum(np.ix_(*axes)) + affine[0, 3])[crop]
    volumes = np.bincount(pieces)
    centres = np.bincount(pieces, weights=x) / volumes
    largest = volumes.argmax()
    fellows = (abs(centres - centres[largest]) >= _APART) & (volumes >= _SMALLEST * volumes[largest])
    if fellows.any():
        fellow = np.where(fellows, volumes, 0).argmax()
        return (centres < (centres[largest] + centres[fellow]) / 2)[pieces]
    plane = midline()
    if abs(x.mean() - plane) < _NEAR_MIDLINE:
        return x < plane
    return np.full(x.shape, x.mean() < plane)


def _bounds(mask: np.ndarray) -> tuple[list[int], list[int]]:
    """First and one past the last index with a set voxel, along each axis."""
    lines = [np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(3)]
    return [int(line[0]) for line in lines], [int(line[-1]) + 1 for line in lines]


def body_midline(image: Path, stride: int = 4) -> float:
    """Midline of the body in a CT: mean x in RAS+ mm of what is denser than lung, over every `stride`-th voxel."""
    scan = load_nifti(image)
    values = np.asarray(scan.dataobj)[::stride, ::stride, ::stride]
    axes = (scan.affine[0, axis] * stride * np.arange(size) for axis, size in enumerate(values.shape))
    x = sum(np.ix_(*axes)) + scan.affine[0, 3]
    body = values > _SOFT_TISSUE
    return float(x[body].mean()) if body.any() else float(x.mean())
