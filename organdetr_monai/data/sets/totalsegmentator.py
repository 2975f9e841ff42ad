"""TotalSegmentator, releases 1 and 2: a folder for each scan with ``ct.nii.gz`` and one mask for each structure."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from organdetr_monai.data.sets.base import NIFTI, Case, Listing, descend, require_cases, stem, volumes
from organdetr_monai.errors import InputError
from organdetr_monai.organs import PARTS, SETS

_FIELD_OF_VIEW = "thorax-abdomen-pelvis"


def read(source: Path, label_map: Mapping | None = None) -> Listing:
    """List the scans of thorax, abdomen and pelvis with the set's own splits.

    Without a ``meta.csv``, or without its columns, all scans are taken and the splits are drawn.
    """
    source = descend(source, "meta.csv")
    meta = _meta(source / "meta.csv")
    folders = [p for p in sorted(source.iterdir()) if (p / "segmentations").is_dir() or (p / "ct.nii.gz").is_file()]
    wanted = [folder for folder in folders if _in_view(meta.get(folder.name, {}))]
    if folders and not wanted:
        seen = sorted({row.get("study_type") or "" for row in meta.values()})
        raise InputError(
            f"No scan in {source / 'meta.csv'} has the study type {_FIELD_OF_VIEW!r}, only {', '.join(seen)}.",
            "Remove the column study_type from a copy to take all scans.",
        )
    organs = SETS["totalsegmentator"].organs
    cases = [_case(folder, organs, meta.get(folder.name, {})) for folder in wanted]
    left_out = len(folders) - len(wanted)
    notes = (f"{left_out} scans of other fields of view than {_FIELD_OF_VIEW} left out.",) if left_out else ()
    return Listing(organs, require_cases(cases, source, "s0000/ct.nii.gz and s0000/segmentations"), notes=notes)


def _meta(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8-sig")
    header = text.partition("\n")[0]
    rows = csv.DictReader(text.splitlines(), delimiter=";" if ";" in header else ",")
    return {row["image_id"]: row for row in rows if row.get("image_id")}


def _in_view(row: Mapping[str, str]) -> bool:
    study = row.get("study_type")
    return study is None or _FIELD_OF_VIEW in study.lower()


def _case(folder: Path, organs: tuple[str, ...], row: Mapping[str, str]) -> Case:
    masks = {stem(path): path for path in volumes(folder / "segmentations", NIFTI)}
    structures = {}
    for organ in organs:
        alternatives = (*PARTS.get(organ, ()), (organ,))
        parts = next((parts for parts in alternatives if all(part in masks for part in parts)), None)
        if parts:
            structures[organ] = tuple(masks[part] for part in parts)
    split = row.get("split")
    return Case(
        folder.name,
        folder / "ct.nii.gz",
        structures=structures,
        split=split if split in ("train", "val", "test") else None,
    )
