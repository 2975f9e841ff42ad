"""The phantom's unlabelled half: skin, fat, muscle, skeleton, bowel and vessels, and the patient that all of it shares.

The reference anatomy is an adult in millimetres, RAS: x to the right, y to the front, z upwards from the top of
the right dome of the diaphragm. The distances were read off a real torso CT and rounded.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from organdetr_monai.data.phantom_shapes import FAR_MM, Canvas, gyroid, profile, smooth_max, superquadric, tube, waves

SPINE_Z = (-440, -330, -250, -200, -120, -40, 60, 150, 215)
SPINE_Y = (-78, -84, -60, -48, -48, -58, -72, -62, -48)

# HU by contrast phase: without, arterial, portal venous, delayed
PHASES = ("native", "arterial", "portal", "delayed")
PHASE_HU = {
    "artery": (42, 320, 165, 115),
    "vein": (42, 70, 155, 115),
    "myocardium": (46, 105, 115, 90),
    "liver": (56, 68, 112, 92),
    "spleen": (48, 125, 122, 98),
    "cortex": (33, 175, 185, 155),
    "medulla": (31, 80, 165, 150),
    "pancreas": (38, 98, 92, 72),
    "wall": (42, 65, 80, 68),
    "muscle": (54, 58, 64, 62),
}


class Patient:
    """What the organs of one patient have in common, and a stream of random numbers for each structure.

    Each structure draws from its own stream, so that leaving one out, by chance or by the field of view,
    changes no other.

    Parameters
    ----------
    entropy : tuple of int
        Same entropy, same patient.
    """

    def __init__(self, entropy: Sequence[int]) -> None:
        self.entropy = tuple(entropy)
        rng = self.rng("patient")
        self.breath = float(np.clip(rng.normal(0, 14), -28, 28))  # mm by which the diaphragm stands higher
        self.dome_right = self.breath + rng.normal(0, 4)
        self.dome_left = self.breath + rng.normal(-14, 7)
        self.wall = rng.uniform(0.93, 1.09, 2) * (148, 110)  # half width and half depth of the muscular wall, mm
        self.fat = float(np.exp(rng.uniform(np.log(6), np.log(38))))  # mm under the skin of the abdomen
        self.phase = int(rng.choice(4, p=(0.25, 0.2, 0.4, 0.15)))
        self.hu = {name: values[self.phase] * rng.normal(1, 0.07) for name, values in PHASE_HU.items()}
        if rng.random() < 0.12:
            self.hu["liver"] -= rng.uniform(25, 50)  # fatty liver
        self.fat_hu = rng.normal(-103, 4)
        self.incidental = True  # some organs hold a lesion that no label tells of

    def rng(self, structure: str) -> np.random.Generator:
        """The random numbers of one structure."""
        return np.random.default_rng(np.random.SeedSequence(self.entropy, spawn_key=(zlib.crc32(structure.encode()),)))

    def spine(self, z: float) -> float:
        """Place of the vertebral bodies from front to back, mm."""
        return float(np.interp(z, SPINE_Z, SPINE_Y))


class Torso:
    """Body wall and diaphragm as distances on the canvas, by which the organs are cut.

    Attributes
    ----------
    wall : ndarray of shape (X, Y, Z)
        Distance to the outside of the muscles, mm, negative inside.
    cavity : ndarray of shape (X, Y, Z)
        Distance to the inside of the muscles.
    above : ndarray of shape (X, Y, Z)
        Height above the diaphragm, mm.
    """

    def __init__(self, canvas: Canvas, patient: Patient) -> None:
        rng = patient.rng("torso")
        waist, hip, shoulder = rng.normal((0.95, 1.09, 1.16), (0.03, 0.04, 0.04))
        thickness = rng.uniform(0.85, 1.2)
        x, y, z = canvas.position
        a = patient.wall[0] * profile(z, (-440, -340, -190, -60, 60, 140, 215), (hip, hip, waist, 1, 1, 1, shoulder))
        b = patient.wall[1] * profile(z, (-440, -330, -190, -40, 110, 215), (1.02, 0.98, 0.92, 1.0, 1.0, 0.86))
        level = ((np.abs(x) / a) ** 2.4 + (np.abs(y) / b) ** 2.4) ** (1 / 2.4)
        self.wall = (level - 1) * (np.sqrt(x * x + y * y) + 1) / (level + 0.01)
        spine = profile(z, SPINE_Z, SPINE_Y)
        column = 1 - np.sqrt((x / 44) ** 2 + ((y - spine + 36) / 42) ** 2)  # vertebrae and the muscles along them
        inward = thickness * profile(z, (-440, -350, -270, -200, 0, 150, 215), (62, 52, 34, 17, 15, 20, 34))
        self.cavity = smooth_max(self.wall + inward, 40 * column, 12)
        right = patient.dome_right - 52 * ((x - 70) / 72) ** 2 - 48 * ((y - 18) / 85) ** 2
        left = patient.dome_left - 52 * ((x + 74) / 70) ** 2 - 48 * ((y - 12) / 85) ** 2
        middle = patient.breath - 22 - 25 * (x / 60) ** 2 - 45 * ((y - 45) / 62) ** 2
        dome = smooth_max(smooth_max(right, left, 12), middle, 12)
        self.above = (z - np.maximum(dome, patient.breath - 125)) * np.float32(
            0.85
        )  # steep flanks: nearer than upright

    def paint(self, canvas: Canvas, patient: Patient) -> None:
        """Skin, fat, muscle and the fat inside."""
        rng = patient.rng("fat")
        chest, hip, front = rng.uniform(0.35, 0.8), rng.uniform(0.8, 1.3), rng.uniform(0.3, 0.7)
        uneven = waves(rng, 4, 160)(canvas.position)
        _, y, z = canvas.position
        under_skin = patient.fat * profile(z, (-440, -320, -190, -60, 60, 215), (hip, hip, 1, 0.85, chest, chest))
        under_skin = under_skin * (1 + front * y / 130) + 3 + uneven
        whole = slice(None), slice(None), slice(None)
        canvas.paint(whole, self.wall - under_skin, 20)
        canvas.paint(whole, self.wall - under_skin + 2.5, patient.fat_hu)
        canvas.paint(whole, self.wall, patient.hu["muscle"])
        canvas.paint(whole, self.cavity, patient.fat_hu)


def paint_muscles(canvas: Canvas, patient: Patient) -> None:
    """Psoas, and the fat that parts the muscles of the back."""
    rng = patient.rng("muscles")
    width = rng.uniform(0.8, 1.15)
    for side in (-1, 1):
        psoas = [(side * 26, -45, -110), (side * 42, -38, -190), (side * 62, -10, -280), (side * 88, 22, -345)]
        canvas.draw(tube(psoas, np.array([8, 20, 19, 13]) * width, pieces=8), patient.hu["muscle"])
        groove = [(side * 12, patient.spine(z) - 42, z) for z in (-260, -120, 0, 150)]
        canvas.draw(tube(groove, (3, 2, 2, 2), pieces=8, margin=3), patient.fat_hu)


def paint_spine(canvas: Canvas, patient: Patient, torso: Torso) -> None:
    """Vertebrae with discs, canal and processes, ending in the sacrum."""
    rng = patient.rng("spine")
    trabecular, cortical, shift = rng.uniform(110, 240), rng.uniform(380, 560), rng.uniform(0, 1)
    box = canvas.region((-75, -150, -350), (75, 0, 260))
    if box is None:
        return
    x, y, z = canvas.position[(slice(None), *box)]
    y = y - profile(z, SPINE_Z, SPINE_Y)
    wide = profile(z, (-345, -300, -262, -235, -200, 0, 215), (8, 24, 44, 27, 25, 18, 13))
    deep = profile(z, (-345, -300, -240, -200, 0, 215), (5, 10, 17, 18, 15, 10))
    number = profile(z, (-350, -235, -35, 215), (-3.4, 0, 6.1, 15.5)) + shift
    middle = np.abs(number - np.floor(number) - 0.5)  # 0 in the middle of a vertebra, 0.5 in a disc
    body = (np.sqrt((x / wide) ** 2 + (y / deep) ** 2) - 1) * deep
    disc = (0.41 - middle) * 32
    limits = np.maximum(-340 - z, z - 250)
    arch = np.maximum(np.hypot(x, y + deep + 9) - 15, limits)
    spinous = np.maximum(np.maximum(np.abs(x) - 4, np.abs(y + 46) - 16), np.maximum((middle - 0.34) * 32, -240 - z))
    transverse = np.maximum(np.maximum(np.abs(y + 27) - 6, np.abs(x) - 36), np.maximum((middle - 0.22) * 32, -240 - z))
    for process in (spinous, transverse, arch):
        canvas.paint(box, np.maximum(process, torso.wall[box] + 3), 0.7 * cortical)
    canvas.paint(box, np.maximum(body, limits), cortical)
    canvas.paint(box, np.maximum(body + 3, limits), trabecular)
    canvas.paint(box, np.maximum(np.maximum(body, -disc), np.maximum(limits, -245 - z)), 85)
    canvas.paint(box, np.maximum(np.hypot(x, y + deep + 9) - 9, limits), 28)


def paint_cage(canvas: Canvas, patient: Patient, torso: Torso) -> None:
    """Ribs that run downwards to the front, their cartilage, and the sternum."""
    rng = patient.rng("cage")
    slope, period, shift, bone = rng.uniform(0.4, 0.6), rng.uniform(24, 29), rng.uniform(0, 25), rng.uniform(350, 550)
    box = canvas.region((-220, -150, -130), (220, 150, 240))
    if box is None:
        return
    x, y, z = canvas.position[(slice(None), *box)]
    wall = torso.wall[box]
    along = (z + slope * y + shift) / period
    band = (np.abs(along - np.floor(along) - 0.5) - 0.23) * period
    margin = -105 + 85 * np.clip((y + 50) / 130, 0, 1) + patient.breath * 0.3 - z  # ends at the costal margin
    rib = smooth_max(np.maximum(np.abs(wall + 9) - 5, band), np.maximum(margin, z - 195), 4)
    canvas.paint(box, rib, np.where(y > 60, 120, bone).astype(np.float32))
    sternum = np.maximum(np.maximum(np.abs(wall + 8) - 6, np.abs(x) - 18), np.maximum(10 - z, z - 145))
    canvas.paint(box, np.where(y > 0, sternum, FAR_MM), 0.6 * bone)


def paint_pelvis(canvas: Canvas, patient: Patient) -> None:
    """Iliac wings, hip joints, pubis and ischium."""
    rng = patient.rng("pelvis")
    bone, wide = rng.uniform(380, 560), rng.uniform(0.95, 1.07)
    box = canvas.region((-150, -130, -345), (150, 80, -185))
    if box is not None:
        q = canvas.position[(slice(None), *box)]
        bowl = superquadric((0, -22, -285), (122 * wide, 82, 112), power=2.3)[0].distance(q)
        cut = np.maximum(np.maximum(30 - np.abs(q[0]), q[1] - 42), np.maximum(q[2] + 200, -335 - q[2]))
        canvas.paint(box, smooth_max(np.abs(bowl) - 6, cut, 8), bone)
        canvas.paint(box, smooth_max(np.abs(bowl) - 2.5, cut + 4, 8), 0.45 * bone)
    for side in (-1, 1):
        hip = (side * 88 * wide, -2, -352)
        canvas.draw(superquadric(hip, (33, 32, 32)), bone)
        canvas.draw(superquadric(hip, (26, 26, 26)), 60)
        canvas.draw(superquadric(hip, (23, 23, 23)), 0.65 * bone)
        canvas.draw(
            tube([hip, (side * 122 * wide, -12, -385), (side * 128 * wide, -8, -450)], (15, 20, 17), pieces=5), bone
        )
        canvas.draw(
            tube([(side * 72, 6, -365), (side * 40, 45, -372), (side * 7, 55, -388)], (12, 9, 12), pieces=5), bone
        )
        canvas.draw(tube([(side * 72, -25, -370), (side * 55, -45, -412)], (14, 13), pieces=3), bone)


def paint_small_bowel(canvas: Canvas, patient: Patient, torso: Torso) -> None:
    """A labyrinth of loops between the flanks, with gas or contrast in some of them."""
    rng = patient.rng("small bowel")
    phase, wavelength, top = rng.uniform(0, 6.3, 3), rng.uniform(46, 62), rng.uniform(-165, -130) + 0.4 * patient.breath
    content = 250.0 if rng.random() < 0.15 else 12.0  # oral contrast
    fullness, bend = rng.uniform(0.1, 0.6), waves(rng, 24, 75)
    box = canvas.region((-115, -35, -350), (115, 110, -90))
    if box is None:
        return
    q = canvas.position[(slice(None), *box)]
    y, z = q[1], q[2]
    place = smooth_max(torso.cavity[box] + 5, np.maximum(np.maximum(z - top, -325 - z), -22 - y), 15)
    field = gyroid(q + bend(q), wavelength, phase)
    loops = np.maximum(place, (0.75 - np.abs(field) - fullness) * -8)
    canvas.paint(box, loops, patient.hu["wall"])
    canvas.paint(box, np.maximum(loops + 4, (0.35 - np.abs(field)) * -14), content)
    canvas.paint(box, np.maximum(np.maximum(loops + 6, (field - 0.55) * -12), 35 - y), -850)


def paint_colon(canvas: Canvas, patient: Patient) -> None:
    """The frame around the small bowel, filled with stool and gas, down to the rectum."""
    rng = patient.rng("colon")
    b, (lift, sag, lean) = patient.breath, rng.normal(0, 14, 3)
    line = [
        (92, 15, -285),
        (104, 5, -235),
        (102, 10, -178 + 0.4 * b + lift),
        (70, 68, -170 + 0.4 * b + lift),
        (0, 84, -185 + sag),
        (-70, 66, -150 + 0.5 * b),
        (-112, -8, -118 + 0.6 * b),
        (-114, -15, -190),
        (-104, 5, -262 + lean),
        (-55, 25, -300),
        (-10, 0, -295 + lean),
        (0, -42, -330),
        (0, -55, -400),
    ]
    radius = np.array([27, 25, 22, 20, 18, 18, 19, 16, 15, 14, 15, 19, 16]) * rng.uniform(0.75, 1.15)
    gas, phase, bend = rng.uniform(-0.9, 0.6), rng.uniform(0, 6.3, 3), waves(rng, 14, 45)
    found = canvas.distance(tube(line, radius, pieces=48))
    if found is None:
        return
    box, away = found
    near = away < 10
    stool = np.zeros_like(away)
    q = canvas.position[(slice(None), *box)][:, near]
    stool[near] = gyroid(q + bend(q), 30, phase)
    canvas.paint(box, away, patient.hu["wall"])
    canvas.paint(box, away + 3.5, np.where(stool > gas, 25 + 30 * stool, -500 + 400 * stool).astype(np.float32))


def paint_vessels(canvas: Canvas, patient: Patient) -> None:
    """Caval vein, portal vein, iliac vessels, gullet and windpipe: what runs beside the organs."""
    rng = patient.rng("vessels")
    size, hu = rng.uniform(0.85, 1.15), patient.hu
    lumbar = patient.spine(-200) + 30
    for side in (-1, 1):
        line = [(side * 6, lumbar, -225), (side * 40, -20, -285), (side * 62, 20, -345), (side * 68, 45, -400)]
        canvas.draw(tube(line, np.array([8, 7, 6, 5]) * size, pieces=8), hu["artery"])
    cava = [(24, lumbar - 4, -230), (25, lumbar, -150), (27, -18, -60), (26, 8, -15 + patient.breath), (24, 12, 25)]
    canvas.draw(tube(cava, np.array([11, 12, 13, 14, 14]) * size, pieces=10), hu["vein"])
    canvas.draw(
        tube([(24, 8, 70), (26, 18, 110), (24, 20, 165), (34, 10, 220)], (11, 10, 9, 8), pieces=8), hu["artery"]
    )
    canvas.draw(tube([(-2, -30, 200), (-2, -38, 80), (-8, -22, 0), (-22, 5, -35)], (8, 8, 8, 9), pieces=10), hu["wall"])
    canvas.draw(tube([(0, -12, 230), (2, -22, 100)], (10, 9), pieces=4), -950)
    for end in (45, -48):
        canvas.draw(tube([(2, -22, 103), (end, -25, 75)], (8, 6), pieces=3), -950)


def paint_table(canvas: Canvas, patient: Patient) -> None:
    """The scanner's table under the patient: a curved board of foam between two skins."""
    rng = patient.rng("table")
    hollow, wide = rng.uniform(0, 35), rng.uniform(190, 250)
    back = patient.wall[1] + 0.75 * patient.fat + rng.uniform(4, 12)
    x, y, _ = canvas.position
    board = np.maximum(np.abs(y + back + 14 - hollow * (x / 200) ** 2) - 14, np.abs(x) - wide)
    board[canvas.hu > -600] = FAR_MM  # the patient lies on it
    whole = slice(None), slice(None), slice(None)
    canvas.paint(whole, board, -350)
    canvas.paint(whole, board + 5, -900)
