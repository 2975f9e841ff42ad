"""Hypothesis strategies for scans: every way in which an array may lie in a patient."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

# The same examples in every run, and no failure because a machine is busy.
settings.register_profile("organdetr", derandomize=True, deadline=None)
settings.load_profile("organdetr")

SIGNED_PERMUTATIONS = [
    np.eye(3)[list(order)] * signs
    for order in permutations(range(3))
    for signs in np.stack(np.meshgrid([1, -1], [1, -1], [1, -1]), -1).reshape(-1, 3)
]


def rotation(angles) -> np.ndarray:
    """Rotation (3, 3) about x, then y, then z; angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    return (
        np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    )


@st.composite
def affines(draw, *, oblique: bool = True) -> np.ndarray:
    """Flips, permutations, 0.3 to 6 mm on each axis, offsets up to 2 m, and rotation by any angle if `oblique`."""
    directions = SIGNED_PERMUTATIONS[draw(st.integers(0, 47))]
    if oblique:
        directions = rotation(draw(st.tuples(*[st.floats(-np.pi, np.pi)] * 3))) @ directions
    affine = np.eye(4)
    affine[:3, :3] = directions * draw(st.tuples(*[st.floats(0.3, 6.0)] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-2000.0, 2000.0)] * 3))
    return affine


shapes = st.tuples(*[st.integers(1, 600)] * 3)


@st.composite
def boxes_in(draw, shape) -> np.ndarray:
    """A box (6,) inside an array of that shape, with fractional corners and a size of 0.01 voxels at least."""
    start = [draw(st.floats(0, n - 0.01)) for n in shape]
    return np.array(start + [draw(st.floats(a + 0.01, n)) for a, n in zip(start, shape, strict=True)])


@st.composite
def scans(draw, *, oblique: bool = True) -> tuple[np.ndarray, tuple[int, int, int], np.ndarray]:
    """Affine, shape and a box inside."""
    shape = draw(shapes)
    return draw(affines(oblique=oblique)), shape, draw(boxes_in(shape))


def reorient(array: np.ndarray, affine: np.ndarray, order, flips) -> tuple[np.ndarray, np.ndarray]:
    """Store an array another way: permute its axes, then flip some; the affine keeps it where it is in the patient."""
    array, matrix = array.transpose(order), affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            matrix[:3, 3] += matrix[:3, axis] * (array.shape[axis] - 1)
            matrix[:3, axis] *= -1
            array = np.flip(array, axis)
    return array, matrix


orders = st.permutations(range(3))
flip_flags = st.tuples(*[st.booleans()] * 3)
