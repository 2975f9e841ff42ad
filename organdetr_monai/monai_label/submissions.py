"""What annotators submitted to a MONAI Label server, as a datalist to train on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from organdetr_monai.data.datalist import SUFFIXES
from organdetr_monai.data.headers import check_same_grid, read_grid
from organdetr_monai.data.readers import read_scan
from organdetr_monai.data.rois import is_rois, organ_named, read_rois
from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing

__all__ = ["Submission", "case_of", "write_datalist"]

logger = logging.getLogger(__name__)


class Submission(NamedTuple):
    """A label that somebody submitted.

    Attributes
    ----------
    image, label : str
        Paths; the label is a mask or a markups document.
    info : mapping
        The parameters that the client sent along: ``label_info`` [{"name", "idx"}, ...] says what the values of a mask
        mean (without it they are the model's ids), ``annotated`` [names] which organs the annotator looked for beside
        those that are there.
    """

    image: str
    label: str
    info: Mapping[str, Any]


def case_of(submission: Submission, organs: Sequence[str]) -> dict[str, Any]:
    """Case of a datalist.

    What the label shows is annotated, and what ``annotated`` names; nothing is known of the other organs, because
    clients list all organs of the model whether the annotator came to them or not.

    Raises
    ------
    InputError
        A label that cannot be read, lies on another grid than its image, or shows no organ of the model.
    """
    path = submission.label
    if is_rois(path):
        labels = {organs[k - 1]: k for k in read_rois(path, organs)}
        seen, values = set(labels), set()
    else:
        labels = _label_map(submission, organs)
        check_same_grid(read_grid(submission.image), read_grid(path), submission.image, path)
        values = set(np.unique(read_scan(path)[0]).tolist())
        seen = {organ for organ, value in labels.items() if value in values}
        if not seen:
            meant = ", ".join(f"{organ} {value}" for organ, value in labels.items())
            raise InputError(f"{path} shows no organ of the model ({meant}).", "Check its values and label_info.")
    # A value that neither an organ nor another structure of the mask has.
    unused = int(max([len(organs), *labels.values(), *values])) + 1
    for name in submission.info.get("annotated", ()):
        number = organ_named([str(name)], organs)
        if number is None:
            raise InputError(f"{path}: annotated names {name!r}.", f"The model's organs are {', '.join(organs)}.")
        seen.add(organs[number - 1])
        labels.setdefault(organs[number - 1], unused)  # looked for, and not there
        unused += 1
    return {
        "image": submission.image,
        "label": path,
        "labels": labels,
        "annotated": [organ for organ in organs if organ in seen],
        "name": _name(submission.image),
    }


def write_datalist(
    submissions: Iterable[Submission], organs: Sequence[str], path: str | Path, *, val_split: float = 0.2
) -> dict[str, int]:
    """Write the datalist of all usable submissions; says in the log which are not, and why.

    Parameters
    ----------
    submissions : iterable of Submission
    organs : sequence of K str
    path : path of the JSON
    val_split : float
        Share of the cases that validate, at least one. A case stays on its side as others arrive, if it can.

    Returns
    -------
    dict
        Number of cases of ``train`` and ``val``.

    Raises
    ------
    InputError
        Fewer than two usable cases, or a share that is none.
    """
    if not 0 < val_split < 1:
        raise InputError(f"val_split is {val_split}.", "Give the share of cases that validate, such as 0.2.")
    cases, refused = [], []
    for submission in submissions:
        try:
            cases.append(case_of(submission, organs))
        except InputError as error:
            refused.append(str(error))
            logger.warning("not trained on: %s", error)
    if len(cases) < 2:
        reasons = f" Not usable: {' '.join(refused)}" if refused else ""
        raise InputError(
            f"There are {len(cases)} usable labels.{reasons}",
            "Submit two at least: one to train on, one to validate with.",
        )
    count = min(max(round(len(cases) * val_split), 1), len(cases) - 1)
    for place, case in enumerate(sorted(cases, key=_rank)):
        case["split"] = "val" if place < count else "train"
    with replacing(path) as draft:
        draft.write_text(json.dumps({"cases": cases}, indent=1) + "\n", encoding="utf-8")
    return {"train": len(cases) - count, "val": count}


def _label_map(submission: Submission, organs: Sequence[str]) -> dict[str, int]:
    """Organ to value in the mask."""
    listed = submission.info.get("label_info")
    if not listed:
        return {organ: k for k, organ in enumerate(organs, start=1)}
    labels: dict[str, int] = {}
    for entry in listed:
        try:
            name, value = str(entry["name"]), int(entry["idx"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{submission.label}: label_info has {entry!r}.", 'Give {"name": ..., "idx": value in the mask}.'
            ) from error
        number = organ_named([name], organs)
        if number is None:
            logger.warning("%s: left out %r, which is no organ of the model", submission.label, name)
        elif value < 1 or organs[number - 1] in labels or value in labels.values():
            raise InputError(
                f"{submission.label}: label_info is {listed}.",
                "Give each organ once, with a value of its own from 1 up.",
            )
        else:
            labels[organs[number - 1]] = value
    if not labels:
        raise InputError(
            f"{submission.label}: label_info names no organ of the model.", f"Its organs are {', '.join(organs)}."
        )
    return labels


def _name(image: str) -> str:
    name = Path(image).name
    return name.removesuffix(next((s for s in SUFFIXES if name.lower().endswith(s)), ""))


def _rank(case: Mapping[str, Any]) -> str:
    """An order by chance that does not change when cases are added."""
    return hashlib.sha256(str(case["name"]).encode()).hexdigest()
