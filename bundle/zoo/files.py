"""Checks that look at the files alone: what is there, what it is called, how large it is, and what it gives away."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from monai.bundle import ConfigParser

from bundle import large_files
from bundle.zoo import metadata
from bundle.zoo.failure import CheckError

#: The zoo wants the first two and prefers the next two; the others are what bundles have by convention.
REQUIRED = (
    "LICENSE",
    "configs/metadata.json",
    "configs/inference.json",
    "models/model.pt",
    "configs/train.json",
    "configs/evaluate.json",
    "configs/logging.conf",
    "docs/README.md",
    "docs/data_license.txt",
)
#: What tests, runs and caches leave.
WASTE = ("tests", "data", "eval", "mlruns", "runs", "models/last.pt", "**/__pycache__", "**/*.pyc", "**/.*")
_NAME = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)+")
_TASKS = ("annotation", "classification", "detection", "registration", "segmentation", "synthesis")
_MODALITIES = ("ct", "mri", "mr", "pet", "xray", "pathology", "endoscopic", "ultrasound")
_PERSONAL = re.compile(rb"(?:/home/|/Users/|/root/|[A-Za-z]:\\{1,2}Users\\{1,2})[\w.-]+")


def required_files(folder: Path) -> None:
    """What the zoo and a bundle's users look for is there, and nothing that a run or a test left."""
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise CheckError(f"there is no {', '.join(missing)}")
    waste = [path.relative_to(folder).as_posix() for pattern in WASTE for path in sorted(folder.glob(pattern))]
    if waste:
        raise CheckError(f"{waste[0]} is not part of a bundle ({len(waste)} such)")


def name(folder: Path) -> None:
    """The folder's name says modality and task, and can be told from the version that the zoo appends (``_v0.1.0``)."""
    words = folder.name.lower().split("_")
    if not _NAME.fullmatch(folder.name) or re.search(r"_v\d", folder.name):
        raise CheckError(f"{folder.name} is not of words joined by _, without a version")
    for what, known in (("task", _TASKS), ("modality", _MODALITIES)):
        if not set(words) & set(known):
            raise CheckError(f"{folder.name} does not name its {what}: one of {', '.join(known)}")
    if not metadata.read(folder).get("name"):
        raise CheckError("configs/metadata.json has no name to show in the zoo")


def sizes(folder: Path) -> None:
    """Files over 25 MB are named in ``large_files.yml`` with all that downloading and verifying them takes."""
    entries = _large_files(folder)
    for entry in entries:
        lacking = [key for key in ("path", "url", "hash_val", "hash_type") if not entry.get(key)]
        if lacking:
            raise CheckError(f"{large_files.NAME}: {entry.get('path', entry)} has no {', '.join(lacking)}")
        path = PurePosixPath(entry["path"])
        if path.is_absolute() or ".." in path.parts:
            raise CheckError(f"{large_files.NAME}: {path} leads out of the bundle")
        if not entry["url"].startswith("https://"):
            raise CheckError(f"{large_files.NAME}: {entry['url']} is not an https address")
        if entry["hash_type"] not in large_files.HASHES:
            raise CheckError(f"{large_files.NAME}: hash_type is {entry['hash_type']}, not {large_files.HASHES}")
        file = folder / path
        if file.is_file() and large_files.file_hash(file, entry["hash_type"]) != entry["hash_val"]:
            raise CheckError(f"{large_files.NAME}: {path} has another {entry['hash_type']}")
    listed = {entry["path"] for entry in entries}
    for file in large_files.too_large(folder):
        if (inside := file.relative_to(folder).as_posix()) not in listed:
            size = file.stat().st_size / 1e6
            raise CheckError(f"{inside} has {size:.0f} MB, over {large_files.LIMIT / 1e6:.0f}: see --large_files_url")


def personal_paths(folder: Path) -> None:
    """No file, weights included, tells where on whose machine it was made."""
    checkout = Path(__file__).resolve().parents[2]
    own = [re.escape(os.fsencode(path)) + rb"\b" for path in (Path.home(), checkout) if len(path.parts) > 2]
    patterns = [_PERSONAL, *map(re.compile, own)]
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        for pattern in patterns:
            if found := pattern.search(content):
                line = content.count(b"\n", 0, found.start()) + 1
                place = path.relative_to(folder).as_posix()
                raise CheckError(f"{place}, line {line}, names {found[0].decode(errors='replace')}")


def _large_files(folder: Path) -> list[dict[str, str]]:
    """As the zoo reads it: the first of these names, by MONAI's parser, key ``large_files``."""
    for path in (folder / large_files.NAME, folder / "large_files.yaml", folder / "large_files.json"):
        if path.is_file():
            content = ConfigParser.load_config_file(str(path))
            entries = content.get("large_files") if isinstance(content, dict) else None
            if not isinstance(entries, list):
                raise CheckError(f"{path.name} has no list large_files, at which the zoo's download stops")
            return entries
    return []
