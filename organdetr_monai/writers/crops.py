"""Organ crops: for each present organ a piece of the scan around its box, on the scan's own grid."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from organdetr_monai.detections import Detections, OrganDetection
from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing
from organdetr_monai.geometry import spacing_of

__all__ = ["crop_slices", "write_crops"]


def crop_slices(entry: OrganDetection, detections: Detections, *, margin: float) -> tuple[slice, slice, slice]:
    """Whole voxels of the scan that hold an organ's box and `margin` mm around it, as far as the scan goes."""
    if not 0 <= margin < np.inf:
        raise InputError(f"The margin is {margin} mm.", "Give 0 or more.")
    box = np.asarray(entry.box_voxel).reshape(2, 3)
    reach = margin / spacing_of(detections.affine)
    # A margin of whole voxels must not take one more for a rounding error.
    start = np.maximum(np.floor(box[0] - reach + 1e-6), 0).astype(int)
    stop = np.minimum(np.ceil(box[1] + reach - 1e-6), detections.shape).astype(int)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return x, y, z


def write_crops(
    detections: Detections,
    image: np.ndarray,
    folder: str | os.PathLike,
    *,
    margin: float = 20.0,
    organs: Iterable[str] | None = None,
) -> dict[str, Path]:
    """Write ``{organ}.nii.gz`` for each present organ: voxels untouched, affine of the piece.

    Parameters
    ----------
    detections : Detections
    image : ndarray of shape (X, Y, Z)
        The original array that `detections` speaks of.
    folder : path
    margin : float, default 20
        In mm, around the box. Model users ask for a crop that never clips: walls err by less than 20 mm.
    organs : iterable of str, optional
        By default all that are present. One that is absent is passed over: there is nothing to cut out.

    Returns
    -------
    dict from organ to path
        What was written.

    Raises
    ------
    InputError
        An image of another shape, a negative margin, an organ that was not looked for, or voxels of a type that NIfTI
        does not hold.
    """
    import nibabel as nib

    if tuple(image.shape) != detections.shape:
        raise InputError(
            f"The image has shape {tuple(image.shape)}, the detections {detections.shape}.", "Give the original array."
        )
    wanted = detections.present if organs is None else [detections[organ] for organ in organs]
    written = {}
    for entry in wanted:
        if entry.status == "absent":
            continue
        where = crop_slices(entry, detections, margin=margin)
        affine = detections.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [s.start for s in where]
        try:
            crop = nib.Nifti1Image(np.ascontiguousarray(image[where]), affine, dtype=image.dtype)
        except (nib.spatialimages.HeaderDataError, ValueError) as error:
            raise InputError(
                f"Voxels of type {image.dtype} do not fit NIfTI: {error}.", "Use int16 or float32."
            ) from error
        crop.header.set_xyzt_units("mm")
        crop.set_qform(affine, code="scanner")
        crop.set_sform(affine, code="scanner")
        path = Path(folder) / f"{re.sub(r'[^0-9A-Za-z_-]+', '_', entry.organ)}.nii.gz"  # "prostate/uterus" is one file
        with replacing(path) as draft:
            nib.save(crop, draft)
        written[entry.organ] = path
    return written
