"""Synthetic abdomens with lesions of four kinds: training data that needs no download and no patient.

The patient is that of `organdetr_monai.data.phantom`, scanned with contrast; lesions are painted into the liver and the
kidneys. In each organ there are two kinds that differ in brightness, texture and margin, several of each, some of them
touching: connected components would merge those.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from organdetr_monai.data.embedded import SPLITS
from organdetr_monai.data.generated import check_count, check_shares, split_cases
from organdetr_monai.data.phantom import check_seed, make_phantom
from organdetr_monai.data.phantom_anatomy import IDS, paint_patient
from organdetr_monai.data.phantom_body import Patient
from organdetr_monai.data.phantom_scan import check_spacing
from organdetr_monai.data.phantom_shapes import FAR_MM, Canvas, gyroid, superquadric, waves
from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.components import TOUCHING
from organdetr_monai.miq_sam3d.lesion_cases import LesionCase, write_lesion_cases

GENERATOR_VERSION = 1  # raise it with every change of what a seed gives
COUNTS, COUNT_SHARES = (0, 1, 2, 3, 4, 6), (0.15, 0.2, 0.25, 0.2, 0.12, 0.08)  # lesions of a kind in an organ
NEIGHBOUR = 0.3  # share of lesions that are painted beside another one, touching it
GAP_MM = 5.0  # between all others
TRIES = 40


def metastasis(q: np.ndarray, away: np.ndarray, patient: Patient, rng: np.random.Generator) -> tuple:
    """Darker than the liver, darkest in the middle, without a sharp margin."""
    rim = patient.hu["liver"] - rng.uniform(28, 48)
    return away * 0.4, rim + 1.5 * np.clip(away + 3, -14, 0)


def hypervascular(q: np.ndarray, away: np.ndarray, patient: Patient, rng: np.random.Generator) -> tuple:
    """Brighter than the liver, speckled, its margin sharp."""
    return away, patient.hu["liver"] + rng.uniform(45, 85) + 14 * gyroid(q, 7, rng.uniform(0, 6.3, 3))


def cyst(q: np.ndarray, away: np.ndarray, patient: Patient, rng: np.random.Generator) -> tuple:
    """Water, the same everywhere, its margin sharp."""
    return away, np.full_like(away, rng.uniform(0, 20))


def solid_tumour(q: np.ndarray, away: np.ndarray, patient: Patient, rng: np.random.Generator) -> tuple:
    """Takes up less contrast than the cortex, unevenly; dead inside where it is large."""
    grain = gyroid(q, rng.uniform(14, 24), rng.uniform(0, 6.3, 3))
    hu = patient.hu["cortex"] * rng.uniform(0.45, 0.7) + 11 * grain
    return away * 0.7, np.where((away < -8) & (grain > rng.uniform(-0.2, 0.8)), rng.uniform(18, 34), hu)


class Kind(NamedTuple):
    """A kind of lesion.

    ``look`` gives, from places (3, ...) mm and distances (...) mm to the surface, the distances by which the border is
    blended, and HU.
    """

    organs: tuple[str, ...]
    radii: tuple[float, float]  # mm, drawn between them on a logarithmic scale
    power: float  # exponent of the superquadric
    uneven: float  # mm by which the surface is rough
    look: Callable[[np.ndarray, np.ndarray, Patient, np.random.Generator], tuple]


KINDS: dict[str, Kind] = {
    "metastasis": Kind(("liver",), (5, 16), 2.0, 2.0, metastasis),
    "hypervascular": Kind(("liver",), (4, 13), 2.4, 0.5, hypervascular),
    "cyst": Kind(("kidney_left", "kidney_right"), (4, 18), 2.0, 0.0, cyst),
    "solid_tumour": Kind(("kidney_left", "kidney_right"), (6, 22), 2.6, 2.5, solid_tumour),
}
"""Kinds by name; the k-th, from 1, has id k."""

PLACES = {
    "liver": ((-60, -70, -170), (150, 95, 30)),
    "kidney_left": ((-115, -80, -200), (-35, 10, -55)),
    "kidney_right": ((35, -80, -215), (115, 10, -70)),
}
"""Boxes of the reference anatomy, mm, in which the centres of lesions are looked for."""


class Lesions:
    """What is painted into one patient.

    Attributes
    ----------
    instances : ndarray of shape (X, Y, Z), uint8
        Ids 1..M.
    kinds : list of str
        Of instance ``i + 1``.
    """

    def __init__(self, canvas: Canvas, patient: Patient) -> None:
        self.canvas, self.patient = canvas, patient
        self.instances = np.zeros(canvas.label.shape, np.uint8)
        self.kinds: list[str] = []
        self.spheres: list[tuple[str, np.ndarray, float]] = []  # organ, centre and radius in mm
        for name, kind in KINDS.items():
            for organ in kind.organs:
                rng = patient.rng(f"{name} of {organ}")
                for _ in range(rng.choice(COUNTS, p=COUNT_SHARES)):
                    self._add(name, organ, rng)

    def _add(self, name: str, organ: str, rng: np.random.Generator) -> None:
        """Paint a lesion where there is room for it."""
        kind = KINDS[name]
        radius = float(np.exp(rng.uniform(*np.log(kind.radii))))
        beside = rng.random() < NEIGHBOUR
        for _ in range(TRIES):
            centre = self._place(organ, radius, beside, rng)
            if centre is not None and self._paint(name, organ, centre, radius, rng):
                self.spheres.append((organ, centre, radius))
                return

    def _place(self, organ: str, radius: float, beside: bool, rng: np.random.Generator) -> np.ndarray | None:
        """A centre in mm, apart from the other lesions or touching one of them; None where this draw fits nowhere."""
        others = [(centre, reach) for where, centre, reach in self.spheres if where == organ]
        low, high = PLACES[organ]
        place, direction, which = rng.uniform(low, high), rng.normal(size=3), rng.random()
        if others and beside:
            centre, reach = others[int(which * len(others))]
            return centre + direction / np.linalg.norm(direction) * 0.85 * (radius + reach)
        apart = all(np.linalg.norm(place - centre) > 1.3 * (radius + reach) + GAP_MM for centre, reach in others)
        return place if apart else None

    def _paint(self, name: str, organ: str, centre: np.ndarray, radius: float, rng: np.random.Generator) -> bool:
        """Paint a lesion and give it an id, unless too little of it would lie in the organ."""
        kind, canvas = KINDS[name], self.canvas
        radii, turn = radius * rng.uniform(0.8, 1.2, 3), rng.uniform(-90, 90, 3)
        bump = waves(rng, kind.uneven, 2 * radius)
        found = canvas.distance(superquadric(centre, radii, power=kind.power, degrees=turn, bump=bump))
        if found is None:
            return False
        box, away = found
        own, hu, inside = canvas.label[box] == IDS[organ], canvas.hu[box], away < 0
        room = own if organ == "liver" else own | (canvas.label[box] == 0) & (np.abs(hu + 100) < 30)  # fat gives way
        room = room & (self.instances[box] == 0)
        kept = _largest(inside & room)
        if kept.sum() < max(0.55 * inside.sum(), 1) or (inside & own).sum() < 0.35 * inside.sum():
            return False
        away = np.where(kept | ~inside & room, away, FAR_MM)
        border, values = kind.look(canvas.position[(slice(None), *box)], away, self.patient, rng)
        canvas.paint(box, np.where(away < FAR_MM, border, FAR_MM), np.asarray(values, np.float32), IDS[organ])
        self.kinds.append(name)
        self.instances[box][kept] = len(self.kinds)
        return True


def _largest(inside: np.ndarray) -> np.ndarray:
    """The largest connected component."""
    components, found = ndimage.label(inside, structure=TOUCHING)
    if found < 2:
        return inside
    return components == 1 + np.bincount(components.reshape(-1))[1:].argmax()


def make_lesion_phantom(
    seed: int | Sequence[int], *, spacing: Sequence[float] = (2.5, 2.5, 2.5), axcodes: str = "RAS"
) -> LesionCase:
    """One synthetic CT of the abdomen with lesions.

    Parameters
    ----------
    seed : int or sequence of int
        Same seed and options, same arrays.
    spacing : sequence of 3 floats
        Voxel size in mm along the array axes, in the order of `axcodes`.
    axcodes : str
        Where the array axes point to.

    Returns
    -------
    LesionCase
        Every id has a voxel; there may be no lesion at all.

    Raises
    ------
    InputError
        For a seed, spacing or orientation that cannot be.
    """
    entropy = check_seed(seed)
    # Without contrast a hypervascular lesion looks like liver: such patients are passed over.
    entropy = next((*entropy, k) for k in count() if Patient((*entropy, k)).phase > 0)
    kinds: list[str] = []

    def paint(canvas: Canvas, patient: Patient) -> None:
        patient.incidental = False  # what looks like a lesion is one
        paint_patient(canvas, patient)
        lesions = Lesions(canvas, patient)
        canvas.label = lesions.instances
        kinds.extend(lesions.kinds)

    phantom = make_phantom(entropy, spacing=spacing, axcodes=axcodes, field_of_view="abdomen", paint=paint)
    return LesionCase(phantom.image, phantom.label, kinds, phantom.affine)


def write_lesion_phantoms(
    output: str | os.PathLike,
    *,
    cases: int = 60,
    seed: int = 0,
    splits: Sequence[float] = SPLITS,
    spacing: Sequence[float] = (2.5, 2.5, 2.5),
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Write a folder of phantoms with lesions and its datalist; takes up where an interrupted run stopped.

    Parameters
    ----------
    output : path
        Gets what `organdetr_monai.miq_sam3d.lesion_cases.write_lesion_cases` writes.
    cases : int
    seed : int
        Case ``k`` is ``make_lesion_phantom((seed, k))``, whatever the number of cases and workers.
    splits : sequence of 3 floats
        Shares of train, val and test, which follow one another in this order; those of training's own phantoms.
    spacing : sequence of 3 floats
        Voxel size in mm.
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
        For options that make no sense, and if the folder holds cases of other options.
    """
    if not isinstance(seed, int):
        raise InputError(f"The seed {seed!r} is no whole number.", "Give such as 7.")
    generator = {
        "name": "lesion phantom",
        "version": GENERATOR_VERSION,
        "cases": check_count("cases", cases),
        "seed": check_seed(seed)[0],
        "splits": check_shares(splits),
        "spacing": check_spacing(spacing).tolist(),
    }
    return write_lesion_cases(
        Path(output),
        # The seed is in the name because that is the patient's: two sets may train and validate one model.
        [f"seed{seed}_case_{k:03d}" for k in range(cases)],
        partial(_numbered, seed, tuple(spacing)),
        kinds=list(KINDS),
        splits=split_cases(cases, splits),
        generator=generator,
        workers=check_count("workers", workers),
        progress=progress,
    )


def _numbered(seed: int, spacing: tuple[float, ...], name: str) -> LesionCase:
    """The case of a name that ends in its number."""
    return make_lesion_phantom((seed, int(name.rsplit("_", 1)[1])), spacing=spacing)
