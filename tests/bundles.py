"""A bundle whose network takes milliseconds, with seeded random weights: right in everything but what it finds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow

CONFIG = Path(__file__).parents[1] / "configs" / "inference.json"
SPACING = 16.0  # mm
#: A network and a window that take milliseconds. Not a config of the project: nobody should train it.
SMALL = {
    "spacing": [SPACING] * 3,
    "window": [32, 32, 32],
    "hidden_dim": 24,
    "num_queries": 24,
    "network_def#backbone#channels": [4, 8, 8, 8],
    "network_def#encoder#hidden": 24,
    "network_def#decoder#hidden": 24,
    "network_def#decoder#layers": 2,
    "network_def#decoder#points": 2,
}
TINY = {
    **SMALL,
    # Random weights are sure of nothing: let every organ be there, for the API and for `monai.bundle run` alike.
    "thresholds": "$dict.fromkeys(@organs, 0.0)",
    "handlers#0#threshold": "@thresholds",
    "device": "$torch.device('cpu')",
}


def small(*deltas: str) -> dict[str, Any]:
    """`SMALL` without the settings of parts that these files of ``configs/`` replace or leave out."""
    replaced = [f"{key}#" for delta in deltas for key in json.loads((CONFIG.parent / delta).read_text("utf-8"))]
    return {key: value for key, value in SMALL.items() if not key.startswith(tuple(replaced))}


def arguments(options: dict[str, Any]) -> list[str]:
    """Options of a config as the command line takes them."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]


def workflow(configs: Path, kind: str, names: Sequence[str], **options: Any) -> ConfigWorkflow:
    """Configs of a folder, by their names without suffix, as ``monai.bundle run`` begins with them."""
    flow = ConfigWorkflow(
        config_file=[str(configs / f"{name}.json") for name in names],
        workflow_type=kind,
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        **options,
    )
    flow.initialize()
    return flow


def make_bundle(folder: Path, *, weights: bool = True, **changes: Any) -> Path:
    """Write ``configs/inference.json`` and ``models/model.pt`` of a small network."""
    parser = ConfigParser(json.loads(CONFIG.read_text(encoding="utf-8")))
    for key, value in {**TINY, **changes}.items():
        parent, _, last = key.rpartition("#")
        parser[parent][int(last) if last.isdigit() else last] = value
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(parser.get()), encoding="utf-8")
    parser["bundle_root"] = str(folder)  # beside whose weights there is no model.json
    if weights:
        torch.manual_seed(0)
        (folder / "models").mkdir()
        torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "models" / "model.pt")
    return folder
