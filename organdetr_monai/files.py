"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "replacing_folder"]


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file under another name and put it in place when done.

    Parameters
    ----------
    path : path
        Final name; its folder is made. What stood there before stays until the new file is whole, and for good if
        writing fails.

    Yields
    ------
    Path
        A draft in the same folder with the same suffixes, by which writers tell the format.

    Examples
    --------
    >>> with replacing("result.json") as draft:  # doctest: +SKIP
    ...     draft.write_text("{}")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """:func:`replacing` for a folder: yields the path of a draft, which the caller makes and fills.

    Between the old folder's leaving and the new one's coming there is a moment without either; if the new one cannot
    come, the old one is put back.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (path.with_name(f".{os.getpid()}-{kind}-{path.name}") for kind in ("new", "old"))
    try:
        yield draft
        if path.exists():
            path.rename(old)
        try:
            draft.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
