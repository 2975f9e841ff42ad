"""Finding scans: from what a user names on the command line to a list of cases, without reading a voxel."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from organdetr_monai.data import dicom
from organdetr_monai.errors import InputError

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["nifti", "nrrd", "metaimage", "dicom"]

SUFFIXES: dict[str, Kind] = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
}
_COMPANIONS = (".raw", ".zraw", ".raw.gz")  # the voxels of a .mhd or .nhdr header
_OTHER = "not a NIfTI, NRRD, MHA, MHD or DICOM file"


@dataclass(frozen=True)
class Scan:
    """One CT volume on disk.

    Parameters
    ----------
    name : str
        Name of the case, unique among the scans found together, fit for a file name.
    kind : {"nifti", "nrrd", "metaimage", "dicom"}
        How it is stored.
    paths : tuple of Path
        The one file, or all slices of a DICOM series in no particular order.
    series_uid : str or None
        DICOM SeriesInstanceUID; None for other kinds and where an anonymiser removed it.
    voxels : callable, optional
        Gives what :func:`organdetr_monai.data.nifti.read_voxels` gives, where somebody has begun to read a NIfTI file.
    """

    name: str
    kind: Kind
    paths: tuple[Path, ...]
    series_uid: str | None = None
    voxels: Callable[[], np.ndarray] | None = field(default=None, compare=False, repr=False)

    @property
    def path(self) -> Path:
        """The file, or the folder that holds all slices of a DICOM series."""
        if self.kind == "dicom":
            return Path(os.path.commonpath([path.parent for path in self.paths]))
        return self.paths[0]


def find_scans(inputs: Sequence[str | os.PathLike]) -> tuple[list[Scan], list[tuple[Path, str]]]:
    """Find every CT scan in files and folders.

    Parameters
    ----------
    inputs : sequence of path
        NIfTI, NRRD, MHA or MHD files, DICOM files (each stands for its series in its folder), or folders of these,
        searched to any depth. DICOM is recognised by content whatever the file is called. Hidden files are passed over.

    Returns
    -------
    scans : list of Scan
        In the order found, each once, with unique names. A file is listed by its suffix; whether it can be read shows
        when `read_scan` reads it. Whether a volume is an image or a mask is not known here.
    skipped : list of (Path, str)
        What is no CT scan, and why. An input that leads to no scan stands here under its own path.

    Raises
    ------
    InputError
        For an empty path, which would mean the current folder.
    """
    inventory = _Inventory()
    for given in inputs:
        if not os.fspath(given):
            raise InputError("The path of a scan is empty.", "Name a file or a folder; . is the current one.")
        path = Path(given).expanduser()
        if not path.exists():
            inventory.skipped.append((path, "does not exist"))
        elif path.is_dir():
            # A list, so that no file's search stops at the first hit.
            added = [inventory.add(file) for file in _files_below(path, set(), inventory.skipped)]
            if not any(added):
                inventory.skipped.append((path, "holds no CT scan"))
        else:
            inventory.add_named(path)
    return inventory.scans(), inventory.skipped + inventory.summary()


def find_scan(path: str | os.PathLike) -> Scan:
    """Find the one scan that a file or folder holds.

    Raises
    ------
    InputError
        If it holds none or several.
    """
    scans, skipped = find_scans([path])
    if not scans:
        reasons = "; ".join(dict.fromkeys(reason for _, reason in skipped))
        raise InputError(f"{path} is no CT scan: {reasons}.", "Give a NIfTI, NRRD, MHA or MHD file or a DICOM folder.")
    if len(scans) > 1:
        names = ", ".join(scan.name for scan in scans)
        raise InputError(f"{path} holds {len(scans)} scans: {names}.", "Name one of them.")
    return scans[0]


@dataclass
class _Series:
    """The files of one DICOM series and what can name it."""

    uid: str | None
    number: str | None
    paths: list[Path] = field(default_factory=list)


class _Inventory:
    """What was found so far; a file met twice counts once."""

    def __init__(self) -> None:
        self.found: dict[Path | tuple[str, ...], tuple[Kind, Path] | _Series] = {}
        self.skipped: list[tuple[Path, str]] = []
        self._met: dict[Path, bool] = {}  # resolved file -> is it (part of) a scan
        self._others: dict[tuple[Path, str], list[Path]] = {}  # (folder, reason) -> files

    def add(self, path: Path, *, only: tuple[str, ...] | None = None) -> bool:
        """Take a file in, if it is part of a scan; with `only`, if it belongs to that DICOM series."""
        resolved = path.resolve()
        if resolved not in self._met:
            kind, key, series, reason = _identify(path)
            if only is not None and key != only:
                return False
            self._met[resolved] = reason is None
            if reason is not None:
                self._others.setdefault((path.parent, reason), []).append(path)
            elif series is not None and key is not None:
                known = self.found.setdefault(key, series)
                assert isinstance(known, _Series)  # the others' keys are paths
                known.paths.append(path)
            elif kind is not None:
                self.found[resolved] = (kind, path)
        return self._met[resolved]

    def add_named(self, path: Path) -> None:
        """Take in a file that the user named: alone, or with the rest of its DICOM series."""
        if self._met.get(path.resolve()):
            return
        _, key, series, reason = _identify(path)
        if reason is not None:
            self.skipped.append((path, reason))
        elif series is None:
            self.add(path)
        else:
            for sibling in sorted(p for p in path.parent.iterdir() if p.is_file()):
                self.add(sibling, only=key)

    def summary(self) -> list[tuple[Path, str]]:
        """Say what else lay in the folders: one entry for each folder and reason, not for each file."""
        return [
            (files[0], reason) if len(files) == 1 else (folder, f"{len(files)} files: {reason}")
            for (folder, reason), files in self._others.items()
            if reason
        ]

    def scans(self) -> list[Scan]:
        """Name what was found."""
        entries = list(self.found.values())
        scans = []
        for name, entry in zip(_unique([_name_choices(entry) for entry in entries]), entries, strict=True):
            if isinstance(entry, _Series):
                scans.append(Scan(name, "dicom", tuple(entry.paths), entry.uid))
            else:
                scans.append(Scan(name, entry[0], (entry[1],)))
        return scans


def _identify(path: Path) -> tuple[Kind | None, tuple[str, ...] | None, _Series | None, str | None]:
    """Return kind, series key, an empty series to start with, and the reason if the file is no part of a scan."""
    suffix = _suffix(path)
    try:
        if dicom.is_dicom(path):
            header = dicom.read_header(path)
            number = header.get("SeriesNumber")
            series = _Series(header.get("SeriesInstanceUID") or None, None if number is None else str(number))
            return "dicom", dicom.series_key(path, header), series, dicom.why_not_ct(header)
    except OSError as error:
        return None, None, None, f"cannot be opened ({error.strerror})"
    except InputError as error:
        return None, None, None, error.what
    if path.name.lower().endswith(".seg.nrrd"):
        return None, None, None, "a 3D Slicer segmentation, not an image"
    if suffix is None:
        return None, None, None, _OTHER if path.stat().st_size else "an empty file (0 bytes)"
    return SUFFIXES[suffix], None, None, None


def _suffix(path: Path) -> str | None:
    """Return the known suffix that a file name ends with, in lower case."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), None)


def _files_below(folder: Path, visited: set[Path], skipped: list[tuple[Path, str]]) -> Iterator[Path]:
    """Yield the files below a folder in order of name; links are followed, each folder once."""
    if folder.resolve() in visited:
        return
    visited.add(folder.resolve())
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        skipped.append((folder, f"cannot be opened ({error.strerror})"))
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "DICOMDIR" or entry.name.lower().endswith(_COMPANIONS):
            continue
        if entry.is_dir():
            yield from _files_below(entry, visited, skipped)
        elif entry.is_file():
            yield entry


def _name_choices(entry: tuple[Kind, Path] | _Series) -> list[str]:
    """List names for a case, from the shortest to the most specific."""
    if isinstance(entry, _Series):
        folder = entry.paths[0].resolve().parent
        detail = f"series{entry.number}" if entry.number is not None else "series"
        stem, outer = folder.name, folder.parent.name
        last = f"{stem}_{entry.uid}" if entry.uid else f"{outer}_{stem}_{detail}"
    else:
        path = entry[1].resolve()
        suffix = _suffix(entry[1]) or ""
        stem, outer = entry[1].name[: len(entry[1].name) - len(suffix)], path.parent.name
        detail = suffix.split(".")[1]
        last = f"{path.parent.parent.name}_{outer}_{stem}_{detail}"
    return [stem, f"{stem}_{detail}", f"{outer}_{stem}", f"{outer}_{stem}_{detail}", last]


def _unique(choices: Iterable[list[str]]) -> list[str]:
    """Pick for each case the shortest choice that no other case has, ignoring case; number what is left."""
    choices = [[_safe(choice) for choice in row] for row in choices]
    level = [0] * len(choices)
    while True:
        names = [row[k] for row, k in zip(choices, level, strict=True)]
        counts = Counter(name.casefold() for name in names)
        movable = [i for i, name in enumerate(names) if counts[name.casefold()] > 1 and level[i] + 1 < len(choices[i])]
        if not movable:
            break
        for i in movable:
            level[i] += 1
    taken: set[str] = set()
    for i, name in enumerate(names):
        number = 1
        while names[i].casefold() in taken or (number > 1 and names[i].casefold() in counts):
            number += 1
            names[i] = f"{name}_{number}"
        taken.add(names[i].casefold())
    return names


def _safe(text: str) -> str:
    """Make a name fit for files everywhere: letters, digits, dot, dash and underscore, not hidden, not too long."""
    return re.sub(r"[^\w.-]+", "_", text).lstrip("._-")[:100].rstrip(".") or "scan"
