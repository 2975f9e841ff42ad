"""The embedded default: phantoms, made where training is run without data of one's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from organdetr_monai.errors import InputError

#: Of the phantoms: two thirds to train on, and enough to tell one model from another.
SPLITS = (4 / 6, 1 / 6, 1 / 6)


def embedded_datalist(
    dataset_dir: str | os.PathLike,
    *,
    default: str | os.PathLike,
    cases: int = 120,
    write: Callable[..., Path] | None = None,
) -> str:
    """Path of the datalist in a folder; makes phantoms where the folder is the default one.

    Parameters
    ----------
    dataset_dir : path
        The user's folder, or ``default``.
    default : path
        Where phantoms are made, once; a second call finds them.
    cases : int
        Number of phantoms.
    write : callable, optional
        Makes them; `organdetr_monai.data.phantom.write_phantoms` by default.

    Returns
    -------
    str
        ``dataset_dir/datalist.json``

    Raises
    ------
    InputError
        The user's folder has no ``datalist.json``: phantoms never stand in for missing data.
    """
    datalist = Path(dataset_dir) / "datalist.json"
    if Path(dataset_dir).resolve() == Path(default).resolve():
        if write is None:
            from organdetr_monai.data.phantom import write_phantoms

            write = write_phantoms
        return str(write(dataset_dir, cases=cases, splits=SPLITS))
    if not datalist.is_file():
        raise InputError(
            f"there is no {datalist}.", "Name the datalist with --datalist, or make one with `organdetr prepare`."
        )
    return str(datalist)
