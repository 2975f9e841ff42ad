"""The datalist of lesions: which scan goes with which instances, and of what kind each of them is.

A JSON file::

    {"kinds": ["tumour", "cyst"],
     "cases": [{"image": "ct/a.nii.gz", "instances": "ids/a.nii.gz", "kinds": ["cyst", "cyst", "tumour"],
                "split": "train", "patient": "a", "name": "a"},
               {"image": "ct/b.nii.gz", "label": "masks/b.nii.gz", "labels": {"tumour": 2, "cyst": 3}}]}

The file's ``kinds`` name the kinds: ``kinds[k]`` has id ``k + 1``. A case has either ``instances``, a mask of the ids
1..M, with the kind of each; or ``label``, a semantic mask, of which ``labels`` (the case's or the file's) gives the
value of each kind: its connected components are then the instances. Paths start at the JSON's folder unless absolute.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from organdetr_monai.data.datalist import describe_case, name_cases, read_datalist, select_split
from organdetr_monai.data.headers import check_same_grid, read_grid
from organdetr_monai.errors import InputError


def kind_names(path: str | os.PathLike) -> list[str]:
    """Names of the kinds of a datalist: kind ``k`` is ``names[k - 1]``."""
    path = Path(path)
    return list(_kind_ids(read_datalist(path).get("kinds"), path))


def load_lesions(
    path: str | os.PathLike,
    *,
    split: str | None = None,
    base_dir: str | os.PathLike | None = None,
    check_files: bool = True,
) -> list[dict[str, Any]]:
    """Read a datalist of lesions and check all of it before anything is computed.

    Parameters
    ----------
    path : path of the JSON
    split : str, optional
        Return the cases of this split only. A file in which no case has a split is returned whole.
    base_dir : path, optional
        Where relative paths start, instead of the JSON's folder.
    check_files : bool
        Read the headers of all returned cases: files exist, are 3D, and mask and image share one grid.

    Returns
    -------
    list of dict
        ``image`` and ``instances`` (paths), ``patient`` (None where nobody says), ``case`` (a unique name), and either
        ``kinds`` (kind of each instance, from 1 up) or ``values`` (value of the mask to kind): then ``instances`` is a
        semantic mask.

    Raises
    ------
    InputError
        Whatever is wrong with the file, in its own terms; also a patient who is in two splits.
    """
    path = Path(path)
    content = read_datalist(path)
    ids = _kind_ids(content.get("kinds"), path)
    _check_patients(content["cases"], path)
    base = Path(base_dir) if base_dir is not None else path.parent
    items = [
        _item(case, f"{path}: case {describe_case(k, case)}", content.get("labels"), ids, base)
        for k, case in select_split(content["cases"], split, path)
    ]
    name_cases(items, base)
    for item in items:
        if check_files:
            image, mask = read_grid(item["image"]), read_grid(item["instances"])
            check_same_grid(image, mask, item["image"], item["instances"])
    return items


def _kind_ids(kinds: Any, path: Path) -> dict[str, int]:
    remedy = 'Give the names of the kinds: "kinds": ["tumour", "cyst"].'
    if not isinstance(kinds, list) or not kinds or not all(isinstance(name, str) and name for name in kinds):
        raise InputError(f"{path}: kinds is {kinds!r}.", remedy)
    twice = [name for name, count in Counter(kinds).items() if count > 1]
    if twice:
        raise InputError(f"{path}: kinds names {twice[0]} twice.", "Name each kind once.")
    return {name: k + 1 for k, name in enumerate(kinds)}


def _check_patients(cases: Sequence[Any], path: Path) -> None:
    """Refuse a patient in two splits: what is learned from one scan would be tested on the other."""
    seen: dict[Any, Any] = {}
    for case in cases:
        patient = case.get("patient") if isinstance(case, dict) else None
        if patient is not None and seen.setdefault(patient, case.get("split")) != case.get("split"):
            raise InputError(
                f"{path} has the patient {patient!r} in the splits {seen[patient]!r} and {case.get('split')!r}.",
                "Give all scans of a patient the same split.",
            )


def _item(case: Any, where: str, common: Any, ids: Mapping[str, int], base: Path) -> dict[str, Any]:
    if not isinstance(case, dict):
        raise InputError(f"{where} is {case!r}.", 'Give an object with "image" and "instances".')
    key = "label" if "label" in case else "instances"
    if "label" in case and "instances" in case:
        raise InputError(f"{where} has instances and a label.", "Give one of the two.")
    for name in ("image", key):
        if not isinstance(case.get(name), str) or not case[name]:
            raise InputError(f"{where} has no {name}.", "Give its path.")
    item = {
        "image": str(base / case["image"]),
        "instances": str(base / case[key]),
        "patient": case.get("patient"),
        "case": case.get("name"),
    }
    if key == "instances":
        return {**item, "kinds": _kinds(case.get("kinds"), where, ids)}
    return {**item, "values": _values(case.get("labels", common), where, ids)}


def _kinds(names: Any, where: str, ids: Mapping[str, int]) -> list[int]:
    if not isinstance(names, list):
        raise InputError(f"{where}: kinds is {names!r}.", "Give the name of the kind of each instance, in their order.")
    unknown = [name for name in names if name not in ids]
    if unknown:
        raise InputError(f"{where} has an unknown kind {unknown[0]!r}.", f"The file's kinds are {', '.join(ids)}.")
    return [ids[name] for name in names]


def _values(labels: Any, where: str, ids: Mapping[str, int]) -> dict[int, int]:
    remedy = 'Give the mask\'s value of each kind: "labels": {"cyst": 3}.'
    if not isinstance(labels, dict) or not labels:
        raise InputError(f"{where} has no label map.", remedy)
    found: dict[int, int] = {}
    for name, value in labels.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value in found:
            raise InputError(f"{where} gives {name} the value {value!r}.", "Give each its own integer from 1 on.")
        if name in ids:  # an organ around the lesions, such as "kidney", is background
            found[value] = ids[name]
    if not found:
        raise InputError(f"{where} gives none of the kinds ({', '.join(ids)}) a value.", remedy)
    return found
