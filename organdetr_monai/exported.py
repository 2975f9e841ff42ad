"""Exported models: what an ONNX or TorchScript file tells about itself, and the network in it.

Nothing in such a file is ever run as Python: the preprocessing travels as names of known transforms and plain values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from organdetr_monai.detections import Model
from organdetr_monai.errors import InputError
from organdetr_monai.export import split_output
from organdetr_monai.organs import NAME

__all__ = ["ExportedNetwork", "ModelSettings", "load_exported"]

#: By the suffix of the file.
FORMATS = {".onnx": "onnx", ".ts": "torchscript"}
KEY = "organdetr"  # of the settings among the metadata of ONNX; TorchScript keeps them as a file KEY.json
FORMAT = "organdetr model"
#: What a file may name: classes that do nothing with their arguments but arithmetic on the image.
COMPONENTS = (
    "organdetr_monai.data.readers.LoadScand",
    "organdetr_monai.data.transforms.CheckImaged",
    "organdetr_monai.data.transforms.BlockAveraged",
    "organdetr_monai.data.transforms.CropBodyd",
    "organdetr_monai.data.transforms.WorkingSpacingd",
    "organdetr_monai.data.frames.RecordFramed",
    "organdetr_monai.inference.DetectionInferer",
    *("Compose", "Orientationd", "Spacingd", "ScaleIntensityRanged", "NormalizeIntensityd", "SpatialPadd"),
)


def build(spec: Any) -> Any:
    """Make what a plain specification describes: ``{"_target_": NAME, **arguments}``, lists and values.

    Raises
    ------
    InputError
        A name that is not among `COMPONENTS`.
    """
    if isinstance(spec, list):
        return [build(item) for item in spec]
    if not isinstance(spec, Mapping):
        return spec
    arguments = {key: build(value) for key, value in spec.items() if key != "_target_"}
    if "_target_" not in spec:
        return arguments
    if spec["_target_"] not in COMPONENTS:
        raise InputError(f"An exported model cannot hold {spec['_target_']!r}.", f"It knows {', '.join(COMPONENTS)}.")
    module, _, name = spec["_target_"].rpartition(".")
    return getattr(import_module(module or "monai.transforms"), name)(**arguments)  # bare names are MONAI's


@dataclass(frozen=True)
class ModelSettings:
    """Everything that detection needs beside the network.

    Attributes
    ----------
    model : Model
    organs : tuple of K str
        Organ ``organs[k]`` has id ``k + 1``.
    thresholds : dict from organ to float, or float
        From this score up an organ is present.
    spacing, window, hu_window : list of float
        Of the working grid in mm, of a window in voxels, and the HU that become 0 and 1: for people, and for programs
        that prepare their volumes themselves.
    preprocessing, inferer : dict
        Specifications for `build`.
    device : str
        Where a TorchScript file must run, such as ``"cuda:0"``. ONNX runs anywhere.
    """

    model: Model
    organs: tuple[str, ...]
    thresholds: dict[str, float] | float
    spacing: list[float]
    window: list[int]
    hu_window: list[float]
    preprocessing: dict[str, Any]
    inferer: dict[str, Any]
    device: str = "cpu"

    def to_json(self) -> str:
        """The text that travels in the file."""
        fields = {**vars(self), "model": vars(self.model), "organs": list(self.organs)}
        return json.dumps({"format": FORMAT, "version": 1, **fields})

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelSettings:
        """Read and check what `to_json` gave.

        Raises
        ------
        ValueError
            Anything else.
        """
        fields = dict(json.loads(text))
        if (fields.pop("format", None), fields.pop("version", None)) != (FORMAT, 1):
            raise ValueError(f"not version 1 of {FORMAT!r}")
        try:
            settings = cls(**{**fields, "model": Model(**fields["model"]), "organs": tuple(fields["organs"])})
        except (TypeError, KeyError) as error:
            raise ValueError(str(error)) from error
        thresholds = settings.thresholds
        values = list(thresholds.values()) if isinstance(thresholds, dict) else [thresholds]
        if not all(isinstance(organ, str) and NAME.fullmatch(organ) for organ in settings.organs):
            raise ValueError(f"organs are {settings.organs}")
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            raise ValueError(f"thresholds are {thresholds}")
        return settings


class ExportedNetwork(nn.Module):
    """An exported network that answers as :class:`organdetr_monai.networks.OrganDETR` does.

    Parameters
    ----------
    run : callable
        Volume (B, 1, X, Y, Z) to what :class:`organdetr_monai.export.ExportNetwork` gives; a module becomes a part of
        this one.
    """

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Volume (B, 1, X, Y, Z) to ``logits`` (B, N, K + 1) and ``boxes`` (B, N, 6)."""
        return split_output(self.run(image))


def load_exported(
    path: Path, *, device: str | torch.device | None = None
) -> tuple[ExportedNetwork, ModelSettings, torch.device]:
    """Load an ONNX or TorchScript file of `organdetr export`.

    Parameters
    ----------
    path : Path
        By its suffix ``.onnx`` or ``.ts``.
    device : str, optional
        Where the network runs. ONNX: the CPU where not given, any ``cuda:N`` for which ONNX Runtime is built.
        TorchScript: the device for which it was exported, and no other.

    Returns
    -------
    network : ExportedNetwork
    settings : ModelSettings
    device : torch.device
        Where the network wants its input.

    Raises
    ------
    InputError
        No such file, none of `organdetr export`, no ONNX Runtime, a device that the file or the runtime cannot use.
    """
    if not path.is_file():
        raise InputError(f"The model {path} does not exist.", "Give a bundle's folder, or a .pt, .onnx or .ts file.")
    return _load_onnx(path, device) if FORMATS[path.suffix] == "onnx" else _load_torchscript(path, device)


def _settings(path: Path, text: str | bytes | None) -> ModelSettings:
    remedy = "Make it with `organdetr export`."
    if not text:
        raise InputError(f"{path} does not say what it was trained on.", remedy)
    try:
        return ModelSettings.from_json(text)
    except ValueError as error:
        raise InputError(f"The settings in {path} cannot be used ({error}).", remedy) from error


def device_of(device: str | torch.device) -> torch.device:
    """A device by its full name: ``cuda`` is ``cuda:0``."""
    device = torch.device(device)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _load_torchscript(path: Path, device: str | torch.device | None) -> tuple:
    files = {f"{KEY}.json": ""}
    try:
        script = torch.jit.load(path, map_location="cpu", _extra_files=files)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} is no TorchScript file ({reason}).", "Make it with `organdetr export`.") from error
    settings = _settings(path, files[f"{KEY}.json"])
    where = device_of(settings.device if device is None else device)
    if str(where) != settings.device:
        raise InputError(
            f"{path} was exported for {settings.device} and does not run on {where}.",
            f"Export it again with --device {where}, or as ONNX.",
        )
    return ExportedNetwork(script.to(where)), settings, where


def _load_onnx(path: Path, device: str | torch.device | None) -> tuple:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{path} needs ONNX Runtime.", "pip install onnxruntime (or onnxruntime-gpu)") from error
    where = torch.device("cpu" if device is None else device)
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(where.type)
    options = onnxruntime.SessionOptions()
    # ONNX Runtime would take all cores, whatever OMP_NUM_THREADS or torch.set_num_threads say.
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    known = onnxruntime.get_available_providers()
    if provider not in known:
        raise InputError(
            f"The device {str(where)!r} cannot be used: this ONNX Runtime has {', '.join(known)}.",
            "Choose cpu, or install onnxruntime-gpu.",
        )
    own = {"device_id": where.index or 0} if where.type == "cuda" else {}
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[(provider, own)])
    except Exception as error:  # of ONNX Runtime, which has many kinds
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} is no ONNX model ({reason}).", "Make it with `organdetr export`.") from error
    if session.get_providers()[0] != provider:  # it falls back to the CPU without a word
        raise InputError(f"The device {str(where)!r} cannot be used by ONNX Runtime.", "Check its CUDA libraries.")

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": image.cpu().numpy()})[0])

    settings = _settings(path, session.get_modelmeta().custom_metadata_map.get(KEY))
    return ExportedNetwork(run), settings, torch.device("cpu")
