"""Hides an installed package. Python runs this at start where this folder is on ``PYTHONPATH``.

The package that ``ONLY_FROM_USERS_PATH`` names is then found in the folders that the user of a program puts on its path
(``PYTHONPATH``, the working directory with ``-m``) and nowhere else: not in site-packages, not by an editable install.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder

_PACKAGE = os.environ["ONLY_FROM_USERS_PATH"]
# At this moment the path holds what is installed, and PYTHONPATH; the working directory comes later.
_INSTALLED = set(sys.path) - {os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)}


class _UsersPath:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name == _PACKAGE:
            spec = PathFinder.find_spec(name, [folder for folder in sys.path if folder not in _INSTALLED])
        elif name.startswith(_PACKAGE + "."):
            spec = PathFinder.find_spec(name, path)  # an editable install would lend the submodules that are missing
        else:
            return None
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return spec


sys.meta_path.insert(0, _UsersPath)  # before the finder of an editable install
