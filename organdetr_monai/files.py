"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


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
