"""A raw nnU-Net folder, version 1 (``Task001_Name``) or 2 (``Dataset001_Name``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from organdetr_monai.data.sets.base import Case, Listing, read_json, read_label_map, require_cases
from organdetr_monai.errors import InputError


def read(source: Path, label_map: Mapping | None = None) -> Listing:
    """List the training cases, and the test cases where ``labelsTs`` exists."""
    where = source / "dataset.json"
    content = read_json(where)
    ids, complete = read_label_map(label_map, content.get("labels", {}), str(where))
    ending = content.get("file_ending", ".nii.gz")
    channel = _ct_channel(content.get("channel_names") or content.get("modality") or {"0": "CT"}, where)
    if "dataset" in content:
        cases = [
            Case(name, _place(source, files["images"][channel]), _place(source, files["label"]))
            for name, files in sorted(content["dataset"].items())
        ]
    else:
        cases = _folder(source, "imagesTr", "labelsTr", ending, channel, None)
        if (source / "labelsTs").is_dir():
            cases = [Case(case.name, case.image, case.label, split="train") for case in cases]
            cases += _folder(source, "imagesTs", "labelsTs", ending, channel, "test")
    found = require_cases(cases, source, f"imagesTr/*_{channel:04d}{ending} and labelsTr/*{ending}")
    return Listing(tuple(ids), found, ids=ids, complete=complete)


def _ct_channel(channels: Mapping, where: Path) -> int:
    """Number of the CT channel; a single channel is taken whatever its name, since names are free."""
    found = [int(number) for number, name in channels.items() if str(name).upper() == "CT"]
    if not found and len(channels) == 1:
        found = [int(next(iter(channels)))]
    if not found:
        raise InputError(f"{where} names no CT among its channels {channels}.", "Name the CT channel 'CT'.")
    return found[0]


def _place(source: Path, path: str) -> Path:
    return Path(path) if Path(path).is_absolute() else source / path


def _folder(source: Path, images: str, labels: str, ending: str, channel: int, split: str | None) -> list[Case]:
    tail = f"_{channel:04d}{ending}"
    scans = {p.name.removesuffix(tail): p for p in source.glob(f"{images}/*{tail}") if not p.name.startswith(".")}
    masks = {p.name.removesuffix(ending): p for p in source.glob(f"{labels}/*{ending}") if not p.name.startswith(".")}
    return [
        Case(name, scans.get(name, source / images / f"{name}{tail}"), masks.get(name), split=split)
        for name in sorted(scans.keys() | masks.keys())
    ]
