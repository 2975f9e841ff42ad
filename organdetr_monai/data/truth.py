"""From a mask to what training and evaluation compare with: ids, boxes, and which organs a case speaks of.

Masks are (1, X, Y, Z); boxes are corners ``[min, max + 1)`` in voxels of the grid named. The ids 1..K are those of the
datalist; an organ that is not annotated is background in the mask and ``False`` in ``annotated``.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from organdetr_monai.data.transforms import Data, affine_of, plain, source_of, with_affine
from organdetr_monai.errors import InputError
from organdetr_monai.geometry import boxes_from_mask, remove_stray_voxels, spacing_of, transform_boxes

logger = logging.getLogger(__name__)


def annotated_mask(annotated: Iterable[int], num_organs: int) -> torch.Tensor:
    """Ids 1..K as a bool tensor (K,)."""
    flags = torch.zeros(num_organs, dtype=torch.bool)
    flags[[organ - 1 for organ in annotated]] = True
    return flags


def truth_of(
    data: Data, boxes: np.ndarray, ids: np.ndarray, affine: np.ndarray, *, num_organs: int, ignore_truncated: bool
) -> dict[Hashable, Any]:
    """What evaluation reads of a case.

    Parameters
    ----------
    data : mapping
        ``annotated`` and, to ignore them, ``truncated``: organ ids.
    boxes : ndarray of shape (M, 6)
        Corners in voxels of the working image.
    ids : ndarray of shape (M,)
    affine : ndarray of shape (4, 4)
        Of the working image.
    num_organs : int
        K.
    ignore_truncated : bool
        Count truncated organs as not annotated.

    Returns
    -------
    dict
        ``boxes`` (M', 6) float32, ``labels`` (M',) int64, ``annotated`` (K,) bool and ``spacing`` (3,) mm.
    """
    annotated = annotated_mask(data["annotated"], num_organs)
    if ignore_truncated:
        annotated &= ~annotated_mask(data["truncated"], num_organs)
        kept = annotated.numpy()[np.asarray(ids, dtype=np.int64) - 1]
        boxes, ids = boxes[kept], ids[kept]
    return {
        "boxes": torch.as_tensor(boxes, dtype=torch.float32),
        "labels": torch.as_tensor(ids, dtype=torch.int64),
        "annotated": annotated,
        "spacing": torch.as_tensor(spacing_of(affine), dtype=torch.float32),
    }


class MapLabelsd(MapTransform):
    """Turn the values of a mask file into organ ids and remove stray voxels; uint8 comes out.

    Reads ``label_values`` (id to value) and ``annotated`` (ids) of the datalist.

    Parameters
    ----------
    keys : masks as read from their files
    allow_empty : bool
        False: a mask of zeros is an error. One with other organs than those annotated is none, but a warning.

    Raises
    ------
    InputError
        A mask of zeros, or one whose values are no whole numbers.
    """

    def __init__(self, keys: KeysCollection, allow_empty: bool = False, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.allow_empty = allow_empty

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Map each mask."""
        d = dict(data)
        for key in self.key_iterator(d):
            mask = d[key]
            values = self._integers(mask)
            ids = map_values(values, {k: v for k, v in d["label_values"].items() if k in d["annotated"]})
            if not self.allow_empty and not values.any():
                raise InputError(f"{source_of(mask)} is empty.", "Give its mask, or take the case out of the datalist.")
            if not ids.any():  # legal: a scan may have none of the organs that are trained; a wrong label map, too
                there = ", ".join(map(str, np.unique(values)[:10]))
                logger.warning(
                    "%s shows none of the annotated organs; its values are %s. All count as absent.",
                    source_of(mask),
                    there,
                )
            ids[0] = remove_stray_voxels(ids[0])
            d[key] = with_affine(torch.from_numpy(ids), affine_of(mask), mask)
        return d

    @staticmethod
    def _integers(mask: Any) -> np.ndarray:
        if mask.ndim != 4 or mask.shape[0] != 1:
            size = "×".join(map(str, mask.shape))
            raise InputError(f"{source_of(mask)} is no mask of one channel: its size is {size}.", "Give one 3D mask.")
        values = plain(mask).numpy()
        if values.dtype.kind != "f":
            return values
        whole = np.rint(values)
        odd = ~(np.abs(values - whole) <= 1e-3)  # NaN is close to nothing
        if odd.any():
            raise InputError(f"{source_of(mask)} holds {values[odd][0]:g}, which is no label.", "Store integers.")
        return whole.astype(np.int32)


def map_values(values: np.ndarray, label_values: Mapping[int, int]) -> np.ndarray:
    """Organ ids, uint8, for the values of a mask, by one look into a table; other values become 0."""
    highest = max(label_values.values(), default=0)
    table = np.zeros(highest + 2, dtype=np.uint8)  # the last entry stands for whatever is higher
    for organ, value in label_values.items():
        table[value] = organ
    return table[np.clip(values, 0, highest + 1)]


class OutlineOrgansd(MapTransform):
    """Keep for each organ the points that span it, at the resolution of the file.

    A box taken from a mask on the working grid is off by half a working voxel and more at each wall, and a thin organ
    loses its tips. The box of an organ under any affine is that of its transformed convex hull, so the hull's vertices,
    some hundreds of points, give the exact box of every augmented sample (``BoxesFromMaskd``).

    Parameters
    ----------
    keys : masks of ids at full resolution, before ``MatchImaged``
    outlines : key of the result
        dict of ``points`` (P, 3) RAS mm, float64: corners of the voxels at the vertices; ``organ`` (P,) their ids,
        ascending; ``volume``: id to mm³.
    """

    def __init__(self, keys: KeysCollection, outlines: str = "outlines", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.outlines = outlines

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Outline the organs of the mask."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.outlines] = outline_organs(plain(d[key])[0].numpy(), affine_of(d[key]))
        return d


def outline_organs(mask: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    """Outlines as :class:`OutlineOrgansd` describes them, of a mask (X, Y, Z)."""
    boxes, present = boxes_from_mask(mask)
    corners = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij"), axis=-1).reshape(1, 8, 3)
    voxel = abs(np.linalg.det(affine[:3, :3]))  # mm³
    points, organs, volumes = [np.zeros((0, 3))], [np.zeros(0, dtype=np.int64)], {}
    for organ, box in zip(present.tolist(), boxes.astype(int), strict=True):
        inside = mask[tuple(map(slice, box[:3], box[3:]))] == organ
        vertices = (_hull_vertices(inside) + box[:3])[:, None] + corners  # (V, 8, 3)
        vertices = vertices.reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
        points.append(vertices)
        organs.append(np.full(len(vertices), organ))
        volumes[organ] = float(inside.sum() * voxel)
    return {
        "points": torch.from_numpy(np.concatenate(points)),
        "organ": torch.from_numpy(np.concatenate(organs)),
        "volume": volumes,
    }


def _hull_vertices(inside: np.ndarray) -> np.ndarray:
    """Indices (V, 3) of voxels among which are all vertices of the convex hull of the voxels that are set."""
    from scipy.spatial import ConvexHull, QhullError

    # A vertex of the hull is the first or last voxel of its row along every axis.
    candidate = inside
    for axis in range(3):
        first = inside & (np.cumsum(inside, axis=axis, dtype=np.int32) == 1)
        reverse = np.flip(inside, axis)
        last = np.flip(reverse & (np.cumsum(reverse, axis=axis, dtype=np.int32) == 1), axis)
        candidate = candidate & (first | last)
    voxels = np.argwhere(candidate)
    try:
        return voxels[ConvexHull(voxels).vertices]
    except (QhullError, ValueError):
        return voxels  # flat, or a handful of voxels: its hull has no volume


class BoxesFromMaskd(MapTransform):
    """Boxes, ids and annotation of a training sample, from its mask as it is after augmentation.

    With ``outlines`` in the sample (:class:`OutlineOrgansd`) the box of an organ that lies wholly in the window is
    exact. An organ cut by the window gets the box of what is visible; less than ``min_visible`` of its volume is a
    sliver, which nobody could name: it is neither there nor absent, so it is taken out of the mask and out of
    ``annotated``. Without outlines all boxes are those of the mask, and nothing is known of slivers.

    Parameters
    ----------
    keys : mask of ids
    num_organs : int
        K.
    min_visible : float
        Share of the organ's volume in the case's mask.
    outlines : key

    Notes
    -----
    Sets ``boxes`` (M, 6) float32 corners in voxels of the mask, ``labels`` (M,) int64 ascending, ``annotated`` (K,)
    bool; M may be 0. Removes ``outlines`` and ``label_values``, which are of the case and not of the sample.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_organs: int,
        min_visible: float = 0.1,
        outlines: str = "outlines",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_organs, self.min_visible, self.outlines = int(num_organs), float(min_visible), outlines

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Add the boxes."""
        d = dict(data)
        outlines = d.pop(self.outlines, None)
        d.pop("label_values", None)
        for key in self.key_iterator(d):
            mask = plain(d[key])
            annotated = annotated_mask(d["annotated"], self.num_organs)
            found, ids = boxes_from_mask(mask[0].numpy())
            boxes = dict(zip(ids.tolist(), found, strict=True))
            if outlines is not None:
                slivers = self._refine(boxes, mask, affine_of(d[key]), outlines)
                if slivers:
                    table = torch.arange(self.num_organs + 1, dtype=mask.dtype)
                    table[slivers] = 0
                    annotated[[organ - 1 for organ in slivers]] = False
                    d[key] = with_affine(table[mask.long()], affine_of(d[key]), d[key])
            labels = sorted(boxes)
            d["boxes"] = torch.tensor(np.array([boxes[k] for k in labels]).reshape(-1, 6), dtype=torch.float32)
            d["labels"] = torch.tensor(labels, dtype=torch.int64)
            d["annotated"] = annotated
        return d

    def _refine(
        self, boxes: dict[int, np.ndarray], mask: torch.Tensor, affine: np.ndarray, outlines: Mapping[str, Any]
    ) -> list[int]:
        """Replace the boxes of whole organs by exact ones and remove slivers, in place; returns the slivers."""
        organs, exact = exact_boxes(outlines, affine)
        size = np.asarray(mask.shape[1:])
        whole = (exact[:, :3] >= -1e-3).all(axis=1) & (exact[:, 3:] <= size + 1e-3).all(axis=1)
        inside = np.clip(exact, 0, [*size, *size])
        boxes.update(zip(organs[whole].tolist(), inside[whole], strict=True))
        # By the box alone, so that an organ of which the mask shows nothing but which may reach in is a sliver, too.
        cut = organs[~whole & (inside[:, 3:] > inside[:, :3]).all(axis=1)].tolist()
        if not cut:
            return []
        voxel = abs(np.linalg.det(affine[:3, :3]))  # mm³
        visible = torch.bincount(mask.flatten(), minlength=self.num_organs + 1).numpy() * voxel
        slivers = [organ for organ in cut if visible[organ] < self.min_visible * outlines["volume"][organ]]
        for organ in slivers:
            boxes.pop(organ, None)
        return slivers


def exact_boxes(outlines: Mapping[str, Any], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids (M,) and boxes (M, 6), corners in voxels of the grid of ``affine``, of outlined organs."""
    points, organ = outlines["points"].numpy(), outlines["organ"].numpy()
    if len(points) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 6))
    to_voxel = np.linalg.inv(affine)
    corners = points @ to_voxel[:3, :3].T + to_voxel[:3, 3] + 0.5
    organs, first = np.unique(organ, return_index=True)
    low, high = np.minimum.reduceat(corners, first), np.maximum.reduceat(corners, first)
    return organs, np.concatenate([low, high], axis=1)


class TruthBoxesd(MapTransform):
    """Boxes for evaluation: taken at the resolution of the file and carried to the working grid by the affines alone.

    No resampling touches them, so the truth does not depend on the working spacing.

    Parameters
    ----------
    keys : mask of ids at full resolution
    num_organs : int
        K.
    reference : key of the image on the working grid
    ignore_truncated : bool
        Organs that the case calls ``truncated`` count as not annotated: where the scan ends says nothing about where
        the organ does.

    Notes
    -----
    Sets ``boxes`` (M, 6) float32 corners in voxels of the image, ``labels`` (M,) int64, ``annotated`` (K,) bool and
    ``spacing`` (3,) mm of the image. Removes the mask and ``label_values``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_organs: int,
        reference: str = "image",
        ignore_truncated: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_organs, self.reference, self.ignore_truncated = int(num_organs), reference, bool(ignore_truncated)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Add the boxes."""
        d = dict(data)
        for key in self.key_iterator(d):
            mask, target = d.pop(key), affine_of(d[self.reference])
            boxes, ids = boxes_from_mask(plain(mask)[0].numpy())
            boxes = transform_boxes(boxes, affine_of(mask), target)
            truth = truth_of(d, boxes, ids, target, num_organs=self.num_organs, ignore_truncated=self.ignore_truncated)
            d.update(truth)
        d.pop("label_values", None)
        return d
