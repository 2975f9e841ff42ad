"""Where a user clicks: on a lesion, or beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from scipy import ndimage

from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.components import TOUCHING

PLACES: dict[str, float] = {"interior": 0.5, "uniform": 0.3, "boundary": 0.2}
"""Where in a lesion clicks fall in training, with their shares: deep inside, anywhere, on the outermost voxels."""

CLEAR = 2  # voxels between a click on background and the nearest lesion: nearer ones might be meant for it
DEEP = 0.5  # of the greatest depth: a voxel at least as deep is interior


class Draws(Protocol):
    """A stream of random numbers: NumPy's ``Generator`` or ``RandomState``."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...


def click_in(mask: np.ndarray, place: str, rng: Draws) -> np.ndarray:
    """A voxel of a lesion.

    Parameters
    ----------
    mask : ndarray of shape (X, Y, Z), bool
        The lesion, at least one voxel. It counts as going on beyond the ends of the array.
    place : str
        ``"interior"``: at least half as deep as its deepest voxel; ``"uniform"``: any; ``"boundary"``: one with a face
        on the outside; ``"centre"``: the deepest one, nearest to the centroid where there are several.
    rng : Generator or RandomState
        Asked for one number, whatever the place.

    Returns
    -------
    ndarray of shape (3,), int64
        Its index.

    Raises
    ------
    InputError
        For an empty mask or an unknown place.
    """
    inside = np.argwhere(mask)  # (n, 3)
    if len(inside) == 0:
        raise InputError("There is no lesion to click on: its mask is empty.", "Give a lesion of one voxel or more.")
    drawn = rng.random()
    if place == "uniform":
        return inside[int(drawn * len(inside))]
    depth = _depth(mask, inside)
    if place == "centre":
        away = np.square(inside - inside.mean(0)).sum(1)
        return inside[np.lexsort((away, -depth))[0]]
    if place == "interior":
        chosen = inside[depth >= DEEP * depth.max()]
    elif place == "boundary":
        chosen = inside[depth <= depth.min()]
    else:
        raise InputError(f"{place!r} is no place to click on.", "Use interior, uniform, boundary or centre.")
    return chosen[int(drawn * len(chosen))]


def click_outside(lesions: np.ndarray, tissue: np.ndarray, rng: Draws) -> np.ndarray | None:
    """A voxel of tissue on no lesion, at least `CLEAR` voxels away from the nearest one where there is such.

    Parameters
    ----------
    lesions, tissue : ndarray of shape (X, Y, Z), bool
    rng : Generator or RandomState
        Asked for one number.

    Returns
    -------
    ndarray of shape (3,), int64, or None
        Its index; None where all is lesion.
    """
    clear = ~ndimage.binary_dilation(lesions, TOUCHING, CLEAR) if lesions.any() else np.ones_like(lesions)
    for allowed in (tissue & clear, ~lesions):
        if allowed.any():
            return click_in(allowed, "uniform", rng)
    return None


def _depth(mask: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Distance in voxels of each voxel of the lesion, `inside` (n, 3), to the nearest voxel outside, (n,)."""
    low = np.maximum(inside.min(0) - 1, 0)
    box = mask[tuple(map(slice, low, inside.max(0) + 2))]  # with a margin, where the array does not end
    if box.all():
        return np.ones(len(inside))
    return ndimage.distance_transform_edt(np.pad(box, 1, mode="edge"))[tuple((inside - low + 1).T)]


def draw_place(places: Mapping[str, float], rng: Draws) -> str:
    """One of the places, by their shares."""
    bounds = np.cumsum(list(places.values()))
    index = np.searchsorted(bounds, rng.random() * bounds[-1], side="right")
    return list(places)[min(int(index), len(bounds) - 1)]


def check_places(places: Mapping[str, float] | None) -> dict[str, float]:
    """Places and shares, `PLACES` for None; :class:`InputError` for unknown ones, or shares that are none."""
    found = dict(PLACES if places is None else places)
    unknown = set(found) - {*PLACES, "centre"}
    if unknown or not found:
        raise InputError(f"The places of clicks are {sorted(found)}.", "Use interior, uniform, boundary or centre.")
    if min(found.values()) < 0 or not 0 < sum(found.values()) < np.inf:
        raise InputError(f"The shares of the clicks are {found}.", "Give shares from 0 up, one of them above 0.")
    return found
