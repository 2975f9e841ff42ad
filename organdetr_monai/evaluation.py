"""Any tool's boxes against the masks of a datalist: the files on both sides matched, checked and measured."""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from organdetr_monai.detections import Detections
from organdetr_monai.errors import InputError, input_error
from organdetr_monai.geometry import boxes_from_mask, spacing_of
from organdetr_monai.organs import ORGANS, resolve

__all__ = ["EvaluationReport", "evaluate_files", "find_predictions"]

_MARKUPS = ".mrk.json"
_SAME_VOXEL = 0.5  # voxels by which two headers of one grid may differ


@dataclass(frozen=True)
class EvaluationReport:
    """Figures, and what stands in their way.

    Attributes
    ----------
    result : dict
        Of `metrics.DetectionMetrics.compute`, with ``cases_without_boxes`` and ``cases_left_out`` beside.
    failed : dict from str to str
        Cases without usable boxes or without a usable mask, and the reason.
    """

    result: dict[str, Any]
    failed: dict[str, str]


def evaluate_files(
    predictions: str | os.PathLike,
    datalist: str | os.PathLike,
    *,
    split: str | None = None,
    organs: Sequence[str] | None = None,
    progress: bool = True,
) -> EvaluationReport:
    """Measure boxes on the grid of the original scans, with truth at the masks' full resolution less stray voxels.

    A case whose prediction is missing or unusable counts as one in which nothing was found: else a tool would gain by
    failing on what is hard. A case whose mask is unusable is left out. Both are reported. Only boxes that a file calls
    present count; a model's AP over all its scores comes from ``configs/evaluate.json``.

    Parameters
    ----------
    predictions : path
        Folder with ``detections.json`` or ``<case>.json`` files, at any depth, or one such file.
    datalist : path
    split : str, optional
        Only the cases of this split.
    organs : sequence of str, optional
        By default those that both the datalist annotates and some prediction lists, present or absent.
    progress : bool

    Raises
    ------
    InputError
        Unusable datalist, no prediction for any of its cases, two for one case, an organ without annotation.
    """
    from tqdm import tqdm

    from organdetr_monai.data.datalist import load_datalist
    from organdetr_monai.metrics import DetectionMetrics

    found, failed = _load(find_predictions(predictions))
    organs = _choose_organs(datalist, split, found, organs)
    items = load_datalist(datalist, organs=organs, split=split, check_files=False)
    matched = _match(found, items)
    if not matched:
        raise InputError(
            f"None of the {len(found)} predictions in {predictions} is for a case of {datalist}"
            + (f", split {split!r}." if split else "."),
            "Name each file's folder, or the file, as the case, or put the image's path into it.",
        )
    metrics = DetectionMetrics(organs)
    without, left_out = [], []
    for item in tqdm(items, desc="evaluate", unit="case", disable=None if progress else True):
        case = item["case"]
        try:
            truth, grid = _truth(item, len(organs))
        except Exception as error:
            left_out.append(case)
            failed[case] = f"{_reason(error)} The case is left out."
            continue
        try:
            prediction = _prediction(matched.get(case), grid, organs)
        except InputError as error:
            without.append(case)
            failed[case] = f"{error} All its organs count as missed."
            prediction = {"boxes": np.zeros((0, 6)), "scores": [], "labels": []}
        metrics.update(prediction, truth)
    return EvaluationReport({**metrics.compute(), "cases_without_boxes": without, "cases_left_out": left_out}, failed)


def find_predictions(folder: str | os.PathLike) -> list[Path]:
    """JSON files in a folder at any depth that may hold boxes: all but markups and metrics."""
    folder = Path(folder).expanduser()
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise InputError(f"The predictions {folder} do not exist.", "Give a folder of detections.json files.")
    files = [path for path in sorted(folder.rglob("*.json")) if not path.name.startswith(".")]
    files = [path for path in files if not path.name.endswith(_MARKUPS) and path.name != "metrics.json"]
    if not files:
        raise InputError(f"{folder} holds no JSON file.", "Give a folder of detections.json files.")
    return files


def _load(files: Sequence[Path]) -> tuple[dict[Path, Detections], dict[str, str]]:
    found, failed = {}, {}
    for path in files:
        try:
            found[path] = Detections.load(path)
        except InputError as error:
            failed[str(path)] = str(error)
    return found, failed


def _choose_organs(
    datalist: str | os.PathLike, split: str | None, found: Mapping[Path, Detections], wanted: Sequence[str] | None
) -> list[str]:
    """Organs to measure; which are left out is said on stderr."""
    from organdetr_monai.data.datalist import load_datalist

    listed = list(dict.fromkeys(_canonical(entry.organ) for one in found.values() for entry in one.organs))
    known = [*listed, *(organ for organ in ORGANS if organ not in listed)]
    items = load_datalist(datalist, organs=known, split=split, check_files=False)
    annotated = [known[k - 1] for k in sorted({k for item in items for k in item["annotated"]})]
    if wanted is not None:
        wanted = list(dict.fromkeys(_canonical(organ) for organ in wanted))
        if unknown := [organ for organ in wanted if organ not in annotated]:
            raise InputError(
                f"{datalist} does not annotate {', '.join(unknown)}.", f"It annotates {', '.join(annotated)}."
            )
        return wanted
    common = [organ for organ in annotated if organ in listed]
    if not common:
        raise InputError(
            f"The predictions list {', '.join(listed) or 'no organ'}; {datalist} annotates {', '.join(annotated)}.",
            "Use the same organs in both.",
        )
    if rest := [organ for organ in annotated if organ not in listed]:
        print(f"not in any prediction, and not measured: {', '.join(rest)}; --organs adds them", file=sys.stderr)
    return common


def _match(found: Mapping[Path, Detections], items: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Path, Detections]]:
    """Prediction of each case, by the first of these that fits one case alone.

    The image that the file names; its folder's name (of ``detections.json``) or its own, which is the case's name; the
    longest end that the paths of both images share, for data that have moved.
    """
    by_image = {os.path.realpath(item["image"]): item["case"] for item in items}
    by_name = {item["case"].replace("/", "_"): item["case"] for item in items}
    ends = [(item["case"], Path(item["image"]).parts[::-1]) for item in items]
    matched: dict[str, tuple[Path, Detections]] = {}
    for path, detections in found.items():
        name = path.parent.name if path.name == "detections.json" else path.name.removesuffix(".json")
        case = by_image.get(os.path.realpath(detections.image)) if detections.image else None
        case = case or by_name.get(name) or (_by_end(Path(detections.image), ends) if detections.image else None)
        if case is None:
            continue  # of another split, or of no case
        if case in matched:
            raise InputError(f"{matched[case][0]} and {path} are both for the case {case!r}.", "Keep one of them.")
        matched[case] = path, detections
    return matched


def _by_end(image: Path, ends: Sequence[tuple[str, tuple[str, ...]]]) -> str | None:
    """The one case whose image's path agrees longest, from the file name upwards."""
    mine = image.parts[::-1]
    pairs = [zip(mine, other, strict=False) for _, other in ends]
    shared = [sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both)) for both in pairs]
    best = max(shared, default=0)
    return ends[shared.index(best)][0] if best > 0 and shared.count(best) == 1 else None


def _truth(item: Mapping[Hashable, Any], num_organs: int) -> tuple[dict[str, Any], Any]:
    """Boxes of a mask on its own grid, as `DetectionMetrics` takes them, and that grid."""
    from organdetr_monai.data.headers import Grid
    from organdetr_monai.data.readers import LoadScand
    from organdetr_monai.data.transforms import affine_of, plain
    from organdetr_monai.data.truth import MapLabelsd, annotated_mask

    loaded = LoadScand("label", ensure_channel_first=True)(item)
    mask = MapLabelsd("label", allow_empty=True)(loaded)["label"]
    values, affine = plain(mask)[0].numpy(), affine_of(mask)
    boxes, labels = boxes_from_mask(values)
    truth = {
        "boxes": boxes,
        "labels": labels,
        "annotated": annotated_mask(item["annotated"], num_organs),
        "spacing": spacing_of(affine),
        "case": item["case"],
    }
    return truth, Grid(values.shape, affine)


def _prediction(match: tuple[Path, Detections] | None, grid: Any, organs: Sequence[str]) -> dict[str, Any]:
    """Boxes of the organs that a file calls present."""
    from organdetr_monai.data.headers import Grid, check_same_grid

    if match is None:
        raise InputError("There is no prediction.", "Run the tool on this case, too.")
    path, detections = match
    try:
        check_same_grid(Grid(detections.shape, detections.affine), grid, str(path), "of the datalist")
    except InputError:
        raise InputError(
            f"{path} speaks of another grid ({'×'.join(map(str, detections.shape))} voxels) than the mask.",
            "Give boxes, shape and affine of the datalist's own image.",
        ) from None
    ids = {organ: k + 1 for k, organ in enumerate(organs)}
    entries = [(ids[name], entry) for entry in detections.present if (name := _canonical(entry.organ)) in ids]
    return {
        "boxes": np.array([entry.box_voxel for _, entry in entries]).reshape(-1, 6),
        "scores": [entry.score for _, entry in entries],
        "labels": [label for label, _ in entries],
    }


def _canonical(organ: str) -> str:
    try:
        return resolve(organ)
    except InputError:
        return organ  # one of the tool's own, which the registry does not know


def _reason(error: Exception) -> str:
    found = input_error(error)
    return str(found) if found is not None else f"unexpected {type(error).__name__}: {error}."
