"""The click bundle in a MONAI Label server, with a network that knows the answer: what comes back must be exact."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from organdetr_monai.geometry import voxel_to_lps
from organdetr_monai.monai_label.install import CLICK_NAME, install
from organdetr_monai.writers.schema import validate
from tests.affines import reorient, rotation
from tests.data.scan_files import write
from tests.miq_sam3d import oracle
from tests.miq_sam3d.click_bundle import KINDS, LESIONS, make_click_bundle, scan
from tests.monai_label.server import ROOT, Environment, HTTPStatus, Server

__all__ = ["check_clicks"]

Step = Callable[[str], None]


def make_bundle(folder: Path) -> Path:
    """What is installed: this repository's package and config, and the oracle as a module of the bundle's own."""
    bundle = make_click_bundle(folder, network_def={"_target_": "oracle.Oracle"})
    metadata = json.loads((ROOT / "configs" / "miq_sam3d" / "metadata.json").read_text(encoding="utf-8"))
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (bundle / "configs" / "train.json").write_text("{}")
    shutil.copytree(ROOT / "organdetr_monai", bundle / "organdetr_monai", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt"):
        (bundle / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, bundle / name)
    return bundle


def make_studies(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """One patient, stored along the axes, flipped and permuted, and lying oblique; by name of the image."""
    array, affine = scan(lesions=LESIONS), np.diag([2.0, 2.0, 2.0, 1.0])
    turned = np.eye(4)
    turned[:3, :3] = rotation([0.1, -0.15, 0.2])
    flipped = reorient(array, affine, (2, 0, 1), (True, False, True))
    studies = {"straight": (array, affine), "flipped": flipped, "oblique": (array, turned @ affine)}
    folder.mkdir()
    for name, (values, matrix) in studies.items():
        write(folder / f"{name}.nii.gz", np.ascontiguousarray(values), matrix)
    return studies


def check_clicks(environment: Environment, stock: Path, folder: Path, step: Step) -> None:
    """Drive the click bundle through both apps.

    Parameters
    ----------
    environment : Environment
    stock : Path
        An untouched monaibundle app; it is copied.
    folder : Path
        For what this makes.
    step : callable
        Prints what was found.
    """
    bundle = make_bundle(folder / "click_bundle")
    studies = make_studies(folder / "click_studies")
    own, plain = (Path(shutil.copytree(stock, folder / name)) for name in ("own_app", "plain_app"))
    target = install(own, bundle=bundle)
    shutil.copyfile(oracle.__file__, target / "oracle.py")
    shutil.copytree(target, plain / "model" / CLICK_NAME)
    for app, what in ((own, "our app"), (plain, "untouched app")):
        log = folder / f"{app.name}.log"
        with Server(environment, app, folder / "click_studies", model=CLICK_NAME, log=log) as server:
            try:
                _check(server, studies, lambda text, what=what: step(f"{what}: {text}"), ours=app == own)
            except BaseException:
                step(server.tail(60))
                raise


def _check(server: Server, studies: dict[str, tuple[np.ndarray, np.ndarray]], step: Step, *, ours: bool) -> None:
    model = server.get("/info/")["models"][CLICK_NAME]
    assert (model["type"], model["labels"]) == ("deepgrow", {"lesion": 1}), model
    step(f"{CLICK_NAME} is of type {model['type']}")
    for name, (array, affine) in studies.items():
        click = np.argwhere(array == KINDS["cyst"])[10].tolist()
        answer = server.infer(name, foreground=[click], background=[], label="cyst")["answer"]
        validate(answer, "lesions")
        assert len(answer["lesions"]) == 3 and answer["clicks"][0]["lesion"] == 1
        assert np.allclose(answer["clicks"][0]["point_mm"], voxel_to_lps(np.add(click, 0.5), affine), atol=1e-3)
        mask, matrix = _mask(server, name, foreground=[click])
        assert np.array_equal(mask, array == KINDS["cyst"]) and np.allclose(matrix, affine, atol=1e-3)
        step(f"foreground click {click} in {name}: 3 lesions, the mask is right to the voxel, on the image's grid")
    array = studies["straight"][0]
    times = []
    for click in ([9, 9, 9], [38, 10, 12]):
        start = time.monotonic()
        server.infer("straight", foreground=[click])
        times.append(time.monotonic() - start)
    step(f"another image, first click {times[0]:.1f} s, second click {times[1]:.1f} s")
    ids, _ = _mask(server, "straight", foreground=[[38, 10, 12], [9, 9, 9]], instances=True)
    assert sorted(np.unique(ids)) == [0, 1, 2, 3, 4, 5] and np.array_equal(ids > 0, array > 0)
    step("clicks of two kinds, instances: ids 1 to 5")
    fewer, _ = _mask(server, "straight", foreground=[[9, 9, 9]], background=[[34, 27, 44]])
    assert fewer.any() and not fewer[34, 27, 44]
    step("background click: its lesion is left out")
    nothing = server.infer("straight", foreground=[[25, 20, 5]])["answer"]
    assert not nothing["found"]
    step(f"click on background: {nothing['reason']}")
    for params in ({}, {"foreground": [[0, 0, 0]]}, {"foreground": [[99, 0, 0]]}):
        try:
            server.infer("straight", **params)
        except HTTPStatus as status:
            assert status.code == (400 if ours else 500), status
            step(f"{params or 'no click'}: {status}"[:160])
        else:
            raise AssertionError(f"the server accepted {params}")
    if ours:
        assert CLICK_NAME not in server.get("/info/").get("trainers", {})


def _mask(server: Server, image: str, **params: object) -> tuple[np.ndarray, np.ndarray]:
    """The label map that comes back, and its affine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mask.nii.gz")
        path.write_bytes(server.infer_file(image, **params))
        mask = nib.load(path)
        return np.asarray(mask.dataobj), mask.affine
