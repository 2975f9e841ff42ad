"""Folders of generated scans with lesions: phantoms, and CT simulated from real masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from organdetr_monai.data.generated import begin_folder, each_case, write_json, write_nifti
from organdetr_monai.miq_sam3d.clicks import click_in


class LesionCase(NamedTuple):
    """A scan and its lesions."""

    image: np.ndarray  # (X, Y, Z) int16, HU
    instances: np.ndarray  # (X, Y, Z) ids 1..M
    kinds: list[str]  # of instance i + 1
    affine: np.ndarray  # (4, 4) indices of voxel centres to RAS mm


def write_lesion_cases(
    output: Path,
    names: Sequence[str],
    make: Callable[[str], LesionCase],
    *,
    kinds: Sequence[str],
    splits: Sequence[str],
    generator: dict[str, Any],
    workers: int,
    progress: bool,
) -> Path:
    """Write a folder of cases with its datalist; takes up where an interrupted run stopped.

    Parameters
    ----------
    output : Path
        Gets ``images/NAME.nii.gz``, ``instances/NAME.nii.gz``, ``cases/NAME.json`` (the kinds of its instances and a
        click: written last, it says that the case is whole) and, once all cases are there, ``images/clicks.json``, a
        click in the middle of the largest lesion of each, and ``datalist.json``.
    names : sequence of str
        Of the cases, each of which is one patient.
    make : callable
        From a name to its case, always the same one; a process of its own may call it.
    kinds : sequence of str
        All kinds that occur.
    splits : sequence of str
        Of each case.
    generator : dict
        The options that decide what is written.
    workers : int
        Processes; 1 works in this one.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        ``datalist.json``, as `organdetr_monai.miq_sam3d.datalist` describes it.

    Raises
    ------
    InputError
        If the folder holds cases of other options.
    """
    datalist, begun = begin_folder(output, generator)
    if not datalist.exists():
        write_json(begun, {"generator": generator})
    work = partial(_write_case, output, list(names), make)
    written = each_case(work, len(names), workers=workers, progress=progress, description="lesions")
    records = [
        {
            "name": name,
            "patient": name,
            "image": f"images/{name}.nii.gz",
            "instances": f"instances/{name}.nii.gz",
            "kinds": case["kinds"],
            "split": split,
        }
        for name, case, split in zip(names, written, splits, strict=True)
    ]
    clicked = [
        {"name": name, "image": f"{name}.nii.gz", "points": [case["click"]]}
        for name, case in zip(names, written, strict=True)
        if case["click"]
    ]
    if clicked:
        write_json(output / "images" / "clicks.json", {"space": "voxel", "cases": clicked})
    write_json(datalist, {"kinds": list(kinds), "cases": records, "generator": generator})
    begun.unlink(missing_ok=True)
    return datalist


def _write_case(output: Path, names: list[str], make: Callable[[str], LesionCase], index: int) -> dict[str, Any]:
    """Write one case unless it is there already; its record."""
    name = names[index]
    image, instances = (output / folder / f"{name}.nii.gz" for folder in ("images", "instances"))
    path = output / "cases" / f"{name}.json"
    if path.exists() and image.exists() and instances.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        if "click" in record:  # folders that were written before have none
            return dict(record)
    case = make(name)
    write_nifti(image, case.image, case.affine)
    write_nifti(instances, case.instances.astype(np.uint8 if len(case.kinds) < 256 else np.uint16), case.affine)
    record = {"kinds": case.kinds, "click": _click_on_largest(case.instances)}
    write_json(path, record)
    return record


def _click_on_largest(instances: np.ndarray) -> list[int] | None:
    """A voxel in the middle of the largest of instances (X, Y, Z), None where there is none."""
    sizes = np.bincount(instances.reshape(-1).astype(np.int64), minlength=2)[1:]
    if not sizes.any():
        return None
    return click_in(instances == 1 + sizes.argmax(), "centre", np.random.default_rng(0)).tolist()
