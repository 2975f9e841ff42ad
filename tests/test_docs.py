"""The handbook: its links lead somewhere, its commands exist, its Python and the tutorial run."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import pytest

from organdetr_monai.cli import COMMANDS
from organdetr_monai.data.phantom import make_phantom
from organdetr_monai.detections import Detections
from organdetr_monai.organs import SETS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
#: Written over a Python block that the test must pass over: ``<!-- not run: why -->``.
NOT_RUN = "<!-- not run:"


def name_of(page: Path) -> str:
    """Of a test's case."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Number of the first line, and text, of each fenced block of a language that is to be run."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found = []
    for k, line in enumerate(lines):
        if line.strip() == f"```{language}" and not (k and lines[k - 1].strip().startswith(NOT_RUN)):
            indent = len(line) - len(line.lstrip())
            end = next(n for n in range(k + 1, len(lines)) if lines[n].strip() == "```")
            found.append((k + 2, "\n".join(text[indent:] for text in lines[k + 1 : end])))
    return found


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue  # an address
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_configs_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = [name for name in re.findall(r"\bconfigs/[a-z_/0-9]+\.json", text) if not (ROOT / name).is_file()]
    assert not missing


def test_every_delta_is_told_of():
    told = (
        (DOCS / "training.md")
        .read_text(encoding="utf-8")
        .replace("data/*.json", " ".join(f"data/{s}.json" for s in SETS))
    )
    others = {p.parent for p in (ROOT / "configs").glob("*/metadata.json")}  # other bundles, with their own model cards
    deltas = {
        p.relative_to(ROOT / "configs").as_posix()
        for p in (ROOT / "configs").glob("*/*.json")
        if p.parent not in others
    }
    assert deltas and not {delta for delta in deltas if delta not in told}


def test_architecture_names_every_module_and_package():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "organdetr_monai"
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert modules and packages and not {name for name in modules | packages if f"`{name}`" not in page}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_their_options_exist(page):
    for _, block in blocks(page, "bash"):
        for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
            words = shlex.split(line, comments=True)
            if words[:1] != ["organdetr"]:
                continue
            parameters = inspect.signature(COMMANDS[words[1]]).parameters
            unknown = [w for w in words if w.startswith("--") and w[2:].partition("=")[0] not in parameters]
            assert not unknown, f"{page.name}: {line}"


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Folder with what the examples read: ``scan.nii.gz``."""
    folder = tmp_path_factory.mktemp("examples")
    phantom = make_phantom(1, spacing=(5.0, 5.0, 5.0), field_of_view="abdomen")
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), folder / "scan.nii.gz")
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_examples_run(page, scan, monkeypatch):
    """The blocks of a page one after the other, as a reader types them."""
    monkeypatch.chdir(scan)
    session = ModuleType("session")
    for line, block in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + block, str(page), "exec"), session.__dict__)


def run(script: str, *arguments: str, cwd: Path) -> str:
    """Standard output of a script of docs/, started in a folder."""
    done = subprocess.run(
        [sys.executable, str(DOCS / script), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_tutorial_runs(tmp_path):
    said = run("tutorial.py", cwd=tmp_path)
    work = tmp_path / "tutorial_run"
    organs = json.loads((work / "model" / "model.json").read_text())["organs"]
    detections = Detections.load(work / "detections.json")
    assert [entry.organ for entry in detections.organs] == organs
    assert {path.name for path in (work / "crops").iterdir()} == {
        f"{entry.organ}.nii.gz" for entry in detections.present
    }
    assert detections.present, "the thresholds of two epochs let nothing through: the reader would see no box"
    assert "epoch 2: loss" in said and (work / "model" / "training.png").is_file()
    assert set(json.loads((work / "model" / "test" / "metrics.json").read_text())["per_organ"]) == set(organs)
    assert set(tmp_path.iterdir()) == {work}, "it writes outside its folder"


def test_picture_of_the_frames_is_drawn(tmp_path):
    run("draw_frames.py", "frames.png", cwd=tmp_path)
    assert (tmp_path / "frames.png").read_bytes()[:4] == b"\x89PNG"


def test_fixed_export_has_the_window_of_the_shipped_weights():
    window = json.loads((ROOT / "models" / "model.json").read_text())["window"]
    assert f"--input_shape 1,1,{','.join(map(str, window))} " in (ROOT / "docs" / "deployment.md").read_text()
