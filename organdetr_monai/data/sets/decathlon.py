"""A task of the Medical Segmentation Decathlon: ``dataset.json`` with pairs, ``imagesTr``, ``labelsTr``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from organdetr_monai.data.sets.base import Case, Listing, read_json, read_label_map, require_cases, stem
from organdetr_monai.errors import InputError


def read(source: Path, label_map: Mapping | None = None) -> Listing:
    """List the training pairs. The test scans have no published labels and are left out."""
    where = source / "dataset.json"
    content = read_json(where)
    modality = content.get("modality", {"0": "CT"})
    if len(modality) > 1:
        raise InputError(f"{where} has several channels: {modality}.", "Only tasks of single CT volumes can be used.")
    ids, complete = read_label_map(label_map, content.get("labels", {}), str(where))
    try:
        pairs = [(source / pair["image"], source / pair["label"]) for pair in content["training"]]
    except (KeyError, TypeError):
        raise InputError(f"{where} has no list of training pairs.", "Give a Decathlon task as unpacked.") from None
    cases = [Case(stem(image), image, label) for image, label in sorted(pairs)]
    found = require_cases(cases, source, "pairs under 'training' in dataset.json")
    notes = (f"{len(content['test'])} test scans left out: they have no labels.",) if content.get("test") else ()
    return Listing(tuple(ids), found, ids=ids, complete=complete, notes=notes)
