"""A repository of a few small files, and the real bundle assembled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bundle.assemble import assemble
from bundle.bundles import BUNDLES

BUNDLE = BUNDLES["organ_detr_ct_detection"]


@pytest.fixture
def repository(tmp_path) -> Path:
    """Everything that `BUNDLE` describes, by name only, and things around it that are not the bundle's."""
    root = tmp_path / "repository"
    contents = {
        "LICENSE": "Apache",
        "README.md": "of the repository",
        "configs/metadata.json": json.dumps({"version": "1.2.0", "changelog": {"1.2.0": "new", "1.1.0": "old"}}),
        "configs/train.json": "{}",
        "configs/data/word.json": "{}",
        "configs/.draft.json": "{}",
        "configs/another/metadata.json": "{}",
        "configs/another/data/x.json": "{}",
        "models/README.md": "of the folder",
        "models/model.pt": "weights",
        "models/model.json": "{}",
        "models/thresholds.json": "{}",
        "models/last.pt": "state of a run",
        "models/phantom/model.pt": "weights for phantoms",
        "models/phantom/model.json": "{}",
        "models/phantom/thresholds.json": "{}",
        "docs/README.md": "# card",
        "docs/data_license.txt": "none",
        "docs/architecture.md": "of the repository",
        "organdetr_monai/__init__.py": '__version__ = "1.2.0"\n',
        "organdetr_monai/data/__init__.py": "",
        "organdetr_monai/data/schema.json": "{}",
        "organdetr_monai/__pycache__/x.pyc": "",
        "tests/test_x.py": "",
    }
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.fixture(scope="session")
def _assembled(tmp_path_factory) -> Path:
    return assemble(BUNDLE, tmp_path_factory.mktemp("dist"))


@pytest.fixture
def assembled(_assembled, tmp_path) -> Path:
    """The real bundle, to be broken."""
    return Path(shutil.copytree(_assembled, tmp_path / "dist" / _assembled.name))
