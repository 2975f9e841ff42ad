"""MONAI Label's tasks for this bundle; importable where MONAI Label is installed.

Its own bundle tasks drop scores and names of boxes, and train detectors of one class: every label becomes 0.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from fastapi import HTTPException
from monai.bundle import ConfigParser
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import device_list, name_to_device, strtobool

from organdetr_monai.checkpoints import load_settings
from organdetr_monai.errors import InputError, input_error
from organdetr_monai.files import replacing
from organdetr_monai.monai_label.inference import editable_markups
from organdetr_monai.monai_label.submissions import Submission, write_datalist

__all__ = ["LesionInferTask", "OrganInferTask", "OrganTrainTask"]

logger = logging.getLogger(__name__)

_MODEL, _SHIPPED = "model.pt", "model_as_installed.pt"


def _settings(bundle: str | Path) -> dict[str, Any]:
    """Organs and grid of the bundle's model, as training left them beside it."""
    return load_settings(Path(bundle) / "models" / "model.json")


class _InferTask(BundleInferTask):
    """What both bundles' tasks share: weights that fit, settings beside them, and errors that a client can show.

    Parameters
    ----------
    path : str
        The bundle's folder.
    conf : mapping
        Of the server.
    """

    def __init__(self, path: str, conf: Mapping[str, str], **options: Any) -> None:
        super().__init__(path, conf, load_strict=True, **options)

    def _load_bundle_config(self, path: str, config: str) -> ConfigParser:
        parser = super()._load_bundle_config(path, config)
        parser.update(_settings(path))
        return parser

    def __call__(self, request: Any, callbacks: Any = None) -> Any:
        """Infer; what the user can mend comes back as HTTP 400 with the reason, an unknown image as 404."""
        if isinstance(request.get("image"), str) and not request["image"]:  # the datastore's way to say so
            raise HTTPException(status_code=404, detail="The server's datastore has no such image.")
        try:
            if "device" in request:
                _device(request["device"])  # it enters a config, where a string can be code
            return super().__call__(request, callbacks)
        except Exception as error:
            found = input_error(error)
            if found is None:
                raise
            raise HTTPException(status_code=400, detail=str(found)) from error


class LesionInferTask(_InferTask):
    """Answers to clicks: a mask, and in the JSON ``answer``, all of ``lesions.json``.

    The config is read once, so that its inferer keeps the encodings of the last image: a second click needs no encoder.
    """


class OrganInferTask(_InferTask):
    """Inference that tells scores and organs: in the JSON, and in the markups as names of ROIs.

    Adds to MONAI Label's JSON ``score`` and ``organ``, one for each of ``box`` and ``label``, and ``detections``, all
    of ``detections.json``. Weights and thresholds are those on disk at each call: a training takes effect at once.

    Parameters
    ----------
    path : str
        The bundle's folder.
    conf : mapping
        Of the server.
    """

    def __init__(self, path: str, conf: Mapping[str, str], **options: Any) -> None:
        super().__init__(path, conf, **options)
        if self.is_valid():
            organs = self.bundle_config.get_parsed_content("organs")
            self.labels = {organ: k for k, organ in enumerate(organs, start=1)}

    def pre_transforms(self, data: Any = None) -> Any:
        """The bundle's preprocessing; the config is read anew, because the parser remembers thresholds."""
        self.bundle_config = self._load_bundle_config(self.bundle_path, self.bundle_config_path)
        return super().pre_transforms(data)

    def writer(self, data: Any, extension: Any = None, dtype: Any = None) -> tuple[str | None, dict[str, Any]]:
        """MONAI Label's file and JSON, with names and scores."""
        file, result = super().writer(data, extension, dtype)
        result.update(data["result"])
        if file is not None:
            Path(file).write_text(json.dumps(editable_markups(data["detections"])), encoding="utf-8")
        return file, result


class OrganTrainTask(BundleTrainTask):
    """Fine-tuning on what annotators submitted: masks of many organs, or ROIs named after organs.

    Runs ``configs/train.json`` with ``configs/labels/rois.json`` and, unless ``pretrained`` is false,
    ``configs/fine_tune.json``, in ``runs/monai_label`` of the bundle's folder. When it is done the best model takes the
    place of ``models/model.pt``, with thresholds fitted on the validation cases; the first one that was there stays as
    ``models/model_as_installed.pt``.
    """

    def config(self) -> dict[str, Any]:
        """What the client's panel offers."""
        return {
            "device": device_list(),
            "pretrained": True,
            "max_epochs": 20,
            "val_split": 0.2,
            "learning_rate": 0.0002,
            "batch_size": 2,
        }

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train; ``request`` has the keys of `config`.

        Raises
        ------
        InputError
            Too few usable labels, or a value in the request that is none.
        """
        options = {**self.config(), **request}
        bundle = Path(self.bundle_path)
        run = bundle / "runs" / "monai_label"
        shutil.rmtree(run, ignore_errors=True)
        settings = _settings(bundle)
        organs = settings.get("organs") or self.bundle_config.get_parsed_content("organs")
        counts = write_datalist(
            _submissions(datastore), organs, run / "datalist.json", val_split=_number(options, "val_split", float)
        )
        logger.info("training on %d labels, validating on %d: %s", counts["train"], counts["val"], run)
        pretrained = strtobool(options["pretrained"])
        overrides = {**settings, **self._overrides(options, run)}
        sys.path.insert(0, str(bundle))
        try:
            self._run("training", ["labels/rois", "fine_tune"] if pretrained else ["labels/rois"], overrides)
            # On the validation split this fits the thresholds, too.
            self._run("evaluating", ["labels/rois", "evaluate"], overrides)
        finally:
            sys.path.remove(str(bundle))
        _publish(run, bundle / "models")
        return json.loads((run / "metrics.json").read_text(encoding="utf-8"))

    def _overrides(self, options: Mapping[str, Any], run: Path) -> dict[str, Any]:
        """Keys of the config. What comes from the client enters as numbers: a string in a config can be code."""
        epochs = _number(options, "max_epochs", int)
        return {
            "bundle_root": self.bundle_path,
            "ckpt_dir": str(run),
            "output_dir": str(run),
            "datalist": str(run / "datalist.json"),
            "resume": False,
            "max_epochs": epochs,
            "val_interval": max(epochs // 5, 1),
            "learning_rate": _number(options, "learning_rate", float),
            "batch_size": _number(options, "batch_size", int),
            "device": f"$torch.device({_device(options['device'])!r})",
        }

    def _run(self, run_id: str, deltas: list[str], overrides: Mapping[str, Any]) -> None:
        configs = Path(self.bundle_path) / "configs"
        monai.bundle.run(
            run_id=run_id,
            meta_file=self.bundle_metadata_path,
            config_file=[str(configs / f"{name}.json") for name in ("train", *deltas)],
            **overrides,
        )


def _submissions(datastore: Datastore) -> Iterator[Submission]:
    """Final labels with what the client sent along; a remote datastore keeps the latter to itself."""
    infos = {}
    if type(datastore) is LocalDatastore:
        final = DefaultLabelTag.FINAL
        for image in datastore.get_labeled_images():
            infos[datastore.get_label_uri(image, final)] = datastore.get_label_info(image, final)
    for entry in datastore.datalist():
        yield Submission(entry["image"], entry["label"], infos.get(entry["label"], {}))


def _number(options: Mapping[str, Any], key: str, kind: type) -> Any:
    try:
        value = kind(options[key])
        if not value > 0:
            raise ValueError(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"The request's {key} is {options[key]!r}.", "Give a positive number.") from error
    return value


def _device(requested: Any) -> str:
    try:
        return str(torch.device(name_to_device(requested)))
    except (RuntimeError, TypeError, IndexError) as error:
        raise InputError(f"The request's device is {requested!r}.", f"Choose among {device_list()}.") from error


def _publish(run: Path, models: Path) -> None:
    """Put a run's model in the place of the bundle's. The thresholds go first: they are of the weights that go."""
    if not (models / _SHIPPED).exists():
        shutil.copyfile(models / _MODEL, models / _SHIPPED)
    (models / "thresholds.json").unlink(missing_ok=True)
    for name in ("model.json", _MODEL, "thresholds.json"):
        with replacing(models / name) as draft:
            shutil.copyfile(run / name, draft)
    logger.info("%s is now the model of this training", models / _MODEL)
