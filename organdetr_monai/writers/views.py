"""The three standard views of a scan as flat pictures with boxes on them: what a preview draws, before it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from organdetr_monai.detections import Detections, OrganDetection
from organdetr_monai.geometry import axcodes_of, spacing_of

__all__ = ["FlatBox", "View", "standard_views"]

# name, patient axis cut through, axis to the right, axis up or down, whether the last one points up in the picture.
# Radiological convention: the patient's right is at the picture's left.
_PLANES = (("axial", 2, 0, 1, False), ("coronal", 1, 0, 2, True), ("sagittal", 0, 1, 2, True))
_AIR = -500.0  # HU; below lies air
_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))  # low and high end of each LPS axis


@dataclass(frozen=True)
class FlatBox:
    """One organ's box projected on a view: ``(left, top, right, bottom)`` in mm from the picture's top left corner."""

    entry: OrganDetection
    edges: tuple[float, float, float, float]
    is_cut: bool  # by this view's slice
    distance: float  # mm from the slice to the box, 0 if cut


@dataclass(frozen=True)
class View:
    """One slice.

    Attributes
    ----------
    name : {"axial", "coronal", "sagittal"}
    pixels : ndarray of shape (rows, columns)
        First row on top, first column at the left.
    width, height : float
        In mm.
    marks : tuple of 4 str
        Patient directions at the picture's left, top, right and bottom.
    index, count : int
        Slice of the original array along the axis cut through, and how many it has.
    boxes : tuple of FlatBox
    labels : ndarray of shape (rows, columns), optional
        Of a label map, cut like the pixels.
    points : tuple of (right, down, distance)
        In mm from the picture's top left corner, and from the slice.
    """

    name: str
    pixels: np.ndarray
    width: float
    height: float
    marks: tuple[str, str, str, str]
    index: int
    count: int
    boxes: tuple[FlatBox, ...]
    labels: np.ndarray | None = None
    points: tuple[tuple[float, float, float], ...] = ()


def standard_views(
    detections: Detections, image: np.ndarray, *, labels: np.ndarray | None = None, points: ArrayLike = ()
) -> tuple[View, ...]:
    """Axial, coronal and sagittal slice, each through the first point, or where it cuts most boxes.

    Parameters
    ----------
    detections : Detections
    image : ndarray of shape (X, Y, Z)
        The original array in HU; only three slices are read, and air around the body is cut off. In an oblique scan
        the views follow the array's axes, named by the patient's nearest ones, so that boxes stay rectangles.
    labels : ndarray of shape (X, Y, Z), optional
        A label map to be cut like the image.
    points : array_like of shape (n, 3)
        Voxels of the original array to be marked.
    """
    codes = axcodes_of(detections.affine)
    order = [next(i for i, code in enumerate(codes) if code in ends) for ends in _LETTERS]  # array axis of x, y, z
    flipped = [codes[i] == ends[0] for i, ends in zip(order, _LETTERS, strict=True)]
    shape = np.asarray(detections.shape)[order]
    spacing = spacing_of(detections.affine)[order]
    boxes = np.array([entry.box_voxel for entry in detections.present], dtype=np.float64).reshape(-1, 2, 3)[..., order]
    mirrored = shape - boxes[:, ::-1]
    boxes = np.where(flipped, mirrored, boxes)  # (M, 2, 3), voxels along L, P, S
    centers = np.asarray(points, dtype=np.float64).reshape(-1, 3)[:, order] + 0.5
    centers = np.where(flipped, shape - centers, centers)  # (n, 3), likewise
    slices = []
    for _, through, right, vertical, up in _PLANES:
        index = _busiest_slice(boxes[:, 0, through], boxes[:, 1, through], shape[through])
        index = int(centers[0, through]) if len(centers) else index
        original = int(shape[through]) - 1 - index if flipped[through] else index
        cut = _Cut(order[through], original, order[right] < order[vertical], flipped[vertical] != up, flipped[right])
        slices.append((index, original, cut(image), None if labels is None else cut(labels)))
    low, high = _field(boxes, [pixels for _, _, pixels, _ in slices], shape)
    views = []
    for (name, through, right, vertical, up), (index, original, pixels, ids) in zip(_PLANES, slices, strict=True):
        rows = slice(shape[vertical] - high[vertical], shape[vertical] - low[vertical])
        rows = rows if up else slice(low[vertical], high[vertical])
        plane = (through, right, vertical, up)
        size = (high - low) * spacing
        position = (index + 0.5 - low[through]) * spacing[through]
        flat = [
            _flatten(entry, (box - low) * spacing, plane, position, size)
            for entry, box in zip(detections.present, boxes, strict=True)
        ]
        ends = _LETTERS[vertical]
        marks = (_LETTERS[right][0], ends[int(up)], _LETTERS[right][1], ends[int(not up)])
        window = (rows, slice(low[right], high[right]))
        spots = []
        for center in (centers - low) * spacing:
            down = size[vertical] - center[vertical] if up else center[vertical]
            spots.append((float(center[right]), float(down), float(abs(center[through] - position))))
        views.append(
            View(
                name,
                pixels[window],
                size[right],
                size[vertical],
                marks,
                original,
                int(shape[through]),
                tuple(flat),
                None if ids is None else ids[window],
                tuple(spots),
            )
        )
    return tuple(views)


class _Cut(NamedTuple):
    """How one slice of an array becomes a picture."""

    axis: int
    place: int
    is_turned: bool  # the array has the picture's columns before its rows
    is_upside_down: bool
    is_mirrored: bool

    def __call__(self, array: np.ndarray) -> np.ndarray:
        where: list = [slice(None)] * 3
        where[self.axis] = self.place
        pixels = np.asarray(array[tuple(where)])  # two axes, in array order
        if self.is_turned:
            pixels = pixels.T  # rows are the vertical axis
        if self.is_upside_down:
            pixels = pixels[::-1]
        return pixels[:, ::-1] if self.is_mirrored else pixels


def _field(boxes: np.ndarray, pictures: list[np.ndarray], shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels along L, P, S (low, high) to show: body and boxes in the three slices, without the air around them."""
    seen = [np.zeros(n, dtype=bool) for n in shape]
    for (_, _, right, vertical, up), pixels in zip(_PLANES, pictures, strict=True):
        body = pixels > _AIR
        seen[right] |= body.any(axis=0)
        seen[vertical] |= body[:: -1 if up else 1].any(axis=1)
    low, high = np.zeros(3, dtype=int), np.array(shape, dtype=int)
    for axis in range(3):
        starts = [*np.flatnonzero(seen[axis])[:1], *np.floor(boxes[:, 0, axis])]
        stops = [*np.flatnonzero(seen[axis])[-1:] + 1, *np.ceil(boxes[:, 1, axis])]
        if starts:  # else there is nothing but air: show it all
            low[axis], high[axis] = max(min(starts), 0), min(max(stops), shape[axis])
    return low, high


def _busiest_slice(starts: np.ndarray, stops: np.ndarray, count: int) -> int:
    """Index of the slice whose centre lies in most boxes; of several, the one nearest to the boxes' centres."""
    if len(starts) == 0:
        return int(count) // 2
    centers = np.arange(count) + 0.5
    cut = ((starts[:, None] <= centers) & (centers < stops[:, None])).sum(axis=0)  # (count,)
    candidates = np.flatnonzero(cut == cut.max())
    middle = np.median((starts + stops) / 2)
    return int(candidates[np.argmin(np.abs(candidates + 0.5 - middle))])


def _flatten(
    entry: OrganDetection, box: np.ndarray, plane: tuple[int, int, int, bool], position: float, size: np.ndarray
) -> FlatBox:
    """Project a box (2, 3), mm along L, P, S from the field's corner, on the slice at `position`."""
    through, right, vertical, up = plane
    top, bottom = box[0, vertical], box[1, vertical]
    if up:
        top, bottom = size[vertical] - bottom, size[vertical] - top
    distance = max(box[0, through] - position, position - box[1, through], 0.0)
    edges = (float(box[0, right]), float(top), float(box[1, right]), float(bottom))
    return FlatBox(entry, edges, distance == 0, float(distance))
