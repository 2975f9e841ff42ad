"""``large_files.yml``: what the model zoo downloads, because its repository takes no file over 25 MB."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

__all__ = ["LIMIT", "NAME", "as_yaml", "describe", "file_hash", "too_large"]

NAME = "large_files.yml"
LIMIT = 25_000_000  # bytes
HASHES = ("md5", "sha1", "sha256", "sha512")  # that the zoo knows


def too_large(folder: Path) -> list[Path]:
    """Files over the limit, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > LIMIT)


def describe(folder: Path, url: str | None) -> list[dict[str, str]]:
    """Entries of ``large_files.yml``.

    Parameters
    ----------
    folder : Path
        The bundle.
    url : str or None
        Under which its files can be downloaded by their path. Without one there is nothing to write.
    """
    if url is None:
        return []
    names = [path.relative_to(folder).as_posix() for path in too_large(folder)]
    return [
        {
            "path": name,
            "url": f"{url.rstrip('/')}/{name}",
            "hash_val": file_hash(folder / name, "sha256"),
            "hash_type": "sha256",
        }
        for name in names
    ]


def as_yaml(entries: Sequence[dict[str, str]]) -> str:
    """Text of the file. Without entries an empty list: the zoo's download stops at a file that has none."""
    if not entries:
        return "large_files: []\n"
    lines = ["large_files:"]
    for entry in entries:
        pairs = [f"{key}: {json.dumps(value)}" for key, value in entry.items()]  # JSON's strings are YAML's
        lines += ["- " + pairs[0], *("  " + pair for pair in pairs[1:])]
    return "\n".join(lines) + "\n"


def file_hash(path: Path, kind: str) -> str:
    """Hash of a file in hexadecimal; ``kind`` is one of `HASHES`."""
    digest = hashlib.new(kind)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
