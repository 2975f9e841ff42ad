"""CT simulated from real masks of kidneys, their tumours and cysts: real shapes, synthetic grey values.

For the masks of KiTS23, whose images are not at hand. Their licence forbids to ship anything that is made from them.
What surrounds the kidneys is invented: fat, muscle, a spine, great vessels, liver and spleen, and bowel whose fluid is
as dark as a cyst.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from organdetr_monai.data.headers import load_nifti
from organdetr_monai.data.phantom_body import PHASE_HU, PHASES
from organdetr_monai.data.phantom_scan import add_noise
from organdetr_monai.data.phantom_shapes import Canvas, gyroid, smooth_max, superquadric, tube, waves
from organdetr_monai.data.sets.base import Case
from organdetr_monai.data.splits import assign_splits
from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.components import MIN_VOLUME, check_min_volume, label_components
from organdetr_monai.miq_sam3d.lesion_cases import LesionCase, write_lesion_cases

SIMULATION_VERSION = 1  # raise it with every change of what a seed gives
KINDS = ("tumour", "cyst")
KIDNEY, TUMOUR, CYST = 1, 2, 3  # values of the masks
CORTEX_MM = 7.0


def simulate_ct(mask: np.ndarray, affine: np.ndarray, seed: int | Sequence[int]) -> np.ndarray:
    """HU of a scan that shows the kidneys of a mask.

    Parameters
    ----------
    mask : ndarray of shape (X, Y, Z)
        1 kidney, 2 tumour, 3 cyst; axes roughly to the patient's right, front and head (RAS).
    affine : ndarray of shape (4, 4)
        Indices of voxel centres to RAS mm.
    seed : int or sequence of int
        Same seed, same scan.

    Returns
    -------
    ndarray of shape (X, Y, Z), int16
        The contrast phase (arterial, portal venous or delayed), the noise and the surroundings are drawn from the seed.
        Cysts have 0 to 20 HU and no structure; tumours enhance less than the cortex, unevenly, and large ones are
        necrotic inside.
    """
    rng = np.random.default_rng(seed)
    phase = int(rng.choice([1, 2, 3], p=(0.3, 0.5, 0.2)))  # lesions of the kidney are not looked for without contrast
    hu = {name: values[phase] * rng.normal(1, 0.07) for name, values in PHASE_HU.items()}
    canvas, middle = _canvas(mask, affine)
    _paint_surroundings(canvas, middle, hu, rng)
    _paint_kidneys(canvas, mask, affine, hu, rng)
    return add_noise(canvas.hu, rng)


def _canvas(mask: np.ndarray, affine: np.ndarray) -> tuple[Canvas, np.ndarray]:
    """Canvas in mm about the point midway between the kidneys, and their half extent (3,) in mm."""
    here = np.argwhere(mask > 0) @ affine[:3, :3].T  # (n, 3) mm, less the origin
    centre, half = (here.max(0) + here.min(0)) / 2, (here.max(0) - here.min(0)) / 2
    index = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in mask.shape), indexing="ij"))  # (3, X, Y, Z)
    steps = affine[:3, :3].astype(np.float32)
    position = np.tensordot(steps, index, 1) - centre.astype(np.float32)[:, None, None, None]
    to_voxel = np.linalg.inv(affine[:3, :3]) @ np.column_stack([np.eye(3), centre])  # (3, 4)
    blur = 1.1 * abs(np.linalg.det(affine[:3, :3])) ** (1 / 3)
    return Canvas(position, to_voxel, slack=0.0, blur=blur), half


def _paint_surroundings(canvas: Canvas, half: np.ndarray, hu: dict[str, float], rng: np.random.Generator) -> None:
    """What lies around kidneys that extend by `half` (3,) mm from the middle, in the sense of RAS."""
    q, (x, y, z) = canvas.position, canvas.position
    everywhere = slice(None), slice(None), slice(None)
    away = np.zeros(x.shape, np.float32)
    canvas.paint(everywhere, away - 100, rng.normal(-103, 4) + 6 * waves(rng, 1, 25)(q))
    back = -0.6 * half[1] - 14 + waves(rng, 6, 120)(q)
    canvas.paint(everywhere, y - back, hu["muscle"])
    _paint_bowel(canvas, half, hu, rng)

    tall = 2 * half[2] + 80
    liver = (half[0] * 0.85, half[1] * 0.7 + 15, half[2] * 0.9)
    canvas.draw(superquadric(liver, (65, 45, 0.8 * half[2] + 25), power=2.6, bump=waves(rng, 6, 90)), hu["liver"])
    spleen = (-half[0] * 1.05, half[1] * 0.2, half[2] * 1.05)
    canvas.draw(superquadric(spleen, (35, 45, 45), power=2.3, bump=waves(rng, 5, 70)), hu["spleen"])
    if rng.random() < 0.6:
        gall = np.add(liver, (-30, 10, -0.5 * half[2]))
        canvas.draw(superquadric(gall, rng.uniform(10, 20, 3)), rng.uniform(2, 22))
    for side in (-1, 1):
        psoas = [(side * 24, -8, tall / 2), (side * 34, -8, 0), (side * 46, -2, -tall / 2)]
        canvas.draw(tube(psoas, (9, 17, 22), pieces=6), hu["muscle"])
    bone, marrow = rng.uniform(380, 560), rng.uniform(110, 240)
    middle = np.abs(np.mod(z / rng.uniform(34, 40) + rng.random(), 1) - 0.5)  # 0 in a vertebra, 0.5 in a disc
    body = (np.sqrt((x / 25) ** 2 + ((y + 10) / 18) ** 2) - 1) * 18
    canvas.paint(everywhere, body, bone)
    canvas.paint(everywhere, body + 3, marrow)
    canvas.paint(everywhere, np.maximum(body, (0.41 - middle) * -38), 85)
    canvas.paint(everywhere, np.hypot(x, y + 36) - 9, 28)
    for place, radius, blood in ((-14, 11, "artery"), (16, 12, "vein")):
        line = [(place, 20, tall / 2), (place + rng.normal(0, 3), 18, 0), (place, 16, -tall / 2)]
        canvas.draw(tube(line, (radius,) * 3, pieces=6), hu[blood])


def _paint_bowel(canvas: Canvas, half: np.ndarray, hu: dict[str, float], rng: np.random.Generator) -> None:
    """Loops in front of the kidneys, with fluid, contrast and gas."""
    q = canvas.position
    front = 0.35 * half[1] + 10 - q[1] + waves(rng, 10, 90)(q)  # negative in front of the kidneys
    bend, phase = waves(rng, 20, 75), rng.uniform(0, 6.3, 3)
    field = gyroid(q + bend(q), rng.uniform(46, 62), phase)
    loops = smooth_max(front, (0.75 - np.abs(field) + rng.uniform(-0.3, 0.4)) * -8, 8)
    everywhere = slice(None), slice(None), slice(None)
    content = 250.0 if rng.random() < 0.15 else 12.0  # contrast by mouth
    canvas.paint(everywhere, loops, hu["wall"])
    canvas.paint(everywhere, np.maximum(loops + 4, (0.35 - np.abs(field)) * -14), content)
    canvas.paint(everywhere, np.maximum(np.maximum(loops + 6, (field - 0.55) * -12), front + 25), -850)


def _paint_kidneys(
    canvas: Canvas, mask: np.ndarray, affine: np.ndarray, hu: dict[str, float], rng: np.random.Generator
) -> None:
    """Cortex around medulla, then each tumour and cyst."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    pyramids = gyroid(canvas.position, 24, rng.uniform(0, 6.3, 3))
    whole = slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2])
    organ = _distance(mask > 0, whole, spacing)
    canvas.paint(whole, organ, hu["cortex"])
    canvas.paint(whole, smooth_max(organ + CORTEX_MM, (pyramids - 0.5) * 5, 3), hu["medulla"])
    for value in (TUMOUR, CYST):
        components, _ = ndimage.label(mask == value, structure=np.ones((3, 3, 3)))
        for k, box in enumerate(ndimage.find_objects(components), start=1):
            x, y, z = (slice(max(s.start - 2, 0), s.stop + 2) for s in box)
            view = x, y, z
            away = _distance(components == k, view, spacing)
            if value == CYST:
                canvas.paint(view, away, rng.uniform(0, 20))
            else:
                canvas.paint(view, away, _tumour(away, spacing, hu["cortex"], rng))


def _tumour(away: np.ndarray, spacing: np.ndarray, cortex: float, rng: np.random.Generator) -> np.ndarray:
    """HU of a tumour: less than the cortex, uneven, with necrosis more than 8 mm below its surface."""
    solid = cortex * rng.uniform(0.42, 0.72)
    grain = ndimage.gaussian_filter(rng.standard_normal(away.shape, dtype=np.float32), rng.uniform(3, 6) / spacing)
    grain /= grain.std() + 1e-6
    hu = solid + rng.uniform(6, 16) * grain
    dead = (grain > rng.uniform(0.0, 1.2)) & (away < -8)
    return np.where(dead, rng.uniform(15, 35), hu).astype(np.float32)


def _distance(inside: np.ndarray, box: tuple[slice, ...], spacing: np.ndarray) -> np.ndarray:
    """Distance in mm from each voxel of a box to the surface of what is inside, negative there."""
    view = np.pad(inside[box], 1, mode="edge")  # a lesion that the scan cuts off goes on
    core = (slice(1, -1),) * 3
    if view.all():
        return np.full(view[core].shape, -float(min(view.shape)) * float(spacing.min()), np.float32)
    outer, inner = (ndimage.distance_transform_edt(part, sampling=spacing)[core] for part in (~view, view))
    half = spacing.min() / 2  # distances go to voxel centres; the surface lies midway
    return (np.maximum(outer - half, 0) - np.maximum(inner - half, 0)).astype(np.float32)


def simulate_case(source: str, seed: int, min_volume: float, name: str) -> LesionCase:
    """The case of a mask ``source/NAME.nii.gz``; specks of the annotation are drawn as kidney."""
    nifti = nib.as_closest_canonical(load_nifti(Path(source) / f"{name}.nii.gz"))
    mask, affine = np.asarray(nifti.dataobj).astype(np.uint8), nifti.affine
    voxel_volume = float(abs(np.linalg.det(affine[:3, :3])))
    instances, kinds = label_components(mask, {TUMOUR: 1, CYST: 2}, voxel_volume=voxel_volume, min_volume=min_volume)
    mask[(mask > KIDNEY) & (instances == 0)] = KIDNEY
    image = simulate_ct(mask, affine, (seed, zlib.crc32(name.encode())))
    return LesionCase(image, instances, [KINDS[k - 1] for k in kinds], affine)


def simulate_kits(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    seed: int = 0,
    splits: tuple[float, float, float] = (0.6, 0.15, 0.25),
    min_volume: float = MIN_VOLUME,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Simulate a CT for each mask of a folder, with instances and a datalist; takes up where it was interrupted.

    Parameters
    ----------
    source : path
        Folder of masks with ``cases.json``, which lists them under ``cases`` as ``mask``. Not changed.
    output : path
        Gets what `organdetr_monai.miq_sam3d.lesion_cases.write_lesion_cases` writes.
    seed : int
        Of the scans and of the split; a case is the same whatever the other cases.
    splits : (train, val, test)
        Shares of the patients, each of whom has one mask.
    min_volume : float
        mm³; a component that is smaller is no lesion. The default reproduces the counts of ``cases.json``.
    workers : int
        Processes; 1 works in this one.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        ``datalist.json`` with the kinds `KINDS`.

    Raises
    ------
    InputError
        The masks are not there, the shares are none, or the folder holds cases of other options.
    """
    source, output = Path(source), Path(output)
    if not (source / "cases.json").is_file():
        raise InputError(f"{source} has no cases.json.", "Give the folder of the KiTS23 masks.")
    listed = json.loads((source / "cases.json").read_text(encoding="utf-8"))["cases"]
    names = sorted(case["mask"].removesuffix(".nii.gz") for case in listed)
    cases = [Case(name, source / f"{name}.nii.gz", source / f"{name}.nii.gz") for name in names]
    split = assign_splits(cases, seed=seed, fractions=splits)
    generator = {
        "name": "simulated kidneys",
        "version": SIMULATION_VERSION,
        "seed": seed,
        "splits": list(splits),
        "min_volume": check_min_volume(min_volume),
        "cases": len(names),
        "phases": list(PHASES[1:]),
    }
    return write_lesion_cases(
        output,
        names,
        partial(simulate_case, str(source), seed, min_volume),
        kinds=KINDS,
        splits=[split[name] for name in names],
        generator=generator,
        workers=workers,
        progress=progress,
    )
