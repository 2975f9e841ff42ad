"""Check of the code's format. The zoo runs isort, black and flake8; ruff stands in for all three, with their settings.

What ruff does not see: the few places where black and it part, and the newest rules of flake8's plugins. In the zoo's
checkout isort takes a bundle's package for a third party, so that ``runtests.sh --autofix`` there regroups the imports.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from bundle.zoo.failure import CheckError

_COMMON = ["--isolated", "--no-cache", "--line-length=120", "--target-version=py310"]
_SELECT = "--select=B,C4,E,F,N,T10,W,I"
_IGNORE = "--ignore=E203,E741,C408,N812,B023"  # as the zoo does
_MAGIC = ["--config=format.skip-magic-trailing-comma=true", "--config=lint.isort.split-on-trailing-comma=false"]


def code_format(folder: Path) -> None:
    """120 columns, black's format, sorted imports, flake8's rules and those of its plugins that the zoo installs."""
    if find_spec("ruff") is None:
        raise CheckError("ruff is not installed (pip install ruff)")
    for command in (["format", "--check", *_MAGIC], ["check", "--output-format=concise", _SELECT, _IGNORE]):
        ruff = [sys.executable, "-m", "ruff", *command, *_COMMON, "."]
        done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stdout or done.stderr).strip().splitlines()
            raise CheckError(f"ruff {command[0]}: {lines[0]} ({len(lines)} lines)" if lines else "ruff failed")
