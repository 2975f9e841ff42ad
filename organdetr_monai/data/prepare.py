"""From a public set, as downloaded, to a datalist that training reads.

Images are used where they lie. Labels are written anew only where they must be merged or parted. Each case leaves a
small record, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from organdetr_monai.data.sets import READERS, Case, Listing
from organdetr_monai.data.sets.base import file_name, read_json
from organdetr_monai.data.splits import SPLITS, assign_splits, check_fractions
from organdetr_monai.errors import InputError
from organdetr_monai.organs import SETS

_RECORD_VERSION = 1
_WITH_LABEL_MAP = ("nnunet", "decathlon", "folder")


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did.

    Attributes
    ----------
    datalist : Path
    counts : dict of str to int
        Cases in each split.
    skipped : tuple of (str, str)
        Cases left out for a fault, with the reason.
    notes : tuple of str
        How the set was read, where that is not obvious.
    resumed : int
        Cases that an earlier run had done.
    """

    datalist: Path
    counts: dict[str, int]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    resumed: int = 0


def prepare(
    set_name: str,
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    workers: int = 2,
    label_map: Mapping | str | os.PathLike | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Write a datalist for a set of scans.

    Parameters
    ----------
    set_name : str
        One of `sets.READERS`: abdomenct1k, word, totalsegmentator, amos, verse, nnunet, decathlon, folder.
    source : path
        The set as downloaded and unpacked. It is only read.
    output : path
        Gets ``datalist.json``, ``labels/`` and ``cases/`` (the records of what is done).
    seed, fractions : int, (train, val, test)
        For splits that the set does not fix itself.
    workers : int
        Processes; 1 stays in this one.
    label_map : mapping or path of a JSON, optional
        Organs and their label values (see `sets.base.read_label_map`); for nnunet, decathlon and folder.
    progress : bool
        Show a bar.

    Returns
    -------
    PrepareReport

    Raises
    ------
    InputError
        Unknown set, no such source, output inside the source or of another set, no usable case. A single bad case is
        no error: it is reported and left out.
    """
    set_name, source, output = str(set_name).lower(), Path(source).resolve(), Path(output).resolve()
    _check(set_name, source, output, label_map)
    check_fractions(fractions)
    if label_map is not None and not isinstance(label_map, Mapping):
        label_map = read_json(Path(label_map))
    listing = READERS[set_name](source, label_map)
    splits = assign_splits(listing.cases, seed=seed, fractions=fractions)
    records, skipped, resumed = _run(set_name, listing, output, max(1, int(workers)), progress)
    if not records:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        raise InputError(f"None of the {len(skipped)} cases in {source} can be used ({reasons}).", "See the reasons.")
    entries = [_entry(case, records[case.name], splits, output) for case in listing.cases if case.name in records]
    content = {
        **_about(set_name),
        "seed": seed,
        "labels": _label_ids(listing),
        "cases": entries,
        "skipped": [{"name": name, "reason": reason} for name, reason in skipped],
        "notes": list(listing.notes),
    }
    write_json(output / "datalist.json", content)
    found = Counter(entry["split"] for entry in entries)
    counts = {split: found[split] for split in SPLITS}
    return PrepareReport(output / "datalist.json", counts, tuple(skipped), listing.notes, resumed)


def _check(set_name: str, source: Path, output: Path, label_map: Any) -> None:
    if set_name not in READERS:
        raise InputError(f"Unknown set {set_name!r}.", f"Choose one of {', '.join(READERS)}.")
    if not source.is_dir():
        raise InputError(f"{source} is not a folder.", "Give the folder of the unpacked download.")
    if output == source or source in output.parents:
        raise InputError(
            f"The output {output} lies inside the source.", "Choose another folder: sources stay untouched."
        )
    if label_map is not None and set_name not in _WITH_LABEL_MAP:
        raise InputError(f"The labels of {set_name} are fixed.", "Leave the label map out, or use the set 'folder'.")
    existing = output / "datalist.json"
    if existing.exists() and (other := read_json(existing).get("set")) != set_name:
        raise InputError(f"{existing} belongs to the set {other}.", "Choose another output folder.")


def _about(set_name: str) -> dict[str, str]:
    known = SETS.get(set_name)
    about = {"title": known.title, "source": known.source, "licence": known.licence} if known else {}
    return {"set": set_name, **about}


def _label_ids(listing: Listing) -> dict[str, int]:
    """Organ to its value in the labels of the datalist."""
    if listing.rewrites:
        return {organ: k + 1 for k, organ in enumerate(listing.organs)}
    return {organ: listing.ids[organ][0] for organ in listing.organs}


def _run(
    set_name: str, listing: Listing, output: Path, workers: int, progress: bool
) -> tuple[dict[str, dict], list[tuple[str, str]], int]:
    """Records by case name, skipped cases in order, and how many records were there before."""
    from tqdm import tqdm

    (output / "cases").mkdir(parents=True, exist_ok=True)
    (output / "labels").mkdir(exist_ok=True)
    keys = {case.name: _key(set_name, listing, case) for case in listing.cases}
    records = {case.name: record for case in listing.cases if (record := _done(case, keys[case.name], output))}
    resumed = len(records)
    faults: dict[str, str] = {}
    todo = [case for case in listing.cases if case.name not in records]
    bar = tqdm(total=len(listing.cases), initial=resumed, desc=f"prepare {set_name}", disable=not progress)
    with bar:
        for name, record, fault in _work(todo, listing, output, workers):
            if record is not None:
                record["key"] = keys[name]
                write_json(_record_path(name, output), record)
                records[name] = record
            elif fault is not None:
                faults[name] = fault
                bar.write(f"skipped {name}: {fault}")
            bar.update()
    return records, sorted(faults.items()), resumed


def _work(
    todo: list[Case], listing: Listing, output: Path, workers: int
) -> Iterator[tuple[str, dict | None, str | None]]:
    shared = Listing(listing.organs, (), listing.ids, listing.both_sides, listing.complete)  # without the other cases
    if workers == 1 or len(todo) < 2:
        yield from (prepare_case(case, shared, output) for case in todo)
        return
    import multiprocessing

    # "spawn": a fork of a process that has used torch may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context) as pool:
        futures = [pool.submit(prepare_case, case, shared, output) for case in todo]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BrokenProcessPool as error:
            raise InputError(
                "A worker process died, most likely for want of memory.",
                "Run it again with workers=1; what is done is kept.",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the whole queue


def prepare_case(case: Case, listing: Listing, output: Path) -> tuple[str, dict | None, str | None]:
    """Check one case and write its label where needed.

    Returns
    -------
    (name, record, fault)
        One of record and fault is None. The record says where the label is, which organs are annotated and which are
        cut by the scan's end.
    """
    from organdetr_monai.data.sets.masks import CaseError

    try:
        return case.name, _prepare_case(case, listing, output), None
    except CaseError as error:
        return case.name, None, str(error)
    except InputError as error:
        return case.name, None, f"unreadable: {error.what}"
    except Exception as error:  # whatever a broken file makes its reader raise: it is named, and the others go on
        return case.name, None, f"unreadable: {type(error).__name__}: {error}"


def _prepare_case(case: Case, listing: Listing, output: Path) -> dict:
    from organdetr_monai.data.sets.masks import CaseError, build_mask, check_image, on_faces, values_in

    if case.structures is None and case.label is None:
        raise CaseError("missing label")
    if case.structures is not None and not case.structures:
        raise CaseError("missing labels: none of the organs has a mask")
    grid = check_image(case.image)
    mask = build_mask(case, listing, grid)
    present = values_in(mask)
    if present.size == 0:
        raise CaseError("empty: the label shows none of the organs")
    names = [listing.organs[value - 1] for value in present]
    truncated = {listing.organs[value - 1] for value in on_faces(mask) if value}
    if case.structures is not None:
        annotated = [organ for organ in listing.organs if organ in case.structures]
    else:
        annotated = list(listing.organs) if listing.complete else names
    record: dict[str, Any] = {"annotated": annotated, "truncated": [organ for organ in names if organ in truncated]}
    if listing.rewrites:
        record["written"] = f"labels/{file_name(case.name)}.nii.gz"
        _write_mask(output / record["written"], mask, grid.affine)
    return record


def _write_mask(path: Path, mask: Any, affine: Any) -> None:
    import nibabel as nib

    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        nib.save(nib.Nifti1Image(mask, affine), part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that no reader ever sees half of it."""
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _record_path(name: str, output: Path) -> Path:
    return output / "cases" / f"{file_name(name)}.json"


def _key(set_name: str, listing: Listing, case: Case) -> str:
    """Changes whenever the case would come out differently: its files, or what is made of them."""
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in case.files() if path.is_file()]
    ids = [sorted(listing.ids.items()), sorted(listing.both_sides.items()), listing.complete]
    what = [_RECORD_VERSION, set_name, listing.organs, ids, files]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _done(case: Case, key: str, output: Path) -> dict | None:
    """The record of an earlier run, if it still holds."""
    try:
        record = json.loads(_record_path(case.name, output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # never written, or cut short: the case is done again
    whole = "written" not in record or (output / record["written"]).is_file()
    return record if record.get("key") == key and whole else None


def _entry(case: Case, record: dict, splits: Mapping[str, str], output: Path) -> dict:
    label = record.get("written")
    if label is None:
        assert case.label is not None  # otherwise the label had to be written
        label = _reference(case.label, output)
    return {
        "name": case.name,
        "image": _reference(case.image, output),
        "label": label,
        "annotated": record["annotated"],
        "truncated": record["truncated"],
        "split": splits[case.name],
    }


def _reference(path: Path, folder: Path) -> str:
    """Path for a JSON in `folder`: relative where both share more than the root of the disk, else absolute."""
    try:
        shared = Path(os.path.commonpath([path, folder]))
    except ValueError:  # two drives
        return path.as_posix()
    return path.as_posix() if shared == Path(shared.anchor) else Path(os.path.relpath(path, folder)).as_posix()
