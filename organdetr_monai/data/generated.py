"""Folders of generated cases: written once, taken up where an interrupted run stopped, the same bytes every time."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np

from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing

Result = TypeVar("Result")


def begin_folder(output: Path, generator: dict) -> tuple[Path, Path]:
    """The paths of a folder's datalist and of the note that it is being made; refuse a folder of other options.

    Parameters
    ----------
    output : Path
        It and what is in it are not touched.
    generator : dict
        The options that decide what is written, as they stand in both files under ``generator``.

    Returns
    -------
    datalist, begun : Path
        ``datalist.json`` is there once all cases are; until then `begun` says with which options files are made.

    Raises
    ------
    InputError
        If the folder holds cases of other options.
    """
    datalist, begun = output / "datalist.json", output / "datalist.json.part"
    for path in (datalist, begun):
        _refuse_other(path, generator)
    return datalist, begun


def _refuse_other(path: Path, generator: dict) -> None:
    """Raise if a datalist in the folder tells of other options."""
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("generator")
    except (ValueError, AttributeError):
        found = None
    if found != generator:
        raise InputError(
            f"{path} was written with other options: it has {found}, asked for are {generator}.",
            "Choose another folder, or remove this one.",
        )


def each_case(
    work: Callable[[int], Result], cases: int, *, workers: int, progress: bool, description: str
) -> list[Result]:
    """``work(k)`` for every case, in their order, by several processes; 1 works in this one."""
    from tqdm import tqdm

    bar = partial(tqdm, total=cases, desc=description, unit="case", disable=not progress)
    if workers == 1:
        return list(bar(map(work, range(cases))))
    with ProcessPoolExecutor(min(workers, cases)) as pool:
        return list(bar(pool.map(work, range(cases))))


def split_cases(cases: int, shares: Sequence[float]) -> list[str]:
    """The split of each case: train, val and test follow one another.

    No share above 0 is left empty as long as the cases suffice.
    """
    quota = np.asarray(shares) * cases
    counts = np.floor(quota + 1e-9).astype(int)
    counts[np.argsort(counts - quota, kind="stable")[: cases - counts.sum()]] += 1  # largest remainders
    for empty in np.flatnonzero((quota > 0) & (counts == 0)):
        if counts.max() > 1:
            counts[counts.argmax()] -= 1
            counts[empty] += 1
    return [name for name, count in zip(("train", "val", "test"), counts, strict=True) for _ in range(count)]


def check_shares(splits: Sequence[float]) -> list[float]:
    """The shares of train, val and test; :class:`InputError` unless they are three shares of 1."""
    shares = [float(share) for share in splits]
    if len(shares) != 3 or not min(shares) >= 0 or not abs(sum(shares) - 1) < 1e-6:
        raise InputError(f"The splits {shares} are not three shares of 1.", "Give such as (0.8, 0.1, 0.1).")
    return shares


def check_count(what: str, count: int) -> int:
    """A number of cases or workers; :class:`InputError` unless it is a whole number above 0."""
    if not isinstance(count, int) or count < 1:
        raise InputError(f"The number of {what} is {count!r}.", "Give a whole number above 0.")
    return count


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume, millimetres, compressed to the same bytes at every writing."""
    nifti = nib.Nifti1Image(array, affine)
    nifti.set_qform(affine, code=1)
    nifti.set_sform(affine, code=1)
    nifti.header.set_xyzt_units("mm")
    packed = gzip.compress(nifti.to_bytes(), compresslevel=1, mtime=0)
    with replacing(path) as draft:
        draft.write_bytes(packed)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file."""
    with replacing(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
