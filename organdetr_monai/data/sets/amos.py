"""AMOS: ``imagesTr``/``labelsTr``, ``imagesVa``/``labelsVa`` and ``imagesTs``/``labelsTs`` of ``amos_0001.nii.gz``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from organdetr_monai.data.sets.base import Listing, descend, require_cases, split_folders
from organdetr_monai.organs import SETS

_LAST_CT = 500  # higher numbers are MR
_ORDER = (
    *"spleen kidney_right kidney_left gallbladder esophagus liver stomach aorta inferior_vena_cava pancreas".split(),
    *"adrenal_gland_right adrenal_gland_left duodenum urinary_bladder prostate_uterus".split(),
)
_IDS = {name: (number,) for number, name in enumerate(_ORDER, start=1)}
_FOLDERS = {"train": ("imagesTr", "labelsTr"), "val": ("imagesVa", "labelsVa"), "test": ("imagesTs", "labelsTs")}


def _is_ct(path: Path) -> bool:
    number = re.match(r"amos_(\d+)\.", path.name, re.IGNORECASE)
    return number is not None and int(number[1]) <= _LAST_CT


def read(source: Path, label_map: Mapping | None = None) -> Listing:
    """List the CTs of the set with its own splits."""
    source = descend(source, "imagesTr")
    cases, notes = split_folders(source, _FOLDERS, keep=_is_ct)
    organs = SETS["amos"].organs
    return Listing(
        organs,
        require_cases(cases, source, "imagesTr and labelsTr of amos_0001.nii.gz"),
        ids={organ: _IDS[organ] for organ in organs},
        notes=notes,
    )
