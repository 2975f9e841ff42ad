"""The metric table: on the screen, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing
from organdetr_monai.metrics import DISTANCES


def format_table(result: Mapping[str, Any]) -> str:
    """Result of :meth:`DetectionMetrics.compute` as aligned text: a row for each organ, group and the whole set.

    AP, recall and shares are fractions of 1, distances mm; ``-`` stands for what is not defined.
    """
    columns = [name for name in result if isinstance(result[name], int | float) and name != "num_cases"]
    rows = [["", *columns]]
    rows += [[name, *(_cell(c, figures[c]) for c in columns)] for name, figures in _rows(result)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    limit = f"at most {result['settings']['max_detections']} box(es) for each organ and image"
    head = f"{result['num_cases']} cases, {limit}, distances in mm"
    return "\n".join([head, *lines]) + "\n"


def _rows(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [*result["per_organ"].items(), *result.get("per_group", {}).items(), ("all", result)]


def _cell(column: str, value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.1f}" if column in DISTANCES else f"{value:.3f}"


def save(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a result whole or not at all.

    Parameters
    ----------
    result : mapping
        Of :meth:`DetectionMetrics.compute`.
    path : path
        ``.json`` keeps everything, NaN as null; ``.csv`` has the rows of :func:`format_table`, NaN as an empty cell.

    Raises
    ------
    InputError
        For another suffix.
    """
    path = Path(path)
    if path.suffix == ".json":
        text = json.dumps(_without_nan(result), indent=2, allow_nan=False) + "\n"
    elif path.suffix == ".csv":
        table = io.StringIO()
        columns = [*next(iter(result["per_organ"].values()))]
        writer = csv.DictWriter(table, ["name", *columns], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({"name": name, **_without_nan(figures)} for name, figures in _rows(result))
        text = table.getvalue()
    else:
        raise InputError(f"Metrics cannot be written to {path.name}.", "Use a name that ends in .json or .csv.")
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
