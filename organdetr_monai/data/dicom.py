"""DICOM series: which files are CT images, which belong together, and the rectangular grid that their headers describe.

Nothing is guessed. A series whose slices do not form an evenly spaced, upright stack is refused, because every later
step, boxes in millimetres first of all, takes the voxel grid for rectangular.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from organdetr_monai.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# CT Image Storage, Enhanced CT, Legacy Converted Enhanced CT. The last two are multi-frame: found, but not read.
CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")

POSITION_TOLERANCE_MM = 0.2  # scanners write positions rounded to 0.1 mm
LEAN_TOLERANCE = 2e-3  # mm sideways for each mm along the stack: 0.11 degrees, far below any real gantry tilt

_TAGS = [
    "SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "NumberOfFrames",
    "SamplesPerPixel", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "RescaleSlope", "RescaleIntercept", "RescaleType",
]  # fmt: skip

_EXPORT_AGAIN = "Export the complete series again from the archive, one reconstruction in one folder."
_REGRID = "Resample the series to an upright grid, e.g. with dcm2niix or 3D Slicer, and give the resulting NIfTI file."
_CONVERT = "Convert the series to NIfTI, e.g. with dcm2niix, and give that file."


def is_dicom(path: Path) -> bool:
    """Tell by content, not by name, whether a file is DICOM: with the usual preamble or a bare data set.

    Raises
    ------
    OSError
        If the file cannot be opened.
    """
    with open(path, "rb") as file:
        head = file.read(132)
    # A bare data set starts with an element of group 0002 or 0008 whose number is below 256 (little endian).
    return head[128:132] == b"DICM" or (head[:2] in (b"\2\0", b"\10\0") and len(head) == 132 and head[3] == 0)


def read_header(path: Path) -> Dataset:
    """Read the elements that grouping and geometry need, without pixels.

    Raises
    ------
    InputError
        If the header cannot be parsed.
    """
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=True)
        list(header)  # pydicom parses a value when it is first asked for: ask now
    except Exception as error:  # pydicom promises no set of exceptions for damaged files
        raise InputError(f"{path} has a damaged DICOM header ({error}).", _EXPORT_AGAIN) from error
    return header


def why_not_ct(header: Dataset) -> str | None:
    """Say why an instance is no CT image of a volume, or None if it is one."""
    from pydicom.uid import UID

    # Anonymisers blank the class in the data set; the file's meta header often still has it.
    sop_class = header.get("SOPClassUID") or getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID")
    modality = header.get("Modality")
    if not modality:
        return "a DICOM file without modality: unfinished, damaged or no image"
    if sop_class and sop_class not in CT_CLASSES:
        return f"not a CT image: {UID(sop_class).name} (modality {modality})"
    if modality != "CT":
        return f"not a CT image: modality {modality}"
    if "LOCALIZER" in (header.get("ImageType") or ()):
        return "a scout view (localizer), not a volume"
    return None


def series_key(path: Path, header: Dataset) -> tuple[str, ...]:
    """Give the key that all slices of one series share.

    A series keeps together over several folders by its uid. Where an anonymiser removed the uid, the folder, number
    and description stand in for it.
    """
    if header.get("SeriesInstanceUID"):
        return (str(header.SeriesInstanceUID),)
    return ("", str(path.parent), str(header.get("SeriesNumber")), str(header.get("SeriesDescription")))


def series_geometry(paths: tuple[Path, ...]) -> tuple[list[Path], np.ndarray]:
    """Order the slices of one series by position and find their common grid.

    Parameters
    ----------
    paths : tuple of Path
        The slices, in any order.

    Returns
    -------
    ordered : list of Path
        The slices along the normal `row x column`.
    affine : ndarray of shape (4, 4), float64
        From indices (column, row, slice) of voxel centres to patient RAS mm.

    Raises
    ------
    InputError
        For a single slice, multi-frame or colour images, values that are not HU, slices that differ in size, spacing
        or orientation, duplicate or missing slices, and a tilted gantry.
    """
    headers = [read_header(path) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        _check_pixels(path, header)
    if len(paths) < 2:
        raise InputError(f"{paths[0]} is the only slice of its series.", "Give a volume of at least two slices.")
    slopes, _ = (_numbers(paths, headers, keyword, 1) for keyword in ("RescaleSlope", "RescaleIntercept"))
    if not slopes.all():
        raise InputError(f"{paths[int(np.argmin(np.abs(slopes)))]} has a RescaleSlope of 0.", _EXPORT_AGAIN)
    positions = _numbers(paths, headers, "ImagePositionPatient", 3)
    orientation = _shared(paths, _numbers(paths, headers, "ImageOrientationPatient", 6), "orientations")
    spacing = _shared(paths, _numbers(paths, headers, "PixelSpacing", 2), "pixel spacings")
    _shared(paths, np.array([[h.get("Rows", 0), h.get("Columns", 0)] for h in headers], float), "sizes")
    if spacing.min() <= 0:
        raise InputError(f"{paths[0]} has a pixel spacing of {spacing.tolist()} mm.", _EXPORT_AGAIN)

    row, column, normal = _axes(paths[0], orientation)
    order = np.argsort(positions @ normal, kind="stable")
    ordered = [paths[i] for i in order]
    positions = positions[order]
    step = _even_step(ordered, positions @ normal)
    _check_upright(ordered[0].parent, positions, normal)
    affine = np.eye(4)
    # PixelSpacing is (between rows, between columns): its second entry is the step along a row.
    affine[:3] = np.stack([row * spacing[1], column * spacing[0], normal * step, positions[0]], axis=1)
    return ordered, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM speaks LPS


def _check_pixels(path: Path, header: Dataset) -> None:
    """Refuse pixels that are not one plane of HU."""
    frames, samples = header.get("NumberOfFrames") or 1, header.get("SamplesPerPixel") or 1
    if int(frames) > 1:
        raise InputError(f"{path} is a multi-frame DICOM image of {frames} frames, which is not read.", _CONVERT)
    if int(samples) != 1:
        raise InputError(f"{path} has {samples} samples per pixel: colour, not HU.", "Give the original CT series.")
    unit = str(header.get("RescaleType") or "HU")
    if unit not in ("HU", "US"):  # US means unspecified, which scanners write for plain CT, too
        raise InputError(f"{path} holds values in {unit}, not HU.", "Give a series in HU.")


def _numbers(paths: tuple[Path, ...], headers: list[Dataset], keyword: str, count: int) -> np.ndarray:
    """Collect one element of all slices as an array of shape (slices, count), or refuse."""
    rows = []
    for path, header in zip(paths, headers, strict=True):
        value = header.get(keyword)
        try:
            row = np.atleast_1d(np.array(value, dtype=float))
        except (TypeError, ValueError):
            row = np.array([np.nan])
        if row.shape != (count,) or not np.isfinite(row).all():
            raise InputError(f"{path} has {keyword} {value}; it takes {count} finite numbers.", _EXPORT_AGAIN)
        rows.append(row)
    return np.stack(rows)


def _shared(paths: tuple[Path, ...], values: np.ndarray, what: str) -> np.ndarray:
    """Return what all slices (rows of `values`) agree on, or refuse."""
    odd = np.flatnonzero(np.abs(values - values[0]).max(axis=1) > 1e-3)
    if len(odd):
        pair = f"{values[0].tolist()} in {paths[0].name}, {values[odd[0]].tolist()} in {paths[odd[0]].name}"
        raise InputError(f"The slices in {paths[0].parent} have mixed {what}: {pair}.", _EXPORT_AGAIN)
    return values[0]


def _axes(path: Path, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the orthonormal row, column and slice directions in LPS, or refuse directions that are not square."""
    row, column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(row @ column) > 1e-2:
        raise InputError(f"{path} has ImageOrientationPatient {orientation.tolist()}, not a right angle.", _REGRID)
    row, normal = row / lengths[0], np.cross(row, column)  # removes the rounding of the stored cosines
    normal = normal / np.linalg.norm(normal)
    return row, np.cross(normal, row), normal


def _even_step(ordered: list[Path], depths: np.ndarray) -> float:
    """Return the slice spacing in mm, or refuse duplicate, missing or unevenly spaced slices.

    Each slice is compared with its place on the even grid rather than each gap with the next one, so that small errors
    cannot add up along the stack.
    """
    gaps = np.diff(depths)
    step = float(depths[-1] - depths[0]) / len(gaps)
    if gaps.min() < 0.01:
        i = int(np.argmin(gaps))
        raise InputError(
            f"Duplicate slices: {ordered[i]} and {ordered[i + 1]} lie at the same position "
            f"({np.count_nonzero(gaps < 0.01)} such pairs).",
            "Keep one copy, one phase and one reconstruction in a series.",
        )
    off_grid = np.abs(depths - depths[0] - step * np.arange(len(depths)))
    if off_grid.max() > min(POSITION_TOLERANCE_MM, step / 4):
        usual = float(np.median(gaps))
        i = int(np.argmax(np.abs(gaps - usual)))
        raise InputError(
            f"Slices are missing or unevenly spaced in {ordered[0].parent}: usually {usual:.4g} mm apart, but "
            f"{gaps[i]:.4g} mm between {ordered[i].name} and {ordered[i + 1].name}.",
            _EXPORT_AGAIN,
        )
    return step


def _check_upright(folder: Path, positions: np.ndarray, normal: np.ndarray) -> None:
    """Refuse slices that shift sideways along the stack, as with a tilted gantry."""
    travel = positions - positions[0]
    depths = travel @ normal
    sideways = np.linalg.norm(travel - depths[:, None] * normal, axis=1)
    if sideways.max() > max(POSITION_TOLERANCE_MM, LEAN_TOLERANCE * depths[-1]):
        tilt = np.degrees(np.arctan2(sideways[-1], depths[-1]))
        raise InputError(
            f"The slices in {folder} shift sideways by up to {sideways.max():.4g} mm (gantry tilt {tilt:.3g} degrees).",
            _REGRID,
        )
