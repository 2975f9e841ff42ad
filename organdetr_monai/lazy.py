"""Submodules that load at first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def submodule(package: str, name: str) -> Any:
    """Import ``package.name``, for a package's ``__getattr__``; AttributeError where there is none."""
    if not name.startswith("_"):
        try:
            return import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{name}":
                raise  # a dependency is missing, which is another story
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
