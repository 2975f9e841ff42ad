"""Writes a model as one file, ONNX or TorchScript, that holds all that detection needs."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from organdetr_monai.errors import InputError
from organdetr_monai.export import ExportNetwork, join_output
from organdetr_monai.exported import FORMATS, KEY, ModelSettings, build, device_of, load_exported
from organdetr_monai.files import replacing
from organdetr_monai.loading import configured, model_of, parsed

__all__ = ["ExportReport", "export_model"]

OPSET = 20
#: Exported outputs differ from the checkpoint's by rounding; more than this is a defect of the exporter.
TOLERANCE = 1e-3
_AXES = {0: "batch", 2: "x", 3: "y", 4: "z"}


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes
    ----------
    path : Path
    format : str
        ``"onnx"`` or ``"torchscript"``.
    difference : float
        Largest difference from the checkpoint, of any logit or normalised box coordinate, on volumes of noise.
    """

    path: Path
    format: str
    difference: float


def export_model(
    output: str | os.PathLike,
    *,
    model: str | os.PathLike | None = None,
    format: str | None = None,
    configs: Sequence[str | os.PathLike] = (),
    device: str | None = None,
) -> ExportReport:
    """Export a bundle or checkpoint, and compare the file's answer with the checkpoint's before it is put in place.

    Parameters
    ----------
    output : path
        A ``.onnx`` or ``.ts`` file.
    model, configs
        See `OrganDetector.load`.
    format : str, optional
        ``"onnx"`` or ``"torchscript"``; the suffix of `output` says it where not given.
    device : str, optional
        Where a TorchScript file will run: a trace keeps its device. Default the CPU.

    Raises
    ------
    InputError
        An unknown format or suffix, packages that are not installed, an unusable model, preprocessing that an exported
        model cannot hold, an exporter that cannot do it.
    """
    path = Path(output).expanduser()
    format = _format(path, format)
    device = device or "cpu"
    if format == "onnx" and device != "cpu":
        raise InputError(f"--device is {device}, and an ONNX file runs on any.", "Leave --device out.")
    parser = configured(model, device=device, configs=configs)
    settings = _settings(parser, str(device_of(device)))
    network = parsed(parser, "network").eval()
    export = ExportNetwork(network)
    write = _write_onnx if format == "onnx" else _write_torchscript
    with replacing(path) as draft:
        with _quiet(), torch.no_grad():
            write(export, settings, draft)
        difference = _difference(network, draft, settings, device)
        if not difference < TOLERANCE:
            raise RuntimeError(f"the exported {format} differs from the checkpoint by {difference:.3g}")
    return ExportReport(path, format, difference)


def _format(path: Path, format: str | None) -> str:
    suffixes = {name: suffix for suffix, name in FORMATS.items()}
    if format is not None and format not in suffixes:
        raise InputError(f"The format is {format!r}.", f"Choose {' or '.join(suffixes)}.")
    if FORMATS.get(path.suffix) is None or format not in (None, FORMATS[path.suffix]):
        wanted = suffixes[format] if format else " or ".join(FORMATS)
        raise InputError(f"The output {path} ends in {path.suffix or 'nothing'!r}.", f"Name a {wanted} file.")
    if path.is_dir():
        raise InputError(f"The output {path} is a folder.", f"Name a {path.suffix} file in it.")
    if FORMATS[path.suffix] == "onnx":
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
        if missing:
            raise InputError(
                f"Exporting to ONNX needs {', '.join(missing)}, not installed.", f"pip install {' '.join(missing)}"
            )
    return FORMATS[path.suffix]


def _settings(parser: ConfigParser, device: str) -> ModelSettings:
    organs = tuple(parsed(parser, "organs"))
    inferer = _plain(parser, "inferer")
    inferer.pop("amp_dtype", None)  # what is fast here may be slow there; the file computes in float32
    settings = ModelSettings(
        model=model_of(parser),
        organs=organs,
        thresholds=_plain(parser, "thresholds") if "thresholds" in parser else 0.5,
        spacing=_plain(parser, "spacing"),
        window=_plain(parser, "window"),
        hu_window=_plain(parser, "hu_window"),
        preprocessing=_plain(parser, "preprocessing"),
        inferer=inferer,
        device=device,
    )
    build(settings.preprocessing), build(settings.inferer)  # now, rather than where the file is used
    return ModelSettings.from_json(settings.to_json())


def _plain(parser: ConfigParser, key: str) -> Any:
    """What stands under ``key``, with references and expressions evaluated and components as they are written."""
    if key not in parser:
        raise InputError(f"The config has no {key!r}.", "Start from the configs/inference.json of this project.")
    spec = parser[key]
    if isinstance(spec, Mapping):
        return {name: _plain(parser, f"{key}::{name}") for name in spec}
    if isinstance(spec, list):
        return [_plain(parser, f"{key}::{i}") for i in range(len(spec))]
    if isinstance(spec, str) and spec.startswith("@"):
        return _plain(parser, spec[1:])
    value = parsed(parser, key) if isinstance(spec, str) else spec
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise InputError(
            f"An exported model cannot hold {key.replace('::', '#')}, a {type(value).__name__}.",
            "Write it in the config as plain values.",
        ) from error


def _write_torchscript(network: ExportNetwork, settings: ModelSettings, draft: Path) -> None:
    script = torch.jit.script(network)
    with tempfile.TemporaryDirectory(dir=draft.parent, prefix=".export-") as folder:
        whole = Path(folder, "model.ts")  # the name goes into the archive
        torch.jit.save(script, whole, _extra_files={f"{KEY}.json": settings.to_json()})
        _without_sources(whole, draft)


def _without_sources(whole: Path, draft: Path) -> None:
    """Leave out where each line of the code came from: paths of this machine."""
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(draft, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(entry.filename, source.read(entry))


def _write_onnx(network: ExportNetwork, settings: ModelSettings, draft: Path) -> None:
    import onnx

    image = network.example_image()
    dynamic = dict.fromkeys(_AXES, torch.export.Dim.DYNAMIC)
    try:
        program = torch.onnx.export(
            network,
            (image,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={"image": dynamic},
            input_names=["image"],
            output_names=["pred"],
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"torch {torch.__version__} cannot export this network to ONNX ({reason}).",
            "Use the torch of constraints.txt, or --format torchscript.",
        ) from error
    assert program is not None
    model = program.model_proto
    _name_axes(model.graph)
    # Source lines of each node: paths of this machine, and a tenth of the file.
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    model.graph.ClearField("value_info")
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=settings.to_json())
    model.model_version, model.doc_string = 1, f"{settings.model.name} {settings.model.version}"
    onnx.checker.check_model(model)
    onnx.save(model, draft)


def _name_axes(graph: Any) -> None:
    """Names that tell what an axis is, in place of the exporter's symbols."""
    (image,), (pred,) = graph.input, graph.output
    dims = image.type.tensor_type.shape.dim
    batch = dims[0].dim_param
    if not all(dims[axis].dim_param for axis in _AXES):
        raise RuntimeError("the exporter took a size for a constant")
    for axis, name in _AXES.items():
        dims[axis].dim_param = name
    for dim in pred.type.tensor_type.shape.dim:
        if dim.dim_param == batch:
            dim.dim_param = _AXES[0]


def _difference(network: torch.nn.Module, path: Path, settings: ModelSettings, device: str) -> float:
    """Largest difference between the network and a file, on noise of the window's size and of another, odd one."""
    exported, _, where = load_exported(path, device=device)
    generator, differences = torch.Generator().manual_seed(0), []
    for shape in (settings.window, [n + 1 + n % 2 for n in settings.window]):
        image = torch.rand(1, 1, *shape, generator=generator)
        with torch.inference_mode():
            ours, theirs = join_output(network(image.to(device))), join_output(exported(image.to(where)))
        differences.append(float((ours.cpu() - theirs.cpu()).abs().max()))
    return max(differences)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what exporters say about themselves: that TorchScript is deprecated, that torchvision is not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
