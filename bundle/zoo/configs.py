"""Check of the ids that the zoo's contributing guide asks of ``inference.json`` and ``train.json``; nothing is run."""

from __future__ import annotations

from pathlib import Path

from monai.bundle import ConfigParser

from bundle.zoo.failure import CheckError

INFERENCE = ("bundle_root", "device", "network_def", "inferer", "output_dir", "preprocessing", "dataset", "evaluator")
TRAIN = (
    "bundle_root",
    "device",
    "dataset_dir",
    "output_dir",
    "network_def",
    "train#trainer",
    "train#trainer#max_epochs",
    "train#dataset",
    "train#dataset#data",
    "train#handlers",
    "train#preprocessing",
    "train#inferer",
    "validate#evaluator",
    "validate#handlers",
    "validate#dataset",
    "validate#dataset#data",
    "validate#preprocessing",
    "validate#inferer",
    "validate#key_metric",
    "val_interval",
)


def ids(folder: Path) -> None:
    """Components have the names by which MONAI's apps look for them."""
    for config, wanted in (("inference.json", INFERENCE), ("train.json", TRAIN)):
        parser = ConfigParser()
        parser.read_config(str(folder / "configs" / config))
        missing = [key for key in wanted if parser.get(key) is None]
        if missing:
            raise CheckError(f"configs/{config} has no {', '.join(missing)}")
        for handler in parser.get("train#handlers") or []:
            if handler.get("_target_") == "ValidationHandler" and handler.get("interval") != "@val_interval":
                raise CheckError(
                    f"configs/{config}: ValidationHandler takes {handler.get('interval')}, not @val_interval"
                )
