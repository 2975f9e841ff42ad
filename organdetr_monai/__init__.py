"""Organ-DETR: organ detection in CT as a MONAI bundle.

Submodules load at first use, so that ``import organdetr_monai`` needs no torch, and a config that says
``$import organdetr_monai`` can name all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "OrganDetector":
        return import_module(f"{__name__}.detector").OrganDetector
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise  # a dependency is missing, which is another story
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
