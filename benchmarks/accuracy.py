"""Trains several configs for the same budget and compares them: Markdown table, picture, learning curves.

``python benchmarks/accuracy.py --configs default,hungarian --data openkbp --datalist ../shared/data/openkbp/train.json
--val ../shared/data/openkbp/val.json --cpu-minutes 6 --seeds 2 --output FOLDER``. The same command goes on after an
interruption, and does not repeat what is done; started twice, the two share the runs. ``--table-only`` shows what there
is. docs/accuracy.md says what is counted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from accuracy_report import draw, load_results, markdown
from contenders import CONTENDERS, deltas
from training_run import Run, finish


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not done yet, then show everything in the folder; 1 if a run failed."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, which ends the training, too
    failed = False
    if not options.table_only:
        todo = runs(options)
        for k, run in enumerate(todo, start=1):
            start = time.perf_counter()
            result = finish(run, options.output)
            failed |= result["status"] == "failed"
            said = result["status"] if result["status"] != "failed" else f"failed: {result['reason']}"
            if result["status"] == "done":
                said = f"mAP_coco {result['metrics']['mAP_coco']:.3f}"
            minutes = (time.perf_counter() - start) / 60
            print(f"[{k}/{len(todo)}] {run.config}, seed {run.seed}: {said} ({minutes:.1f} min)", file=sys.stderr)
    results = load_results(options.output)
    print(markdown(results))
    for path in draw(results, options.output, curves=options.curves):
        print(path, file=sys.stderr)
    return int(failed)


def runs(options: argparse.Namespace) -> list[Run]:
    """All runs that were asked for; seed by seed, so that what is done first is comparable."""
    limits = {"cpu_minutes": options.cpu_minutes, "wall_minutes": options.wall_minutes, "steps": options.steps}
    unit, limit = next((unit, limit) for unit, limit in limits.items() if limit is not None)
    return [
        Run(
            config=config,
            seed=seed,
            limit=limit,
            unit=unit,
            data=options.data,
            datalist=options.datalist,
            val=options.val,
            validations=options.validations,
            threads=options.threads,
            options=tuple(options.set),
        )
        for seed in range(options.seeds)
        for config in options.configs
    ]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = f"among {', '.join(CONTENDERS)}; a JSON file; several joined by +"
    parser.add_argument("--configs", type=_names, default=["default", "hungarian"], help=f"comma-separated, {known}")
    parser.add_argument("--data", default="phantom", help="a file of configs/data, or phantom")
    parser.add_argument("--datalist", type=_file, help="cases to train on")
    parser.add_argument("--val", type=_file, help="cases to evaluate on; else the split val of --datalist")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--cpu-minutes", type=float)
    budget.add_argument("--wall-minutes", type=float)
    budget.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--validations", type=int, default=5, help="in a run; the best one's weights are evaluated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for every run, as monai.bundle"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of runs, results and pictures")
    parser.add_argument("--curves", type=_names, default=[], help="configs in the picture of the curves, if not all")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    options.output = options.output.resolve()
    if not options.table_only:
        if options.cpu_minutes is options.wall_minutes is options.steps is None:
            parser.error("give --cpu-minutes, --wall-minutes or --steps")
        for name in options.configs:
            try:
                deltas(name)
            except ValueError as error:
                parser.error(str(error))
    return options


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _file(text: str) -> str:
    path = Path(text).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
