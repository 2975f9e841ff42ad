"""VerSe 2019 and 2020: ``rawdata`` and ``derivatives`` with a folder for each subject, or the flat challenge files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from organdetr_monai.data.sets.base import Case, Listing, require_cases
from organdetr_monai.organs import SETS

# C1-C7, T1-T12, L1-L5 are 1-24 from the neck down; L6 (25) and T13 (28) are dropped.
_IDS = {organ: (number,) for number, organ in enumerate(SETS["verse"].organs, start=1)}
_LABELS = ("_seg-vert_msk", "_seg")  # by subject, flat
_SPLITS = {"training": "train", "validation": "val", "test": "test"}
# dataset-verse19training, 01_training, training; never a user's folder that merely has "test" in its name
_SPLIT_FOLDER = re.compile(r"(?:.*verse\d*|\d+)?[_-]?(training|validation|test)", re.IGNORECASE)
_STRICTEST = ("test", "val", "train", None)


def _split(path: Path, source: Path) -> str | None:
    """The set's own split from the names of the folders, the source's own name included."""
    folders = (source.name, *path.relative_to(source).parts[:-1])
    return next((_SPLITS[match[1].lower()] for part in folders if (match := _SPLIT_FOLDER.fullmatch(part))), None)


def read(source: Path, label_map: Mapping | None = None) -> Listing:
    """List the set with its own splits.

    The releases of 2019 and 2020 share scans: of a name that is there twice the later release counts. A subject that
    one release trains on and the other tests on belongs to the test.
    """
    files = sorted(path for path in source.rglob("*.nii.gz") if not path.name.startswith("."))
    masks: dict[str, list[Path]] = {}
    images: list[tuple[str, Path]] = []
    for path in files:
        name = path.name.removesuffix(".nii.gz")
        ending = next((ending for ending in _LABELS if name.endswith(ending)), None)
        if ending:
            masks.setdefault(name.removesuffix(ending), []).append(path)
        else:
            images.append((name.removesuffix("_ct"), path))
    chosen: dict[str, Case] = {}
    for name, path in images:
        near = sorted(masks.get(name, []), key=lambda mask: _shared_folders(mask, path))
        # "sub-verse004_split-verse253" and "verse004_CT-sag" are scans of the subject "verse004".
        subject = re.split(r"_", name.removeprefix("sub-"), maxsplit=1)[0].lower()
        chosen[name] = Case(name, path, near[-1] if near else None, subject=subject, split=_split(path, source))
    twice = len(images) - len(chosen)
    cases = _same_split(chosen, [(name, _split(path, source)) for name, path in images])
    for name in sorted(masks.keys() - chosen.keys()):
        mask = masks[name][0]
        cases.append(Case(name, mask.with_name(f"{name}_ct.nii.gz"), mask, split=_split(mask, source)))
    return Listing(
        SETS["verse"].organs,
        require_cases(cases, source, "rawdata/sub-*/*_ct.nii.gz and derivatives/sub-*/*_seg-vert_msk.nii.gz"),
        ids=_IDS,
        notes=(f"{twice} scans are in both releases: the later one was taken.",) if twice else (),
    )


def _shared_folders(one: Path, other: Path) -> int:
    return sum(a == b for a, b in zip(one.parts, other.parts, strict=False))


def _same_split(cases: dict[str, Case], found: list[tuple[str, str | None]]) -> list[Case]:
    """The cases, each subject in the strictest split that any of its files was found in."""
    splits: dict[str, str | None] = {}
    for name, split in found:
        subject = cases[name].subject
        splits[subject] = min(split, splits.get(subject, split), key=_STRICTEST.index)
    return [
        Case(case.name, case.image, case.label, subject=case.subject, split=splits[case.subject])
        for case in sorted(cases.values(), key=lambda case: case.name)
    ]
