"""From files to samples: datalists, readers, transforms, phantoms, public sets."""

from __future__ import annotations

from typing import Any

from organdetr_monai.lazy import submodule


def __getattr__(name: str) -> Any:
    return submodule(__name__, name)
