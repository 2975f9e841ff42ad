"""What every public set is reduced to: a list of cases, and which label values mean which organ."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from organdetr_monai.errors import InputError
from organdetr_monai.organs import resolve

NIFTI = (".nii.gz", ".nii")
VOLUMES = (*NIFTI, ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class Case:
    """One scan of a set, as it lies in the download.

    Attributes
    ----------
    name : str
        Unique in the set.
    image : Path
    label : Path or None
        Multi-label mask. None where the case has none, or where it has `structures`.
    structures : dict of str to tuple of Path, or None
        For sets with one binary mask for each structure: organ to the masks that are merged into it. An organ that is
        not named here is not annotated.
    subject : str
        Scans of one subject never fall into different splits. The name where not given.
    split : {"train", "val", "test"} or None
        The set's own split.
    """

    name: str
    image: Path
    label: Path | None = None
    structures: Mapping[str, tuple[Path, ...]] | None = None
    subject: str = ""
    split: str | None = None

    def files(self) -> list[Path]:
        """All files that the case is read from."""
        masks = [path for paths in (self.structures or {}).values() for path in paths]
        return [self.image, *([self.label] if self.label else []), *masks]


@dataclass(frozen=True)
class Listing:
    """A set as found on disk.

    Attributes
    ----------
    organs : tuple of str
        What to keep, in the order of the class ids.
    cases : tuple of Case
    ids : dict of str to tuple of int
        Values of a multi-label mask that make up an organ. Empty for sets with one mask for each structure.
    both_sides : dict of int to (str, str)
        Values that hold a pair of organs at once, to be parted into (left, right).
    complete : bool
        Whether every organ was looked for in every scan: what has no voxels is then absent, else it is not annotated.
    notes : tuple of str
        What the user should know about how the set was read.
    """

    organs: tuple[str, ...]
    cases: tuple[Case, ...]
    ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    both_sides: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    complete: bool = True
    notes: tuple[str, ...] = ()

    @property
    def rewrites(self) -> bool:
        """Whether labels have to be written anew, instead of being used where they lie."""
        return not self.ids or bool(self.both_sides) or any(len(values) != 1 for values in self.ids.values())


def stem(path: Path | str, endings: Iterable[str] = VOLUMES) -> str:
    """File name without its volume ending: ``a.nii.gz`` to ``a``."""
    name = Path(path).name
    return next((name[: -len(ending)] for ending in endings if name.lower().endswith(ending)), name)


def volumes(folder: Path, endings: Iterable[str] = VOLUMES) -> list[Path]:
    """Volumes of a folder in order of name, without the ``._`` shadows that macOS archives carry."""
    if not folder.is_dir():
        return []
    endings = tuple(endings)
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(endings) and not p.name.startswith("."))


def read_json(path: Path) -> dict:
    """Read a JSON object; errors name the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing.", "Give the folder that holds it, as unpacked.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.", "Repair it, or download it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not an object.", "Repair the file.")
    return content


def file_name(name: str) -> str:
    """A case's name as a file may bear it on any system."""
    return re.sub(r"[^\w.-]", "_", name)


def organ_name(name: str) -> str:
    """Canonical name where the registry knows the organ, otherwise the given one in small letters and underscores."""
    try:
        return resolve(name)
    except InputError:
        return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def parse_labels(labels: Mapping, where: str) -> dict[str, tuple[int, ...]]:
    """Organ names and their label values, from either direction of writing.

    Parameters
    ----------
    labels : mapping
        ``{"liver": 1, "colon": [10, 13]}`` (nnU-Net v2, ours) or ``{"0": "background", "1": "liver"}`` (Decathlon, v1).
    where : str
        Named in errors.

    Returns
    -------
    dict of str to tuple of int
        In order of the values, without background and "ignore".

    Raises
    ------
    InputError
        Not such a mapping, or one value stands for two organs (a mask cannot say both).
    """
    values: dict[str, tuple[int, ...]] = {}
    for key, value in labels.items():
        name, numbers = (value, key) if isinstance(value, str) else (key, value)
        try:
            ids = tuple(int(n) for n in (numbers if isinstance(numbers, list | tuple) else [numbers]))
        except (TypeError, ValueError):
            raise InputError(
                f"{where}: the label {key!r}: {value!r} is not a name with its values.",
                'Write {"liver": 1, "colon": [10, 13]}.',
            ) from None
        if name.lower() in ("background", "ignore") or ids == (0,):
            continue
        organ = organ_name(name)
        values[organ] = values.get(organ, ()) + ids
    owner: dict[int, str] = {}
    remedy = "Give a label map in which each positive value belongs to one organ."
    for organ, ids in values.items():
        for number in ids:
            if number <= 0:
                raise InputError(f"{where}: label value {number} of {organ} is not positive.", remedy)
            if owner.setdefault(number, organ) != organ:
                raise InputError(f"{where}: label value {number} stands for {owner[number]} and {organ}.", remedy)
    if not values:
        raise InputError(f"{where} names no organ.", 'Write {"liver": 1, "spleen": 2}.')
    return dict(sorted(values.items(), key=lambda item: min(item[1])))


def read_label_map(label_map: Mapping | None, default: Mapping, where: str) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Label values of the organs, and whether every organ was looked for in every scan.

    Parameters
    ----------
    label_map : mapping or None
        The user's: ``{"liver": 1, "colon": [10, 13]}`` or ``{"labels": {...}, "annotated": "present"}``. With "present"
        an organ that a mask does not show counts as not annotated, with "all" (default) as absent.
    default : mapping
        The set's own, where the user gives none.
    where : str
        Names the set's own in errors.
    """
    content, where = (default, where) if label_map is None else (label_map, "the label map")
    nested = isinstance(content.get("labels"), Mapping)
    annotated = content.get("annotated", "all") if nested else "all"
    if annotated not in ("all", "present"):
        raise InputError(f"{where}: annotated is {annotated!r}.", "Write 'all' or 'present'.")
    return parse_labels(content["labels"] if nested else content, where), annotated == "all"


def require_cases(cases: list[Case], source: Path, expected: str) -> tuple[Case, ...]:
    """The cases, with unique names.

    Raises
    ------
    InputError
        There are none, or two share a name.
    """
    if not cases:
        raise InputError(f"No case found in {source}.", f"Expected {expected}.")
    twice = [name for name, count in Counter(file_name(case.name) for case in cases).items() if count > 1]
    if twice:
        raise InputError(f"{source} holds several cases named {twice[0]}.", "Prepare them one folder at a time.")
    return tuple(cases)


def split_folders(
    source: Path, folders: Mapping[str, tuple[str, str]], keep: Callable[[Path], bool] = lambda path: True
) -> tuple[list[Case], tuple[str, ...]]:
    """Cases of a set that keeps its splits in pairs of folders.

    Parameters
    ----------
    source : Path
    folders : dict of str to (str, str)
        Split to its folders of images and of labels. Images whose folder of labels does not exist are left out: their
        labels were never published.
    keep : callable of Path to bool
        Which images to take.

    Returns
    -------
    (list of Case, notes)
    """
    cases, notes = [], []
    for split, (images, labels) in folders.items():
        if not (source / labels).is_dir():
            if (source / images).is_dir():
                notes.append(f"{images} left out: there is no {labels}.")
            continue
        masks = {stem(path): path for path in volumes(source / labels, NIFTI) if keep(path)}
        scans = {stem(path): path for path in volumes(source / images, NIFTI) if keep(path)}
        for name in sorted(masks.keys() | scans.keys()):
            image = scans.get(name, source / images / f"{name}.nii.gz")
            cases.append(Case(name, image, masks.get(name), split=split))
    return cases, tuple(notes)


def descend(source: Path, marker: str) -> Path:
    """The folder that holds `marker`: `source`, or the one folder below it that does (archives wrap once)."""
    if (source / marker).exists():
        return source
    below = [folder for folder in sorted(source.iterdir()) if (folder / marker).exists()] if source.is_dir() else []
    return below[0] if len(below) == 1 else source
