"""From a folder of images and masks to boxes of organs, in cells (`# %%`) for an editor or Jupyter, or as a script.

    python docs/tutorial.py

It works in the folder ``tutorial_run`` below the one it is started from. Two epochs on a handful of synthetic scans
show every step and train nothing of use: docs/training.md has the same for real data, from the command line.
"""

# %% [markdown]
# ## A folder of images and masks
# Yours would hold scans of patients. Here they are synthetic: `images/case_000.nii.gz` and, of the same name and on the
# same grid, `labels/case_000.nii.gz`. The label map says which value of the masks means which organ; organs that it
# does not name are not looked for.

# %%
import json
from pathlib import Path
from typing import Any

import nibabel
from monai.bundle import run

import organdetr_monai
from organdetr_monai import OrganDetector
from organdetr_monai.data.phantom import PHANTOM_ORGANS, write_phantoms
from organdetr_monai.data.prepare import prepare
from organdetr_monai.geometry import boxes_from_mask
from organdetr_monai.history import load_history
from organdetr_monai.writers.crops import write_crops

BUNDLE = Path(organdetr_monai.__file__).parents[1]
WORK = Path("tutorial_run").resolve()
ORGANS = ["liver", "spleen", "heart", "lung_left"]

write_phantoms(WORK / "scans", cases=8, seed=1, spacing=(6, 6, 6), workers=1, progress=False)
values = {organ: PHANTOM_ORGANS.index(organ) + 1 for organ in ORGANS}
(WORK / "scans" / "label_map.json").write_text(json.dumps(values))
print("label map:", values)

# %% [markdown]
# ## The datalist
# `prepare` checks every case, leaves out those that cannot be used and says why, and draws the splits. Scans stay where
# they are. On the command line: `organdetr prepare folder tutorial_run/scans tutorial_run/prepared`.

# %%
report = prepare("folder", WORK / "scans", WORK / "prepared", fractions=(0.5, 0.25, 0.25), workers=1, progress=False)
print("cases:", report.counts, "skipped:", report.skipped)

# %% [markdown]
# ## Training
# The same as `python -m monai.bundle run training --config_file configs/train.json --datalist ...`: every key of the
# config can be overridden. A coarse working grid makes it quick; `window` times `spacing` is what the network sees at
# once, here 512×384×512 mm.

# %%
settings: dict[str, Any] = {
    "bundle_root": str(BUNDLE),
    "datalist": str(report.datalist),
    "organs": ORGANS,
    "spacing": [8.0, 8.0, 8.0],
    "window": [64, 48, 64],
    "ckpt_dir": str(WORK / "model"),
    "output_dir": str(WORK / "model"),
}
configs = BUNDLE / "configs"
run("training", config_file=str(configs / "train.json"), **settings, max_epochs=2, val_interval=1, resume=False)

history = load_history(WORK / "model" / "history.json")
for epoch in history:
    print(f"epoch {epoch['epoch']}: loss {epoch['train']['loss']:.2f}, mean IoU {epoch['validation']['mean_iou']:.3f}")
print("curves:", WORK / "model" / "training.png")

# %% [markdown]
# ## Evaluation
# On the validation split, which also fits the score from which up each organ is reported; then on the test split,
# whose table has a folder of its own.

# %%
both = [str(configs / "train.json"), str(configs / "evaluate.json")]
run("evaluating", config_file=both, **settings)
run("evaluating", config_file=both, **settings, split="test")
figures = json.loads((WORK / "model" / "test" / "metrics.json").read_text())
print("keys of metrics.json:", ", ".join(figures))

# %% [markdown]
# ## Detection
# The model knows its organs and its grid from `model.json` beside it. Boxes come in voxels of the scan's own array,
# `[start, stop)`, and in patient LPS millimetres: docs/formats.md.

# %%
test = next(case for case in json.loads(report.datalist.read_text())["cases"] if case["split"] == "test")
scan = report.datalist.parent / test["image"]
detector = OrganDetector.load(WORK / "model" / "model.pt")
detections = detector(scan)
detections.save(WORK / "detections.json")

mask = nibabel.load(report.datalist.parent / test["label"]).get_fdata().astype(int)
boxes, found = boxes_from_mask(mask)
truth = dict(zip(found.tolist(), boxes.tolist(), strict=True))
for organ in detections.organs:
    print(f"{organ.organ}: {organ.status}, score {organ.score:.2f}")
    print("    truth ", truth.get(values[organ.organ], "not in the scan"))
    if organ.status == "present":
        print("    voxels", [round(edge, 1) for edge in organ.box_voxel])
        print("    LPS mm", organ.box.min.round(1), "to", organ.box.max.round(1))

# %% [markdown]
# ## Crops
# A piece of the scan around each organ that was found, with 20 mm around it, where it lies in the patient.

# %%
crops = write_crops(detections, detector.read(scan)[0].numpy(), WORK / "crops", margin=20)
print("crops:", [path.name for path in crops.values()])
