"""Draws docs/images/frames.png: one box in voxels, in patient millimetres and on the working grid.

    python docs/draw_frames.py [PICTURE]

All numbers in the picture come from `organdetr_monai.geometry`; only the scan, a slice of 8×6 voxels, is made up.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from numpy.typing import ArrayLike

from organdetr_monai.files import replacing
from organdetr_monai.geometry import axcodes_of, box_to_oriented, transform_boxes, voxel_to_lps

# Array axes run to the patient's left, back and head, as DICOM's usually do; the affine is in RAS, hence the signs.
SHAPE = (8, 6, 1)
SCAN = np.array([[-4.0, 0, 0, 14], [0, -5.0, 0, 12.5], [0, 0, 4, 0], [0, 0, 0, 1]])
BOX = (2, 2, 0, 5, 4, 1)  # voxels 2, 3, 4 along the first axis and 2, 3 along the second
# The working grid: RAS, isotropic, cropped to the body.
WORK_SHAPE, WORK_SPACING = (5, 4, 1), 6.0
WORK = np.array([[6.0, 0, 0, -12], [0, 6.0, 0, -9], [0, 0, 6, 0], [0, 0, 0, 1]])
BODY = ((0.0, 0.0), 27.0, 21.0)  # centre and diameters, LPS mm

GRID, BOX_COLOR, INK, DOT = "#b8c0cc", "#d1495b", "#222222", "#30638e"


def main(path: Path) -> None:
    """Draw all three panels."""
    figure = Figure(figsize=(15, 5.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    voxels, patient, working = figure.subplots(1, 3, width_ratios=(1.05, 1, 1))
    draw_voxels(voxels)
    draw_patient(patient)
    draw_working(working)
    with replacing(path) as draft:
        figure.savefig(draft)


def draw_voxels(axes: Axes) -> None:
    """The array: corners count edges, indices name cells."""
    columns, rows = SHAPE[:2]
    draw_grid(axes, range(columns + 1), range(rows + 1))
    i, j = np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij")
    axes.plot(i + 0.5, j + 0.5, ".", color=DOT, markersize=4)
    for k in range(columns):
        axes.text(k + 0.5, rows + 0.12, str(k), ha="center", va="top", color=DOT, fontsize=9)
    for k in range(rows):
        axes.text(-0.12, k + 0.5, str(k), ha="right", va="center", color=DOT, fontsize=9)
    x0, y0, _, x1, y1, _ = BOX
    draw_box(axes, x0, y0, x1, y1)
    note(axes, f"start ({x0}, {y0})", (x0, y0), (4.3, -0.6))
    note(axes, f"stop ({x1}, {y1}): voxel ({x1}, {y1})\nis the first outside", (x1, y1), (6.4, 5.4))
    note(axes, "centre of voxel (0, 0)\nis corner (0.5, 0.5)", (0.5, 0.5), (1.2, -0.7))
    axes.text(columns / 2, rows + 0.6, "first array axis →", ha="center", va="top", color=DOT)
    axes.text(-0.5, rows / 2, "second array axis →", ha="right", va="center", color=DOT, rotation=-90)
    axes.set(xlim=(-1.3, columns + 0.3), ylim=(rows + 1.4, -1.3))
    axes.set_title(f'voxels of the scan\n"box_voxel": [[{x0}, {x1}], [{y0}, {y1}], …]', fontsize=11)


def draw_patient(axes: Axes) -> None:
    """The same box in the patient, seen from the feet: the patient's left is at the right."""
    edges = [voxel_to_lps(np.arange(n + 1)[:, None] * np.eye(3)[k], SCAN)[:, k] for k, n in enumerate(SHAPE[:2])]
    draw_grid(axes, *edges)
    axes.add_patch(Ellipse(*BODY, fill=False, edgecolor=INK, linewidth=1.2, linestyle=":"))
    box = box_to_oriented(BOX, SCAN)
    draw_box(axes, *box.min[:2], *box.max[:2])
    low, high = (f"{corner[0]:g}, {corner[1]:g}" for corner in (box.min, box.max))
    note(axes, f"min ({low})", box.min[:2], (-23.5, -2))
    note(axes, f"max ({high})", box.max[:2], (9, 18.2))
    first = voxel_to_lps((0.5, 0.5, 0.5), SCAN)
    axes.plot(*first[:2], ".", color=DOT, markersize=7)
    note(
        axes,
        f"centre of voxel (0, 0): affine·(0, 0) =\n({SCAN[0, 3]:g}, {SCAN[1, 3]:g}) in RAS, "
        f"({first[0]:g}, {first[1]:g}) in LPS",
        first[:2],
        (-5.0, -20.5),
    )
    for origin, (dx, dy), color, names in (
        ((-26, 15), (6, 6), BOX_COLOR, ("L +x", "P +y")),
        ((27, -13), (-6, -6), INK, ("R +x", "A +y")),
    ):
        for step, name in (((dx, 0), names[0]), ((0, dy), names[1])):
            tip = (origin[0] + step[0], origin[1] + step[1])
            axes.annotate("", tip, origin, arrowprops={"arrowstyle": "-|>", "color": color})
            axes.text(tip[0] + step[0] * 0.3, tip[1] + step[1] * 0.25, name, color=color, ha="center", va="center")
    axes.text(-24, 12.5, "LPS\n(all boxes)", color=BOX_COLOR, ha="center", fontsize=9)
    axes.text(27, -11.5, "RAS\n(affines)", color=INK, ha="center", va="top", fontsize=9)
    axes.set(xlim=(-31, 33), ylim=(25, -25))
    title = f'patient millimetres, seen from the feet\n"box_mm": {{"min": [{low}, …], "max": [{high}, …]}}'
    axes.set_title(title, fontsize=11)


def draw_working(axes: Axes) -> None:
    """What the network sees: another grid over the same patient, so other voxel numbers for the same box."""
    edges = [voxel_to_lps(np.arange(n + 1)[:, None] * np.eye(3)[k], WORK)[:, k] for k, n in enumerate(WORK_SHAPE[:2])]
    draw_grid(axes, *edges)
    axes.add_patch(Ellipse(*BODY, fill=False, edgecolor=INK, linewidth=1.2, linestyle=":"))
    low, high = (voxel_to_lps(corner, SCAN)[:2] for corner in ((0, 0, 0), SHAPE))
    axes.add_patch(Rectangle((low[0], low[1]), *(high - low), fill=False, edgecolor=GRID, linestyle="--"))
    axes.text(high[0], high[1] + 0.6, "edge of the scan", color="#7a8594", ha="right", va="top", fontsize=9)
    x, y = (np.array([(a + b) / 2 for a, b in pairwise(e)]) for e in edges)
    axes.plot(*np.meshgrid(x, y), ".", color=DOT, markersize=4)
    for k, place in enumerate(x):
        axes.text(place, edges[1].min() - 0.5, str(k), ha="center", va="bottom", color=DOT, fontsize=9)
    for k, place in enumerate(y):
        axes.text(edges[0].max() + 1.5, place, str(k), ha="left", va="center", color=DOT, fontsize=9)
    box = box_to_oriented(BOX, SCAN)
    draw_box(axes, *box.min[:2], *box.max[:2])
    (inside,) = transform_boxes([BOX], SCAN, WORK)
    axes.text(0, 19, f"← first axis: to the patient's {word(WORK, 0)}", ha="center", color=DOT)
    axes.text(0, 21.5, f"second axis, upwards: to the patient's {word(WORK, 1)}", ha="center", color=DOT)
    axes.set(xlim=(-28, 28), ylim=(25, -25))
    span = ", ".join(f"[{a:.2f}, {b:.2f}]" for a, b in zip(inside[:2], inside[3:5], strict=True))
    axes.set_title(
        f"working grid: RAS, {WORK_SPACING:g} mm, cropped to the body\nthe same box: [{span}, …]", fontsize=11
    )


def word(affine: np.ndarray, axis: int) -> str:
    """Direction in which an array axis grows."""
    names = {"R": "right", "L": "left", "A": "front", "P": "back", "S": "head", "I": "feet"}
    return names[axcodes_of(affine)[axis]]


def draw_grid(axes: Axes, x: ArrayLike, y: ArrayLike) -> None:
    """Edges of voxels."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    axes.vlines(x, y.min(), y.max(), color=GRID, linewidth=0.8)
    axes.hlines(y, x.min(), x.max(), color=GRID, linewidth=0.8)
    axes.set_aspect("equal")
    axes.axis("off")


def draw_box(axes: Axes, x0: float, y0: float, x1: float, y1: float) -> None:
    """The box of the organ, from corner to corner."""
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor=BOX_COLOR, alpha=0.25))
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=BOX_COLOR, linewidth=2))


def note(axes: Axes, text: str, point: ArrayLike, place: tuple[float, float]) -> None:
    """A remark with an arrow."""
    axes.annotate(
        text,
        tuple(np.asarray(point, dtype=float)),
        place,
        arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 0.8},
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
        ha="center",
        va="center",
        fontsize=9,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images" / "frames.png")
