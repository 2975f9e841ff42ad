"""Folders of generated scans with lesions: phantoms, and CT simulated from real masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from organdetr_monai.data.generated import begin_folder, each_case, write_json, write_nifti


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
        Gets ``images/NAME.nii.gz``, ``instances/NAME.nii.gz``, ``cases/NAME.json`` (the kinds of its instances: written
        last, it says that the case is whole) and, once all cases are there, ``datalist.json``.
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
    of_instances = each_case(work, len(names), workers=workers, progress=progress, description="lesions")
    records = [
        {
            "name": name,
            "patient": name,
            "image": f"images/{name}.nii.gz",
            "instances": f"instances/{name}.nii.gz",
            "kinds": found,
            "split": split,
        }
        for name, found, split in zip(names, of_instances, splits, strict=True)
    ]
    write_json(datalist, {"kinds": list(kinds), "cases": records, "generator": generator})
    begun.unlink(missing_ok=True)
    return datalist


def _write_case(output: Path, names: list[str], make: Callable[[str], LesionCase], index: int) -> list[str]:
    """Write one case unless it is there already; the kinds of its instances."""
    name = names[index]
    image, instances = (output / folder / f"{name}.nii.gz" for folder in ("images", "instances"))
    record = output / "cases" / f"{name}.json"
    if record.exists() and image.exists() and instances.exists():
        return list(json.loads(record.read_text(encoding="utf-8"))["kinds"])
    case = make(name)
    write_nifti(image, case.image, case.affine)
    write_nifti(instances, case.instances.astype(np.uint8 if len(case.kinds) < 256 else np.uint16), case.affine)
    write_json(record, {"kinds": case.kinds})
    return case.kinds
