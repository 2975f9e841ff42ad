"""The results of ``benchmarks/accuracy.py`` as Markdown tables and as pictures."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import table

from organdetr_monai.files import replacing

Result = Mapping[str, Any]

#: Title, where it is in a result, decimals.
COLUMNS = (
    ("mAP_coco", ("metrics", "mAP_coco"), 3),
    ("mAP_nndet", ("metrics", "mAP_nndet"), 3),
    ("AP50", ("metrics", "AP50"), 3),
    ("AP75", ("metrics", "AP75"), 3),
    ("mAR", ("metrics", "mAR"), 3),
    ("recall 0.5", ("metrics", "recall50"), 3),
    ("wall mm", ("metrics", "wall_mean"), 1),
    ("95 % mm", ("metrics", "wall_p95"), 1),
    ("in 20 mm", ("metrics", "within_20mm"), 3),
    ("s/case", ("inference", "seconds"), 2),
    ("M param.", ("inference", "parameters"), 1),
    ("GiB", ("peak_gib",), 2),
    ("steps", ("spent", "steps"), 0),
)
SHOWN = ("mAP_coco", "AP50", "recall 0.5", "wall mm", "s/case")  # in the picture
SETTINGS = ("data", "datalist", "val", "limit", "unit", "validations", "threads", "options")


def load_results(folder: Path) -> list[dict[str, Any]]:
    """All results that are there, by name of their file."""
    return [json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))]


def figure(result: Result, where: Sequence[str]) -> float | None:
    """A number of a finished run; None where it is not defined."""
    value: Any = result
    for key in where:
        value = value[key]
    return value / 1e6 if where[-1] == "parameters" else value


def groups(results: Iterable[Result]) -> list[tuple[dict[str, Any], dict[str, list[Result]]]]:
    """Runs with the same data, budget and options: settings, and results by config."""
    found: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        settings = {key: result["run"][key] for key in SETTINGS}
        found[json.dumps(settings, sort_keys=True)][result["run"]["config"]].append(result)
    return [(json.loads(settings), dict(configs)) for settings, configs in sorted(found.items())]


def markdown(results: Iterable[Result]) -> str:
    """One table for each group, best mAP_coco first; mean ± standard deviation over seeds.

    A config with failed runs has a further row with the reason; a failure has no figures.
    """
    text = []
    for settings, configs in groups(results):
        rows: list[list[object]] = []
        failures: list[list[object]] = []
        for config, runs in configs.items():
            done = [r for r in runs if r["status"] == "done"]
            if done:
                rows.append([_label(config), len(done), *(_cell(done, where, n) for _, where, n in COLUMNS)])
            for reason, seeds in _failures(runs).items():
                failures.append([_label(config), f"failed (seed {seeds})", reason, *[""] * (len(COLUMNS) - 1)])
        rows.sort(key=lambda row: str(row[2]), reverse=True)  # as many digits in all
        text.append(table(_title(settings), ["", "runs", *(name for name, _, _ in COLUMNS)], rows + failures))
    return "\n".join(text) or "no results"


def _label(config: str) -> str:
    return "+".join(Path(part).stem if part.endswith(".json") else part for part in config.split("+"))


def _title(settings: Mapping[str, Any]) -> str:
    names = " to ".join(Path(path).name for path in (settings["datalist"], settings["val"]) if path)
    extra = f", {' '.join(settings['options'])}" if settings["options"] else ""
    unit = settings["unit"].replace("_", " ")
    return (
        f"{settings['data']} {names}".rstrip()
        + f", {settings['limit']:g} {unit}, {settings['threads']} threads"
        + extra
    )


def _failures(runs: Sequence[Result]) -> dict[str, str]:
    """Reason to the seeds that failed for it."""
    seeds: dict[str, list[int]] = defaultdict(list)
    for result in runs:
        if result["status"] == "failed":
            seeds[result["reason"].replace("|", "/")].append(result["run"]["seed"])
    return {reason: ", ".join(map(str, sorted(which))) for reason, which in seeds.items()}


def _cell(done: Sequence[Result], where: Sequence[str], decimals: int) -> str:
    values = [value for value in (figure(result, where) for result in done) if value is not None]
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{decimals}f}"
    spread = len(values) > 1 and where[0] == "metrics"
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}" if spread else mean


def draw(results: Sequence[Result], folder: Path, *, curves: Sequence[str] = ()) -> list[Path]:
    """Pictures of every group with finished runs: the table's main columns, and learning curves.

    Parameters
    ----------
    results : sequence of results
    folder : path
    curves : sequence of str
        Configs in the second picture; all if none of them is there.

    Returns
    -------
    list of path
        ``accuracy-K.png`` and ``curves-K.png`` for each group with finished runs.
    """
    paths = []
    finished = [result for result in results if result["status"] == "done"]
    for k, (settings, configs) in enumerate(groups(finished), start=1):
        chosen = {name: runs for name, runs in configs.items() if not curves or name in curves}
        paths += [_draw_table(settings, configs, folder / f"accuracy-{k}.png")]
        paths += [_draw_curves(settings, chosen or configs, folder / f"curves-{k}.png")]
    return paths


def _draw_table(settings: Mapping[str, Any], configs: Mapping[str, Sequence[Result]], path: Path) -> Path:
    """A panel for each column, a row for each config, a dot for each run."""
    columns = [column for column in COLUMNS if column[0] in SHOWN]
    figure_, axes = _figure(1, len(columns), (3.0 * len(columns), 1.4 + 0.3 * len(configs)), sharey=True)
    order = sorted(configs, key=lambda name: statistics.fmean(_values(configs[name], COLUMNS[0][1]) or [0.0]))
    for panel, (title, where, _) in zip(axes, columns, strict=True):
        for row, name in enumerate(order):
            values = _values(configs[name], where)
            panel.plot(values, [row] * len(values), "o", color="C0", alpha=0.7)
            if values:
                panel.plot(statistics.fmean(values), row, "|", color="black", markersize=14)
        panel.set(title=title, yticks=range(len(order)), yticklabels=[_label(name) for name in order])
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    return _save(figure_, settings, path)


def _draw_curves(settings: Mapping[str, Any], configs: Mapping[str, Sequence[Result]], path: Path) -> Path:
    """mAP_coco on the validation cases against what training has cost, in minutes: a line for each run."""
    unit = "wall_minutes" if settings["unit"] == "wall_minutes" else "cpu_minutes"
    figure_, (panel,) = _figure(1, 1, (8, 5.2))
    for k, (name, runs) in enumerate(configs.items()):
        style = {"color": f"C{k % 10}", "linestyle": ("-", "--", ":")[k // 10 % 3], "marker": "o", "markersize": 4}
        for number, result in enumerate(runs):
            points = [(point[unit], point["mAP_coco"]) for point in result["curve"]]
            label = _label(name) if number == 0 else None
            panel.plot(*zip(*points, strict=True), label=label, **style)
    panel.set(xlabel=f"{unit.replace('_', ' ')} of training", ylabel="mAP_coco, validation")
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    return _save(figure_, settings, path)


def _values(runs: Sequence[Result], where: Sequence[str]) -> list[float]:
    return [value for value in (figure(result, where) for result in runs) if value is not None]


def _figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure_ = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure_)
    return figure_, list(figure_.subplots(rows, columns, squeeze=False, **options).flat)


def _save(figure_: Any, settings: Mapping[str, Any], path: Path) -> Path:
    figure_.suptitle(_title(settings), fontsize="medium")
    with replacing(path) as draft:
        figure_.savefig(draft)
    return path
