"""Small made-up downloads in the exact layout of each public set, with organs placed in patient millimetres."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from organdetr_monai.data.prepare import prepare

# Centre (x, y, z) and half size in RAS+ mm: x grows to the patient's right, so left organs have a negative x.
ORGANS = {
    "liver": ((55, 0, 20), (40, 30, 25)),
    "spleen": ((-75, -20, 25), (14, 14, 18)),
    "kidney_left": ((-45, -30, -10), (14, 14, 24)),
    "kidney_right": ((45, -45, -15), (14, 12, 18)),
    "pancreas": ((0, 0, 0), (20, 10, 8)),
    "stomach": ((-40, 20, 20), (18, 18, 18)),
    "urinary_bladder": ((0, 10, -95), (15, 15, 15)),  # cut by the lower end
    "colon": ((0, 30, -40), (30, 10, 10)),
    "rectum": ((0, -30, -80), (10, 10, 12)),
    "small_bowel": ((10, 20, -65), (20, 10, 8)),
    "duodenum": ((20, 0, -5), (8, 8, 10)),
    "lung_upper_lobe_left": ((-50, 10, 85), (20, 20, 8)),
    "lung_lower_lobe_left": ((-50, 0, 68), (20, 20, 8)),
    "lung_upper_lobe_right": ((50, 10, 90), (20, 20, 4)),
    "lung_middle_lobe_right": ((50, 10, 78), (20, 20, 4)),
    "lung_lower_lobe_right": ((50, 10, 66), (20, 20, 4)),
    "heart": ((-5, 10, 70), (20, 20, 14)),
    "atrial_appendage_left": ((-24, 10, 60), (5, 5, 5)),
}
_EXTENT = 200.0  # mm along each axis, centred on the origin
AXES = ("RAS", "LPS", "PLI", "SRA")


def grid(axes: str = "RAS", spacing: tuple[float, float, float] = (5.0, 5.0, 8.0)):
    """Shape and affine of a volume around the origin; `spacing` is along the patient's x, y, z."""
    orientation = nib.orientations.axcodes2ornt(axes)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    shape = [0, 0, 0]
    for axis, (patient, direction) in enumerate(orientation.astype(int)):
        shape[axis] = round(_EXTENT / spacing[patient])
        affine[patient, axis] = direction * spacing[patient]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return tuple(shape), affine


def place(organs, shape, affine, where=ORGANS) -> np.ndarray:
    """Mask in which the k-th name (or tuple of names) of `organs` has the value k + 1, or its key if a dict."""
    numbered = organs if isinstance(organs, dict) else {k + 1: name for k, name in enumerate(organs)}
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    mask = np.zeros(shape, dtype=np.uint8)
    for value, names in numbered.items():
        for name in (names,) if isinstance(names, str) else names:
            centre, half = where[name]
            mask[(abs(points - centre) <= half).all(-1)] = value
    return mask


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def scan(path: Path, axes: str = "RAS") -> Path:
    """A CT: soft tissue in a box around the origin, air around it."""
    shape, affine = grid(axes)
    body = place(["body"], shape, affine, {"body": ((0, 0, 0), (95, 80, 100))})
    return save(path, np.where(body > 0, 40, -1000).astype(np.int16), affine)


def label(path: Path, organs, axes: str = "RAS") -> Path:
    shape, affine = grid(axes)
    return save(path, place(organs, shape, affine), affine)


def pair(image: Path, mask: Path, organs, axes: str = "RAS") -> None:
    scan(image, axes)
    label(mask, organs, axes)


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def abdomenct1k(root: Path, cases: int = 8) -> Path:
    organs = ["liver", ("kidney_left", "kidney_right"), "spleen", "pancreas"]
    for k in range(cases):
        part = f"AbdomenCT-1K-ImagePart{k % 3 + 1}"
        name = f"Case_{k + 1:05d}"
        pair(root / part / f"{name}_0000.nii.gz", root / "Mask" / f"{name}.nii.gz", organs, AXES[k % 4])
    return root


WORD = {
    1: "liver",
    2: "spleen",
    3: "kidney_left",
    4: "kidney_right",
    5: "stomach",
    8: "pancreas",
    9: "duodenum",
    10: "colon",
    11: "small_bowel",
    13: "rectum",
    14: "urinary_bladder",
}


def word(root: Path) -> Path:
    for k, part in enumerate(("Tr", "Tr", "Val", "Ts")):
        name = f"word_{k + 1:04d}.nii.gz"
        pair(root / f"images{part}" / name, root / f"labels{part}" / name, WORD, AXES[k])
    return root


def amos(root: Path, test_labels: bool = False) -> Path:
    organs = {
        1: "spleen",
        2: "kidney_right",
        3: "kidney_left",
        6: "liver",
        7: "stomach",
        10: "pancreas",
        13: "duodenum",
    }
    wrapped = root / "amos22"
    for number, part in ((1, "Tr"), (4, "Tr"), (500, "Tr"), (507, "Tr"), (8, "Va"), (600, "Va"), (9, "Ts")):
        name = f"amos_{number:04d}.nii.gz"
        scan(wrapped / f"images{part}" / name, AXES[number % 4])
        if part != "Ts" or test_labels:
            label(wrapped / f"labels{part}" / name, organs, AXES[number % 4])
    write(wrapped / "dataset.json", {"labels": {"0": "background", "1": "spleen", "9": "postcava"}})
    return root


SPINE = {20: "L1", 21: "L2", 24: "L5", 25: "L6", 28: "T13"}
_SPINE_AT = {name: ((0, -40, 60 - 30 * k), (15, 15, 10)) for k, name in enumerate(SPINE.values())}


def _spine(image: Path, mask: Path, axes: str) -> None:
    scan(image, axes)
    shape, affine = grid(axes)
    save(mask, place(SPINE, shape, affine, _SPINE_AT), affine)


def verse(root: Path) -> Path:
    """Both releases, by subject; verse004 is in both, and gl003 has two scans."""
    found = {
        "dataset-verse19training": ["sub-verse004", "sub-verse005"],
        "dataset-verse19test": ["sub-verse082"],
        "dataset-verse20training": ["sub-gl003_dir-ax", "sub-gl003_dir-sag", "sub-verse500_split-verse290"],
        "dataset-verse20validation": ["sub-verse600_dir-ax"],
        "dataset-verse20test": ["sub-verse004"],
    }
    for release, names in found.items():
        for k, name in enumerate(names):
            subject = name.split("_")[0]
            image = root / release / "rawdata" / subject / f"{name}_ct.nii.gz"
            folder = root / release / "derivatives" / subject
            _spine(image, folder / f"{name}_seg-vert_msk.nii.gz", AXES[k])
            write(folder / f"{name}_seg-subreg_ctd.json", [])
    return root


def verse_flat(root: Path) -> Path:
    for name in ("verse004", "verse500_CT-sag", "GL003_CT_ax"):
        _spine(root / f"{name}.nii.gz", root / f"{name}_seg.nii.gz", "PLI")
    return root


_COMMON = ("spleen", "kidney_left", "kidney_right", "liver", "stomach", "urinary_bladder", "colon")
_LOBES = tuple(name for name in ORGANS if name.startswith("lung_"))
HEART_V1 = tuple(f"heart_{part}" for part in ("myocardium", "atrium_left", "ventricle_left"))
HEART_V1 += ("heart_atrium_right", "heart_ventricle_right")


def totalsegmentator(root: Path, release: int = 2, cases: int = 4) -> Path:
    rows = ["image_id;age;gender;institute;study_type;split"]
    heart = ("heart", "atrial_appendage_left") if release == 2 else HEART_V1
    for k in range(cases):
        name, axes = f"s{k:04d}", AXES[k % 4]
        shape, affine = grid(axes)
        scan(root / name / "ct.nii.gz", axes)
        for organ in (*_COMMON, *_LOBES, *heart, "gallbladder"):
            if organ == "gallbladder":  # looked for, and absent
                mask = np.zeros(shape, np.uint8)
            else:
                mask = place([organ if organ in ORGANS else "heart"], shape, affine)
            save(root / name / "segmentations" / f"{organ}.nii.gz", mask, affine)
        view = "ct thorax-abdomen-pelvis" if k < cases - 1 else "ct head"
        rows.append(f"{name};60;m;A;{view};{('train', 'val', 'test')[k % 3]}")
    write(root / "meta.csv", "\ufeff" + "\n".join(rows) + "\n")
    return root


def nnunet(root: Path, version: int = 2) -> Path:
    if version == 2:
        content = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "liver": 1, "Left Kidney": 2, "tumour": 3},
            "numTraining": 4,
            "file_ending": ".nii.gz",
        }
    else:
        content = {
            "modality": {"0": "CT"},
            "labels": {"0": "background", "1": "liver", "2": "Left Kidney", "3": "tumour"},
            "training": [{"image": "./imagesTr/a_001.nii.gz", "label": "./labelsTr/a_001.nii.gz"}],
        }
    write(root / "dataset.json", content)
    for k in range(4):
        name = f"a_{k + 1:03d}"
        image, mask = root / "imagesTr" / f"{name}_0000.nii.gz", root / "labelsTr" / f"{name}.nii.gz"
        pair(image, mask, ["liver", "kidney_left", "pancreas"], AXES[k])
    return root


def decathlon(root: Path) -> Path:
    training = []
    for k in range(4):
        image, mask = f"imagesTr/liver_{k}.nii.gz", f"labelsTr/liver_{k}.nii.gz"
        pair(root / image, root / mask, ["liver", "pancreas"], AXES[k])
        write(root / f"imagesTr/._liver_{k}.nii.gz", "what macOS leaves in archives")
        training.append({"image": f"./{image}", "label": f"./{mask}"})
    scan(root / "imagesTs" / "liver_9.nii.gz")
    content = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "training": training,
        "test": ["./imagesTs/liver_9.nii.gz"],
    }
    write(root / "dataset.json", content)
    return root


def folder(root: Path, cases: int = 5) -> Path:
    for k in range(cases):
        organs = ["liver", "kidney_left", "kidney_right", "rectum", "colon"]
        pair(root / "images" / f"p{k}.nii.gz", root / "labels" / f"p{k}_seg.nii.gz", organs, AXES[k % 4])
    write(root / "label_map.json", {"liver": 1, "left kidney": 2, "right kidney": 3, "colon": [4, 5]})
    return root


#: Set name to the function that builds its download below a folder.
TREES = {
    "abdomenct1k": abdomenct1k,
    "word": word,
    "totalsegmentator": totalsegmentator,
    "amos": amos,
    "verse": verse,
    "nnunet": nnunet,
    "decathlon": decathlon,
    "folder": folder,
}


def run(set_name, source, output, **options):
    """Prepare in this process; the report and the datalist's content."""
    report = prepare(set_name, source, output, **{"workers": 1, "progress": False, **options})
    return report, json.loads(report.datalist.read_text())


def centres(datalist: Path, content: dict, case: dict) -> dict[str, np.ndarray]:
    """Centre in RAS+ mm of the bounds of each organ in a case's label."""
    image = nib.load(datalist.parent / case["label"])
    array = np.asarray(image.dataobj)
    assert array.shape == nib.load(datalist.parent / case["image"]).shape
    found = {}
    for organ, value in content["labels"].items():
        points = np.argwhere(array == value)
        if len(points):
            found[organ] = nib.affines.apply_affine(image.affine, (points.min(0) + points.max(0)) / 2)
    return found
