"""A picture of a training run: loss terms, detection figures and distances over the epochs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from organdetr_monai.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curves"]

_SHARES = ("mAP_coco", "mAP_nndet", "AP50", "AP75", "mAR", "recall50", "within_20mm")  # fractions of 1
_DISTANCES = ("wall_mean", "wall_p95", "centre_mean")  # mm
_NOT_A_LOSS = ("grad_norm",)
_AUXILIARY = "_aux"


def draw_curves(entries: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the entries of a :class:`organdetr_monai.history.TrainingHistory`.

    Parameters
    ----------
    entries : sequence of mapping
        ``epoch``, ``train`` (name to mean over the epoch) and, in some, ``validation`` (name to figure).
    path : path
        Should end in ``.png``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    losses, shares, distances = figure.subplots(1, 3)
    terms = [name for name in _names(entries, "train") if name not in _NOT_A_LOSS]
    stems = list(dict.fromkeys(name.removesuffix(_AUXILIARY) for name in terms))
    for name in terms:  # the earlier decoder layers in the colour of the last one, dashed
        stem = name.removesuffix(_AUXILIARY)
        _draw(losses, entries, "train", name, color=f"C{stems.index(stem)}", linestyle="-" if name == stem else "--")
    losses.set(title="training: loss, a weighted sum, and its terms", ylabel="mean over the epoch", yscale="log")
    for axes, figures in ((shares, _SHARES), (distances, _DISTANCES)):
        for k, name in enumerate(figures):
            _draw(axes, entries, "validation", name, color=f"C{k}", marker="o")
    shares.set(title="validation: AP, recall, shares", ylim=(-0.02, 1.02))
    distances.set(title="validation: distances", ylabel="mm")
    distances.set_ylim(bottom=0)
    last = max((entry["epoch"] for entry in entries), default=1)
    for axes in (losses, shares, distances):
        axes.set(xlabel="epoch", xlim=(0.5, max(last, 2) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.13))
        else:
            axes.text(0.5, 0.5, "nothing was measured", ha="center", va="center", transform=axes.transAxes)
    with replacing(path) as draft:
        figure.savefig(draft)


def _names(entries: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    """Names in order of appearance."""
    return list(dict.fromkeys(name for entry in entries for name in entry.get(part, ())))


def _draw(axes: Axes, entries: Sequence[Mapping[str, Any]], part: str, name: str, **style: Any) -> None:
    """A line through the epochs that have a number of that name."""
    points = [(e["epoch"], e[part][name]) for e in entries if e.get(part, {}).get(name) is not None]
    if points:
        marker = "o" if len(points) == 1 else None
        axes.plot(*zip(*points, strict=True), **{"marker": marker, "markersize": 4, "label": name, **style})
