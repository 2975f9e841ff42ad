"""Whether a training epoch waits for its data: share of the time between asking for a batch and having it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from ignite.engine import Events
from measure import ROOT, table
from monai.bundle import ConfigParser

CASES, EPOCHS = 24, 3


def epoch(folder: Path) -> list[list[object]]:
    """Rows of (what, ms per case, share) from the epochs of the default training on phantoms, after the first."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/train.json"))
    parser.update(
        {
            "bundle_root": str(ROOT),
            "ckpt_dir": str(folder / "models"),
            "output_dir": str(folder / "eval"),
            "dataset_dir": str(folder / "phantoms"),
            "datalist": f"$organdetr_monai.data.embedded.embedded_datalist('{folder}/phantoms', "
            f"default='{folder}/phantoms', cases={CASES})",
            "max_epochs": EPOCHS,
            "val_interval": EPOCHS + 1,
            "amp_dtype": "float32",
        }
    )
    parser.parse()
    for expression in ("imports", "initialize"):
        parser.get_parsed_content(expression)
    trainer = parser.get_parsed_content("train#trainer")
    spent, clock = {"waiting for data": 0.0, "network": 0.0}, [0.0]

    def add(what: str) -> None:
        now = time.perf_counter()
        if trainer.state.epoch > 1:
            spent[what] += now - clock[0]
        clock[0] = now

    trainer.add_event_handler(Events.GET_BATCH_STARTED, lambda: clock.__setitem__(0, time.perf_counter()))
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, lambda: add("waiting for data"))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: add("network"))
    trainer.run()
    cases = len(parser.get_parsed_content("train_data")) * (EPOCHS - 1)
    total = sum(spent.values())
    return [[what, seconds / cases * 1e3, seconds / total] for what, seconds in spent.items()]


def rows() -> str:
    """The table."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        found = epoch(Path(folder))
    return table("Default training on phantoms, float32, no loader workers", ["", "ms per case", "share"], found)


if __name__ == "__main__":
    print(rows())
