"""Checks of the network as the zoo makes them, with MONAI's own commands: shapes, TorchScript, properties."""

from __future__ import annotations

from pathlib import Path

import torch

from bundle.zoo import metadata
from bundle.zoo.failure import CheckError
from bundle.zoo.running import PHANTOMS, job_of
from bundle.zoo.uninstalled import call

#: The network as one tensor in, one tensor out: what these commands need, and the detector itself is not.
NET_ID = "export_network"
_CONFIG = ("--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json")
_PROPERTIES = """
import sys
from monai.bundle import ConfigWorkflow
kind, *files = sys.argv[1:]
options = {{"ckpt_dir": "{weights}"}} if kind == "eval" else {{}}
files = (files, "configs/metadata.json", "configs/logging.conf")
flow = ConfigWorkflow(*files, workflow_type=kind, phantom_cases={cases}, **options)
flow.initialize()
wrong = flow.check_properties()
sys.exit(f"{{kind}}: {{', '.join(wrong)}} missing, or under another id" if wrong else 0)
"""


def properties(folder: Path) -> None:
    """``ConfigWorkflow.check_properties`` of training, evaluating and inference."""
    job = job_of(folder)
    job.prepare(folder)
    program = _PROPERTIES.format(cases=PHANTOMS, weights=job.weights)
    for kind, configs in (("train", ["train"]), ("eval", ["train", "evaluate"]), ("infer", ["inference"])):
        call(folder, "-c", program, kind, *(f"configs/{config}.json" for config in configs))


def net_in_out(folder: Path) -> None:
    """``verify_net_in_out``: channels and dtype of the network's output are those of the metadata."""
    call(folder, "-m", "monai.bundle", "verify_net_in_out", "--net_id", NET_ID, *_CONFIG)


def ckpt_export(folder: Path) -> None:
    """``ckpt_export`` as TorchScript, which loads without our package and gives the metadata's number of channels."""
    script = folder / "models" / "verify_model.ts"
    paths = ("--filepath", "models/verify_model.ts", "--ckpt_file", "models/model.pt")
    call(folder, "-m", "monai.bundle", "ckpt_export", "--net_id", NET_ID, *paths, *_CONFIG)
    formats = metadata.read(folder)["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    network = torch.jit.load(script, map_location="cpu").eval()
    with torch.no_grad():
        output = network(torch.rand(1, image["num_channels"], *image["spatial_shape"]))
    if output.shape[1] != pred["num_channels"]:
        raise CheckError(f"the TorchScript gives {output.shape[1]} channels, not {pred['num_channels']}")
