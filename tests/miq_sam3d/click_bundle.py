"""Scans in which the oracle knows the answer, and the click bundle with the oracle for its network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from organdetr_monai.miq_sam3d.finder import LesionFinder
from tests.miq_sam3d.oracle import Oracle

CONFIG = Path(__file__).parents[2] / "configs" / "miq_sam3d" / "inference.json"
KINDS = {"cyst": 100.0, "tumour": 180.0}
"""HU of two kinds of lesion."""


def scan(shape=(48, 40, 56), *, lesions=(), tissue=-60.0, margin=2) -> np.ndarray:
    """A block of tissue in air, HU, with boxes ``(start, stop, hu)`` of lesions in it."""
    array = np.full(shape, -1000.0, dtype=np.float32)
    array[tuple(slice(margin, n - margin) for n in shape)] = tissue
    for start, stop, hu in lesions:
        array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = hu
    return array


#: Three cysts, one of them longer than two windows of 16, and two tumours.
LESIONS = (
    ((6, 6, 6), (12, 12, 12), KINDS["cyst"]),
    ((30, 24, 40), (38, 30, 48), KINDS["cyst"]),
    ((8, 26, 8), (12, 32, 44), KINDS["cyst"]),
    ((20, 8, 20), (26, 14, 26), KINDS["tumour"]),
    ((36, 8, 10), (42, 14, 16), KINDS["tumour"]),
)


def make_click_bundle(folder: Path, *, weights: bool = True, **changes: Any) -> Path:
    """The bundle's own ``inference.json``, but with the oracle for its network and small windows."""
    parser = ConfigParser(json.loads(CONFIG.read_text(encoding="utf-8")))
    oracle = {"_target_": "tests.miq_sam3d.oracle.Oracle"}
    settings = {"network_def": oracle, "window": [16, 16, 16], "device": "$torch.device('cpu')"}
    for key, value in {**settings, **changes}.items():
        parser[key] = value
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(parser.get()), encoding="utf-8")
    if weights:
        (folder / "models").mkdir()
        torch.save(Oracle().state_dict(), folder / "models" / "model.pt")
    return folder


def make_finder(folder: Path, **changes: Any) -> LesionFinder:
    """The oracle behind the real API and the real config."""
    return LesionFinder.load(make_click_bundle(folder, **changes))
