"""Implicit shapes in millimetres, and the canvas that paints them onto a voxel grid.

A shape is a distance function: negative inside, about the millimetres to its surface, so that borders can be drawn with
partial volume and shells, unions and cuts are plain minima and maxima. Each part of a shape knows its bounding box; the
canvas evaluates it on the voxels of that box only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation

FAR_MM = 1e3  # distance that is reported outside of a shape's bounding box
Distance = Callable[[np.ndarray], np.ndarray]
Region = tuple[slice, slice, slice]


class Part(NamedTuple):
    """A distance function and the box, in mm, outside of which it is not needed."""

    low: np.ndarray  # (3,)
    high: np.ndarray  # (3,)
    distance: Distance  # (3, ...) mm to (...) mm


Shape = list[Part]  # the union of its parts


def dot(a: Sequence | np.ndarray, b: Sequence | np.ndarray) -> np.ndarray:
    """Product of two sets of three components, each a number or an array.

    Written out: a BLAS sums in an order of its own, and phantoms are to be the same to the bit everywhere.
    """
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def superquadric(
    centre: ArrayLike,
    radii: ArrayLike,
    *,
    power: float = 2.0,
    degrees: ArrayLike = (0.0, 0.0, 0.0),
    bump: Distance | None = None,
    margin: float = 8.0,
) -> Shape:
    """Ellipsoid (`power` 2) to rounded box (`power` above 4).

    Parameters
    ----------
    centre, radii : sequences of 3 floats
        In mm.
    power : float
        Exponent of the superquadric.
    degrees : sequence of 3 floats
        Rotations about the x, then y, then z axis.
    bump : callable, optional
        Added to the distance, see `waves`: makes the surface uneven.
    margin : float
        Millimetres around the shape in which the distance is still computed.
    """
    centre, radii = np.asarray(centre, np.float32), np.asarray(radii, np.float32)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix().astype(np.float32)
    smallest = float(radii.min())

    def distance(q: np.ndarray) -> np.ndarray:
        moved = [q[k] - centre[k] for k in range(3)]
        local = [dot(turn[:, k], moved) for k in range(3)]
        ray = np.sqrt(dot(local, local))
        if power == 2.0:
            level = np.sqrt(sum(np.square(local[k] / radii[k]) for k in range(3)))
        else:
            level = sum(np.abs(local[k] / radii[k]) ** power for k in range(3)) ** np.float32(1 / power)
        away = (level - 1) * (ray + 0.01 * smallest) / (level + 0.01)  # along the ray; minus `smallest` at the centre
        return away if bump is None else away + bump(q)

    reach = np.abs(turn) @ radii + margin
    return [Part(centre - reach, centre + reach, distance)]


def tube(points: ArrayLike | Sequence[ArrayLike], radii: ArrayLike, *, pieces: int, margin: float = 6.0) -> Shape:
    """Tube of varying radius along a smooth centreline: a chain of capsules.

    Parameters
    ----------
    points : sequence of P sequences of 3 floats
        The centreline passes through them, mm.
    radii : sequence of P floats
        Radius at each point, mm.
    pieces : int
        Number of capsules.
    margin : float
        Millimetres around the tube in which the distance is still computed.
    """
    points = np.asarray(points, float)
    length = np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    along = np.linspace(0, length[-1], pieces + 1)
    line = PchipInterpolator(length, points)(along).astype(np.float32)  # (pieces + 1, 3)
    radius = PchipInterpolator(length, np.asarray(radii, float))(along).astype(np.float32)

    def capsule(a: np.ndarray, b: np.ndarray, ra: float, rb: float) -> Part:
        axis = b - a
        squared = float(axis @ axis) + 1e-6

        def distance(q: np.ndarray) -> np.ndarray:
            local = [q[k] - a[k] for k in range(3)]
            t = np.clip(dot(axis / squared, local), 0, 1)
            square = sum(np.square(local[k] - t * axis[k]) for k in range(3))
            return np.sqrt(square) - (ra + t * (rb - ra))

        reach = max(ra, rb) + margin
        return Part(np.minimum(a, b) - reach, np.maximum(a, b) + reach, distance)

    return [capsule(line[k], line[k + 1], float(radius[k]), float(radius[k + 1])) for k in range(pieces)]


def waves(rng: np.random.Generator, amplitude: float, wavelength: float) -> Distance:
    """Smooth unevenness: three sine waves in random directions, at most `amplitude` mm together."""
    direction = rng.normal(size=(3, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    k = (direction * 2 * np.pi / (wavelength * rng.uniform(0.8, 1.3, (3, 1)))).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, 3).astype(np.float32)
    return lambda q: np.float32(amplitude / 3) * sum(np.sin(dot(k[i], q) + phase[i]) for i in range(3))


def gyroid(q: np.ndarray, wavelength: float, phase: np.ndarray) -> np.ndarray:
    """Labyrinth of winding tubes, in [-1.5, 1.5]: what bowel loops and lung vessels look like when cut."""
    angle = q * np.float32(2 * np.pi / wavelength) + phase.astype(np.float32).reshape(3, *[1] * (q.ndim - 1))
    s, c = np.sin(angle), np.cos(angle)
    return s[0] * c[1] + s[1] * c[2] + s[2] * c[0]


def smooth_max(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Maximum whose edge is rounded over `width` mm: the intersection of two shapes."""
    return np.maximum(a, b) + np.square(np.maximum(width - np.abs(a - b), 0)) * np.float32(0.25 / width)


def smooth_min(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Minimum whose edge is rounded over `width` mm: the union of two shapes."""
    return -smooth_max(-a, -b, width)


def profile(z: np.ndarray, knots: Sequence[float], values: Sequence[float]) -> np.ndarray:
    """Smooth curve through `values` at rising `knots` (mm), constant beyond them, looked up in steps of 1 mm."""
    steps = np.arange(knots[0], knots[-1] + 1, dtype=float)
    table = PchipInterpolator(knots, values)(steps).astype(np.float32)
    return table[np.clip(z - knots[0] + 0.5, 0, len(table) - 1).astype(np.intp)]


class Canvas:
    """HU and labels on a voxel grid whose voxels know where in the reference anatomy they lie.

    Parameters
    ----------
    position : ndarray of shape (3, X, Y, Z)
        Place of each voxel centre in the reference anatomy, mm.
    to_voxel : ndarray of shape (3, 4)
        Affine map from the reference anatomy to voxel indices, exact but for `slack`.
    slack : float
        Millimetres by which `position` may differ from that map.
    blur : float
        Width of a border in mm, about one voxel: partial volume.
    """

    def __init__(self, position: np.ndarray, to_voxel: np.ndarray, *, slack: float, blur: float) -> None:
        self.position, self.to_voxel, self.slack, self.blur = position, to_voxel, slack, np.float32(blur)
        self.hu = np.full(position.shape[1:], -1000, np.float32)
        self.label = np.zeros(position.shape[1:], np.uint8)

    def region(self, low: ArrayLike, high: ArrayLike) -> Region | None:
        """Voxels that cover a box of the reference anatomy; None if it lies outside of the grid."""
        low, high = np.asarray(low), np.asarray(high)
        centre = self.to_voxel @ [*(low + high) / 2, 1]
        half = np.abs(self.to_voxel[:, :3]) @ ((high - low) / 2 + self.slack)
        start = np.maximum(np.floor(centre - half), 0).astype(int)
        stop = np.minimum(np.ceil(centre + half) + 1, self.hu.shape).astype(int)
        if (start >= stop).any():
            return None
        x, y, z = (slice(a, b) for a, b in zip(start, stop, strict=True))
        return x, y, z

    def distance(self, shape: Shape) -> tuple[Region, np.ndarray] | None:
        """Distance to a shape in the voxels around it, `FAR_MM` where no part is near; None outside of the grid."""
        box = self.region(np.min([p.low for p in shape], 0), np.max([p.high for p in shape], 0))
        if box is None:
            return None
        if len(shape) == 1:
            return box, shape[0].distance(self.position[(slice(None), *box)])
        away = np.full([s.stop - s.start for s in box], FAR_MM, np.float32)
        for part in shape:
            inner = self.region(part.low, part.high)
            if inner is not None:
                # Rounding can put the end of a part a voxel beyond the end of the whole.
                ends = [(max(i.start, o.start), min(i.stop, o.stop)) for i, o in zip(inner, box, strict=True)]
                at = tuple(slice(a - o.start, b - o.start) for (a, b), o in zip(ends, box, strict=True))
                position = self.position[(slice(None), *(slice(a, b) for a, b in ends))]
                away[at] = np.minimum(away[at], part.distance(position))
        return box, away

    def paint(self, box: Region, distance: np.ndarray, hu: float | np.ndarray, label: int = 0) -> None:
        """Fill the inside of a shape over what is there, HU blended at its border.

        Parameters
        ----------
        box : tuple of slice
        distance : ndarray of the shape of `box`
            In mm, negative inside.
        hu : float or ndarray of the shape of `box`
        label : int
            Id of the organ. 0 clears: an unlabelled structure in front of an organ hides it.
        """
        share = np.clip(0.5 - distance / self.blur, 0, 1)
        view = self.hu[box]
        view += share * (hu - view)
        self.label[box][distance < 0] = label

    def draw(self, shape: Shape, hu: float, label: int = 0) -> None:
        """Paint a shape of one HU, where it is in the grid."""
        found = self.distance(shape)
        if found is not None:
            self.paint(*found, hu, label)
