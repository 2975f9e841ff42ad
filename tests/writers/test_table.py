"""The summary, read with the csv module: a line for each case and organ, and none lost."""

from __future__ import annotations

import csv

import numpy as np

from organdetr_monai.writers.table import COLUMNS, write_table
from tests.results import ORGANS, make_result


def read(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_numbers_round_trip(tmp_path):
    results = {"a": make_result(), "b, with comma": make_result(threshold=0.99)}
    write_table(results.items(), tmp_path / "t.csv", failed={"broken": "The file\nis cut off."})
    rows = read(tmp_path / "t.csv")
    assert [row["case"] for row in rows] == ["a"] * 5 + ["b, with comma"] * 5 + ["broken"]
    assert [row["organ"] for row in rows[:5]] == list(ORGANS)
    assert {row["model_weights"] for row in rows} == {"sha256:0123456789abcdef", ""}
    kidney, entry = rows[1], results["a"]["kidney_left"]
    for name, values in (("center", entry.box.center), ("size", entry.box.size), ("min", entry.box.min)):
        np.testing.assert_array_equal([float(kidney[f"{name}_{axis}_mm"]) for axis in "xyz"], values)
    voxels = [float(kidney[f"{end}_{axis}_voxel"]) for end in ("start", "stop") for axis in "xyz"]
    assert voxels == list(entry.box_voxel) and float(kidney["score"]) == entry.score


def test_absent_and_failed_leave_cells_empty_instead_of_zero(tmp_path):
    write_table([("a", make_result())], tmp_path / "t.csv", failed={"broken": "why"})
    rows = read(tmp_path / "t.csv")
    spleen, colon, broken = rows[2], rows[4], rows[5]
    assert (spleen["status"], spleen["score"], spleen["center_x_mm"]) == ("absent", "0.31", "")
    assert colon["score"] == ""
    assert {key: value for key, value in broken.items() if value} == {
        "case": "broken",
        "status": "failed",
        "error": "why",
    }
    assert rows[0]["truncated"] == "right" and list(rows[0]) == list(COLUMNS)


def test_what_else_failed_stands_with_the_results_of_its_case(tmp_path):
    cases = [("a", make_result()), ("b", make_result())]
    write_table(cases, tmp_path / "t.csv", notes={"b": "no DICOM report"}, doubts={"a": "like a mask"})
    rows = read(tmp_path / "t.csv")
    said = {(row["case"], row["warning"], row["error"]) for row in rows}
    assert said == {("a", "like a mask", ""), ("b", "", "no DICOM report")}
    assert len(rows) == 2 * len(ORGANS) and all(row["status"] != "failed" for row in rows)


def test_no_cases_is_a_heading(tmp_path):
    write_table([], tmp_path / "t.csv")
    assert read(tmp_path / "t.csv") == []
    assert (tmp_path / "t.csv").read_text().startswith("case,")
