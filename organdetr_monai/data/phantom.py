"""Synthetic torso CTs with labelled organs: training data that needs no download and no patient.

`make_phantom` gives one scan in memory, `write_phantoms` a folder of them with its datalist. Anatomy is continuous and
in millimetres: the same seed gives the same patient in any orientation and at any spacing.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from organdetr_monai.data.generated import (
    begin_folder,
    check_count,
    check_shares,
    each_case,
    split_cases,
    write_json,
    write_nifti,
)
from organdetr_monai.data.headers import load_nifti
from organdetr_monai.data.phantom_anatomy import PHANTOM_ORGANS, paint_patient
from organdetr_monai.data.phantom_body import Patient, paint_table
from organdetr_monai.data.phantom_scan import (
    FIELDS_OF_VIEW,
    add_noise,
    blank_canvas,
    check_orientation,
    check_spacing,
    draw_scan,
    place_patient,
    voxel_grid,
)
from organdetr_monai.data.phantom_shapes import Canvas
from organdetr_monai.data.sets.masks import on_faces
from organdetr_monai.errors import InputError

__all__ = ["FIELDS_OF_VIEW", "GENERATOR_VERSION", "PHANTOM_ORGANS", "Phantom", "make_phantom", "write_phantoms"]

GENERATOR_VERSION = 1  # raise it with every change of what a seed gives


@dataclass(frozen=True)
class Phantom:
    """A synthetic CT and its organs.

    Attributes
    ----------
    image : ndarray of shape (X, Y, Z), int16
        HU.
    label : ndarray of shape (X, Y, Z), uint8
        0, or ``k + 1`` for ``PHANTOM_ORGANS[k]``.
    affine : ndarray of shape (4, 4), float64
        Indices of voxel centres to patient millimetres, RAS+.
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray


def make_phantom(
    seed: int | Sequence[int],
    *,
    spacing: Sequence[float] = (4.0, 4.0, 4.0),
    axcodes: str = "RAS",
    oblique: float = 0.0,
    field_of_view: str | None = None,
    paint: Callable[[Canvas, Patient], None] = paint_patient,
) -> Phantom:
    """One synthetic CT.

    Parameters
    ----------
    seed : int or sequence of int
        Same seed and options, same arrays. The patient and the scanned millimetres depend on the seed alone.
    spacing : sequence of 3 floats
        Voxel size in mm along the array axes, in the order of `axcodes`.
    axcodes : str
        Where the array axes point to: ``"RAS"``, ``"LPS"``, ``"PIL"``.
    oblique : float
        Degrees by which the array is turned against the patient's axes, about an axis drawn from the seed.
    field_of_view : str, optional
        One of `FIELDS_OF_VIEW`. Drawn from the seed where not given.
    paint : callable
        Paints the patient onto the canvas, by default the organs; its labels become those of the phantom.

    Returns
    -------
    Phantom

    Raises
    ------
    InputError
        For a seed, spacing, orientation or field of view that cannot be.
    """
    entropy = check_seed(seed)
    to_axes = check_orientation(axcodes)
    sizes = check_spacing(spacing)
    if field_of_view is not None and field_of_view not in FIELDS_OF_VIEW:
        raise InputError(f"Unknown field of view {field_of_view!r}.", f"Use one of {', '.join(FIELDS_OF_VIEW)}.")
    if not abs(oblique) <= 45:
        raise InputError(f"An obliquity of {oblique} degrees cannot be.", "Give at most 45.")

    patient = Patient(entropy)
    rng = patient.rng("scan")
    pose, low, high = place_patient(patient, rng, field_of_view)
    ras_spacing = np.empty(3)
    ras_spacing[to_axes[:, 0].astype(int)] = sizes
    shape, affine = voxel_grid(low, high, ras_spacing, oblique, rng)

    canvas = blank_canvas(patient, pose, affine, shape)
    paint(canvas, patient)
    if rng.random() < 0.6:
        paint_table(canvas, patient)
    image = add_noise(canvas.hu, patient.rng("noise"))
    origin = np.eye(4)
    origin[:3, 3] = patient.rng("scanner").uniform(-200, 200, 3)
    affine = origin @ affine
    ornt = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), to_axes)
    affine = affine @ nib.orientations.inv_ornt_aff(ornt, shape)
    image, label = (nib.orientations.apply_orientation(a, ornt) for a in (image, canvas.label))
    return Phantom(np.ascontiguousarray(image), np.ascontiguousarray(label), affine)


def write_phantoms(
    output: str | os.PathLike,
    *,
    cases: int = 100,
    seed: int = 0,
    splits: Sequence[float] = (0.8, 0.1, 0.1),
    spacing: Sequence[float] | None = None,
    axcodes: str | None = None,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Write a folder of phantoms with its datalist; takes up where an interrupted run stopped.

    Parameters
    ----------
    output : path
        Gets ``images/case_000.nii.gz``, ``labels/case_000.nii.gz`` and, once all cases are there, ``datalist.json``.
    cases : int
    seed : int
        The patient of case ``k`` is that of ``make_phantom((seed, k))``, whatever the number of cases and workers.
    splits : sequence of 3 floats
        Shares of train, val and test, which follow one another in this order. No share above 0 is left empty as long as
        the cases suffice.
    spacing : sequence of 3 floats, optional
        Voxel size in mm along the array axes. Drawn for each case where not given: 2.5 to 5 mm in plane, slices of
        3 to 5 mm.
    axcodes : str, optional
        Orientation of the arrays. Drawn for each case where not given, some of them up to 8 degrees oblique.
    workers : int
        Processes; 1 works in this one.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        ``datalist.json`` with `labels`, `cases` (`image`, `label`, `annotated`, `truncated`, `split`) and
        `generator`, the options above. All organs are annotated everywhere: one without voxels is absent.

    Raises
    ------
    InputError
        For options that make no sense, and if the folder holds phantoms of other options.
    """
    output = Path(output)
    generator = _check_generator(cases, seed, splits, spacing, axcodes)
    check_count("workers", workers)
    datalist, begun = begin_folder(output, generator)
    files = [_files(k) for k in range(cases)]
    if datalist.exists() and all((output / name).exists() for names in files for name in names):
        return datalist
    if not datalist.exists():
        write_json(begun, {"generator": generator})  # says with which options the files were made

    work = partial(_write_case, output, generator)
    truncated = each_case(work, cases, workers=workers, progress=progress, description="phantoms")
    records = [
        {"image": image, "label": label, "annotated": list(PHANTOM_ORGANS), "truncated": cut, "split": split}
        for (image, label), cut, split in zip(files, truncated, split_cases(cases, generator["splits"]), strict=True)
    ]
    labels = {organ: k + 1 for k, organ in enumerate(PHANTOM_ORGANS)}
    write_json(datalist, {"labels": labels, "cases": records, "generator": generator})
    begun.unlink(missing_ok=True)
    return datalist


def _files(index: int) -> tuple[str, str]:
    return f"images/case_{index:03d}.nii.gz", f"labels/case_{index:03d}.nii.gz"


def _write_case(output: Path, generator: dict, index: int) -> list[str]:
    """Write one case unless it is there already; which organs the scan cuts off."""
    image, label = (output / name for name in _files(index))
    mask = _read_whole(image, label)
    if mask is None:
        entropy = (generator["seed"], index)
        scan = draw_scan(entropy, spacing=generator["spacing"], axcodes=generator["axcodes"])
        phantom = make_phantom(entropy, **scan)
        write_nifti(image, phantom.image, phantom.affine)
        write_nifti(label, phantom.label, phantom.affine)
        mask = phantom.label
    return [PHANTOM_ORGANS[value - 1] for value in on_faces(mask) if value]


def _read_whole(image: Path, label: Path) -> np.ndarray | None:
    """The labels of a case if both of its files can be read to their end, otherwise None."""
    try:
        scan, mask = (np.asarray(load_nifti(path).dataobj) for path in (image, label))
    except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError):
        return None
    return mask if mask.shape == scan.shape else None


def _check_generator(
    cases: int, seed: int, splits: Sequence[float], spacing: Sequence[float] | None, axcodes: str | None
) -> dict:
    """The options that decide what is written, as they stand in the datalist."""
    check_count("cases", cases)
    if not isinstance(seed, int):
        raise InputError(f"The seed {seed!r} is no whole number.", "Give such as 7.")
    if axcodes is not None:
        check_orientation(axcodes)
    return {
        "name": "phantom",
        "version": GENERATOR_VERSION,
        "cases": cases,
        "seed": check_seed(seed)[0],
        "splits": check_shares(splits),
        "spacing": None if spacing is None else check_spacing(spacing).tolist(),
        "axcodes": axcodes,
    }


def check_seed(seed: int | Sequence[int]) -> tuple[int, ...]:
    """A seed as a tuple of numbers; `InputError` unless it is made of whole numbers from 0."""
    numbers = tuple(seed) if isinstance(seed, tuple | list) else (seed,)
    if not numbers or not all(isinstance(n, int | np.integer) and n >= 0 for n in numbers):
        raise InputError(f"The seed {seed!r} is not made of whole numbers from 0.", "Give such as 7 or (7, 0).")
    return tuple(int(n) for n in numbers)
