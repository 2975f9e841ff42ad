"""How a phantom is scanned: pose, field of view, voxel grid and noise."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from scipy.ndimage import correlate1d
from scipy.spatial.transform import Rotation

from organdetr_monai.data.phantom_body import Patient
from organdetr_monai.data.phantom_shapes import Canvas, dot, waves
from organdetr_monai.errors import InputError

FIELDS_OF_VIEW = {
    "torso": (0.34, (-440, -395), (172, 225)),
    "abdomen_pelvis": (0.24, (-440, -395), (-25, 65)),
    "chest_abdomen": (0.2, (-270, -190), (172, 225)),
    "abdomen": (0.14, (-270, -195), (-15, 60)),
    "chest": (0.04, (-105, -55), (172, 225)),
    "pelvis": (0.04, (-440, -400), (-250, -200)),
}
"""Name to how often it is drawn, and where it ends below and above: ranges in mm of the reference anatomy."""


def draw_scan(entropy: Sequence[int], *, spacing: Sequence[float] | None, axcodes: str | None) -> dict:
    """Spacing, orientation and obliquity of a case, where they are not given, as options of `make_phantom`."""
    rng = np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(0,)))
    plane, slices = float(rng.uniform(2.5, 5)), float(rng.uniform(3, 5))
    drawn = "".join(("RL", "AP", "SI")[axis][rng.integers(2)] for axis in rng.permutation(3))
    oblique = float(rng.uniform(-8, 8)) if rng.random() < 0.15 and axcodes is None else 0.0
    axcodes = axcodes or drawn
    if spacing is None:
        spacing = [slices if code in "SI" else plane for code in axcodes]
    return {"spacing": spacing, "axcodes": axcodes, "oblique": oblique}


def place_patient(patient: Patient, rng: np.random.Generator, field_of_view: str | None) -> tuple[np.ndarray, ...]:
    """How the patient lies, and the scanned box.

    Returns
    -------
    pose : ndarray of shape (3, 3)
        Reference anatomy to millimetres about the patient's origin: stature and a slight turn.
    low, high : ndarrays of shape (3,)
        Corners of the scanned box, mm about the patient's origin.
    """
    scale = rng.uniform((0.94, 0.94, 0.9), (1.06, 1.06, 1.1))
    turn = Rotation.from_euler("xyz", np.clip(rng.normal(0, (2, 2, 3.5)), -8, 8), degrees=True).as_matrix()
    names = list(FIELDS_OF_VIEW)
    drawn = names[rng.choice(len(names), p=[FIELDS_OF_VIEW[name][0] for name in names])]
    ends = rng.uniform(size=2)
    _, below, above = FIELDS_OF_VIEW[field_of_view or drawn]
    z_low, z_high = (a + (b - a) * t for (a, b), t in zip((below, above), ends, strict=True))
    half = np.array([patient.wall[0] * 1.08 + patient.fat, patient.wall[1] + patient.fat]) * scale[:2]
    room = rng.uniform(4, 45, (2, 2))  # low and high, x and y
    room[0, 1] += rng.uniform(0, 40)  # the table
    if rng.random() < 0.15:
        room[rng.integers(2), 0] = -rng.uniform(25, 60)  # a flank is cut off
    low = np.array([*(-half - room[0]), z_low * scale[2]])
    high = np.array([*(half + room[1]), z_high * scale[2]])
    return turn * scale, low, high


def voxel_grid(
    low: np.ndarray, high: np.ndarray, spacing: np.ndarray, oblique: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels that fill the scanned box, turned about its middle by `oblique` degrees.

    Returns
    -------
    shape : ndarray of shape (3,), int
    affine : ndarray of shape (4, 4)
        Indices of an RAS array to millimetres about the patient's origin.
    """
    shape = np.maximum(np.round((high - low) / spacing), 4).astype(int)
    axis = rng.normal(size=3)
    turn = Rotation.from_rotvec(np.radians(oblique) * axis / np.linalg.norm(axis)).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = (low + high) / 2 - affine[:3, :3] @ (shape - 1) / 2
    return shape, affine


def blank_canvas(patient: Patient, pose: np.ndarray, affine: np.ndarray, shape: np.ndarray) -> Canvas:
    """Empty canvas whose voxels know their place in the reference anatomy, bent a little by smooth waves."""
    rng = patient.rng("warp")
    steps = np.linalg.inv(pose) @ affine[:3]  # (3, 4) indices to reference anatomy
    index = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    steps32 = steps.astype(np.float32)
    straight = np.stack([dot(steps32[axis], index) + steps32[axis, 3] for axis in range(3)])
    amplitude = (3.0, 3.0, 5.0)
    bent = straight + np.stack([waves(rng, a, 240)(straight) for a in amplitude])
    to_voxel = np.linalg.inv(np.vstack([steps, [0, 0, 0, 1]]))[:3]
    blur = 1.1 * np.abs(np.linalg.det(affine[:3, :3])) ** (1 / 3)
    return Canvas(bent, to_voxel, slack=max(amplitude), blur=blur)


def add_noise(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise, correlated within the slices as reconstruction leaves it, and whole numbers."""
    sigma, sharp, offset = rng.uniform(6, 26), rng.uniform(0.1, 0.3), rng.normal(0, 3)
    kernel = np.array([sharp, 1, sharp], np.float32)
    kernel /= np.sqrt(np.square(kernel).sum())  # keeps the variance
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    for axis in (0, 1):
        noise = correlate1d(noise, kernel, axis)
    return np.clip(np.round(hu + sigma * noise + offset), -1024, 3071).astype(np.int16)


def check_spacing(spacing: Sequence[float]) -> np.ndarray:
    """The voxel size as an array (3,), mm; `InputError` if it cannot be one."""
    values = np.asarray(spacing, float)
    if values.shape != (3,) or not ((values >= 0.5) & (values <= 20)).all():
        raise InputError(f"The spacing {spacing} is not three sizes of 0.5 to 20 mm.", "Give such as (4, 4, 4).")
    return values


def check_orientation(axcodes: str) -> np.ndarray:
    """The orientation as nibabel's array (3, 2): the RAS axis of each array axis, and its sign."""
    try:
        ornt = nib.orientations.axcodes2ornt(axcodes)
    except (ValueError, TypeError):
        ornt = np.full((3, 2), np.nan)
    if ornt.shape != (3, 2) or sorted(ornt[:, 0]) != [0, 1, 2]:
        raise InputError(f"{axcodes!r} is no orientation.", 'Give one letter of each of RL, AP and SI, such as "LPS".')
    return ornt
