"""Whether numbers can be Hounsfield units: a mask or an MR goes through every step, and its boxes mean nothing."""

from __future__ import annotations

import numpy as np

__all__ = ["why_not_hu"]

_DENSEST_FAT = -100.0  # HU; some fat, and air at -1000, is in every CT of a body
_MASK_LABELS = 256
_EVERY = 4  # voxels along each axis: enough to know a mask by


def why_not_hu(values: np.ndarray) -> str | None:
    """Say what makes a volume look like something else than CT in HU; None if nothing does.

    Parameters
    ----------
    values : ndarray of shape (X, Y, Z)
        Finite.

    Returns
    -------
    str or None
        Part of a sentence with the range of the values, such as ``"its values lie in [0, 12], ..., like a mask's"``.
    """
    low, high = float(values.min()), float(values.max())
    if low <= _DENSEST_FAT:
        return None
    some = np.unique(values[::_EVERY, ::_EVERY, ::_EVERY])
    if len(some) <= _MASK_LABELS and np.array_equal(some, np.round(some)) and high < _MASK_LABELS:
        like = f"whole numbers, {len(some)} of them, like a mask's"
    elif high >= 1500:  # bone, 1024 above its HU
        like = "like an MR's, or a CT's without its offset of -1024"
    else:
        like = "like an MR's or a rescaled image's"
    return f"its values lie in [{low:g}, {high:g}], {like}; in HU, fat is at {_DENSEST_FAT:g} and air at -1000"
