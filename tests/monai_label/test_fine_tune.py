"""Fine-tuning on masks and boxes together: the configs that MONAI Label's training task runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from organdetr_monai.data.phantom import write_phantoms
from organdetr_monai.errors import input_error
from organdetr_monai.geometry import box_to_oriented, boxes_from_mask
from organdetr_monai.monai_label.submissions import Submission, write_datalist
from organdetr_monai.organs import SETS
from tests.bundles import SMALL, workflow

ROOT = Path(__file__).parents[2]
ORGANS = SETS["phantom"].organs


def rois_of(mask: Path, path: Path) -> Path:
    """ROIs around the organs of a mask."""
    import nibabel

    label = nibabel.load(mask)
    markups = []
    for box, organ in zip(*boxes_from_mask(label.get_fdata().astype("uint8")), strict=True):
        place = box_to_oriented(box, label.affine)
        markups.append({"type": "ROI", "name": ORGANS[organ - 1], "center": place.center.tolist()})
        markups[-1].update(size=place.size.tolist(), orientation=place.orientation.reshape(-1).tolist())
    path.write_text(json.dumps({"markups": markups}))
    return path


@pytest.fixture(scope="module")
def submissions(tmp_path_factory):
    """Three masks and two sets of ROIs."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=5, spacing=(10, 10, 10), workers=1, progress=False)
    pairs = list(zip(sorted((folder / "images").iterdir()), sorted((folder / "labels").iterdir()), strict=True))
    labels = [mask if k < 3 else rois_of(mask, folder / f"{k}.json") for k, (_, mask) in enumerate(pairs)]
    return [Submission(str(image), str(label), {}) for (image, _), label in zip(pairs, labels, strict=True)]


def run(run_id: str, names: list[str], **options) -> ConfigWorkflow:
    kind = "train" if run_id == "training" else "eval"
    own = {**SMALL, "bundle_root": str(ROOT), "device": "$torch.device('cpu')"}
    flow = workflow(ROOT / "configs", kind, names, run_id=run_id, **{**own, **options})
    flow.run()
    return flow


def test_masks_and_boxes_train_together_from_given_weights(submissions, tmp_path):
    counts = write_datalist(submissions, ORGANS, tmp_path / "datalist.json", val_split=0.4)
    assert counts == {"train": 3, "val": 2}
    options = {"datalist": str(tmp_path / "datalist.json"), "output_dir": str(tmp_path), "resume": False}
    options |= {"max_epochs": 1, "val_interval": 1, "batch_size": 3}
    first, second = tmp_path / "first", tmp_path / "second"
    run("training", ["train", "labels/rois"], ckpt_dir=str(first), **options)

    start = torch.load(first / "model.pt", weights_only=True)
    tuned = ["train", "labels/rois", "fine_tune"]
    still = run(
        "training", tuned, ckpt_dir=str(second), pretrained=str(first / "model.pt"), learning_rate=0.0, **options
    )
    weights = torch.load(second / "model.pt", weights_only=True)
    # The queries' boxes, too: they are the model's, not those of the few new cases.
    assert all(torch.allclose(weights[k], v) for k, v in start.items() if v.is_floating_point())
    batch = next(iter(still.parser.get_parsed_content("train#dataloader")))
    assert set(batch["has_mask"]) == {False, True}

    run("training", tuned, ckpt_dir=str(second), pretrained=str(first / "model.pt"), **options)
    moved = torch.load(second / "model.pt", weights_only=True)
    assert any(not torch.allclose(moved[k], v) for k, v in start.items())
    run("evaluating", ["train", "labels/rois", "evaluate"], ckpt_dir=str(second), **{**options, "max_epochs": 1})
    assert (second / "thresholds.json").is_file()


def test_fine_tuning_is_on_the_grid_of_the_weights_and_for_their_organs(tmp_path):
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / f"{name}.json") for name in ("train", "labels/rois", "fine_tune")])
    parser["bundle_root"], parser["device"] = str(ROOT), "$torch.device('cpu')"
    settings = json.loads((ROOT / "models" / "model.json").read_text())
    assert {key: parser.get_parsed_content(key) for key in settings} == settings
    start = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(v, start[k]) for k, v in parser.get_parsed_content("network").state_dict().items())

    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / f"{name}.json") for name in ("train", "fine_tune")])
    parser["pretrained"] = str(tmp_path / "model.pt")
    with pytest.raises(Exception) as caught:
        parser.get_parsed_content("organs")
    assert "there is no" in str(input_error(caught.value))
