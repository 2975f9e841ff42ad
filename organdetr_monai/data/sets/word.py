"""WORD: ``imagesTr``/``labelsTr``, ``imagesVal``/``labelsVal``, ``imagesTs``/``labelsTs`` of ``word_0001.nii.gz``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from organdetr_monai.data.sets.base import Listing, descend, require_cases, split_folders
from organdetr_monai.organs import SETS

# The set has 16 labels; gallbladder (6), esophagus (7), adrenals (12) and the femoral heads (15, 16) are not kept.
_IDS = {
    "liver": (1,),
    "spleen": (2,),
    "kidney_left": (3,),
    "kidney_right": (4,),
    "stomach": (5,),
    "pancreas": (8,),
    "duodenum": (9,),
    "colon": (10, 13),  # with the rectum
    "small_bowel": (11,),
    "urinary_bladder": (14,),
}
_FOLDERS = {"train": ("imagesTr", "labelsTr"), "val": ("imagesVal", "labelsVal"), "test": ("imagesTs", "labelsTs")}


def read(source: Path, label_map: Mapping | None = None) -> Listing:
    """List the set with its own splits."""
    source = descend(source, "imagesTr")
    cases, notes = split_folders(source, _FOLDERS)
    found = require_cases(cases, source, "imagesTr and labelsTr of word_0002.nii.gz")
    return Listing(SETS["word"].organs, found, ids=_IDS, notes=notes)
