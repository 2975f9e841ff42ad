"""Reading masks as they come, and turning them into one mask with our ids. What cannot be trusted is a `CaseError`."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from nibabel.arrayproxy import ArrayProxy

from organdetr_monai.data.headers import Grid, check_same_grid, load_nifti, read_grid
from organdetr_monai.data.sets.base import NIFTI, Case, Listing
from organdetr_monai.data.sets.sides import body_midline, is_left
from organdetr_monai.errors import InputError

_CHUNK = 1 << 22  # bytes


class CaseError(Exception):
    """A case that cannot be used; the message is the reason that the user reads."""


def check_image(path: Path) -> Grid:
    """Grid of an image, after making sure that its file is whole."""
    if not path.is_file():
        raise CaseError(f"missing image {path.name}")
    grid = read_grid(path)
    if not path.name.lower().endswith(NIFTI):
        _read_other(path)
        return grid
    image = load_nifti(path)
    voxels = image.dataobj
    assert isinstance(voxels, ArrayProxy)  # what is read from a file is
    needed = int(voxels.offset) + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    if _size(path) < needed:
        raise CaseError(f"unreadable: {path.name} ends before its last voxel")
    return grid


def _size(path: Path) -> int:
    """Bytes of a file, unpacked; reading a gzip to its end also proves its checksum."""
    if not path.name.lower().endswith(".gz"):
        return os.path.getsize(path)
    with gzip.open(path) as stream:
        return sum(len(chunk) for chunk in iter(lambda: stream.read(_CHUNK), b""))


def _read_other(path: Path) -> np.ndarray:
    """Voxels of a NRRD, MHA or MHD file, axes in the file's own order like nibabel's."""
    import itk

    return itk.array_from_image(itk.imread(str(path))).T  # ITK's arrays run z, y, x


def read_mask(path: Path, grid: Grid, image: Path) -> np.ndarray:
    """Integers of a mask on the grid of its image; values that are not whole numbers are refused, not rounded."""
    if not path.is_file():
        raise CaseError(f"missing label {path.name}")
    found = read_grid(path)
    try:
        check_same_grid(grid, found, image.name, path.name)
    except InputError as error:
        raise CaseError(f"grid mismatch: {error.what}") from None
    array = np.asarray(load_nifti(path).dataobj) if path.name.lower().endswith(NIFTI) else _read_other(path)
    array = array.reshape(grid.shape)  # some writers append a fourth axis of size 1
    if array.dtype.kind == "f":
        whole = np.rint(array)
        odd = ~(abs(array - whole) <= 1e-3)  # a NaN is not close to anything
        if odd.any():
            raise CaseError(f"{path.name} has values that are no labels, such as {array[odd][0]:g}")
        array = whole.astype(np.int32)
    return array


def build_mask(case: Case, listing: Listing, grid: Grid) -> np.ndarray:
    """One mask with our ids.

    Parameters
    ----------
    case : Case
    listing : Listing
    grid : Grid
        Of the image; the masks must share it.

    Returns
    -------
    ndarray of shape grid.shape, uint8
        ``listing.organs[k]`` has the value ``k + 1``.
    """
    if case.structures is not None:
        return _from_structures(case.structures, case.image, listing, grid)
    if case.label is None:
        raise CaseError("missing label")
    array = read_mask(case.label, grid, case.image)
    number = {organ: k + 1 for k, organ in enumerate(listing.organs)}
    source_ids = [*listing.both_sides, *(value for values in listing.ids.values() for value in values)]
    # The last entry, also reached as -1, is for values out of range; a byte is always in range.
    table = np.zeros(max(255, *source_ids) + 2, dtype=np.uint8)
    for organ, values in listing.ids.items():
        table[list(values)] = number[organ]
    mask = np.empty(grid.shape, dtype=np.uint8, order="F")  # as NIfTI lies on disk
    for k in range(grid.shape[2]):  # by slices: an index array of the whole volume would take eight bytes a voxel
        plane = array[:, :, k]
        if plane.dtype != np.uint8:
            plane = np.clip(plane.astype(np.int64), -1, table.size - 1)
        mask[:, :, k] = table[plane]
    for value, (left, right) in listing.both_sides.items():
        _part(mask, array == value, grid, (number[left], number[right]), lambda: body_midline(case.image))
    return mask


def _part(
    mask: np.ndarray, both: np.ndarray, grid: Grid, numbers: tuple[int, int], midline: Callable[[], float]
) -> None:
    """Write a pair of organs into `mask`, parted by the patient's left and right."""
    if both.any():
        left, right = numbers
        mask[both] = np.where(is_left(both, grid.affine, midline), left, right)


def _from_structures(
    structures: Mapping[str, tuple[Path, ...]], image: Path, listing: Listing, grid: Grid
) -> np.ndarray:
    mask = np.zeros(grid.shape, dtype=np.uint8, order="F")
    for k, organ in enumerate(listing.organs):
        for path in structures.get(organ, ()):
            mask[(read_mask(path, grid, image) > 0) & (mask == 0)] = k + 1
    return mask


def values_in(mask: np.ndarray) -> np.ndarray:
    """Sorted values of a uint8 mask, 0 left out."""
    counts = np.zeros(256, dtype=np.int64)
    for k in range(mask.shape[2]):
        counts += np.bincount(mask[:, :, k].ravel(order="K"), minlength=256)
    return np.flatnonzero(counts[1:]) + 1


def on_faces(mask: np.ndarray) -> np.ndarray:
    """Values of a mask that touch one of the six ends of the volume: these organs may go on beyond the scan."""
    ends = [np.unique(np.moveaxis(mask, axis, 0)[end]) for axis in range(mask.ndim) for end in (0, -1)]
    return np.unique(np.concatenate(ends))
