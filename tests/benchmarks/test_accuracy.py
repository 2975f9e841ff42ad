"""The accuracy benchmark: which runs there are, what one leaves, the table with failures in it, and a tiny real one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import accuracy
import pytest
import robustness
import training_run
from accuracy_report import draw, load_results, markdown
from contenders import CONTENDERS, deltas
from training_run import Run, RunError, alone, finish, result_path

from tests.bundles import SMALL, arguments
from tests.test_bundle import phantoms  # noqa: F401 - a fixture

RUN = Run("default", 0, 6, "cpu_minutes", "openkbp", "train.json", "val.json")
METRICS = {"mAP_nndet": 0.5, "AP50": 0.4, "AP75": 0.1, "mAR": 0.2, "recall50": 0.6, "wall_p95": 11.8}
METRICS |= {"wall_mean": 4.8, "within_20mm": 0.9}


def done(mean_ap: float, run: Run = RUN) -> dict:
    """A finished run as its JSON has it."""
    curve = [{"cpu_minutes": 6.0 * k, "wall_minutes": 3.0 * k, "mAP_coco": mean_ap / (2 - k)} for k in (0, 1)]
    return {
        "run": asdict(run),
        "status": "done",
        "metrics": {"mAP_coco": mean_ap, **METRICS},
        "curve": curve,
        "spent": {"cpu_minutes": 6.0, "wall_minutes": 3.0, "steps": 400, "epochs": 6},
        "peak_gib": 1.5,
        "inference": {"seconds": 0.36, "cpu_seconds": 0.36, "parameters": 3_300_000},
    }


def failed(reason: str, run: Run = RUN) -> dict:
    return {"run": asdict(run), "status": "failed", "reason": reason}


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_table_has_mean_and_spread_of_the_seeds_and_the_best_first():
    other = replace(RUN, config="hungarian")
    results = [done(0.10), done(0.14, replace(RUN, seed=1)), done(0.25, other)]
    header, _, best, second = rows(markdown(results))
    assert dict(zip(header, best, strict=True))["mAP_coco"] == "0.250" and best[:2] == ["hungarian", "1"]
    cells = dict(zip(header, second, strict=True))
    assert second[:2] == ["default", "2"]
    assert (cells["mAP_coco"], cells["M param."], cells["steps"]) == ("0.120 ± 0.028", "3.3", "400")


def test_failed_run_is_a_row_with_its_reason_and_without_figures():
    results = [done(0.1), failed("no | memory", replace(RUN, config="unet")), failed("died", replace(RUN, seed=1))]
    *_, default, one, two = rows(markdown(results))
    assert default[:2] == ["default", "1"]
    assert {tuple(row[:3]) for row in (one, two)} == {
        ("unet", "failed (seed 0)", "no / memory"),
        ("default", "failed (seed 1)", "died"),
    }
    assert not any(one[3:] + two[3:])


def test_what_is_not_defined_is_a_dash_and_what_is_not_comparable_another_table():
    none = done(0.1)
    none["metrics"]["wall_mean"] = None
    text = markdown([none, done(0.2, replace(RUN, limit=12))])
    header, _, row = rows(text.split("###")[2 if "6 cpu minutes" in text.split("###")[2] else 1])
    assert dict(zip(header, row, strict=True))["wall mm"] == "-"
    assert text.count("###") == 2
    assert markdown([]) == "no results"


def test_pictures_are_drawn_of_what_is_done(tmp_path):
    many = [done(0.1 + k / 100, replace(RUN, config=name)) for k, name in enumerate(CONTENDERS)]
    paths = draw([*many, failed("x", replace(RUN, limit=1))], tmp_path, curves=["default"])
    assert [path.name for path in paths] == ["accuracy-1.png", "curves-1.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert draw([failed("x")], tmp_path) == []


def test_every_contender_has_its_files():
    missing = {path.name for name in CONTENDERS for path in deltas(name) if not path.is_file()}
    assert not missing


def test_contenders_can_be_joined_and_be_files(tmp_path):
    own = tmp_path / "mine.json"
    own.write_text("{}")
    names = [path.name for path in deltas(f"hungarian+encoder/none.json+{own}")]
    assert names == ["hungarian.json", "none.json", "mine.json"]
    with pytest.raises(ValueError, match="hungarain"):
        deltas("hungarain")


def test_runs_that_differ_have_names_of_their_own():
    changes = [{"seed": 1}, {"limit": 7}, {"unit": "steps"}, {"val": "x"}, {"threads": 2}, {"options": ("a=1",)}]
    assert len({RUN.name, *(replace(RUN, **change).name for change in changes)}) == 1 + len(changes)
    assert RUN.name.startswith("default-6_cpu_minutes-seed0-")


@pytest.fixture
def pretend(monkeypatch):
    """Processes that write what the bundle would, and a list of what was started."""
    started = []

    def bundle(run, what, files, options, log):
        started.append((run.config, what, [path.name for path in files]))
        folder = options["output_dir"]
        folder.mkdir(exist_ok=True)
        if what == "training":
            entry = {"epoch": 1, "train": {}, "spent": {"cpu_minutes": 6.1}, "validation": {"mAP_coco": 0.3}}
            (folder / "history.json").write_text(json.dumps([entry]))
        else:
            (folder / "metrics.json").write_text(json.dumps({"mAP_coco": bundle.evaluated}))
            (folder / "cost.json").write_text('{"seconds": 0.1}')
        return bundle.gib

    bundle.evaluated, bundle.gib, bundle.started = 0.3, 1.5, started
    monkeypatch.setattr(training_run, "bundle", bundle)
    return bundle


def test_finished_run_is_not_repeated(pretend, tmp_path):
    result = finish(RUN, tmp_path)
    assert result["status"] == "done" and result["curve"] == [{"cpu_minutes": 6.1, "mAP_coco": 0.3}]
    assert result["spent"]["epochs"] == 1
    assert [what for _, what, _ in pretend.started] == ["training", "evaluating"]
    assert finish(RUN, tmp_path) == load_results(tmp_path)[0] == json.loads(json.dumps(result))
    assert len(pretend.started) == 2


def test_evaluation_says_last_which_weights_are_evaluated(pretend, tmp_path):
    finish(replace(RUN, config="unet"), tmp_path)
    (_, _, training), (_, _, evaluating) = pretend.started
    assert training == ["train.json", "openkbp.json", "unet.json", "budget.json"]
    assert evaluating == ["train.json", "openkbp.json", "unet.json", "evaluate.json", "evaluation.json"]


def test_resumed_run_has_the_peak_of_all_its_processes(pretend, tmp_path):
    finish(RUN, tmp_path)
    result_path(RUN, tmp_path).unlink()
    pretend.gib = 0.5
    assert finish(RUN, tmp_path)["peak_gib"] == 1.5


def test_failure_is_told_and_tried_again(pretend, tmp_path, monkeypatch):
    missing = finish(replace(RUN, data="nowhere"), tmp_path)
    assert (missing["status"], missing["reason"]) == ("failed", "configs/data/nowhere.json does not exist")
    pretend.evaluated = 0.2
    other = finish(RUN, tmp_path)
    assert other["status"] == "failed" and "0.2" in other["reason"] and "0.3" in other["reason"]
    pretend.evaluated = None
    assert finish(RUN, tmp_path)["status"] == "failed"
    pretend.evaluated = 0.3
    assert finish(RUN, tmp_path)["status"] == "done"


def test_run_that_another_process_does_is_left_to_it(pretend, tmp_path):
    own = tmp_path / "runs" / RUN.name
    own.mkdir(parents=True)
    with alone(own / "lock") as mine:
        assert mine and finish(RUN, tmp_path)["status"] == "busy"
    assert pretend.started == [] and load_results(tmp_path) == []
    assert finish(RUN, tmp_path)["status"] == "done"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('progress'); print('error: no such organ.'); raise SystemExit(1)", "failed: error: no such organ."),
        ("raise MemoryError('too much')", "failed: MemoryError: too much"),
        ("raise RuntimeError('Failed to evaluate: line') from KeyError('organ')", "failed: KeyError: 'organ'"),
        ("print('only this'); raise SystemExit(3)", "failed: only this"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by signal 9"),
    ],
)
def test_reason_of_a_failed_process_is_found_in_its_log(program, reason, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {training_run.sys.executable} -c "{program}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(training_run.sys, "executable", str(python))
    with pytest.raises(RunError, match=f"^training {reason}$"):
        training_run.bundle(RUN, "training", [], {}, tmp_path / "log")


def test_unusable_command_is_refused_before_anything_runs(tmp_path, capsys):
    for wrong in (["--configs", "hungarain", "--steps", "1"], ["--steps", "1", "--val", "nowhere.json"], []):
        with pytest.raises(SystemExit):
            accuracy.main(["--output", str(tmp_path), *wrong])
    said = capsys.readouterr().err
    assert "hungarain" in said and "nowhere.json" in said and "--cpu-minutes" in said


def test_tiny_run_from_training_to_table_and_robustness(phantoms, tmp_path, capsys):  # noqa: F811
    tiny = [part for option in arguments({**SMALL, "device": "$torch.device('cpu')"}) for part in ("--set", option[2:])]
    command = ["--configs", "default,segmentation_off", "--datalist", str(phantoms / "datalist.json"), *tiny]
    command += ["--steps", "3", "--validations", "1", "--output", str(tmp_path)]
    # One real run; the other is pretended by its result, which must not be made again.
    other = next(run for run in accuracy.runs(accuracy.parse(command)) if run.config == "segmentation_off")
    result_path(other, tmp_path).parent.mkdir()
    result_path(other, tmp_path).write_text(json.dumps(done(0.9, other)))
    assert accuracy.main(command) == 0
    result = next(r for r in load_results(tmp_path) if r["run"]["config"] == "default")
    assert result["spent"]["steps"] == 3 and result["spent"]["epochs"] == 2
    assert 0 < result["peak_gib"] < 4 and result["inference"]["seconds"] > 0
    assert [row[0] for row in rows(capsys.readouterr().out)[2:]] == ["segmentation_off", "default"]
    assert robustness.main(["--output", str(tmp_path), "--rows", "as it is,upper half"]) == 0
    ((figures),) = json.loads((tmp_path / "robustness.json").read_text())["figures"].values()
    for name, value in figures["as it is"].items():
        assert value == pytest.approx(result["metrics"][name], abs=1e-3, rel=1e-3), name
    assert 0 < figures["upper half"]["num_truth"] < figures["as it is"]["num_truth"]
