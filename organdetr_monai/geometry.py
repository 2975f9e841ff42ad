"""Frames: voxels of an array, millimetres of a patient, and boxes in both (numpy, no torch).

One convention, that of ``docs/architecture.md``. An *affine* (4, 4) maps indices of voxel centres to RAS+ millimetres.
A *corner* is a point in which voxel ``i`` fills ``[i, i + 1)``: its centre lies at ``i + 0.5``, and the affine is
applied to ``corner - 0.5``. A *voxel box* is ``(x0, y0, z0, x1, y1, z1)``, corners ``[start, stop)`` in array axis
order. What leaves here in millimetres is patient LPS: x grows to the patient's left, y to the back, z to the head.
Boxes from label masks live in `mask_boxes` and belong to this module's interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import ArrayLike

from organdetr_monai.errors import InputError
from organdetr_monai.mask_boxes import boxes_from_mask, remove_stray_voxels

__all__ = [
    "FACES",
    "OrientedBox",
    "axcodes_of",
    "box_to_oriented",
    "boxes_from_mask",
    "check_affine",
    "clip_box",
    "lps_to_voxel",
    "oriented_to_box",
    "remove_stray_voxels",
    "spacing_of",
    "transform_boxes",
    "truncated_faces",
    "voxel_to_lps",
]

FACES = ("left", "right", "anterior", "posterior", "inferior", "superior")

_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
# Cosine between two array axes. Headers written in float32, or with rounded direction cosines, stay well below; the
# smallest gantry tilt that a scanner reports (half a degree) is nine times above.
_SHEAR_TOLERANCE = 1e-3
# Axes this near to the patient's count as parallel: float32 noise. It moves a wall by < 1e-4 mm in a box of 500 mm.
_PARALLEL_TOLERANCE = 2e-7
_PERMUTATIONS = tuple(permutations(range(3)))


def check_affine(affine: ArrayLike) -> np.ndarray:
    """Check that an affine gives an array a place in the patient without shearing it.

    Parameters
    ----------
    affine : array_like of shape (4, 4)
        Voxel centre indices to RAS+ mm. Flips, permuted axes, any spacing and any rotation are fine.

    Returns
    -------
    ndarray of shape (4, 4), float64

    Raises
    ------
    InputError
        Wrong shape, not finite, not invertible, or axes that are not perpendicular.
    """
    matrix = np.array(affine, dtype=np.float64)  # a copy: what is checked must not change later
    if matrix.shape != (4, 4):
        raise InputError(f"The affine has shape {matrix.shape}.", "Give a 4×4 matrix from voxel indices to RAS mm.")
    if not np.isfinite(matrix).all():
        raise InputError(f"The affine is not finite: {matrix.tolist()}.", "Repair the header of the scan.")
    if not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-9):
        raise InputError(f"The affine's last row is {matrix[3].tolist()}.", "It must be 0, 0, 0, 1.")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if lengths.min() < 1e-6:
        raise InputError(f"The affine's voxel size is {lengths.tolist()} mm.", "Repair the spacing in the header.")
    cosines = (matrix[:3, :3] / lengths).T @ (matrix[:3, :3] / lengths)
    shear = np.abs(cosines - np.diag(np.diag(cosines))).max()
    if shear > _SHEAR_TOLERANCE:
        angle = np.degrees(np.arccos(min(shear, 1.0)))
        raise InputError(
            f"The affine is sheared: two array axes meet at {angle:.2f}° (cosine {shear:.3g}).",
            "Resample the scan to a grid of perpendicular axes first; a tilted gantry is a usual cause.",
        )
    return matrix


def spacing_of(affine: ArrayLike) -> np.ndarray:
    """Voxel size in mm along each array axis, ndarray of shape (3,)."""
    return np.linalg.norm(check_affine(affine)[:3, :3], axis=0)


def axcodes_of(affine: ArrayLike) -> tuple[str, str, str]:
    """Patient direction in which each array axis grows: ``("R", "A", "S")`` for an identity affine."""
    axes, order = _lps_axes(check_affine(affine))
    letters = ("RL", "AP", "IS")  # negative and positive LPS direction of x, y, z
    x, y, z = (letters[order[i]][int(axes[order[i], i] > 0)] for i in range(3))
    return x, y, z


def voxel_to_lps(points: ArrayLike, affine: ArrayLike) -> np.ndarray:
    """Corners in voxels (..., 3) to patient LPS mm (..., 3)."""
    matrix = check_affine(affine)
    return ((np.asarray(points, dtype=np.float64) - 0.5) @ matrix[:3, :3].T + matrix[:3, 3]) * _RAS_TO_LPS


def lps_to_voxel(points: ArrayLike, affine: ArrayLike) -> np.ndarray:
    """Patient LPS mm (..., 3) to corners in voxels (..., 3); the inverse of `voxel_to_lps`."""
    matrix = check_affine(affine)
    ras = np.asarray(points, dtype=np.float64) * _RAS_TO_LPS
    return (ras - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T + 0.5


@dataclass(frozen=True, eq=False)
class OrientedBox:
    """A box in patient space.

    Attributes
    ----------
    center : ndarray of shape (3,)
        LPS mm.
    size : ndarray of shape (3,)
        Full edge lengths in mm, along the columns of `orientation`.
    orientation : ndarray of shape (3, 3)
        Columns are the box's unit axes in LPS. `box_to_oriented` sorts them so that column ``k`` runs mainly and
        positively along patient axis ``k``: a right-handed frame, the same for every way to store the array.
    """

    center: np.ndarray
    size: np.ndarray
    orientation: np.ndarray

    def __post_init__(self) -> None:
        for name, shape in (("center", (3,)), ("size", (3,)), ("orientation", (3, 3))):
            value = np.array(getattr(self, name), dtype=np.float64)
            if value.shape != shape or not np.isfinite(value).all():
                raise InputError(f"A box has {name} {value.tolist()}.", f"Give finite numbers of shape {shape}.")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if (self.size < 0).any():
            raise InputError(f"A box has the size {self.size.tolist()} mm.", "No size may be negative.")
        if np.abs(self.orientation.T @ self.orientation - np.eye(3)).max() > 2 * _SHEAR_TOLERANCE:
            raise InputError(
                f"A box has the orientation {self.orientation.tolist()}.", "Give perpendicular unit axes as columns."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OrientedBox):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)

    def __hash__(self) -> int:
        return hash((self.center.tobytes(), self.size.tobytes(), self.orientation.tobytes()))

    @property
    def is_axis_aligned(self) -> bool:
        """Whether the box's axes are the patient's, in order."""
        return bool(np.array_equal(self.orientation, np.eye(3)))

    @property
    def min(self) -> np.ndarray:
        """Lowest LPS corner (3,) in mm; of an oblique box, that of the axis-aligned box around it."""
        return self.center - self._reach

    @property
    def max(self) -> np.ndarray:
        """Highest LPS corner (3,) in mm; of an oblique box, that of the axis-aligned box around it."""
        return self.center + self._reach

    @property
    def _reach(self) -> np.ndarray:
        return np.abs(self.orientation) @ (self.size / 2)

    def corners(self) -> np.ndarray:
        """The eight corners in LPS mm, ndarray of shape (8, 3)."""
        signs = np.array(list(product((-0.5, 0.5), repeat=3)))  # (8, 3)
        return self.center + (signs * self.size) @ self.orientation.T


def box_to_oriented(box_voxel: ArrayLike, affine: ArrayLike) -> OrientedBox:
    """Voxel box to patient LPS mm: where the box of an array stands in the patient.

    Parameters
    ----------
    box_voxel : array_like of shape (6,)
        Corners ``[start, stop)`` in voxels.
    affine : array_like of shape (4, 4)

    Returns
    -------
    OrientedBox
        Independent of flips and permutations of the array. Along the patient's axes, the orientation is exactly 1.
    """
    matrix = check_affine(affine)
    box = _check_boxes(box_voxel, (6,))
    axes, order = _lps_axes(matrix)
    columns = np.argsort(order)  # columns[k] is the array axis that runs along patient axis k
    orientation = axes[:, columns]
    orientation = orientation * np.sign(np.diag(orientation)) + 0.0  # no -0.0
    if np.abs(orientation - np.eye(3)).max() < _PARALLEL_TOLERANCE:
        orientation = np.eye(3)
    size = ((box[3:] - box[:3]) * np.linalg.norm(matrix[:3, :3], axis=0))[columns]
    return OrientedBox(voxel_to_lps((box[:3] + box[3:]) / 2, matrix), size, orientation)


def oriented_to_box(oriented: OrientedBox, affine: ArrayLike) -> np.ndarray:
    """Box in patient LPS mm to a voxel box (6,); where its axes are not the array's, the voxel box around it."""
    center = lps_to_voxel(oriented.center, affine)
    lps_linear = _RAS_TO_LPS[:, None] * check_affine(affine)[:3, :3]
    half = np.abs(np.linalg.solve(lps_linear, oriented.orientation)) @ (oriented.size / 2)
    return np.concatenate([center - half, center + half])


def transform_boxes(boxes: ArrayLike, from_affine: ArrayLike, to_affine: ArrayLike) -> np.ndarray:
    """Carry voxel boxes from one grid to another of the same patient.

    Parameters
    ----------
    boxes : array_like of shape (M, 6)
        Corners in voxels of the first grid; M may be 0.
    from_affine, to_affine : array_like of shape (4, 4)
        Of the two grids. Where their axes are parallel, up to flips and permutations, nothing grows: the result is the
        same physical box. Otherwise it is the smallest voxel box around the eight corners.

    Returns
    -------
    ndarray of shape (M, 6), float64
    """
    boxes = _check_boxes(boxes, (-1, 6))
    source, target = check_affine(from_affine), check_affine(to_affine)
    linear = np.linalg.solve(target[:3, :3], source[:3, :3])
    # Axes that are parallel but for float32 noise must not let a box grow.
    steps = linear * (spacing_of(target)[:, None] / spacing_of(source))  # cosines
    linear = np.where(np.abs(steps) < _PARALLEL_TOLERANCE, 0.0, linear)
    center, half = (boxes[:, :3] + boxes[:, 3:]) / 2, (boxes[:, 3:] - boxes[:, :3]) / 2
    center = lps_to_voxel(voxel_to_lps(center, source), target)
    half = half @ np.abs(linear).T  # extremes of a linear map over a box: no need to visit the eight corners
    return np.concatenate([center - half, center + half], axis=1)


def clip_box(boxes: ArrayLike, shape: Sequence[int]) -> np.ndarray:
    """Cut voxel boxes (..., 6) at the walls of an array of that shape; a box outside it keeps size 0 on some axis."""
    limits = np.asarray(shape, dtype=np.float64)
    boxes = np.asarray(boxes, dtype=np.float64)
    return np.clip(boxes, 0.0, np.concatenate([limits, limits]))


def truncated_faces(
    box_voxel: ArrayLike, shape: Sequence[int], affine: ArrayLike, *, tolerance: float | Sequence[float] = 0.0
) -> tuple[str, ...]:
    """Name the patient-side faces of the scan that a box reaches: there the scan, not the organ, may end.

    Parameters
    ----------
    box_voxel : array_like of shape (6,)
    shape : (X, Y, Z)
        Of the array.
    affine : array_like of shape (4, 4)
    tolerance : float or sequence of 3 floats, default 0
        In mm (for each array axis): a wall this near to the scan's end counts as touching it.

    Returns
    -------
    tuple of str
        Some of ``FACES``, in that order. In an oblique scan a face is named by the direction nearest to it.
    """
    matrix = check_affine(affine)
    box = _check_boxes(box_voxel, (6,))
    slack = np.broadcast_to(np.asarray(tolerance, dtype=np.float64), (3,)) / spacing_of(matrix) + 1e-6  # voxels
    starts = box[:3] <= slack
    stops = box[3:] >= np.asarray(shape, dtype=np.float64) - slack
    axes, order = _lps_axes(matrix)
    names = (("right", "left"), ("anterior", "posterior"), ("inferior", "superior"))  # low and high LPS end
    found = set()
    for i in range(3):
        low, high = names[order[i]] if axes[order[i], i] > 0 else names[order[i]][::-1]
        found |= {name for name, touches in ((low, starts[i]), (high, stops[i])) if touches}
    return tuple(face for face in FACES if face in found)


def _lps_axes(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit array axes as LPS columns (3, 3), and for each array axis the patient axis that is its own.

    The pairing is one to one and the best over all: each axis for itself would give two axes the same at odd angles.
    """
    axes = _RAS_TO_LPS[:, None] * matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    best = max(_PERMUTATIONS, key=lambda order: sum(abs(axes[order[i], i]) for i in range(3)))
    return axes, np.array(best)


def _check_boxes(boxes: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 boxes whose last axis is 6; refuses other shapes, what is not finite, and stops before starts."""
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0 and len(shape) == 2:
        return array.reshape(0, 6)
    if array.ndim != len(shape) or array.shape[-1] != 6:
        raise InputError(f"Boxes have shape {array.shape}.", f"Give {'(M, 6)' if len(shape) == 2 else '(6,)'}.")
    bad = ~np.isfinite(array).all(-1) | (array[..., 3:] < array[..., :3]).any(-1)
    if bad.any():
        first = array[bad][0].tolist() if array.ndim == 2 else array.tolist()
        raise InputError(f"A box is {first}.", "Use (x0, y0, z0, x1, y1, z1), finite, with stop >= start.")
    return array
