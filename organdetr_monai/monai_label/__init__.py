"""MONAI Label: what its server asks of the bundle, and the tasks that it lacks for many organs.

``inference`` holds what ``configs/inference.json`` names and needs no MONAI Label; any monaibundle app runs it.
``tasks`` subclasses MONAI Label's tasks and is imported by the app that ``install`` sets up (``python -m
organdetr_monai.monai_label APP_FOLDER``). They live in the package, not in the app, so that bundle and tasks always
are of one version.
"""

from __future__ import annotations

from typing import Any

from organdetr_monai.lazy import submodule


def __getattr__(name: str) -> Any:
    if name in ("LabelDetector", "PatientBoxesd"):
        return getattr(submodule(__name__, "inference"), name)
    return submodule(__name__, name)
