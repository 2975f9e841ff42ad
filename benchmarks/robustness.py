"""Trained models on changed scans: zoom, shift, rotation, noise, half the field of view; a row for each change.

``python benchmarks/robustness.py --output FOLDER --configs default,encoder_none`` takes finished runs of
``benchmarks/accuracy.py`` from its folder; ``--model models/model.pt --data openkbp --val FILE`` takes any weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accuracy_report import load_results
from contenders import CONFIGS
from measure import ROOT, table
from monai.bundle import ConfigParser
from training_run import Run

from organdetr_monai.checkpoints import settings_of
from organdetr_monai.files import replacing

_HERE = "benchmarks.perturbations."
#: Name of a row to the transform, as a config writes it; the random signs are the same for all models.
PERTURBATIONS: Mapping[str, dict[str, Any] | None] = {
    "as it is": None,
    "zoom 0.9": {"_target_": _HERE + "Moved", "zoom": 0.9},
    "zoom 1.1": {"_target_": _HERE + "Moved", "zoom": 1.1},
    "shift ±10 % of the scan": {"_target_": _HERE + "Moved", "shift": 0.1},
    "rotation ±10°": {"_target_": _HERE + "Moved", "rotate": 10.0},
    "noise 50 HU": {"_target_": _HERE + "Noisy", "sigma": 50.0},
    "noise 100 HU": {"_target_": _HERE + "Noisy", "sigma": 100.0},
    "upper half": {"_target_": _HERE + "HalfView", "axis": 2, "upper": True},
    "lower half": {"_target_": _HERE + "HalfView", "axis": 2, "upper": False},
}
COLUMNS = {"mAP_coco": 3, "mAP_nndet": 3, "AP50": 3, "AP75": 3, "mAR": 3, "recall50": 3, "wall_mean": 1, "wall_p95": 1}
COLUMNS |= {"within_20mm": 3, "num_truth": 0}


def evaluate(run: Run, model: Path, change: dict[str, Any] | None) -> dict[str, Any]:
    """Metrics of a model on the changed validation cases, from the bundle's own evaluation.

    Parameters
    ----------
    run : Run
        How the model was trained.
    model : path
        Its weights.
    change : dict, optional
        Transform of :mod:`perturbations`, as in a config.
    """
    parser = ConfigParser()
    parser.read_config([str(path) for path in [*run.files(), CONFIGS / "evaluate.json"]])
    parser.update({"bundle_root": str(ROOT), "ckpt_path": str(model), "seed": run.seed, "handlers": []})
    parser.update(settings_of(model))
    parser.update({key: path for key, path in (("datalist", run.datalist), ("val_datalist", run.val)) if path})
    options = (option.partition("=") for option in run.options)
    parser.update({key: _value(text) for key, _, text in options})
    spliced(parser, change)
    parser.get_parsed_content("evaluator").run()
    metric = parser.get_parsed_content("key_metric")["mAP_coco"]
    return {name: metric.result[name] for name in COLUMNS}


def spliced(parser: ConfigParser, change: dict[str, Any] | None) -> None:
    """Put a change into the validation transforms, after the scan was read and before it is made smaller."""
    steps = parser["preprocess#transforms"]
    (where,) = (k for k, step in enumerate(steps) if isinstance(step, dict) and step["_target_"] == "Orientationd")
    steps[where] = {**steps[where], "keys": ["image", "label"]}  # one grid for both
    if change is not None:
        steps.insert(where + 1, change)
    chain = parser["validate#transforms"]
    (truth,) = (k for k, step in enumerate(chain) if isinstance(step, dict) and "TruthBoxesd" in step["_target_"])
    organs = {"keys": "label", "num_organs": "$len(@organs)"}
    chain[truth] = {"_target_": _HERE + "VisibleTruthd", **organs}
    outlines = {"_target_": "organdetr_monai.data.truth.OutlineOrgansd", "keys": "label"}
    chain.insert(chain.index("@load_label") + 1, outlines)
    parser["validate#dataset"] = {"_target_": "Dataset", "data": "@val_data", "transform": "@validate#preprocessing"}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def chosen(options: argparse.Namespace) -> dict[str, tuple[Run, Path]]:
    """Models to test, by name."""
    if options.model is not None:
        run = Run(options.configs[0], 0, 1, "steps", options.data, options.val, options.val)
        return {options.model.stem: (run, options.model.resolve())}
    found = {}
    for result in load_results(options.output):
        fields = {**result["run"], "options": tuple(result["run"]["options"])}
        run = Run(**fields)
        if result["status"] == "done" and run.config in options.configs and run.seed == options.seed:
            found[run.name] = (run, options.output / "runs" / run.name / "model.pt")
    return found


def markdown(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A table for each model, and for several models mAP_coco side by side."""
    text = []
    for name, rows in figures.items():
        cells = [[row, *(f"{got[c]:.{n}f}" for c, n in COLUMNS.items())] for row, got in rows.items()]
        text.append(table(name, ["", *COLUMNS], cells))
    if len(figures) > 1:
        first = next(iter(figures.values()))
        cells = [[row, *(f"{rows[row]['mAP_coco']:.3f}" for rows in figures.values())] for row in first]
        text.append(table("mAP_coco", ["", *figures], cells))
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, print, and keep ``robustness.json``; 1 where there is no model."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    sys.path.insert(0, str(ROOT))  # configs name transforms of this folder
    models = chosen(options)
    if not models:
        print(f"no finished run of {options.configs} with seed {options.seed} in {options.output}", file=sys.stderr)
        return 1
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name, (run, model) in models.items():
        for row in options.rows:
            figures.setdefault(name, {})[row] = evaluate(run, model, PERTURBATIONS[row])
            print(f"{name}, {row}: mAP_coco {figures[name][row]['mAP_coco']:.3f}", file=sys.stderr)
    kept = {"runs": {name: dataclasses.asdict(run) for name, (run, _) in models.items()}, "figures": figures}
    with replacing(options.output / "robustness.json") as draft:
        draft.write_text(json.dumps(kept, indent=1) + "\n")
    print(markdown(figures))
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of benchmarks/accuracy.py; of the result")
    parser.add_argument("--configs", type=lambda text: text.split(","), default=["default"])
    parser.add_argument("--seed", type=int, default=0, help="of the runs")
    parser.add_argument("--rows", type=lambda text: text.split(","), default=list(PERTURBATIONS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, help="weights of --configs instead of runs")
    parser.add_argument("--data", default="phantom", help="with --model: a file of configs/data, or phantom")
    parser.add_argument("--val", type=lambda text: str(Path(text).resolve()), help="with --model: cases")
    options = parser.parse_args(arguments)
    options.output = options.output.resolve()
    unknown = set(options.rows) - set(PERTURBATIONS)
    if unknown:
        parser.error(f"no rows are called {sorted(unknown)}; there are {', '.join(PERTURBATIONS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
