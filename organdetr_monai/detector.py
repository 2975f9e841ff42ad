"""The Python API: load a bundle once, then a scan in, `Detections` out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from monai.transforms import Compose

from organdetr_monai.detections import Detections, Model
from organdetr_monai.errors import InputError
from organdetr_monai.exported import FORMATS, build, load_exported
from organdetr_monai.loading import check_device, configured, model_of, parsed
from organdetr_monai.scan_model import ScanLike, ScanModel

__all__ = ["OrganDetector"]


class OrganDetector(ScanModel):
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
        super().__init__(network, preprocessing, device=device)
        self.model, self.threshold, self.inferer = model, threshold, inferer
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
            (``.onnx``, ``.ts``), which holds all of this; or the name of a folder in ``models/`` of the bundle of which
            this package is part, such as ``phantom``. The default is that bundle.
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
        network, settings, where = load_exported(path, device=None if device is None else check_device(device))
        return cls(
            network,
            build(settings.preprocessing),
            build(settings.inferer),
            settings.organs,
            model=settings.model,
            threshold=settings.thresholds,
            device=where,
        )

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
        volume = self.read(scan)
        image, frame = self.prepare(volume)
        with torch.inference_mode():
            (prediction,) = self.inferer(image[None], self.network)
        return Detections.from_boxes(
            prediction["boxes"],
            prediction["scores"],
            prediction["labels"],
            organs=self.organs,
            model=self.model,
            threshold=self.threshold,
            **frame,
        )
