"""Anyone's data: a folder of images, a folder of multi-label masks with the same names, and a label map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from organdetr_monai.data.sets.base import Case, Listing, read_json, read_label_map, require_cases, stem, volumes
from organdetr_monai.errors import InputError

_IMAGES = ("images", "imagesTr", "image", "ct", "scans")
_LABELS = ("labels", "labelsTr", "label", "masks", "segmentations")
_MAPS = ("label_map.json", "labels.json", "dataset.json")


def read(source: Path, label_map: Mapping | None = None) -> Listing:
    """List the pairs. The label map (see `base.read_label_map`) is the one given, or lies in the folder."""
    images, labels = _one_of(source, _IMAGES), _one_of(source, _LABELS)
    where = next((source / name for name in _MAPS if (source / name).is_file()), None)
    if label_map is None and where is None:
        raise InputError(f"No label map for {source}.", f"Give one, or put {_MAPS[0]} there.")
    content = {} if label_map is not None or where is None else read_json(where)
    ids, complete = read_label_map(label_map, content, str(where))
    scans = {_plain(path, ("_0000", "_ct", "_image")): path for path in volumes(images)}
    masks = {_plain(path, ("_label", "_labels", "_seg", "_mask")): path for path in volumes(labels)}
    cases = [
        Case(name, scans.get(name, images / f"{name}.nii.gz"), masks.get(name))
        for name in sorted(scans.keys() | masks.keys())
    ]
    expected = "images and masks with the same names"
    return Listing(tuple(ids), require_cases(cases, source, expected), ids=ids, complete=complete)


def _one_of(source: Path, names: tuple[str, ...]) -> Path:
    folder = next((source / name for name in names if (source / name).is_dir()), None)
    if folder is None:
        raise InputError(f"{source} has no folder {names[0]!r}.", f"Name the folder one of {', '.join(names)}.")
    return folder


def _plain(path: Path, suffixes: tuple[str, ...]) -> str:
    name = stem(path)
    return next((name.removesuffix(suffix) for suffix in suffixes if name.lower().endswith(suffix)), name)
