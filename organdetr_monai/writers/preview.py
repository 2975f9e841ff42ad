"""The preview: one PNG with axial, coronal and sagittal view through the boxes, names, scores and a scale."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from organdetr_monai.detections import Detections, OrganDetection
from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing
from organdetr_monai.writers.appearance import color_of, title_of
from organdetr_monai.writers.views import FlatBox, View, standard_views

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure

__all__ = ["write_preview"]

_DPI = 120
_VIEWS_WIDTH, _LEGEND_WIDTH, _MAX_HEIGHT = 11.5, 2.9, 9.0  # inches
_GAP, _TOP, _BOTTOM = 0.12, 0.62, 0.15  # inches between and around views
_LINE = 0.185  # inches for a line of the legend
_PAPER, _INK, _DIM = "#101010", "#f0f0f0", "#9a9a9a"


def write_preview(
    detections: Detections,
    image: np.ndarray,
    path: str | os.PathLike,
    *,
    window: tuple[float, float] = (-160.0, 240.0),
    labels: np.ndarray | None = None,
    points: ArrayLike = (),
    heading: str | None = None,
) -> None:
    """Draw the scan and its boxes.

    Each view is the slice that cuts most boxes; boxes that it cuts are drawn full and labelled, the others dashed.
    The patient's right is at the picture's left.

    Parameters
    ----------
    detections : Detections
    image : ndarray of shape (X, Y, Z)
        The original array in HU; three slices of it are read.
    path : path
        Should end in ``.png``.
    window : (low, high)
        In HU: shown black and white. The default is a usual one for the abdomen.
    labels : ndarray of shape (X, Y, Z), optional
        A label map of the detections' ids, laid over the scan in their colours.
    points : array_like of shape (n, 3)
        Voxels to be marked with a cross; the slices go through the first.
    heading : str, optional
        What was found, in words; by default how many organs.

    Raises
    ------
    InputError
        An image of another shape than the detections speak of, or an empty window.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if tuple(image.shape) != detections.shape:
        raise InputError(
            f"The image has shape {tuple(image.shape)}, the detections {detections.shape}.", "Give the original array."
        )
    if not window[0] < window[1]:
        raise InputError(f"The window is {window} HU.", "Give (low, high) with low < high.")
    views = standard_views(detections, image, labels=labels, points=points)
    lines = len(detections.organs) + len({entry.status for entry in detections.organs})
    scale = _VIEWS_WIDTH / sum(view.width for view in views)  # inches per mm, the same in all views
    scale = min(scale, _MAX_HEIGHT / max(view.height for view in views))
    content = max(max(view.height for view in views) * scale, min(lines * _LINE, _MAX_HEIGHT))
    width = sum(view.width for view in views) * scale + _LEGEND_WIDTH + 5 * _GAP
    height = content + _TOP + _BOTTOM
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_PAPER)
    renderer = FigureCanvasAgg(figure).get_renderer()
    left = _GAP
    labelled = _labelled_boxes(views)
    for view in views:
        w, h = view.width * scale, view.height * scale
        axes = figure.add_axes((left / width, 1 - (_TOP + h) / height, w / width, h / height))
        _draw_view(axes, view, window)
        _draw_labels(renderer, axes, view, labelled[view.name])
        left += w + _GAP
    _draw_legend(figure, detections, left + _GAP, width, height, content)
    _draw_title(figure, detections, width, height, heading)
    with replacing(path) as draft:
        # Level 3 takes half the time of matplotlib's 6, and as many bytes.
        figure.savefig(
            draft, format="png", facecolor=_PAPER, metadata={"Software": None}, pil_kwargs={"compress_level": 3}
        )


def _draw_view(axes: Axes, view: View, window: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(
        view.pixels,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        extent=(0, view.width, view.height, 0),
        interpolation="bilinear",
        aspect="equal",
    )
    axes.set(xlim=(0, view.width), ylim=(view.height, 0), xticks=[], yticks=[])
    if view.labels is not None:
        _draw_tint(axes, view, view.labels)
    for box in sorted(view.boxes, key=lambda box: box.is_cut):  # cut ones on top
        if box.is_cut and view.labels is not None:
            continue  # its tint shows where it is
        x0, y0, x1, y1 = box.edges
        style = {"linewidth": 1.5} if box.is_cut else {"linewidth": 0.8, "linestyle": (0, (4, 3)), "alpha": 0.75}
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color_of(box.entry.id), **style))
    axes.set_title(f"{view.name}, slice {view.index + 1} of {view.count}", color=_INK, fontsize=8, pad=3)
    font = {"color": "#ffe066", "fontsize": 11, "fontweight": "bold", "transform": axes.transAxes, "zorder": 6}
    places = ((0.012, 0.5), (0.5, 0.988), (0.988, 0.5), (0.5, 0.012))
    aligned = (("left", "center"), ("center", "top"), ("right", "center"), ("center", "bottom"))
    for letter, (x, y), (across, along) in zip(view.marks, places, aligned, strict=True):
        axes.text(x, y, letter, {**font, "ha": across, "va": along})
    _draw_scale(axes, view)
    for x, y, distance in view.points:
        alpha = 1.0 if distance < 1e-3 else 0.45  # of another slice
        axes.plot([x], [y], marker="+", markersize=13, markeredgewidth=3.2, color="black", alpha=alpha, zorder=7)
        axes.plot([x], [y], marker="+", markersize=12, markeredgewidth=1.4, color="white", alpha=alpha, zorder=8)


def _draw_tint(axes: Axes, view: View, labels: np.ndarray) -> None:
    """Labels as a tint that lets the scan shine through."""
    tint = np.zeros((*labels.shape, 4))
    for number in np.unique(labels[labels > 0]).tolist():
        tint[labels == number] = (*color_of(number), 0.4)
    axes.imshow(tint, extent=(0, view.width, view.height, 0), interpolation="nearest", aspect="equal")


def _draw_scale(axes: Axes, view: View) -> None:
    """A bar of 1, 2 or 5 times a power of ten mm, about a quarter of the view's width."""
    wanted = view.width / 4
    power = 10.0 ** np.floor(np.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    x, y = 0.03 * view.width, view.height * 0.975
    axes.plot([x, x + length], [y, y], color="white", linewidth=2.5, solid_capstyle="butt", zorder=6)
    axes.text(
        x + length / 2, y - 0.008 * view.height, f"{length:g} mm", color="white", fontsize=7, ha="center", zorder=6
    )


def _labelled_boxes(views: tuple[View, ...]) -> dict[str, list[FlatBox]]:
    """Boxes that bear their name in each view: those its slice cuts, and in the nearest view those that none cuts."""
    chosen: dict[str, list[FlatBox]] = {view.name: [box for box in view.boxes if box.is_cut] for view in views}
    for boxes in zip(*(view.boxes for view in views), strict=True):  # one organ in the three views
        if not any(box.is_cut for box in boxes):
            nearest = min(range(len(views)), key=lambda i: boxes[i].distance)
            chosen[views[nearest].name].append(boxes[nearest])
    return chosen


def _draw_labels(renderer: RendererAgg, axes: Axes, view: View, boxes: list[FlatBox]) -> None:
    """Names and scores at the boxes, small boxes first, each where it covers least of what is written already."""
    mm_per_pixel = view.width / axes.get_window_extent(renderer).width
    taken = []  # (x0, y0, x1, y1) in mm
    for x, y in ((0, 0.5), (0.5, 0), (1, 0.5), (0.5, 1)):  # the letters, then the scale
        side, cx, cy = 14 * mm_per_pixel, x * view.width, y * view.height
        taken.append((cx - side, cy - side, cx + side, cy + side))
    taken.append((0, view.height * 0.92, view.width * 0.3, view.height))
    if view.labels is not None:  # what is tinted is to be seen, not written over
        taken += [box.edges for box in view.boxes if box.is_cut]
    side = 6 * mm_per_pixel
    taken += [(x - side, y - side, x + side, y + side) for x, y, _ in view.points]
    for box in sorted(boxes, key=lambda box: (box.edges[2] - box.edges[0]) * (box.edges[3] - box.edges[1])):
        text = axes.text(
            0,
            0,
            f"{title_of(box.entry.organ)} {box.entry.score:.2f}",
            color=color_of(box.entry.id),
            fontsize=6.5,
            va="top",
            ha="left",
            zorder=5,
            bbox={"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 0.8},
        )
        extent = text.get_window_extent(renderer)
        width, height = (extent.width + 3) * mm_per_pixel, (extent.height + 3) * mm_per_pixel
        x, y = _best_spot(box.edges, width, height, taken, (view.width, view.height))
        text.set_position((x, y))
        taken.append((x, y, x + width, y + height))


def _best_spot(
    edges: tuple[float, float, float, float],
    width: float,
    height: float,
    taken: list[tuple[float, float, float, float]],
    limits: tuple[float, float],
) -> tuple[float, float]:
    """Top left corner of a label (mm): along the box's edges, with the least overlap; early spots win ties."""
    x0, y0, x1, y1 = edges
    rows = [y0, y0 - height, y1 - height, y1, (y0 + y1 - height) / 2, y0 + height, y1 - 2 * height]
    columns = [x0, x1 - width, (x0 + x1 - width) / 2, x0 - width, x1]
    spots = np.array([(x, y) for y in rows for x in columns])  # (S, 2)
    spots = np.clip(spots, 0, np.maximum(np.subtract(limits, (width, height)), 0))
    other = np.array(taken)  # (T, 4)
    over = np.minimum(spots[:, None] + (width, height), other[:, 2:]) - np.maximum(spots[:, None], other[:, :2])
    overlap = np.clip(over, 0, None).prod(axis=-1).sum(axis=1)  # (S,), mm²
    return tuple(spots[np.argmin(overlap.round(3))])


def _draw_legend(
    figure: Figure, detections: Detections, left: float, width: float, height: float, content: float
) -> None:
    """Colour, name, score and cut faces of every organ; absent ones below, in grey."""
    absent = [entry for entry in detections.organs if entry.status == "absent"]
    lines = len(detections.organs) + bool(detections.present) + bool(absent)
    step = min(_LINE, content / max(lines, 1))
    size = min(7.5, step * 72 * 0.62)
    y = height - _TOP

    def line(text: str, *, indent: float = 0.0, color: object = _INK, weight: str = "normal") -> None:
        figure.text(
            (left + indent) / width,
            y / height,
            text,
            color=color,
            fontsize=size,
            fontweight=weight,
            va="top",
            ha="left",
        )

    for heading, entries in (("present", detections.present), ("not found (best score)", absent)):
        if not entries:
            continue
        line(heading, color=_DIM, weight="bold")
        y -= step
        for entry in entries:
            color = color_of(entry.id) if entry.status == "present" else _DIM
            line("■" if entry.status == "present" else "□", color=color)
            line(_legend_text(entry), indent=0.16, color=_INK if entry.status == "present" else _DIM)
            y -= step


def _legend_text(entry: OrganDetection) -> str:
    score = "–" if entry.score is None else f"{entry.score:.2f}"
    cut = f"  cut: {', '.join(entry.truncated)}" if entry.truncated else ""
    return f"{title_of(entry.organ)}  {score}{cut}"


def _draw_title(figure: Figure, detections: Detections, width: float, height: float, heading: str | None) -> None:
    name = Path(detections.image).name if detections.image else "scan"
    found = heading or f"{len(detections.present)} of {len(detections.organs)} organs found"
    model = f"{detections.model.name} {detections.model.version}"
    figure.text(_GAP / width, 1 - 0.1 / height, name, color=_INK, fontsize=10, fontweight="bold", va="top")
    figure.text(
        1 - _GAP / width,
        1 - 0.1 / height,
        f"{found} · {model} · patient's right at the left · dashed: not in this slice",
        color=_DIM,
        fontsize=7.5,
        va="top",
        ha="right",
    )
