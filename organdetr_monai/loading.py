"""From a bundle or a checkpoint to its config, and from the config to its parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from organdetr_monai.checkpoints import settings_of
from organdetr_monai.detections import Model
from organdetr_monai.errors import InputError, input_error

__all__ = ["DEFAULT_BUNDLE", "check_device", "configured", "mended", "model_of", "parsed"]

CONFIG = Path("configs", "inference.json")
DEFAULT_BUNDLE = Path(__file__).resolve().parents[1]
_TRAIN = "Train it with `python -m monai.bundle run`, or name a bundle or checkpoint that has weights."


def configured(
    model: str | os.PathLike | None,
    *,
    device: torch.device | str | None = None,
    configs: Sequence[str | os.PathLike] = (),
    names: Sequence[Path] = (CONFIG,),
) -> ConfigParser:
    """The config of a bundle or checkpoint, with what training wrote beside the weights; see `OrganDetector.load`.

    Of `names`, paths in a bundle, it is the first that is there.
    """
    root, config, checkpoint = _locate(model, names)
    parser = _read_config(config, configs)
    parser["bundle_root"] = str(root)
    if checkpoint is not None:
        parser["ckpt_path"] = str(checkpoint)
        parser["thresholds_path"] = str(checkpoint.parent / "thresholds.json")  # the bundle's fit other weights
    if device is not None:
        parser["device"] = f"$torch.device({str(check_device(device))!r})"
    weights = Path(parsed(parser, "ckpt_path"))
    settings = settings_of(weights)
    if strange := sorted(settings.keys() - parser.get().keys()):
        raise InputError(
            f"{weights} are weights of another kind of model: {names[0]} has no {strange[0]}.",
            f"Use the command that they are for, or weights for this one, such as {_shipped_for(config)}.",
        )
    parser.update(settings)  # over any delta: they are what the weights are
    if not weights.is_file():
        raise InputError(f"The bundle {root} has no weights: there is no {weights}.", _TRAIN)
    return parser


def _locate(model: str | os.PathLike | None, names: Sequence[Path]) -> tuple[Path, Path, Path | None]:
    """Bundle folder, its config, and the checkpoint if one was named."""

    def config_of(root: Path) -> Path | None:
        return next((root / name for name in names if (root / name).is_file()), None)

    if model is None:
        if (config := config_of(DEFAULT_BUNDLE)) is None:
            raise InputError(f"The package is not part of a bundle: {DEFAULT_BUNDLE} has no {names[-1]}.", _TRAIN)
        return DEFAULT_BUNDLE, config, None
    path = _shipped(Path(model).expanduser())
    config = config_of(path)
    if path.is_dir() and config is None:
        if not (path / "model.pt").is_file():
            remedy = "Give a bundle's folder, that of a training, or a .pt, .onnx or .ts file."
            raise InputError(f"{path} is no bundle: it has neither {names[-1]} nor model.pt.", remedy)
        path = path / "model.pt"
    if config is not None:
        return path, config, None
    if not path.is_file():
        remedy = "Give a bundle's folder, a .pt file, or the name of weights that come with this bundle"
        own = config_of(DEFAULT_BUNDLE)
        raise InputError(f"The model {path} does not exist.", f"{remedy}: {_shipped_for(own) or 'it has none'}.")
    if path.suffix != ".pt":
        raise InputError(f"{path} is neither a bundle's folder nor a .pt, .onnx or .ts file.", "Give one of these.")
    owner = path.resolve().parents[1]
    if path.resolve().parent.name == "models" and (config := config_of(owner)) is not None:
        return owner, config, path
    return *_locate(None, names)[:2], path


def _shipped(path: Path) -> Path:
    """The folder of weights that comes with the bundle, if `path` is no file but the name of one."""
    own = DEFAULT_BUNDLE / "models" / path
    return own if len(path.parts) == 1 and not path.exists() and (own / "model.pt").is_file() else path


def _shipped_for(config: Path | None) -> str:
    """Names of the weights that come with the bundle and are of a config's kind of model."""
    known = ConfigParser.load_config_file(config).keys() if config is not None else set()
    weights = sorted((DEFAULT_BUNDLE / "models").glob("*/model.pt"))
    return ", ".join(path.parent.name for path in weights if settings_of(path).keys() <= known)


def _read_config(config: Path, deltas: Sequence[str | os.PathLike]) -> ConfigParser:
    parser = ConfigParser()
    for path in (config, *map(Path, deltas)):
        if not path.is_file():
            raise InputError(f"The config {path} does not exist.", "Check the path.")
        try:
            ConfigParser.load_config_file(path)
        except Exception as error:  # of the JSON or YAML library
            reason = " ".join(str(error).split())
            raise InputError(f"{path} is no config ({reason}).", "Correct the JSON or YAML.") from error
    parser.read_config([str(config), *map(str, deltas)])
    return parser


def parsed(parser: ConfigParser, key: str) -> Any:
    """What a key of a config means; an `InputError` on the way comes out as itself."""
    if key not in parser:
        raise InputError(f"The config has no {key!r}.", f"Start from the {CONFIG} of this project.")
    return mended(parser.get_parsed_content, key)


def mended(call: Callable, *args: Any) -> Any:
    """Call into MONAI; an `InputError` that it has wrapped comes out as itself."""
    try:
        return call(*args)
    except InputError:
        raise
    except Exception as error:
        found = input_error(error)
        if found is None:
            raise
        raise InputError(found.what, found.remedy) from error


def model_of(parser: ConfigParser) -> Model:
    """What ``python -m monai.bundle run`` writes into its results, too."""
    return parsed(parser, "model_info")


def check_device(device: torch.device | str) -> torch.device:
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown name; a build without CUDA, or no such GPU
        reason = str(error).splitlines()[0]
        raise InputError(
            f"The device {str(device)!r} cannot be used ({reason}).", "Choose cpu, cuda or cuda:N."
        ) from error
    return device
