"""Assembling: what goes in, what stays out, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from bundle import assemble as module
from bundle import large_files
from bundle.assemble import assemble, main
from bundle.bundles import BUNDLES, ROOT, Bundle
from bundle.versions import bundle_version
from organdetr_monai.errors import InputError
from tests.bundle.conftest import BUNDLE

FILES = {
    "LICENSE",
    "configs/data/word.json",
    "configs/metadata.json",
    "configs/train.json",
    "docs/README.md",
    "docs/data_license.txt",
    "large_files.yml",
    "models/model.json",
    "models/model.pt",
    "models/phantom/model.json",
    "models/phantom/model.pt",
    "models/phantom/thresholds.json",
    "models/thresholds.json",
    "organdetr_monai/__init__.py",
    "organdetr_monai/data/__init__.py",
    "organdetr_monai/data/schema.json",
}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_bundle_holds_its_files_and_nothing_else(repository, tmp_path):
    folder = assemble(BUNDLE, tmp_path / "dist", root=repository)
    assert folder == tmp_path / "dist" / "organ_detr_ct_detection"
    assert files_of(folder) == FILES
    assert (folder / "models" / "model.pt").read_text() == "weights"
    assert [path.name for path in (tmp_path / "dist").iterdir()] == [folder.name], "no draft is left"


def test_second_bundle_in_its_own_folders_is_only_another_description(repository, tmp_path):
    for folder in ("configs", "models", "docs"):
        shutil.copytree(repository / folder, repository / "second" / folder)
    second = Bundle(
        "second_ct_segmentation", configs="second/configs", models="second/models", docs="second/docs", doc_files=()
    )
    folder = assemble(second, tmp_path / "dist", root=repository)
    own = {file for file in FILES if not file.startswith(("docs/", "models/phantom/"))}
    assert files_of(folder) == own


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("organdetr_monai/__init__.py", "1.2.0", "1.2.1", "of version 1.2.0, organdetr_monai of 1.2.1"),
        ("organdetr_monai/__init__.py", "__version__", "version", "organdetr_monai of None"),
        ("configs/metadata.json", '"1.2.0": "new", ', "", "does not tell of 1.2.0"),
        ("configs/metadata.json", '"1.1.0": "old"', '"1.10.0": "newer"', "its changelog goes on to 1.10.0"),
        ("configs/metadata.json", '"version": "1.2.0"', '"version": "1.2"', "has version '1.2'"),
    ],
)
def test_disagreeing_versions_are_refused(repository, tmp_path, file, old, new, message):
    path = repository / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=re.escape(message)):
        assemble(BUNDLE, tmp_path / "dist", root=repository)
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("bundle", BUNDLES.values(), ids=lambda bundle: bundle.name)
def test_this_repository_is_of_one_version(bundle):
    assert bundle_version(ROOT / bundle.configs / "metadata.json", ROOT / bundle.package)


@pytest.mark.parametrize("bundle", BUNDLES.values(), ids=lambda bundle: bundle.name)
def test_pins_of_the_metadata_are_those_the_tests_ran_with(bundle):
    metadata = json.loads((ROOT / bundle.configs / "metadata.json").read_text())
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = dict(line.split("==") for line in lines if "==" in line)
    pins = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    pins |= metadata["required_packages_version"]
    assert pins == {package: constraints[package] for package in pins}
    setup = (ROOT / "setup.cfg").read_text().partition("install_requires =")[2].partition("\n\n")[0]
    assert set(re.findall(r"^ +([\w-]+)", setup, re.MULTILINE)) == set(pins)


@pytest.mark.parametrize("missing", ["models/thresholds.json", "models/model.pt", "LICENSE", "docs/README.md"])
def test_missing_file_is_named_and_leaves_the_old_bundle_as_it_was(repository, tmp_path, missing):
    folder = assemble(BUNDLE, tmp_path / "dist", root=repository)
    (repository / missing).unlink()
    with pytest.raises(InputError, match=re.escape(missing)):
        assemble(BUNDLE, tmp_path / "dist", root=repository)
    assert files_of(folder) == FILES


def test_new_bundle_replaces_the_old_one_whole(repository, tmp_path):
    folder = assemble(BUNDLE, tmp_path / "dist", root=repository)
    (repository / "organdetr_monai" / "data" / "schema.json").unlink()
    (repository / "models" / "model.pt").write_text("better")
    assert assemble(BUNDLE, tmp_path / "dist", root=repository) == folder
    assert files_of(folder) == FILES - {"organdetr_monai/data/schema.json"}
    assert (folder / "models" / "model.pt").read_text() == "better"


@pytest.mark.parametrize("result", ["models/last.pt", "eval/metrics.json", "data/phantoms/datalist.json"])
def test_results_of_a_run_in_the_bundle_are_not_thrown_away(repository, tmp_path, result):
    folder = assemble(BUNDLE, tmp_path / "dist", root=repository)
    (folder / result).parent.mkdir(parents=True, exist_ok=True)
    (folder / result).write_text("hours of work")
    with pytest.raises(InputError, match=re.escape(result)):
        assemble(BUNDLE, tmp_path / "dist", root=repository)
    assert files_of(folder) == FILES | {result}


@pytest.mark.parametrize("moment", ["copying", "swapping"])
def test_failure_leaves_the_old_bundle(repository, tmp_path, monkeypatch, moment):
    folder = assemble(BUNDLE, tmp_path / "dist", root=repository)
    (repository / "models" / "model.pt").write_text("better")
    if moment == "copying":
        monkeypatch.setattr(module.shutil, "copyfile", _full_disk)
    else:
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda self, to: _full_disk() if "-new-" in str(self) else rename(self, to))
    with pytest.raises(OSError, match="full"):
        assemble(BUNDLE, tmp_path / "dist", root=repository)
    monkeypatch.undo()
    assert (folder / "models" / "model.pt").read_text() == "weights" and files_of(folder) == FILES
    assert os.listdir(tmp_path / "dist") == [folder.name]


def _full_disk(*_):
    raise OSError("disk full")


def test_large_files_are_listed_with_their_hash_where_there_is_an_address(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(large_files, "LIMIT", 6)
    folder = assemble(BUNDLE, tmp_path / "dist", root=repository)
    assert (folder / "large_files.yml").read_text() == "large_files: []\n"
    monkeypatch.setattr(large_files, "too_large", lambda folder: [folder / "models" / "model.pt"])
    folder = assemble(BUNDLE, tmp_path / "dist", root=repository, large_files_url="https://example.org/v1/")
    assert (folder / "large_files.yml").read_text().splitlines() == [
        "large_files:",
        '- path: "models/model.pt"',
        '  url: "https://example.org/v1/models/model.pt"',
        '  hash_val: "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"',
        '  hash_type: "sha256"',
    ]


def test_command_line_tells_what_it_made_and_what_is_in_its_way(tmp_path, capsys):
    assert main(["--output", str(tmp_path)]) == 0
    assert "organ_detr_ct_detection: " in capsys.readouterr().out
    (tmp_path / BUNDLE.name / "notes.txt").write_text("mine")
    assert main(["--output", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "notes.txt" in captured.err
