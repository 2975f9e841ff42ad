"""The Python API: load the bundle once, open a scan once, then click in it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from numpy.typing import ArrayLike

from organdetr_monai.data.transforms import affine_of
from organdetr_monai.detections import Model
from organdetr_monai.errors import InputError
from organdetr_monai.loading import configured, model_of, parsed
from organdetr_monai.miq_sam3d.answer import Answer
from organdetr_monai.miq_sam3d.grids import GridMap
from organdetr_monai.miq_sam3d.inference import ClickInferer, without
from organdetr_monai.miq_sam3d.merging import Piece
from organdetr_monai.miq_sam3d.points import check_inside, check_tissue, to_voxels
from organdetr_monai.scan_model import ScanLike, ScanModel

__all__ = ["LesionFinder", "LesionSession"]

#: In the repository, which holds two bundles, and in the assembled one.
_CONFIGS = (Path("configs", "miq_sam3d", "inference.json"), Path("configs", "inference.json"))
_REMEMBERED = 64  # clicks


class LesionFinder(ScanModel):
    """Finds every lesion of the kind of a clicked one.

    `load` builds one from a bundle, with the network, preprocessing and inferer of its ``inference.json``.

    Parameters
    ----------
    network : torch.nn.Module
        As :class:`organdetr_monai.miq_sam3d.network.MIQSAM3D`.
    preprocessing : monai.transforms.Compose
        Starts with ``LoadScand``, records the ``frame``, and passes a sample without clicks; key ``image``.
    inferer : ClickInferer
    model : Model
        Name and version that the answers bear.
    device : torch.device or str

    Examples
    --------
    >>> finder = LesionFinder.load()  # doctest: +SKIP
    >>> session = finder.open("scan.nii.gz")
    >>> answer = session.click([(120, 200, 45)], space="voxel")
    >>> for lesion in answer.lesions:
    ...     print(lesion.id, lesion.score, lesion.volume_ml, lesion.centroid_mm)
    """

    def __init__(
        self,
        network: torch.nn.Module,
        preprocessing: Compose,
        inferer: ClickInferer,
        *,
        model: Model,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(network, preprocessing, device=device)
        self.model, self.inferer = model, inferer

    @classmethod
    def load(
        cls,
        model: str | os.PathLike | None = None,
        *,
        device: torch.device | str | None = None,
        configs: Sequence[str | os.PathLike] = (),
    ) -> LesionFinder:
        """Load a trained model.

        A bundle's config can run any code: load those that you trust.

        Parameters
        ----------
        model : path, optional
            A bundle's folder, or a checkpoint (``.pt``); the bundle of which this package is part where not given.
        device : str, optional
            ``"cpu"``, ``"cuda"``, ``"cuda:1"``; the config's choice where not given: a GPU if there is one.
        configs : sequence of path
            Deltas with which the model was trained, in the same order.

        Raises
        ------
        InputError
            No bundle, one that does not answer clicks, no weights, weights of another architecture, no such device.
        """
        parser = configured(model, device=device, configs=configs, names=_CONFIGS)
        inferer = parsed(parser, "inferer")
        if not isinstance(inferer, ClickInferer):
            raise InputError(f"The bundle {parser['bundle_root']} does not answer clicks.", "Name one that does.")
        return cls(
            parsed(parser, "network"),
            parsed(parser, "preprocessing"),
            inferer,
            model=model_of(parser),
            device=parsed(parser, "device"),
        )

    def open(self, scan: ScanLike | MetaTensor) -> LesionSession:
        """Prepare a scan for clicks; see `read`. What it costs to look at it is paid at the first click."""
        volume = self.read(scan)
        return LesionSession(self, volume, *self.prepare(volume))

    def __call__(
        self, scan: ScanLike | MetaTensor, points: ArrayLike, *, space: str, background: ArrayLike | None = None
    ) -> Answer:
        """Answer clicks in one scan; see `LesionSession.click`."""
        return self.open(scan).click(points, space=space, background=background)


class LesionSession:
    """One scan to click in. Answers depend on the clicks of the call alone; what was computed before is only kept.

    Undo a click by asking without it.

    Attributes
    ----------
    volume : MetaTensor of shape (1, X, Y, Z)
        The scan as it was read, HU.
    """

    def __init__(self, finder: LesionFinder, volume: MetaTensor, image: torch.Tensor, frame: Mapping[str, Any]) -> None:
        self.volume, self._finder, self._frame = volume, finder, frame
        self._encodings = finder.inferer.encodings(image, finder.network)
        self._grid = GridMap(frame["working_affine"], image.shape[1:], frame["affine"], frame["shape"])
        self._looks: dict[tuple[int, ...], list[Piece]] = {}

    def click(self, points: ArrayLike, *, space: str, background: ArrayLike | None = None) -> Answer:
        """Every lesion of the kinds of the clicked ones.

        Parameters
        ----------
        points : array_like of shape (n, 3)
            Each on a lesion. Clicks on lesions of one kind add what one of them misses; of several kinds each finds its
            own, and `Lesion.kind` tells them apart.
        space : {"voxel", "lps"}
            Indices of voxel centres in the original array, or patient LPS mm.
        background : array_like of shape (m, 3), optional
            Clicks that say "not this one": lesions that they lie in are left out.

        Returns
        -------
        Answer
            With `Answer.found` false where no click lies on a lesion.

        Raises
        ------
        InputError
            No click, no unit, a click outside of the scan or on air, a background click in a clicked lesion.
        """
        where: dict[str, Any] = {"space": space, "affine": affine_of(self.volume), "shape": self.volume.shape[1:]}
        voxels = to_voxels(points, **where)
        check_tissue(voxels, self.volume.as_tensor()[0].numpy())
        clicks = self._grid.to_working(voxels)
        check_inside(clicks, voxels, self._frame["image"] or "the scan")
        inferer = self._finder.inferer
        found = inferer.combine([self._look(click) for click in clicks], clicks, self._encodings.shape)
        if background is not None and np.size(background):
            found = without(found, self._grid.to_working(to_voxels(background, **where)), clicks)
        return Answer.from_found(found, voxels, model=self._finder.model, **self._frame)

    def _look(self, click: np.ndarray) -> list[Piece]:
        key = tuple(click.tolist())
        if key not in self._looks:
            if len(self._looks) >= _REMEMBERED:
                self._looks.pop(next(iter(self._looks)))
            self._looks[key] = self._finder.inferer.look(self._encodings, click)
        return self._looks[key]
