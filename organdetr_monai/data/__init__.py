"""From files to samples: datalists, readers, transforms, phantoms, public sets."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise  # a dependency is missing, which is another story
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
