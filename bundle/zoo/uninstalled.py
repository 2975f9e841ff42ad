"""Programs that know our package from the bundle alone, whatever is installed beside MONAI."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bundle.zoo.failure import CheckError

__all__ = ["call", "package_of", "uninstalled"]

_HIDDEN = Path(__file__).parent / "hidden"
_SECONDS = 600
_ERROR = re.compile(r"error:|([\w.]+\.)?\w+(Error|Exception):")


def package_of(folder: Path) -> str:
    """Name of the one Python package in a bundle."""
    packages = [path.parent.name for path in folder.glob("*/__init__.py")]
    if len(packages) != 1:
        raise CheckError(f"the bundle has {len(packages)} packages, not one")
    return packages[0]


def call(folder: Path, *arguments: str, cwd: Path | None = None, path: Sequence[Path] = ()) -> str:
    """Run ``python ARGUMENTS`` where the bundle's package is not installed.

    Parameters
    ----------
    folder : Path
        The bundle.
    cwd : Path, optional
        Working directory; the bundle where not given.
    path : sequence of Path
        ``PYTHONPATH``.

    Returns
    -------
    str
        What it printed, warnings and progress bars included.

    Raises
    ------
    CheckError
        It failed, or took longer than ten minutes.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(map(str, (_HIDDEN, *path))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ONLY_FROM_USERS_PATH": package_of(folder),
        "MPLBACKEND": "Agg",
    }
    command = [sys.executable, *arguments]
    shown = "python " + " ".join(argument for argument in arguments[:4] if "\n" not in argument)
    try:
        done = subprocess.run(
            command,
            cwd=cwd or folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckError(f"{shown} took over {_SECONDS} s") from None
    if done.returncode:
        raise CheckError(f"{shown} ended with {done.returncode}: {_complaint(done.stdout)}", done.stdout)
    return done.stdout


def _complaint(output: str) -> str:
    """The line of a program's output that most likely says why it failed: the first cause of MONAI's chain."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if _ERROR.match(line):
            return f"{line} {following}" if line.endswith(":") else line
    return lines[-1] if lines else "no output"


def uninstalled(folder: Path) -> None:
    """The package is found from the bundle's root, there is the bundle's own, and is not found from anywhere else.

    What the other checks run has no other package to fall back on.
    """
    package = package_of(folder)
    where = f"import {package}; print({package}.__file__)"
    found = Path(call(folder, "-c", where).strip())
    if found.resolve() != (folder / package / "__init__.py").resolve():
        raise CheckError(f"{package} comes from {found}")
    try:
        call(folder, "-c", where, cwd=_HIDDEN)
    except CheckError as error:
        if "ModuleNotFoundError" not in str(error):
            raise
    else:
        raise CheckError(f"{package} is found without the bundle")
