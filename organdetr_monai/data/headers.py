"""Where the voxels of a file lie, from its header alone, and whether two files share one grid."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from organdetr_monai.errors import InputError

if TYPE_CHECKING:
    from nibabel import Nifti1Pair

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TOLERANCE = 0.5  # voxels; headers of one scan written by two programs differ by rounding, not by more


@dataclass(frozen=True)
class Grid:
    """A grid of voxels in the patient.

    Attributes
    ----------
    shape : tuple of 3 int
    affine : ndarray of shape (4, 4)
        From array indices of voxel centres to RAS+ mm.
    """

    shape: tuple[int, ...]
    affine: np.ndarray


def read_grid(path: str | os.PathLike) -> Grid:
    """Grid of a NIfTI, NRRD, MHA or MHD file, or of the DICOM series in a folder; no voxel is read.

    Raises
    ------
    InputError
        The file is missing or unreadable, is no 3D volume, or its affine cannot be inverted.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist.", "Check the path; relative ones start at the datalist's folder.")
    try:
        read = _dicom_header if path.is_dir() else _nifti_header if is_nifti(path) else _itk_header
        shape, affine = read(path)
    except InputError:
        raise
    except Exception as error:  # each reader has exceptions of its own for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[-1]
        raise InputError(
            f"{path} cannot be read ({reason}).",
            "Give a NIfTI, NRRD, MHA or MHD file, or a folder of one DICOM series.",
        ) from error
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3 or min(shape) < 2:
        size = "×".join(map(str, shape))
        raise InputError(f"{path} is no 3D volume: its size is {size}.", "Give one 3D CT; split a time series first.")
    affine = np.asarray(affine, dtype=float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"{path} has an unusable affine {affine[:3].tolist()}.", "Convert the scan again from DICOM.")
    return Grid(tuple(int(n) for n in shape), affine)


def check_same_grid(image: Grid, mask: Grid, image_path: str, mask_path: str) -> None:
    """Raise :class:`InputError` unless both have one shape and no corner differs by more than half a voxel."""
    remedy = "Resample the mask onto the image's grid."
    if image.shape != mask.shape:
        a, b = ("×".join(map(str, grid.shape)) for grid in (image, mask))
        raise InputError(f"the mask {mask_path} has {b} voxels, its image {image_path} has {a}.", remedy)
    ends = np.array(np.meshgrid(*((0, n - 1) for n in image.shape), [1], indexing="ij")).reshape(4, -1)
    away = np.linalg.norm(((image.affine - mask.affine) @ ends)[:3], axis=0).max()  # mm
    if away > _TOLERANCE * np.linalg.norm(image.affine[:3, :3], axis=0).min():
        raise InputError(f"the mask {mask_path} lies up to {away:.1f} mm away from its image {image_path}.", remedy)


def is_nifti(path: Path) -> bool:
    """Whether the file calls itself NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def load_nifti(path: Path) -> Nifti1Pair:
    """NIfTI-1 or NIfTI-2, voxels still on disk; other kinds that nibabel would open are an ``ImageFileError``."""
    import nibabel as nib

    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Pair):
        raise nib.filebasedimages.ImageFileError(f"{path} is a {type(image).__name__}")
    return image


def _nifti_header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    image = load_nifti(path)
    return image.shape, image.affine


def _itk_header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    import itk

    header = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if header is None:
        raise InputError(f"{path} has no known format.", "Give a NIfTI, NRRD, MHA or MHD file.")
    header.SetFileName(str(path))
    header.ReadImageInformation()
    dims = range(header.GetNumberOfDimensions())
    shape = tuple(header.GetDimensions(i) for i in dims)
    if header.GetNumberOfComponents() != 1:
        raise InputError(
            f"{path} has {header.GetNumberOfComponents()} values in each voxel.", "Give a CT of one channel."
        )
    if len(shape) < 3:
        return shape, np.eye(4)
    return shape, _affine(
        [header.GetOrigin(i) for i in range(3)],
        [header.GetSpacing(i) for i in range(3)],
        np.stack([list(header.GetDirection(i))[:3] for i in range(3)], axis=1),
    )


def _dicom_header(folder: Path) -> tuple[tuple[int, ...], np.ndarray]:
    from organdetr_monai.data.dicom import read_header, series_geometry
    from organdetr_monai.data.scans import find_scan

    ordered, affine = series_geometry(find_scan(folder).paths)
    first = read_header(ordered[0])
    return (int(first.Columns), int(first.Rows), len(ordered)), affine


def _affine(origin: list[float], spacing: list[float], direction: np.ndarray) -> np.ndarray:
    """RAS+ affine from ITK's LPS header; the columns of ``direction`` are the axes."""
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(spacing)
    affine[:3, 3] = origin
    return _LPS_TO_RAS @ affine
