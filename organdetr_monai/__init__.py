"""Organ-DETR: organ detection in CT as a MONAI bundle.

Submodules load at first use, so that ``import organdetr_monai`` needs no torch, and a config that says
``$import organdetr_monai`` can name all of them.
"""

from __future__ import annotations

from typing import Any

from organdetr_monai.lazy import submodule

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "OrganDetector":
        return submodule(__name__, "detector").OrganDetector
    if name == "LesionFinder":
        return submodule(__name__, "miq_sam3d").finder.LesionFinder
    return submodule(__name__, name)
