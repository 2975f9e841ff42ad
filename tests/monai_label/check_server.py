"""The bundle in a real MONAI Label server: install, start, infer over HTTP, train, infer again, stop.

    python tests/monai_label/check_server.py [--bundle dist/organ_detr_ct_detection] [--environment DIR] [--only clicks]

Makes an environment with MONAI Label and an app, both in a temporary folder unless told otherwise; the server reaches
no other machine. Then the click bundle, with a network that knows the answer (``click_checks``). Not part of pytest's
run: with installing it takes minutes. The exit code is 0 if all checks held.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works in a checkout that is not installed

from organdetr_monai.data.phantom import write_phantoms
from organdetr_monai.data.readers import read_scan
from organdetr_monai.detections import Detections
from organdetr_monai.detector import OrganDetector
from organdetr_monai.monai_label.install import DEFAULT_NAME, install
from tests.data.scan_files import write
from tests.monai_label.click_checks import check_clicks
from tests.monai_label.server import ROOT, Environment, HTTPStatus, Server

SAME = 0.01  # mm: the same file through the server and through our own detector
CONVERTED = 0.5  # mm: MONAI Label's conversion of a series to NIfTI against the series itself
TORSO = ROOT.parent / "shared" / "data" / "torso"
_CONVERT = (
    "import sys; from monailabel.datastore.utils.convert import dicom_to_nifti; print(dicom_to_nifti(sys.argv[1]))"
)


def step(text: str) -> None:
    """Print what was found, with the time since the start."""
    print(f"[{time.monotonic() - _START:6.1f} s] {text}", flush=True)


_START = time.monotonic()


def get_app(environment: Environment, folder: Path) -> Path:
    """MONAI Label's own copy of the monaibundle app."""
    download = ["apps", "--download", "--name", "monaibundle", "--output", str(folder)]
    run_label(environment, "-m", "monailabel.main", *download)
    return folder / "monaibundle"


def make_app(environment: Environment, folder: Path, bundle: Path) -> Path:
    """The app with the bundle in it; installing twice changes nothing."""
    app = get_app(environment, folder)
    install(app, bundle=bundle)
    before = {path: path.read_bytes() for path in app.rglob("*") if path.is_file()}
    install(app, bundle=bundle)
    assert before == {path: path.read_bytes() for path in app.rglob("*") if path.is_file()}
    for weights in (ROOT / "models" / "phantom").iterdir():  # the studies are phantoms
        shutil.copy(weights, app / "model" / DEFAULT_NAME / "models")
    return app


def run_label(environment: Environment, *arguments: str) -> str:
    """Run MONAI Label's Python; what it printed."""
    done = subprocess.run(
        [environment.python, *arguments], env=environment.variables, capture_output=True, text=True, check=True
    )
    return done.stdout


def make_studies(environment: Environment, folder: Path) -> tuple[Path, list[Path], dict[str, Path]]:
    """A datastore of phantoms and of series converted by MONAI Label; the phantoms' masks; the series by name."""
    phantoms = write_phantoms(folder / "phantoms", cases=5, seed=7, workers=1, progress=False).parent
    studies = folder / "studies"
    studies.mkdir()
    for image in (phantoms / "images").iterdir():
        shutil.copy(image, studies)
    array, affine = read_scan(studies / "case_000.nii.gz")
    series = {"phantom_series": write(folder / "series", array, affine)}
    if TORSO.is_dir():
        series["torso_series"] = TORSO / "dicom"
        shutil.copy(TORSO / "ct.nii.gz", studies / "torso.nii.gz")
    for name, path in series.items():
        converted = run_label(environment, "-c", _CONVERT, str(path)).splitlines()[-1]
        shutil.move(converted, studies / f"{name}.nii.gz")
    return studies, sorted((phantoms / "labels").iterdir()), series


def compare(answer: dict, own: Detections, tolerance: float) -> float:
    """Largest difference in mm between a server's boxes and ours; organs, ids and scores must agree."""
    names = [entry.organ for entry in own.present]
    assert answer["organ"] == names, f"the server found {answer['organ']}, we {names}"
    assert answer["label"] == [answer["label_names"][name] for name in names]
    wanted = [[*entry.box.center, *(entry.box.max - entry.box.min)] for entry in own.present]
    assert np.allclose(
        answer["score"], [entry.score for entry in own.present], atol=1e-3 if tolerance == SAME else 0.05
    )
    gap = float(np.abs(np.array(answer["box"]) - wanted).max(initial=0.0))
    assert gap <= tolerance, f"boxes differ by {gap} mm"
    return gap


def check_inference(server: Server, detector: OrganDetector, series: dict[str, Path]) -> None:
    """Local NIfTI, DICOM converted by MONAI Label, a folder of DICOM, markups, and errors."""
    for image in sorted(path.name.removesuffix(".nii.gz") for path in server.studies.glob("*.nii.gz")):
        converted = image in series
        source = series[image] if converted else server.studies / f"{image}.nii.gz"
        own, answer = detector(source), server.infer(image)
        gap = compare(answer, own, CONVERTED if converted else SAME)
        what = "DICOM converted by MONAI Label, against the series" if converted else "NIfTI"
        step(f"infer {image} ({what}): {len(answer['box'])} organs, at most {gap:.2g} mm from ours")
    for name, path in series.items():
        gap = compare(server.infer(str(path)), detector(path), SAME)
        step(f"infer {name} (folder of DICOM): at most {gap:.2g} mm from ours")
    rois = server.infer("case_001", output="image")["markups"]
    own = detector(server.studies / "case_001.nii.gz")
    assert [roi["name"] for roi in rois] == [roi["controlPoints"][0]["label"] for roi in rois]
    assert [roi["name"] for roi in rois] == [entry.organ for entry in own.present]
    for roi, entry in zip(rois, own.present, strict=True):
        assert np.allclose(roi["center"], entry.box.center, atol=SAME)
        assert np.allclose(roi["size"], entry.box.size, atol=SAME)
    step(f"markups: {len(rois)} ROIs, named by organ, where ours are")
    wrong = {"nowhere": 404, str(server.app / "main.py"): 400}
    for image, code in wrong.items():
        refused = status_of(lambda image=image: server.infer(image))
        assert refused.code == code, refused
        step(f"infer {Path(image).name}: {refused}")
    refused = status_of(lambda: server.infer("case_001", device="$print()"))
    assert refused.code == 400, refused
    step(f"infer on another device: {refused}")


def status_of(call: Callable[[], object]) -> HTTPStatus:
    """The refusal that a call ends in."""
    try:
        call()
    except HTTPStatus as status:
        return status
    raise AssertionError("the server accepted it")


def check_training(server: Server, labels: list[Path]) -> None:
    """Fine-tune on masks and on ROIs, with the model published at the end; refuse what cannot be trained on."""
    nothing = server.train(max_epochs=1)
    assert nothing["status"] == "ERROR" and any("usable labels" in line for line in nothing["details"]), nothing
    step("train without labels: " + next(line for line in nothing["details"] if "usable labels" in line))

    organs = server.get("/info/")["models"][server.model]["labels"]
    for k, path in enumerate(labels[:3]):
        listed = {"label_info": [{"name": name, "idx": value} for name, value in organs.items()]} if k else {}
        server.submit(f"case_{k:03d}", path, **listed)
    draft = server.studies.parent / "rois.json"
    draft.write_text(json.dumps(as_client_saves(server.infer("case_003", output="image"))))
    server.submit("case_003", draft)
    other = server.studies.parent / "other.json"
    other.write_text(json.dumps({"markups": []}))
    server.submit("case_004", other)

    models = server.app / "model" / server.model / "models"
    before, weights = server.infer("case_004"), (models / "model.pt").read_bytes()
    status = server.train(max_epochs=3, val_split=0.25, batch_size=1)
    assert status["status"] == "DONE", "\n".join(status["details"])
    datalist = json.loads((models.parent / "runs" / "monai_label" / "datalist.json").read_text())
    step(f"train: {status['status']}, {status['start_ts']} to {status['end_ts']}, on these labels:")
    for case in datalist["cases"]:
        step(f"  {case['split']:5} {Path(case['label']).name}, {len(case['annotated'])} organs annotated")
    assert sorted(Path(case["label"]).suffix for case in datalist["cases"]) == [".gz"] * 3 + [".json"]
    metrics = json.loads((models.parent / "runs" / "monai_label" / "metrics.json").read_text())
    step(f"  mAP_coco on the validation label {metrics['mAP_coco']:.3f}")

    assert (models / "model.pt").read_bytes() != weights
    assert (models / "model_as_installed.pt").read_bytes() == weights
    after = server.infer("case_004")
    gap = compare(after, OrganDetector.load(models.parent)(server.studies / "case_004.nii.gz"), SAME)
    assert after["box"] != before["box"]
    step(f"infer case_004 with the new weights: {len(after['box'])} organs, at most {gap:.2g} mm from ours")
    old = server.infer("case_004", model_filename="model_as_installed.pt")
    shared = [name for name in old["organ"] if name in before["organ"]]
    pick = lambda answer: np.array([answer["box"][answer["organ"].index(name)] for name in shared])  # noqa: E731
    assert shared and np.allclose(pick(old), pick(before), atol=SAME)
    step("infer case_004 with model_filename=model_as_installed.pt: as before the training")


def as_client_saves(document: dict) -> dict:
    """What 3D Slicer sends back: nodes renamed by MONAI Label's plugin, and one ROI that is no organ."""
    for k, roi in enumerate(document["markups"]):
        roi["name"] = f"Detection ROI - {k}"
    document["markups"].append({**document["markups"][0], "name": "my note", "controlPoints": []})
    return document


def main() -> int:
    """Run all checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT, help="root of the bundle to install; default: %(default)s")
    parser.add_argument("--environment", type=Path, help="folder of the environment; made, or used if it is there")
    parser.add_argument("--only", choices=["organs", "clicks"], help="one of the two bundles")
    parser.add_argument("--base", type=Path, help="site-packages with torch and MONAI, not to be installed again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="organ_detr_label_") as temporary:
        folder = Path(temporary)
        environment = Environment(options.environment or folder / "environment", options.base)
        step(f"environment {environment.folder}: " + ", ".join(versions(environment)))
        if options.only != "clicks":
            check_organs(environment, folder, options.bundle)
        if options.only != "organs":
            check_clicks(environment, get_app(environment, folder / "stock"), folder, step)
    print("all checks held")
    return 0


def check_organs(environment: Environment, folder: Path, bundle: Path) -> None:
    """Inference and training with Organ-DETR."""
    app = make_app(environment, folder / "apps", bundle)
    studies, labels, series = make_studies(environment, folder)
    detector = OrganDetector.load(app / "model" / DEFAULT_NAME)
    with Server(environment, app, studies, model=DEFAULT_NAME, log=folder / "server.log") as server:
        step(f"server, process {server.process.pid}, answers on 127.0.0.1:{server.port}; it has no internet")
        try:
            check_inference(server, detector, series)
            check_training(server, labels)
        except BaseException:
            print(server.tail(80), file=sys.stderr)
            raise
    step(f"server stopped, exit code {server.process.returncode}")


def versions(environment: Environment) -> list[str]:
    """Of what matters, as installed."""
    code = "from importlib.metadata import version as v; print(*(n + ' ' + v(n) for n in {names!r}), sep='\\n')"
    names = ["monailabel", "monai", "torch", "pydicom", "numpy"]
    return run_label(environment, "-c", code.format(names=names)).split("\n")[: len(names)]


if __name__ == "__main__":
    sys.exit(main())
