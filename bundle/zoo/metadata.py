"""Checks of ``configs/metadata.json``: schema, versions, what it says of the network's output and of the weights."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from monai.bundle import verify_metadata

from bundle.large_files import file_hash
from bundle.versions import bundle_version
from bundle.zoo.failure import CheckError

SCHEMA = Path(__file__).resolve().parents[1] / "meta_schema_20240725.json"
_PINNED = re.compile(r"\d+(\.\d+)*([a-z]+\d+)?")


def read(folder: Path) -> dict[str, Any]:
    """Content of a bundle's metadata."""
    return json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))


def schema(folder: Path) -> None:
    """``monai.bundle.verify_metadata``, which finds the schema at hand and therefore downloads none."""
    url = read(folder).get("schema", "")
    if url.rpartition("/")[2] != SCHEMA.name:
        raise CheckError(f"schema is {url!r}, not {SCHEMA.name}, which is kept here")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "schema.json")
        shutil.copyfile(SCHEMA, copy)
        own = file_hash(SCHEMA, "sha256")
        meta_file = str(folder / "configs" / "metadata.json")
        verify_metadata(meta_file=meta_file, filepath=str(copy), hash_val=own, hash_type="sha256")


def version(folder: Path) -> None:
    """Metadata, changelog and package are of one version."""
    packages = [path.parent for path in folder.glob("*/__init__.py")]
    if len(packages) != 1:
        raise CheckError(f"there are {len(packages)} packages, not one")
    bundle_version(folder / "configs" / "metadata.json", packages[0])


def requirements(folder: Path) -> None:
    """Every package that the zoo installs for its tests is pinned: it writes ``name==version``."""
    content = read(folder)
    pins = {key: content.get(f"{key}_version") for key in ("monai", "pytorch", "numpy")}
    pins |= content.get("required_packages_version", {})
    for package, pin in pins.items():
        if not isinstance(pin, str) or not _PINNED.fullmatch(pin):
            raise CheckError(f"{package} is of version {pin!r}, which pip cannot pin")


def detects(folder: Path) -> bool:
    """Whether a bundle finds boxes of organs; else it answers clicks."""
    return read(folder)["network_data_format"]["outputs"]["pred"]["format"] == "detection"


def model(folder: Path) -> None:
    """The weights are a plain state dict, and what lies beside them is about the organs that the metadata names."""
    weights = torch.load(folder / "models" / "model.pt", map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(torch.is_tensor(value) for value in weights.values()):
        raise CheckError("models/model.pt is not a plain state dict")
    if not detects(folder):
        return  # there are no organs
    channels = read(folder)["network_data_format"]["outputs"]["pred"]["channel_def"]
    organs = [channels[key] for key in sorted(channels, key=int) if channels[key] != "background"]
    settings = json.loads((folder / "models" / "model.json").read_text(encoding="utf-8"))
    thresholds = json.loads((folder / "models" / "thresholds.json").read_text(encoding="utf-8"))["thresholds"]
    for name, others in (("model.json", settings["organs"]), ("thresholds.json", list(thresholds))):
        if others != organs:
            raise CheckError(f"models/{name} is about {', '.join(others)}; configs/metadata.json about other organs")
