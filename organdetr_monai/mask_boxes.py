"""Boxes from label masks: one tight box for each organ, in one pass; and specks that would stretch it, removed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from organdetr_monai.errors import InputError

__all__ = ["boxes_from_mask", "remove_stray_voxels"]

_MAX_ID = 65_535


def boxes_from_mask(mask: np.ndarray, ids: Iterable[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Tight voxel boxes of the labels of a mask.

    Parameters
    ----------
    mask : ndarray of shape (X, Y, Z)
        Integer or boolean labels; 0 is background. Either memory order is read without a copy of the whole.
    ids : iterable of int, optional
        Labels wanted, positive. By default all that the mask holds, ascending.

    Returns
    -------
    boxes : ndarray of shape (M, 6), float64
        ``[min, max + 1)`` in voxels: an organ of one voxel has size 1.
    present : ndarray of shape (M,), int64
        The ids that the mask holds, in the order asked for. One that it does not hold gives no box.

    Raises
    ------
    InputError
        A mask that is not three-dimensional or not of integers, negative labels, or labels above 65535.
    """
    mask = _check_mask(mask)
    wanted = None if ids is None else _check_ids(ids)
    order = np.argsort(np.abs(mask.strides), kind="stable")[::-1]  # slowest axis first: slices are whole blocks
    hits = _occupied(mask.transpose(order))
    present = np.flatnonzero(hits[0].any(axis=1))
    if wanted is not None:
        present = wanted[np.isin(wanted, present)]
    boxes = np.empty((len(present), 6))
    for axis, hit in zip(order, hits, strict=True):
        boxes[:, axis] = hit[present].argmax(axis=1)
        boxes[:, 3 + axis] = hit.shape[1] - hit[present, ::-1].argmax(axis=1)
    return boxes, present.astype(np.int64)


def _occupied(mask: np.ndarray) -> list[np.ndarray]:
    """For each axis, a table (max id + 1, length) of bool: does the label occur at that index of the axis?

    Labels come in long runs along the fastest axis. Only the last voxel of each run and the first of the next are
    looked at: they hold every label of the line, and its extremes. A run may go on from the end of one line into
    the start of the next unseen, so the two outer voxels of each line are looked at too.
    """
    length = mask.shape[2]
    highest = int(mask.max(initial=0))
    if highest > _MAX_ID:
        raise InputError(f"The mask holds the label {highest}.", f"Labels are small ids, at most {_MAX_ID}.")
    slow, middle, fast = (np.zeros((highest + 1, n), dtype=bool) for n in mask.shape)
    for s in range(len(mask)):
        plane = np.ascontiguousarray(mask[s])  # (lines, length)
        flat = plane.reshape(-1)
        last = np.flatnonzero(flat[1:] != flat[:-1])
        line = last // length
        place = last - line * length
        ending, starting = flat[last], flat[last + 1]
        slow[ending, s] = True
        middle[ending, line] = True
        fast[ending, place] = True
        fast[starting, np.where(place + 1 == length, 0, place + 1)] = True
        for edge in (0, length - 1):
            outer = np.flatnonzero(plane[:, edge])
            labels = plane[outer, edge]
            slow[labels, s] = True
            middle[labels, outer] = True
            fast[labels, edge] = True
    for hit in (slow, middle, fast):
        hit[0] = False  # background was never told apart above: that costs more than it saves
    return [slow, middle, fast]


def remove_stray_voxels(
    mask: np.ndarray, ids: Iterable[int] | None = None, *, max_voxels: int = 8, max_fraction: float = 0.01
) -> np.ndarray:
    """Drop specks that lie apart from an organ and would stretch its box.

    A component (voxels that touch by a face, edge or corner) goes to background if it has at most `max_voxels` voxels
    **and** at most `max_fraction` of the organ's largest component. Both must hold: the count spares real parts of an
    organ that is in pieces (a lung cut by the scan's end), the fraction spares small and thin organs, whose pieces on
    a coarse grid are of like size. An organ's largest component always stays, so no organ is lost.

    Parameters
    ----------
    mask : ndarray of shape (X, Y, Z)
        Integer labels; 0 is background. Not changed.
    ids : iterable of int, optional
        Labels to clean. By default all.
    max_voxels : int, default 8
        A 2×2×2 block: what a stray click or a resampling artefact leaves, whatever the voxel's size.
    max_fraction : float, default 0.01

    Returns
    -------
    ndarray of shape (X, Y, Z), dtype of `mask`
    """
    from scipy import ndimage

    if max_voxels < 0 or not 0 <= max_fraction < 1:
        raise InputError(
            f"max_voxels is {max_voxels} and max_fraction {max_fraction}.", "Use max_voxels >= 0 and 0 <= fraction < 1."
        )
    cleaned = _check_mask(mask).astype(np.asarray(mask).dtype, copy=True)
    boxes, present = boxes_from_mask(mask, ids)
    touching = np.ones((3, 3, 3), dtype=bool)
    for label, box in zip(present, boxes.astype(np.intp), strict=True):
        view = cleaned[tuple(slice(start, stop) for start, stop in zip(box[:3], box[3:], strict=True))]
        components, count = ndimage.label(view == label, structure=touching)
        if count == 1:
            continue
        sizes = np.bincount(components.reshape(-1))
        sizes[0] = 0
        stray = (sizes <= max_voxels) & (sizes <= max_fraction * sizes.max())
        stray[0] = False  # everything that is not this organ
        view[stray[components]] = 0
    return cleaned


def _check_mask(mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 3 or mask.size == 0:
        raise InputError(f"The mask has shape {mask.shape}.", "Give one label map of shape (X, Y, Z).")
    if mask.dtype == bool:
        return mask.view(np.uint8)
    if not np.issubdtype(mask.dtype, np.integer):
        raise InputError(
            f"The mask's type is {mask.dtype}.", "Read labels as integers: nibabel's dataobj, not get_fdata."
        )
    if mask.dtype.kind == "i" and mask.min() < 0:
        raise InputError(f"The mask holds the label {mask.min()}.", "Labels are ids from 0 up.")
    return mask


def _check_ids(ids: Iterable[int]) -> np.ndarray:
    wanted = np.asarray(list(ids), dtype=np.int64)
    if (wanted < 1).any() or len(np.unique(wanted)) != len(wanted):
        raise InputError(f"The ids are {wanted.tolist()}.", "Name each organ once, by an id from 1 up.")
    return wanted
