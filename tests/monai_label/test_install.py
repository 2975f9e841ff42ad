"""Installing into an app of MONAI Label: whole, again, and not into anything else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from organdetr_monai.errors import InputError
from organdetr_monai.monai_label.install import CLICK_NAME, DEFAULT_NAME, install

ROOT = Path(__file__).parents[2]
STOCK = "from x import get_bundle_models\n\n\nclass MyApp(MONAILabelApp):\n    pass\n"


@pytest.fixture
def app(tmp_path):
    """What of a monaibundle app the installer looks at."""
    folder = tmp_path / "apps" / "monaibundle"
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(STOCK)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle's root: this repository's configs and package with weights of a few bytes."""
    root = tmp_path_factory.mktemp("bundle")
    shutil.copytree(ROOT / "configs", root / "configs")
    shutil.copytree(ROOT / "organdetr_monai", root / "organdetr_monai")
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "models/model.json"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "models" / "model.pt").write_bytes(b"weights")
    return root


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_app_gets_the_bundle_and_keeps_its_own_main(app, bundle):
    target = install(app, bundle=bundle)
    assert target == app / "model" / DEFAULT_NAME
    files = contents(target)
    assert {"LICENSE", "configs/inference.json", "configs/labels/rois.json", "models/model.pt"} <= files.keys()
    assert "organdetr_monai/monai_label/tasks.py" in files and not any("__pycache__" in name for name in files)
    assert (app / "monaibundle_main.py").read_text() == STOCK
    assert "class OrganDetrApp(monaibundle_main.MyApp, MONAILabelApp)" in (app / "main.py").read_text()


def test_click_bundle_gets_a_name_by_which_the_server_sends_clicks(app, bundle, tmp_path):
    clicks = Path(shutil.copytree(bundle, tmp_path / "clicks"))
    shutil.copy(clicks / "configs" / "miq_sam3d" / "inference.json", clicks / "configs" / "inference.json")
    assert install(app, bundle=clicks) == app / "model" / CLICK_NAME and "deepgrow" in CLICK_NAME
    with pytest.raises(InputError, match="'deepgrow'"):
        install(app, bundle=clicks, name=DEFAULT_NAME)


def test_again_changes_nothing_and_brings_a_newer_version(app, bundle):
    target = install(app, bundle=bundle)
    before = contents(app)
    install(app, bundle=bundle)
    assert contents(app) == before
    (target / "configs" / "inference.json").write_text("{}")
    (target / "configs" / "gone.json").write_text("{}")
    install(app, bundle=bundle)
    assert contents(app) == before


def test_a_trained_model_stays_unless_asked(app, bundle):
    target = install(app, bundle=bundle)
    (target / "models" / "model.pt").write_bytes(b"trained")
    (target / "models" / "thresholds.json").write_text("{}")
    install(app, bundle=bundle)
    assert (target / "models" / "model.pt").read_bytes() == b"trained"
    install(app, bundle=bundle, replace_models=True)
    assert (target / "models" / "model.pt").read_bytes() == b"weights"
    assert not (target / "models" / "thresholds.json").exists(), "the new weights have none"


@pytest.mark.parametrize(
    ("main", "options", "message"),
    [
        (None, {}, "no main.py"),
        ("class MyApp(MONAILabelApp): pass  # radiology", {}, "another app than monaibundle"),
        ("class OrganDetrApp: pass", {}, "has lost its monaibundle_main.py"),
        (STOCK, {"name": "organs"}, "'detection'"),
        (STOCK, {"bundle": "elsewhere"}, "no bundle with weights"),
    ],
)
def test_anything_else_is_refused_untouched(app, bundle, tmp_path, main, options, message):
    (app / "main.py").unlink()
    if main is not None:
        (app / "main.py").write_text(main)
    before = contents(app)
    with pytest.raises(InputError, match=message):
        install(app, **{"bundle": bundle, **options})
    assert contents(app) == before and not (app / "model").exists()


def test_a_linked_bundle_is_not_written_through(app, bundle):
    (app / "model").mkdir()
    (app / "model" / DEFAULT_NAME).symlink_to(bundle, target_is_directory=True)
    with pytest.raises(InputError, match=r"lies in the app already"):
        install(app, bundle=bundle)


def test_command_says_what_to_do_next_or_what_is_wrong(app, bundle):
    command = [sys.executable, "-m", "organdetr_monai.monai_label", "--bundle", str(bundle)]
    done = subprocess.run([*command, str(app)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "monailabel start_server" in done.stdout
    wrong = subprocess.run([*command, str(app.parent)], capture_output=True, text=True, cwd=ROOT)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and "monailabel apps" in wrong.stderr
