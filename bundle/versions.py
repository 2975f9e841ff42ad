"""One version: the metadata's, the first that the changelog names, and the package's are the same."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from organdetr_monai.errors import InputError

__all__ = ["bundle_version"]

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def bundle_version(metadata: Path, package: Path) -> str:
    """Version of a bundle.

    Parameters
    ----------
    metadata : Path
        ``configs/metadata.json``.
    package : Path
        Folder of the Python package; it is read, not imported.

    Raises
    ------
    InputError
        The metadata's version, its changelog and the package's ``__version__`` disagree.
    """
    content = json.loads(metadata.read_text(encoding="utf-8"))
    version, changelog = content.get("version"), content.get("changelog")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise InputError(f"{metadata} has version {version!r}.", 'Write "1.2.3".')
    if not isinstance(changelog, dict) or not changelog.get(version):
        raise InputError(f"The changelog in {metadata} does not tell of {version}.", "Say there what is new.")
    newest = max(changelog, key=_numbers)
    if newest != version:
        raise InputError(
            f"{metadata} is of version {version}, its changelog goes on to {newest}.", "Raise the version."
        )
    if (own := package_version(package)) != version:
        raise InputError(
            f"{metadata} is of version {version}, {package.name} of {own}.", "Raise both, and add to the changelog."
        )
    return version


def package_version(package: Path) -> str | None:
    """``__version__`` in the text of a package's ``__init__.py``; None where there is none."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["__version__"]:
            return ast.literal_eval(node.value)
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
