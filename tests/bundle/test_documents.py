"""What the bundle's documents say twice, they say alike."""

from __future__ import annotations

import json
import re

from monai.bundle import ConfigParser

from bundle.bundles import ROOT
from organdetr_monai.organs import SETS

METADATA = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
CARD = " ".join((ROOT / "docs" / "README.md").read_text(encoding="utf-8").split())
FIGURES = {
    "mAP_coco": r"mAP_coco ([\d.]+\d)",
    "mAP_nndet": r"mAP_nndet ([\d.]+\d)",
    "recall50": r"recall at IoU 0.5 ([\d.]+\d)",
    "wall_mean": r"mean wall error ([\d.]+) mm",
    "wall_p95": r"95th percentile ([\d.]+) mm",
}


def test_figures_of_the_model_card_are_the_metadatas():
    said = {metric: float(re.search(pattern, CARD)[1]) for metric, pattern in FIGURES.items()}
    assert said == {metric: METADATA["eval_metrics"][metric] for metric in FIGURES}


def test_model_card_names_the_organs_and_the_grid_of_the_registry():
    default = SETS["openkbp"]
    assert all(f"`{organ}`" in CARD for organ in default.organs)
    assert f"isotropic grid of {default.spacing[0]:g} mm" in CARD and "×".join(map(str, default.window)) in CARD
    for key in ("label_classes", "pred_classes"):
        assert METADATA[key] == ", ".join(default.organs)


def test_output_that_is_described_is_the_export_networks():
    default = SETS["openkbp"]
    pred = METADATA["network_data_format"]["outputs"]["pred"]
    organs = len(default.organs)  # the refiner leaves one query for each
    channels = organs + 1 + 6
    assert (pred["num_channels"], pred["spatial_shape"]) == (channels, [organs])
    assert f"each of {organs} organs and {channels} rows" in CARD


def test_licence_of_each_public_set_is_told_as_the_registry_has_it():
    lines = (ROOT / "docs" / "data_license.txt").read_text(encoding="utf-8").splitlines()
    assert {f"- {known.title}: {known.licence}" for name, known in SETS.items() if name != "phantom"} == {
        line for line in lines if line.startswith("- ")
    }


def test_card_of_the_click_bundle_tells_the_grid_of_its_config():
    card = " ".join((ROOT / "docs" / "miq_sam3d" / "README.md").read_text(encoding="utf-8").split())
    parser = ConfigParser(json.loads((ROOT / "configs" / "miq_sam3d" / "inference.json").read_text(encoding="utf-8")))
    config = {key: parser.get_parsed_content(key) for key in ("spacing", "window", "hu_window", "num_queries")}
    assert f"isotropic grid of {config['spacing']:g} mm" in card and "×".join(map(str, config["window"])) in card
    low, high = config["hu_window"]
    assert f"{low:g} to {high:g} HU" in card and f"{config['num_queries']} queries" in card
