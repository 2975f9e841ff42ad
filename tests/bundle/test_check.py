"""The checker: a whole bundle passes, and each way of breaking it fails the check that is for it."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

from bundle.check import QUICK, check, main
from bundle.large_files import as_yaml, file_hash
from bundle.zoo.failure import CheckError
from bundle.zoo.running import CLICKING
from bundle.zoo.uninstalled import call
from organdetr_monai.miq_sam3d.datalist import load_lesions
from organdetr_monai.miq_sam3d.phantoms import write_lesion_phantoms


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def large(path):
    with path.open("wb") as stream:
        stream.truncate(30_000_000)


def list_large(folder, **changes):
    entry = {"path": "models/big.pt", "url": "https://x.org/big.pt", "hash_val": "0" * 64, "hash_type": "sha256"}
    (folder / "large_files.yml").write_text(as_yaml([{**entry, **changes}]))


def metadata(folder):
    return folder / "configs" / "metadata.json"


BREAKAGES = [
    ("files", lambda b: (b / "LICENSE").unlink(), "there is no LICENSE"),
    ("files", lambda b: (b / "models" / "model.pt").unlink(), "models/model.pt"),
    ("files", lambda b: (b / "models" / "last.pt").touch(), "models/last.pt is not part"),
    ("files", lambda b: (b / "organdetr_monai" / "data" / "__pycache__").mkdir(), "__pycache__"),
    ("sizes", lambda b: large(b / "models" / "big.pt"), "models/big.pt has 30 MB"),
    ("sizes", lambda b: list_large(b, url=""), "models/big.pt has no url"),
    ("sizes", lambda b: list_large(b, hash_type="crc"), "hash_type is crc"),
    ("sizes", lambda b: list_large(b, path="../big.pt"), "out of the bundle"),
    ("sizes", lambda b: (large(b / "models" / "big.pt"), list_large(b)), "another sha256"),
    ("sizes", lambda b: (b / "large_files.yml").write_text("# nothing\n"), "no list large_files"),
    ("personal paths", lambda b: edit(b / "models" / "model.json", made="/home/jane/ct"), "model.json, line 1, names"),
    ("personal paths", lambda b: torch.save({"C:\\Users\\jane": 0}, b / "models" / "x.pt"), "x.pt"),
    ("schema", lambda b: edit(metadata(b), authors=["Jane"]), r"\['Jane'\] is not of type"),
    ("schema", lambda b: replace(metadata(b), '"task":', '"job":'), "'task' is a required property"),
    ("schema", lambda b: replace(metadata(b), '"num_channels"', '"channels"'), "'num_channels' is a required"),
    ("schema", lambda b: edit(metadata(b), schema="https://x.org/y.json"), "https://x.org/y.json"),
    ("version", lambda b: edit(metadata(b), version="9.9.9"), "9.9.9"),
    ("version", lambda b: edit(metadata(b), changelog={}), "changelog"),
    ("version", lambda b: shutil.rmtree(b / "organdetr_monai"), "0 packages"),
    ("requirements", lambda b: edit(metadata(b), required_packages_version={"scipy": ">=1"}), "scipy"),
    ("model", lambda b: torch.save({"network": {}}, b / "models" / "model.pt"), "plain state dict"),
    ("model", lambda b: edit(b / "models" / "model.json", organs=["liver"]), "model.json is about liver"),
    ("ids", lambda b: replace(b / "configs" / "inference.json", '"inferer"', '"infer"'), "no inferer"),
    ("ids", lambda b: replace(b / "configs" / "train.json", '"@val_interval"', "2"), "not @val_interval"),
    ("readme", lambda b: replace(b / "docs" / "README.md", "## **Performance**", "#### More"), "section Performance"),
    ("readme", lambda b: replace(b / "docs" / "README.md", "**Data**", "**Tags**"), "Data|order"),
    ("readme", lambda b: replace(b / "docs" / "README.md", "## **Data**", "[x](x.png)\n## **Data**"), "x.png"),
    ("code format", lambda b: (b / "organdetr_monai" / "new.py").write_text("import  os\n"), "ruff format"),
    ("code format", lambda b: (b / "organdetr_monai" / "new.py").write_text("import os\n"), "ruff check.*F401"),
    ("uninstalled", lambda b: replace(b / "organdetr_monai" / "__init__.py", "from organdetr", "from o"), "No module"),
]


def test_assembled_bundle_passes_what_runs_nothing_and_is_left_as_it_was(assembled, capsys):
    before = sorted(assembled.rglob("*"))
    assert check(assembled, QUICK) == [], capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == [f"ok      {name}" for name in QUICK]
    assert sorted(assembled.rglob("*")) == before


@pytest.mark.parametrize(("name", "damage", "reason"), BREAKAGES)
def test_damage_fails_the_check_for_it_with_the_reason_in_one_line(assembled, capsys, name, damage, reason):
    damage(assembled)
    assert check(assembled, [name]) == [name]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"FAILED  {name}: ")
    assert re.search(reason, line), line


@pytest.mark.parametrize("name", ["organs", "organ_detr_ct_detection_v1", "organ_detr_detection", "organ_ct"])
def test_name_says_task_and_modality_and_no_version(assembled, capsys, name):
    assert check(assembled.rename(assembled.with_name(name)), ["name"]) == ["name"]


def test_an_installed_package_does_not_help_a_bundle_that_lacks_it(assembled):
    call(assembled, "-c", "import organdetr_monai.data")
    shutil.rmtree(assembled / "organdetr_monai" / "data")
    with pytest.raises(CheckError, match=r"ModuleNotFoundError: No module named 'organdetr_monai.data'"):
        call(assembled, "-c", "import organdetr_monai.data")


def test_program_that_fails_is_told_by_its_first_error_and_kept_whole(assembled):
    with pytest.raises(CheckError, match=r"ended with 1: KeyError: 'a'$") as failure:
        call(assembled, "-c", "try: {}['a']\nexcept KeyError as e: raise RuntimeError('Failed to evaluate') from e")
    assert "RuntimeError: Failed to evaluate" in failure.value.output
    with pytest.raises(CheckError, match=r"ended with 1: RuntimeError: on two lines$"):
        call(assembled, "-c", "raise RuntimeError('\\non two lines')")


def test_large_file_that_is_listed_passes(assembled):
    large(assembled / "models" / "big.pt")
    list_large(assembled, hash_val=file_hash(assembled / "models" / "big.pt", "sha256"))
    assert check(assembled, ["sizes"]) == []


def test_exit_code_and_sum(assembled, capsys):
    assert main([str(assembled), "--only", "files,sizes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 2 checks passed"
    (assembled / "LICENSE").unlink()
    assert main([str(assembled), "--only", "files,sizes"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 checks passed"


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--only", "sizes,style"]])
def test_bad_usage_ends_with_2(arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_results_of_clicks_are_looked_for_where_they_are(tmp_path):
    """Names of lesion phantoms, as training makes them, are what inference names its folders after."""
    datalist = write_lesion_phantoms(tmp_path, cases=1, spacing=(8, 8, 8), workers=1, progress=False)
    (case,) = load_lesions(datalist)
    assert CLICKING.results("out")[0] == f"out/{case['case']}/lesions.json"
