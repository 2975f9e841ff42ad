"""The Python API: load a bundle once, then a scan in, `Detections` out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import ArrayLike

from organdetr_monai.checkpoints import load_settings
from organdetr_monai.data.readers import LoadScand
from organdetr_monai.data.scans import Scan
from organdetr_monai.detections import Detections, Model
from organdetr_monai.errors import InputError, input_error
from organdetr_monai.exported import FORMATS, build, load_exported
from organdetr_monai.geometry import check_affine

__all__ = ["OrganDetector"]

ScanLike: TypeAlias = "str | os.PathLike | Scan | tuple[ArrayLike, ArrayLike] | MetaTensor"

_CONFIG = Path("configs", "inference.json")
_DEFAULT_BUNDLE = Path(__file__).resolve().parents[1]
_TRAIN = "Train it with `python -m monai.bundle run`, or name a bundle or checkpoint that has weights."


class OrganDetector:
    """Finds organs in CT scans.

    `load` builds one from a bundle, with the network, preprocessing and inferer of ``configs/inference.json``: the same
    as ``python -m monai.bundle run`` takes.

    Parameters
    ----------
    network : torch.nn.Module
    preprocessing : monai.transforms.Compose
        Starts with ``LoadScand`` and ends with ``RecordFramed``, key ``image``.
    inferer : callable
        ``inferer(image, network)`` as :class:`organdetr_monai.inference.DetectionInferer`.
    organs : sequence of K str
        Organ ``organs[k]`` has id ``k + 1``.
    model : Model
        Name and version that the results bear.
    threshold : float or mapping from organ to float
        From this score up an organ is present.
    device : torch.device or str

    Examples
    --------
    >>> detector = OrganDetector.load()  # doctest: +SKIP
    >>> detections = detector("scan.nii.gz")
    >>> len(detections.organs) == len(detector.organs)
    True
    >>> for organ in detections.present:  # doctest: +SKIP
    ...     print(organ.organ, organ.score, organ.box.min, organ.box.max)  # LPS mm
    >>> detections.save("detections.json")
    """

    def __init__(
        self,
        network: torch.nn.Module,
        preprocessing: Compose,
        inferer: Callable,
        organs: Sequence[str],
        *,
        model: Model,
        threshold: float | Mapping[str, float] = 0.5,
        device: torch.device | str = "cpu",
    ) -> None:
        self.organs = tuple(organs)
        self.model, self.threshold, self.inferer = model, threshold, inferer
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        # Apart, so that arrays go the same way as files from here on, and callers get the scan as it was read.
        self._load, self._prepare = split_loading(preprocessing)
        if isinstance(threshold, Mapping) and (lacking := [organ for organ in self.organs if organ not in threshold]):
            raise InputError(
                f"There is no threshold for {', '.join(lacking)}.", "Give one for each organ, or a number."
            )

    @classmethod
    def load(
        cls,
        model: str | os.PathLike | None = None,
        *,
        device: torch.device | str | None = None,
        configs: Sequence[str | os.PathLike] = (),
    ) -> OrganDetector:
        """Load a trained model.

        A bundle's config can run any code: load those that you trust.

        Parameters
        ----------
        model : path, optional
            A bundle's folder (``configs/inference.json`` and ``models/model.pt``), or a checkpoint (``.pt``), which is
            read with the config of the bundle in whose ``models`` folder it lies, else with the default one, and with
            what training wrote beside it: ``model.json`` (organs, grid) and ``thresholds.json``; or an exported model
            (``.onnx``, ``.ts``), which holds all of this. The default is the bundle of which this package is part.
        device : str, optional
            ``"cpu"``, ``"cuda"``, ``"cuda:1"``. The config's choice where not given: a GPU if there is one.
        configs : sequence of path
            Deltas with which the model was trained, such as ``configs/data/word.json``, in the same order.

        Raises
        ------
        InputError
            No bundle, no weights, weights of another architecture, an unusable config, no such device.
        """
        if model is not None and Path(model).suffix in FORMATS:
            return cls._of_exported(Path(model).expanduser(), device, configs)
        parser = configured(model, device=device, configs=configs)
        return cls(
            parsed(parser, "network"),
            parsed(parser, "preprocessing"),
            parsed(parser, "inferer"),
            parsed(parser, "organs"),
            model=model_of(parser),
            threshold=parsed(parser, "thresholds") if "thresholds" in parser else 0.5,
            device=parsed(parser, "device"),
        )

    @classmethod
    def _of_exported(
        cls, path: Path, device: torch.device | str | None, configs: Sequence[str | os.PathLike]
    ) -> OrganDetector:
        if configs:
            raise InputError(f"{path} holds its settings itself.", "Give configs when it is exported.")
        network, settings, where = load_exported(path, device=None if device is None else _check_device(device))
        return cls(
            network,
            build(settings.preprocessing),
            build(settings.inferer),
            settings.organs,
            model=settings.model,
            threshold=settings.thresholds,
            device=where,
        )

    def read(self, scan: ScanLike) -> MetaTensor:
        """Read a scan as the bundle does, without any other preprocessing.

        Parameters
        ----------
        scan : path, Scan, or (array, affine)
            A NIfTI, NRRD, MHA or MHD file, a folder of one DICOM series, one of `data.scans.find_scans`, or an array
            (X, Y, Z) in HU with the affine (4, 4) from indices of voxel centres to RAS mm.

        Returns
        -------
        MetaTensor of shape (1, X, Y, Z), float32, HU
            Ready for a call.

        Raises
        ------
        InputError
            Whatever makes the scan unusable.
        """
        if isinstance(scan, tuple):
            return as_volume(*scan)
        return mended(self._load, {"image": scan})["image"]

    def __call__(self, scan: ScanLike) -> Detections:
        """Find the organs.

        Parameters
        ----------
        scan : path, Scan, (array, affine), or what `read` gave
            See `read`.

        Returns
        -------
        Detections
            One entry for each of `organs`, on the grid of the scan as given.

        Raises
        ------
        InputError
            Whatever makes the scan unusable: unreadable, not one 3D volume of HU, without a body.
        """
        volume = scan if isinstance(scan, MetaTensor) else self.read(scan)
        sample = mended(self._prepare, {"image": volume})
        image = sample["image"].as_tensor()[None].to(self.device)  # (1, 1, x, y, z)
        with torch.inference_mode():
            (prediction,) = self.inferer(image, self.network)
        frame = sample["frame"]
        if "filename_or_obj" not in volume.meta:
            frame = {**frame, "image": None}  # came as an array
        return Detections.from_boxes(
            prediction["boxes"],
            prediction["scores"],
            prediction["labels"],
            organs=self.organs,
            model=self.model,
            threshold=self.threshold,
            **frame,
        )


def configured(
    model: str | os.PathLike | None,
    *,
    device: torch.device | str | None = None,
    configs: Sequence[str | os.PathLike] = (),
    names: Sequence[Path] = (_CONFIG,),
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
        parser["device"] = f"$torch.device({str(_check_device(device))!r})"
    weights = Path(parsed(parser, "ckpt_path"))
    parser.update(load_settings(weights.with_suffix(".json")))
    if not weights.is_file():
        raise InputError(f"The bundle {root} has no weights: there is no {weights}.", _TRAIN)
    return parser


def _locate(model: str | os.PathLike | None, names: Sequence[Path]) -> tuple[Path, Path, Path | None]:
    """Bundle folder, its config, and the checkpoint if one was named."""

    def config_of(root: Path) -> Path | None:
        return next((root / name for name in names if (root / name).is_file()), None)

    if model is None:
        if (config := config_of(_DEFAULT_BUNDLE)) is None:
            raise InputError(f"The package is not part of a bundle: {_DEFAULT_BUNDLE} has no {names[-1]}.", _TRAIN)
        return _DEFAULT_BUNDLE, config, None
    path = Path(model).expanduser()
    config = config_of(path)
    if path.is_dir() and config is None:
        if not (path / "model.pt").is_file():
            remedy = "Give a bundle's folder, that of a training, or a .pt, .onnx or .ts file."
            raise InputError(f"{path} is no bundle: it has neither {names[-1]} nor model.pt.", remedy)
        path = path / "model.pt"
    if config is not None:
        return path, config, None
    if not path.is_file():
        raise InputError(f"The model {path} does not exist.", "Give a bundle's folder or a .pt file.")
    if path.suffix != ".pt":
        raise InputError(f"{path} is neither a bundle's folder nor a .pt, .onnx or .ts file.", "Give one of these.")
    owner = path.resolve().parents[1]
    if path.resolve().parent.name == "models" and (config := config_of(owner)) is not None:
        return owner, config, path
    return *_locate(None, names)[:2], path


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
        raise InputError(f"The config has no {key!r}.", f"Start from the {_CONFIG} of this project.")
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
    """What the config's saver of results writes into the results of ``python -m monai.bundle run``."""
    for i, handler in enumerate(parser.get("handlers") or []):
        if isinstance(handler, Mapping) and str(handler.get("_target_")).endswith(("DetectionsSaver", "LesionsSaver")):
            return Model(*(str(parsed(parser, f"handlers::{i}::{key}")) for key in ("model_name", "model_version")))
    raise InputError("The config's handlers have no saver of results.", f"Start from the {_CONFIG} of this project.")


def split_loading(preprocessing: Compose) -> tuple[Callable, Compose]:
    first, *rest = preprocessing.transforms
    if not isinstance(first, LoadScand):
        raise InputError(f"The preprocessing starts with {type(first).__name__}.", "Let it start with LoadScand.")
    return first, Compose(rest)


def _check_device(device: torch.device | str) -> torch.device:
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown name; a build without CUDA, or no such GPU
        reason = str(error).splitlines()[0]
        raise InputError(
            f"The device {str(device)!r} cannot be used ({reason}).", "Choose cpu, cuda or cuda:N."
        ) from error
    return device


def as_volume(array: ArrayLike, affine: ArrayLike) -> MetaTensor:
    values, affine = np.asarray(array), check_affine(affine)
    if values.ndim != 3 or values.dtype.kind not in "iuf":
        raise InputError(f"The array has shape {values.shape} and type {values.dtype}.", "Give (X, Y, Z) in HU.")
    values = np.ascontiguousarray(values, dtype=np.float32)  # torch takes no negative strides
    meta = {
        MetaKeys.ORIGINAL_AFFINE: affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.array(values.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
    }
    return MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(affine), meta=meta)
