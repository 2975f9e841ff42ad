"""The phantom's labelled organs: where they lie, their shapes and what they hold. See `phantom_body` for the frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from organdetr_monai.data import phantom_body as body
from organdetr_monai.data.phantom_body import Patient, Torso
from organdetr_monai.data.phantom_shapes import Canvas, gyroid, smooth_max, smooth_min, superquadric, tube, waves
from organdetr_monai.organs import SETS

PHANTOM_ORGANS = SETS["phantom"].organs
"""Labelled organs; ``PHANTOM_ORGANS[k]`` has id ``k + 1``."""

IDS = {name: k + 1 for k, name in enumerate(PHANTOM_ORGANS)}

REMOVED = {"gallbladder": 0.12, "spleen": 0.05, "kidney_left": 0.04, "kidney_right": 0.04, "stomach": 0.03}
"""How often an organ was taken out by a surgeon, or never grew."""


def up(mm: float) -> np.ndarray:
    """A step towards the head."""
    return np.array([0, 0, mm])


def paint_lung(canvas: Canvas, patient: Patient, torso: Torso, name: str) -> None:
    """What the chest wall, the mediastinum and the diaphragm leave; vessels inside."""
    rng = patient.rng(name)
    side = 1 if name.endswith("right") else -1
    apex, width = rng.normal(186, 7), rng.uniform(0.94, 1.06)
    tissue, phase = rng.uniform(-890, -770), rng.uniform(0, 6.3, 3)
    gap, bump, bend = rng.uniform(1.5, 4), waves(rng, 5, 120), waves(rng, 25, 60)
    low = patient.breath - 130
    shape = superquadric(
        (side * 75, -4, (apex + low) / 2),
        (67 * width, 98, (apex - low) / 2),
        power=2.8,
        degrees=(0, side * -4, 0),
        bump=bump,
    )
    found = canvas.distance(shape)
    if found is None:
        return
    box, away = found
    away = smooth_max(away, torso.cavity[box] + gap, 8)
    away = smooth_max(away, 1.5 - torso.above[box], 5)
    inside = away < 5
    q = canvas.position[(slice(None), *box)][:, inside]
    hu = np.full(away.shape, tissue, np.float32)
    vessels = np.clip(np.abs(gyroid(q + bend(q), 44, phase)) - 1.15, 0, 0.25) * 2600
    hu[inside] += vessels * (away[inside] < -6) - 0.4 * q[1]  # denser at the back, where blood sinks to
    canvas.paint(box, away, hu, IDS[name])


def paint_heart(canvas: Canvas, patient: Patient, torso: Torso) -> None:
    """Myocardium around two pools of blood, resting on the diaphragm, its tip to the left."""
    rng = patient.rng("heart")
    size = rng.uniform(0.86, 1.2)
    turn = rng.normal((0, 22, 28), 5)
    centre = rng.normal((-20, 28, 24), (5, 4, 4)) + up(0.75 * patient.breath)
    bump = waves(rng, 5, 90)
    axis = np.array([0.72, -0.5, 0.45])  # from tip to base
    found = canvas.distance(superquadric(centre, np.array([66, 49, 50]) * size, power=2.3, degrees=turn, bump=bump))
    if found is None:
        return
    box, away = found
    away = smooth_max(away, 1.0 - torso.above[box], 10)
    away = smooth_max(away, torso.cavity[box] + 3, 8)
    canvas.paint(box, away, patient.hu["myocardium"], IDS["heart"])
    q = canvas.position[(slice(None), *box)]
    for offset, radii, blood in (((-16, -8, -4), (34, 21, 20), "artery"), ((4, 20, 2), (38, 15, 24), "vein")):
        pool = superquadric(centre + np.array(offset) * size, np.array(radii) * size, degrees=turn)[0].distance(q)
        canvas.paint(box, np.maximum(pool, away + 4), patient.hu[blood], IDS["heart"])
    base = superquadric(centre + axis * 40 * size, np.array([26, 24, 26]) * size)[0].distance(q)
    canvas.paint(box, np.maximum(base, away + 4), patient.hu["artery"], IDS["heart"])


def paint_aorta(canvas: Canvas, patient: Patient) -> None:
    """Up from the heart, over the arch, down before the spine to where it forks."""
    rng = patient.rng("aorta")
    wide, arch, fork = rng.uniform(0.85, 1.25), rng.normal(112, 8), rng.normal(-222, 9)
    bend = rng.normal(0, 5)
    line = [
        (6, 22, 45 + 0.5 * patient.breath),
        (17, 30, 75),
        (14, 24, arch - 12),
        (2, 8, arch),
        (-14, -18, arch - 8),
        (-21, patient.spine(60) + 30, 60),
        (-17 + bend, patient.spine(-30) + 29, -30),
        (-9 - bend, patient.spine(-120) + 32, -120),
        (-5, patient.spine(fork) + 32, fork),
    ]
    radius = np.array([16, 16.5, 15.5, 14.5, 13.5, 12.5, 12, 11, 10]) * wide
    canvas.draw(tube(line, radius, pieces=26), patient.hu["artery"], IDS["aorta"])


def paint_liver(canvas: Canvas, patient: Patient, torso: Torso) -> None:
    """A wedge under the right dome whose left lobe tapers across the middle."""
    rng = patient.rng("liver")
    size, length, reach = rng.uniform(0.9, 1.12), rng.normal(-158, 15), rng.normal(-42, 17)
    slope, bump = rng.uniform(0.42, 0.72), waves(rng, 7, 110)
    shift = 0.85 * patient.breath
    right = superquadric((72, 8, -72 + shift), np.array([84, 96, 100]) * size, power=2.6)[0].distance
    left_radii = (32 - reach * 0.5 + 22, 44, 40 * size)
    left = superquadric((22 + reach * 0.5, 52, -45 + shift), left_radii, degrees=(0, -14, -8))[0].distance
    box = canvas.region((-150, -110, -215 + shift), (175, 125, 50 + shift))
    if box is None:
        return
    q = canvas.position[(slice(None), *box)]
    x, y, z = q
    under = (length + shift + slope * np.maximum(105 - x, 0) - 0.25 * (y - 20) - z) * np.float32(0.85)
    behind = (-x * 0.9 + 8 - 1.1 * (y - 8)) * np.float32(0.7)  # leaves room for the spine and the stomach
    away = smooth_min(smooth_max(smooth_max(right(q), under, 30), behind, 25), left(q), 22) + bump(q)
    away = smooth_max(smooth_max(away, torso.cavity[box] + 2, 8), torso.above[box] + 3, 6)
    canvas.paint(box, away, patient.hu["liver"], IDS["liver"])
    portal = tube([(20, 12, -118 + shift), (42, 18, -88 + shift), (85, 10, -75 + shift)], (7, 7, 4), pieces=5)
    found = canvas.distance(portal)
    if found is not None:
        inside = canvas.label[found[0]] == IDS["liver"]
        canvas.paint(found[0], np.where(inside, found[1], 99), patient.hu["vein"], IDS["liver"])
    if rng.random() < 0.25 and patient.incidental:  # a cyst or a metastasis
        place, radius = rng.normal((85, 10, -75 + shift), (18, 25, 20)), rng.uniform(6, 20)
        inner = superquadric(place, (radius, radius, radius))[0].distance(q)
        canvas.paint(box, np.maximum(inner, away + 3), patient.hu["liver"] - rng.uniform(25, 60), IDS["liver"])


def paint_gallbladder(canvas: Canvas, patient: Patient) -> None:
    """A pear of bile under the liver."""
    rng = patient.rng("gallbladder")
    size, stretch = rng.uniform(0.9, 1.25), rng.uniform(0.9, 1.3)
    neck = rng.normal((38, 22, -112), (4, 5, 5)) + up(0.8 * patient.breath)
    end = neck + np.array([20, 32, -26]) * stretch + rng.normal(0, 4, 3)
    hu, stone = rng.uniform(2, 22), rng.random() < 0.12
    pear = tube([neck, (neck + end) / 2 + up(-3), end], np.array([8, 13, 16]) * size, pieces=6)
    canvas.draw(pear, hu, IDS["gallbladder"])
    if stone:
        canvas.draw(superquadric(end - (0, 8, 0), (7, 6, 6)), 300, IDS["gallbladder"])


def paint_stomach(canvas: Canvas, patient: Patient, torso: Torso) -> None:
    """A J from the left dome to the middle; gas above a level of fluid."""
    rng = patient.rng("stomach")
    full, bump = rng.uniform(0.75, 1.2), waves(rng, 4, 70)
    shift = 0.65 * patient.breath
    sag, lean = rng.normal(0, 14), rng.normal(0, 6)
    line = [
        (-58 + lean, -22, -46 + shift),
        (-66 + lean, 15, -62 + shift),
        (-66, 48, -95 + shift + 0.4 * sag),
        (-34, 66, -128 + shift + sag),
        (8, 58, -134 + shift + sag),
        (32, 40, -124 + shift),
    ]
    radius = np.array([33, 34, 29, 23, 18, 11]) * full
    level, meal = rng.uniform(25, 75), rng.choice([8.0, 45.0, 220.0], p=(0.5, 0.35, 0.15))
    found = canvas.distance(tube(line, radius, pieces=24))
    if found is None:
        return
    box, away = found
    q = canvas.position[(slice(None), *box)]
    near = away < 12
    away[near] += bump(q[:, near])
    away = smooth_max(smooth_max(away, torso.cavity[box] + 2, 8), torso.above[box] + 3, 6)
    canvas.paint(box, away, patient.hu["wall"], IDS["stomach"])
    canvas.paint(box, away + 4, meal, IDS["stomach"])
    canvas.paint(box, np.maximum(away + 4, level - q[1]), -930, IDS["stomach"])


def paint_spleen(canvas: Canvas, patient: Patient, torso: Torso) -> None:
    """A thick crescent between the left flank and the stomach."""
    rng = patient.rng("spleen")
    size = float(np.exp(rng.normal(0, 0.13)))
    centre = rng.normal((-106, -32, -78), (4, 7, 8)) + up(0.75 * patient.breath)
    turn, bump = rng.normal((-22, 10, 14), 8), waves(rng, 4, 70)
    found = canvas.distance(superquadric(centre, np.array([34, 50, 56]) * size, power=2.3, degrees=turn, bump=bump))
    if found is None:
        return
    box, away = found
    q = canvas.position[(slice(None), *box)]
    hollow = superquadric(centre + np.array([46, 26, 4]), (40, 46, 60))[0].distance(q)
    away = smooth_max(away, -hollow, 10)
    away = smooth_max(smooth_max(away, torso.cavity[box] + 2, 8), torso.above[box] + 3, 6)
    canvas.paint(box, away, patient.hu["spleen"], IDS["spleen"])


def paint_pancreas(canvas: Canvas, patient: Patient) -> None:
    """Curved over the spine, from the loop of the duodenum to the spleen."""
    rng = patient.rng("pancreas")
    size, shift = rng.uniform(0.88, 1.2), 0.45 * patient.breath
    rise, tail, bow = rng.normal(0, 9), rng.normal(-78, 7), rng.normal(0, 5)
    head = rng.normal((36, 12, -148), (4, 4, 6)) + up(shift)
    line = [
        head,
        head + np.array([-8, 12, 18]),
        (4, 34 + bow, -122 + shift + rise * 0.3),
        (-28, 24 + bow, -112 + shift + rise),
        (tail + 18, -2, -104 + shift + rise),
        (tail, -18, -98 + shift + 1.3 * rise),
    ]
    found = canvas.distance(tube(line, np.array([16, 15, 11.5, 12, 12, 9.5]) * size, pieces=18))
    duodenum = head + np.array([(-2, 30, 26), (26, 6, 10), (22, -4, -25), (-20, -16, -40)])
    canvas.draw(tube(duodenum, (10, 12, 12, 11), pieces=12), patient.hu["wall"])
    if found is not None:
        box, away = found
        near = away < 12
        away[near] += waves(rng, 2.5, 24)(canvas.position[(slice(None), *box)][:, near])
        canvas.paint(box, away, patient.hu["pancreas"], IDS["pancreas"])


def paint_kidney(canvas: Canvas, patient: Patient, name: str) -> None:
    """A bean, notched towards the middle; cortex around medulla."""
    rng = patient.rng(name)
    side = 1 if name.endswith("right") else -1
    size = float(np.exp(rng.normal(0, 0.09)))
    centre = rng.normal((side * 70, -36, -132 - 7 * side), (5, 5, 11)) + up(0.4 * patient.breath)
    turn, bump = rng.normal((-12, side * 12, side * -25), 6), waves(rng, 2.5, 50)
    cyst, urine = rng.random() < 0.2, 250.0 if patient.phase == 3 else 6.0
    place, radius = centre + rng.normal(0, 1, 3) * (10, 12, 30) + (side * 16, 0, 0), rng.uniform(8, 22)
    shape = superquadric(centre, np.array([27, 29, 56]) * size, power=2.2, degrees=turn, bump=bump)
    found = canvas.distance(shape)
    if found is None:
        return
    box, away = found
    q = canvas.position[(slice(None), *box)]
    notch = superquadric(centre - (side * 24, -8, 0), np.array([19, 16, 20]) * size)[0].distance(q)
    away = smooth_max(away, -notch, 8)
    canvas.paint(box, away - 6, patient.fat_hu)  # the capsule of fat that sets it apart
    canvas.paint(box, away, patient.hu["cortex"], IDS[name])
    canvas.paint(box, away + 8, patient.hu["medulla"], IDS[name])
    canvas.draw(tube([centre - (side * 8, 0, 0), centre - (side * 30, -6, 12)], (6, 4), pieces=2), urine)
    if cyst and patient.incidental:
        wall = superquadric(place, (radius, radius, radius))[0].distance(q)
        canvas.paint(box, np.maximum(wall, away + 1), 8, IDS[name])


def paint_bladder(canvas: Canvas, patient: Patient) -> None:
    """Water in the pelvis, with contrast layered at the back in the late phase."""
    rng = patient.rng("urinary_bladder")
    full, late = rng.uniform(0.72, 1.35), patient.phase == 3 and rng.random() < 0.6
    radii = np.array([38, 31, 25]) * full * rng.uniform(0.9, 1.12, 3)
    centre = rng.normal((0, 18, -372), (4, 5, 6)) + up(radii[2])
    level, bump = centre[1] + rng.uniform(-12, 8), waves(rng, 3, 60)
    canvas.draw(superquadric((0, 12, -395), (22, 17, 20)), 45)  # prostate or uterus
    found = canvas.distance(superquadric(centre, radii, power=2.4, bump=bump))
    if found is None:
        return
    box, away = found
    canvas.paint(box, away - 3, patient.hu["wall"])
    canvas.paint(box, away, 6, IDS["urinary_bladder"])
    if late:
        y = canvas.position[1][box]
        canvas.paint(box, np.maximum(away + 1, y - level), 320, IDS["urinary_bladder"])


def paint_patient(canvas: Canvas, patient: Patient) -> None:
    """The whole patient, from back to front in the painter's sense: later structures hide earlier ones."""
    torso = Torso(canvas, patient)
    torso.paint(canvas, patient)
    body.paint_muscles(canvas, patient)
    body.paint_pelvis(canvas, patient)
    body.paint_cage(canvas, patient, torso)
    body.paint_small_bowel(canvas, patient, torso)
    body.paint_colon(canvas, patient)
    chance = patient.rng("removed").random(len(REMOVED))
    removed = {organ for (organ, share), drawn in zip(REMOVED.items(), chance, strict=True) if drawn < share}
    steps: list[tuple[str, Callable[[], None]]] = [
        ("lung_left", lambda: paint_lung(canvas, patient, torso, "lung_left")),
        ("lung_right", lambda: paint_lung(canvas, patient, torso, "lung_right")),
        ("spine", lambda: body.paint_spine(canvas, patient, torso)),
        ("stomach", lambda: paint_stomach(canvas, patient, torso)),
        ("spleen", lambda: paint_spleen(canvas, patient, torso)),
        ("kidney_left", lambda: paint_kidney(canvas, patient, "kidney_left")),
        ("kidney_right", lambda: paint_kidney(canvas, patient, "kidney_right")),
        ("liver", lambda: paint_liver(canvas, patient, torso)),
        ("vessels", lambda: body.paint_vessels(canvas, patient)),
        ("heart", lambda: paint_heart(canvas, patient, torso)),
        ("aorta", lambda: paint_aorta(canvas, patient)),
        ("pancreas", lambda: paint_pancreas(canvas, patient)),
        ("gallbladder", lambda: paint_gallbladder(canvas, patient)),
        ("urinary_bladder", lambda: paint_bladder(canvas, patient)),
    ]
    for name, paint in steps:
        if name not in removed:
            paint()
