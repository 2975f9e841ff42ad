"""The datalist: which scan goes with which mask, what the mask's values mean, and what was annotated.

A JSON file::

    {"labels": {"liver": 1, "spleen": 2},
     "cases": [{"image": "ct/a.nii.gz", "label": "masks/a.nii.gz",
                "annotated": ["liver"], "truncated": ["liver"], "split": "train", "labels": {"liver": 6}, "name": "a"}]}

Only ``image`` and ``label`` are needed. Paths start at the JSON's folder unless absolute. ``annotated`` names the
organs that somebody looked for: one of them that is not in the mask is absent, any other organ is unknown. Without it,
all of the label map's. A case's own ``labels`` replace the file's.
"""

from __future__ import annotations

import difflib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from organdetr_monai.data.headers import check_same_grid, read_grid
from organdetr_monai.errors import InputError
from organdetr_monai.organs import NAME, ORGANS, resolve

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def load_datalist(
    path: str | os.PathLike,
    *,
    organs: Sequence[str],
    split: str | None = None,
    base_dir: str | os.PathLike | None = None,
    check_files: bool = True,
) -> list[dict[str, Any]]:
    """Read a datalist and check all of it before anything is computed.

    Parameters
    ----------
    path : path of the JSON
    organs : sequence of str
        Organs of the model: ``organs[k]`` gets the id ``k + 1``. The file's other organs are left out.
    split : str, optional
        Return the cases of this split only. A file in which no case has a split is returned whole.
    base_dir : path, optional
        Where relative paths start, instead of the JSON's folder.
    check_files : bool
        Read the headers of all returned cases: files exist, are 3D, and mask and image share one grid.

    Returns
    -------
    list of dict
        ``image``, ``label`` (paths), ``label_values`` (organ id to value in the mask), ``annotated`` (organ ids),
        ``truncated`` (organ ids: cut by the scan's end) and ``case``, a unique name.

    Raises
    ------
    InputError
        Whatever is wrong with the file, in the terms of the file.
    """
    path = Path(path)
    content = read_datalist(path)
    ids = _organ_ids(organs)
    common = _label_map(content.get("labels"), ids, f"{path}: labels") if "labels" in content else None
    cases = select_split(content["cases"], split, path)
    base = Path(base_dir) if base_dir is not None else path.parent
    items = [_item(case, f"{path}: case {describe_case(k, case)}", common, ids, base) for k, case in cases]
    name_cases(items, base)
    if not any(item["annotated"] for item in items):
        raise InputError(
            f"{path} annotates none of the model's organs ({', '.join(organs)}).",
            "Set the config's organs to those of the datalist, or correct its label map.",
        )
    if check_files:
        for item in items:
            grid = read_grid(item["image"])
            if not item["label"].lower().endswith(".json"):  # ROIs in mm, which `data.rois` reads, have no grid
                check_same_grid(grid, read_grid(item["label"]), item["image"], item["label"])
    return items


def check_disjoint(train: Iterable[Mapping[str, Any]], val: Iterable[Mapping[str, Any]]) -> None:
    """Raise :class:`InputError` if an image is in both lists, or, where the lists tell them, a patient."""
    train, val = list(train), list(val)
    seen = {os.path.realpath(item["image"]) for item in train}
    shared = [item["image"] for item in val if os.path.realpath(item["image"]) in seen]
    if shared:
        raise InputError(
            f"{len(shared)} images are in training and in validation, such as {shared[0]}.",
            "Give each image one split, or two datalists without a common image.",
        )
    patients = {item["patient"] for item in train if item.get("patient") is not None}
    known = [item["patient"] for item in val if item.get("patient") in patients]
    if known:
        raise InputError(
            f"{len(known)} scans in validation are of patients in training, such as {known[0]!r}.",
            "Give all scans of a patient the same split.",
        )


def check_annotated(train: Iterable[Mapping[str, Any]], organs: Sequence[str]) -> None:
    """Refuse an organ that no training case annotates and nobody knows: its name is misspelt.

    A known organ, such as one of a public set of which only a part was downloaded, is a warning: it cannot be learned.

    Raises
    ------
    InputError
        For a name that neither the cases nor the registry have.
    """
    annotated = {organ_id for item in train for organ_id in item["annotated"]}
    missing = [organ for k, organ in enumerate(organs, start=1) if k not in annotated]
    unknown = [organ for organ in missing if organ not in ORGANS]
    if unknown:
        close = [name for organ in unknown for name in difflib.get_close_matches(organ, ORGANS, n=1)]
        raise InputError(
            f"No training case annotates {', '.join(unknown)}.",
            "Correct the name in organs or in the datalist, or leave it out of organs."
            + (f" Did you mean {', '.join(close)}?" if close else ""),
        )
    if missing:
        warnings.warn(f"no training case annotates {', '.join(missing)}: the model cannot learn it", stacklevel=2)


def datalist_from_images(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[dict[str, Any]]:
    """Cases without labels, for inference.

    Parameters
    ----------
    paths : path or sequence of paths
        Volumes, DICOM series, or folders of these, searched to any depth.

    Returns
    -------
    list of dict
        ``image``, what ``LoadScand`` reads: a path, or for a DICOM series the ``Scan`` with its files; ``case``.

    Raises
    ------
    InputError
        A path that is named leads to no scan, or no file can be read as a 3D volume. One of several that cannot stays
        in the list: :class:`organdetr_monai.data.frames.TolerantDataset` reports it and goes on.
    """
    from organdetr_monai.data.scans import find_scans  # pydicom is slow to import, and training needs none of it

    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    scans, skipped = find_scans(given)
    named = {Path(path).expanduser() for path in given}
    useless = [f"{path} {reason}" for path, reason in skipped if path in named]
    if useless or not scans:
        what = "; ".join(useless[:3]) or "no image was given"
        raise InputError(f"{what}.", f"Give files ({', '.join(SUFFIXES)}), DICOM folders, or folders of these.")
    unreadable = [error for scan in scans if scan.kind != "dicom" and (error := _unreadable(scan.path)) is not None]
    if len(unreadable) == len(scans):
        raise unreadable[0]
    return [{"image": scan if scan.kind == "dicom" else str(scan.path), "case": scan.name} for scan in scans]


def _unreadable(path: Path) -> InputError | None:
    try:
        read_grid(path)
    except InputError as error:
        return error
    return None


def read_datalist(path: Path) -> dict[str, Any]:
    """Content of a datalist file, which has at least one case; :class:`InputError` otherwise."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"the datalist {path} does not exist.", "Make one with `organdetr prepare`.") from None
    except OSError as error:
        raise InputError(
            f"the datalist {path} cannot be read ({error.strerror}).", "Give the path of a JSON."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"the datalist {path} is not UTF-8 text.", "Give the path of a JSON.") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"the datalist {path} is no valid JSON: line {error.lineno}: {error.msg}.", "Correct that line."
        ) from error
    cases = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(cases, list) or not cases:
        raise InputError(f"the datalist {path} has no cases.", 'Give it a list "cases" with image and label for each.')
    return content


def describe_case(k: int, case: Any) -> str:
    """How a message names a case: its place, counted from 1, and its name or image."""
    called = case.get("name") or case.get("image") if isinstance(case, dict) else None
    return f"{k + 1} ({called})" if called else f"{k + 1}"


def select_split(cases: list[Any], split: str | None, path: Path) -> list[tuple[int, Any]]:
    """The cases of a split with their places in the file; all of them where no split is asked for, or none named."""
    found = Counter(case["split"] for case in cases if isinstance(case, dict) and case.get("split") is not None)
    numbered = list(enumerate(cases))
    if split is None or not found:
        return numbered
    if split not in found:
        there = ", ".join(f"{name} ({count})" for name, count in sorted(found.items(), key=str))
        raise InputError(f"{path} has no case of the split {split!r}; it has {there}.", "Choose one of these.")
    return [(k, case) for k, case in numbered if isinstance(case, dict) and case.get("split") == split]


def _organ_ids(organs: Sequence[str]) -> dict[str, int]:
    if not organs or isinstance(organs, str):
        raise InputError(f"the model's organs are {organs!r}.", "Give a list of organ names.")
    twice = [name for name, count in Counter(organs).items() if count > 1]
    if twice:
        raise InputError(f"the model's organs name {', '.join(twice)} twice.", "Name each organ once.")
    strange = [name for name in organs if not NAME.fullmatch(name)]
    if strange:
        raise InputError(
            f"the model's organs name {strange[0]!r}.",
            "Start with a letter or digit, and use these, spaces and _ . , ( ) / + - only.",
        )
    return {name: k + 1 for k, name in enumerate(organs)}


def _canonical(name: Any, ids: Mapping[str, int], where: str) -> str:
    """The model's own spelling, or the registry's."""
    if name in ids:
        return name
    try:
        known = resolve(str(name))
    except InputError as error:
        raise InputError(f"{where} names an unknown organ {name!r}.", error.remedy) from None
    # The model may spell an organ in its own way, too.
    return next((organ for organ in ids if _resolved(organ) == known), known)


def _resolved(name: str) -> str:
    try:
        return resolve(name)
    except InputError:
        return name  # an organ of the user's own, which only the config knows


def _label_map(labels: Any, ids: Mapping[str, int], where: str) -> dict[str, int]:
    """Canonical organ name to mask value."""
    if not isinstance(labels, dict) or not labels:
        raise InputError(f"{where} is no label map.", 'Give organ names and mask values: {"liver": 1}.')
    names: dict[str, int] = {}
    values: dict[int, str] = {}
    for name, value in labels.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(
                f"{where} gives {name} the value {value!r}.", "Give the mask's value, an integer from 1 on."
            )
        if value in values:
            raise InputError(f"{where} gives {values[value]} and {name} the same value {value}.", "Give each its own.")
        organ = _canonical(name, ids, where)
        if organ in names:
            raise InputError(f"{where} names {organ} twice.", "Merge the two in the masks first.")
        names[organ], values[value] = value, name
    return names


def _organ_list(names: Any, ids: Mapping[str, int], where: str) -> list[str]:
    if not isinstance(names, list):
        raise InputError(f"{where} is {names!r}.", "Give a list of organ names.")
    return [_canonical(name, ids, where) for name in names]


def _item(case: Any, where: str, common: dict[str, int] | None, ids: Mapping[str, int], base: Path) -> dict[str, Any]:
    if not isinstance(case, dict):
        raise InputError(f"{where} is {case!r}.", 'Give an object with "image" and "label".')
    for key in ("image", "label"):
        if not isinstance(case.get(key), str) or not case[key]:
            raise InputError(f"{where} has no {key}.", "Give its path.")
    labels = _label_map(case["labels"], ids, f"{where}: labels") if "labels" in case else common
    if labels is None:
        raise InputError(f"{where} has no label map.", 'Give the datalist "labels": organ names and mask values.')
    annotated = _organ_list(case["annotated"], ids, f"{where}: annotated") if "annotated" in case else list(labels)
    unmapped = [organ for organ in annotated if organ not in labels]
    if unmapped:
        raise InputError(
            f"{where} annotates {unmapped[0]}, which its label map does not hold.",
            "Give the organ's value in the mask.",
        )
    truncated = _organ_list(case.get("truncated", []), ids, f"{where}: truncated")
    return {
        "image": str(base / case["image"]),
        "label": str(base / case["label"]),
        "label_values": {ids[organ]: value for organ, value in labels.items() if organ in ids},
        "annotated": sorted({ids[organ] for organ in annotated if organ in ids}),
        "truncated": sorted({ids[organ] for organ in truncated if organ in ids}),
        "case": case.get("name"),
    }


def name_cases(items: list[dict[str, Any]], base: Path) -> None:
    """Give each item without a name its image's path below ``base``, without suffix; names must differ."""
    for item in items:
        if item.get("case") is None:
            image = Path(item["image"])
            name = (image.relative_to(base) if image.is_relative_to(base) else image).as_posix()
            suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
            item["case"] = name[: len(name) - len(suffix)].strip("/")
    twice = [name for name, count in Counter(str(item["case"]) for item in items).items() if count > 1]
    if twice:
        raise InputError(f"{len(twice)} case names occur twice, such as {twice[0]!r}.", "Name and list each case once.")
    for item in items:
        item["case"] = str(item["case"])
