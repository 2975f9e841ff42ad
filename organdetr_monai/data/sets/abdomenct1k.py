"""AbdomenCT-1K: ``Case_00001_0000.nii.gz`` in several folders of images, ``Case_00001.nii.gz`` in one of masks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from organdetr_monai.data.sets.base import Case, Listing, require_cases
from organdetr_monai.organs import SETS

_IMAGE = re.compile(r"(Case_\d+)_0000\.nii(\.gz)?", re.IGNORECASE)
_MASK = re.compile(r"(Case_\d+)\.nii(\.gz)?", re.IGNORECASE)


def read(source: Path, label_map: Mapping | None = None) -> Listing:
    """List the set. Releases name the folders differently, so only file names count; both kidneys share one value."""
    files = sorted(path for path in source.rglob("Case_*.nii*"))
    images = {match[1]: path for path in files if (match := _IMAGE.fullmatch(path.name))}
    masks = {match[1]: path for path in files if (match := _MASK.fullmatch(path.name))}
    folder = next(iter(images.values())).parent if images else source
    cases = [
        Case(name, images.get(name, folder / f"{name}_0000.nii.gz"), masks.get(name))
        for name in sorted(images.keys() | masks.keys())
    ]
    return Listing(
        SETS["abdomenct1k"].organs,
        require_cases(
            cases, source, "Case_00001_0000.nii.gz in folders of images and Case_00001.nii.gz among the masks"
        ),
        ids={"liver": (1,), "spleen": (3,), "pancreas": (4,)},
        both_sides={2: ("kidney_left", "kidney_right")},
    )
