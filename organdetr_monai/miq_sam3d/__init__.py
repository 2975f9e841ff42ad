"""MIQ-SAM3D: one click, every lesion of its kind.

A design after the abstract of Qu and Zhao (arXiv 2511.01345, 2025), which publishes no details: what the abstract names
is here under its names, everything else is our choice.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from organdetr_monai.lazy import submodule

__all__ = ["models_folder"]


def models_folder(bundle_root: str | os.PathLike) -> str:
    """Where this bundle's weights lie: ``models/``; in the repository, which holds two bundles, ``models/miq_sam3d/``.

    Parameters
    ----------
    bundle_root : path
        The repository, or the assembled bundle.
    """
    root = Path(bundle_root)
    shared = (root / "configs" / "miq_sam3d").is_dir()
    return str(root / "models" / "miq_sam3d" if shared else root / "models")


def __getattr__(name: str) -> Any:
    return submodule(__name__, name)
