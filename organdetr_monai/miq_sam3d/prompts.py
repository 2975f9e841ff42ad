"""A training sample: a window of the scan, a click, and the lesions that it asks for.

Half of the clicks lie in another window of the same scan (a remote prompt), because inference slides over the volume
with the exemplar that was clicked in one window; some lie on no lesion, and the answer is "nothing".
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import RandomizableTransform

from organdetr_monai.data.augmentation import rotation, sample_bilinear, sample_nearest, sampling_grid
from organdetr_monai.data.match import restore_lost
from organdetr_monai.data.transforms import affine_of, plain, with_affine
from organdetr_monai.errors import InputError
from organdetr_monai.geometry import spacing_of
from organdetr_monai.miq_sam3d.clicks import check_places, click_in, click_outside, draw_place

MARGIN = 0.2  # of the window, on each side: what a window is cut around lies further inside, unless the scan ends
TISSUE = 0.05  # intensity above which a voxel is tissue: no click falls on air


class View(NamedTuple):
    """A window of a case."""

    image: MetaTensor  # (1, X, Y, Z)
    instances: torch.Tensor  # (1, X, Y, Z) ids of the case


class RandPromptd(RandomizableTransform):
    """Cut a window out of a case, click in it or in another one, and say what is asked for.

    Reads ``image`` (1, X, Y, Z) in [0, 1], ``instances`` (1, X, Y, Z) and ``kinds`` (M,) of the whole case. Each window
    is rotated, zoomed and perhaps mirrored from left to right in one resampling, about the voxel that it is cut around:
    unlike organs, lesions have no side, and a mirrored patient is a patient. Upside down nobody is scanned.

    Parameters
    ----------
    window : (X, Y, Z)
        Voxels. A smaller volume lies somewhere inside it, 0 around it.
    remote : float
        Share of samples whose click lies in another window, ``exemplar``.
    asked : float
        Share of samples whose click is answered; of the others a network learns what voxels are. An answer costs time,
        of which the encoder learns nothing.
    background : float
        Share of samples whose click lies on no lesion; all of a case without any.
    places : mapping of str to float, optional
        Where in a lesion clicks fall, with their shares; `organdetr_monai.miq_sam3d.clicks.PLACES` by default.
    rotate : float
        Largest angle about each axis, degrees.
    zoom : (float, float)
        Range of the factor by which the patient grows.
    mirror : float
        Share of mirrored windows; a sample's two windows are mirrored alike.

    Notes
    -----
    The lesion that is clicked is drawn uniformly, whatever its size. What comes out:

    - ``image``, ``exemplar`` (1, X, Y, Z) float32: the window; the one that the click lies in, which is the same unless
      ``remote`` (bool);
    - ``instances`` (1, X, Y, Z) int64: ids 1..M of the lesions in ``image``, ``kinds`` (M,) int64 theirs;
      ``exemplar_instances`` and ``exemplar_kinds`` those of the exemplar;
    - ``click`` (3,) float32: ``(index + 0.5) / window`` in ``exemplar``;
    - ``asked`` bool: whether the click is to be answered;
    - ``kind`` int: of what was clicked, 0 for background. The lesions of this kind are what is asked for;
    - ``exemplar_clicked`` int: id in ``exemplar`` of the lesion clicked, 0 where that is background; ``clicked`` int:
      the same in ``image``, 0 where ``remote``;
    - ``case``: its name, as it was.
    """

    def __init__(
        self,
        window: Sequence[int] = (64, 64, 64),
        *,
        remote: float = 0.5,
        asked: float = 1.0,
        background: float = 0.1,
        places: Mapping[str, float] | None = None,
        rotate: float = 10.0,
        zoom: Sequence[float] = (0.9, 1.1),
        mirror: float = 0.5,
    ) -> None:
        RandomizableTransform.__init__(self, 1.0)
        shares = {"remote": remote, "asked": asked, "background": background, "mirror": mirror}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise InputError(f"{name} is {share!r}.", "Give a share from 0 to 1.")
        self.window = tuple(int(n) for n in window)
        self.remote, self.background, self.mirror = float(remote), float(background), float(mirror)
        self.asked = float(asked)
        self.places = check_places(places)
        self.rotate, self.zoom = float(rotate), (float(zoom[0]), float(zoom[1]))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Make one sample."""
        ids = plain(data["instances"])[0].numpy()
        kinds = np.asarray(data["kinds"], dtype=np.int64)
        present = np.flatnonzero(np.bincount(ids.reshape(-1), minlength=len(kinds) + 1)[1:]) + 1
        mirrored, remote = self.R.random() < self.mirror, self.R.random() < self.remote
        chosen = self._draw(present) if self.R.random() >= self.background else 0

        near = chosen or (self._draw(present) if self.R.random() < 0.5 else 0)  # background around lesions, too
        view = exemplar = self._view(data, self._voxel(ids, near), mirrored)
        click, clicked = self._click(exemplar, chosen)
        kind = int(kinds[clicked - 1]) if clicked else 0
        if remote:
            view = self._view(data, self._voxel(ids, self._other(present, kinds, kind)), mirrored)
        theirs, their_ids = relabel(exemplar.instances)
        instances, shown = relabel(view.instances) if remote else (theirs, their_ids)
        place = int(np.searchsorted(their_ids, clicked)) + 1 if clicked else 0
        return {
            "case": data.get("case"),
            "image": view.image,
            "exemplar": exemplar.image,
            "instances": instances,
            "kinds": torch.from_numpy(kinds[shown - 1]),
            "exemplar_instances": theirs,
            "exemplar_kinds": torch.from_numpy(kinds[their_ids - 1]),
            "exemplar_clicked": place,
            "click": torch.from_numpy(((click + 0.5) / self.window).astype(np.float32)),
            "clicked": 0 if remote else place,
            "kind": kind,
            "remote": remote,
            "asked": self.R.random() < self.asked,
        }

    def _draw(self, ids: np.ndarray) -> int:
        """One of the ids, 0 if there is none."""
        return int(ids[int(self.R.random() * len(ids))]) if len(ids) else 0

    def _other(self, present: np.ndarray, kinds: np.ndarray, kind: int) -> int:
        """What to cut the window of a remote prompt around: in half of them a lesion of the kind, in a quarter any
        lesion, in a quarter any place (0).
        """
        where = self.R.random()
        alike = present[kinds[present - 1] == kind]
        return self._draw(alike) if where < 0.5 and len(alike) else self._draw(present) if where < 0.75 else 0

    def _voxel(self, ids: np.ndarray, instance: int) -> np.ndarray:
        """A voxel of the instance, or of the volume for 0."""
        if not instance:
            return np.array([int(self.R.random() * n) for n in ids.shape])
        return click_in(ids == instance, "uniform", self.R)

    def _view(self, data: Mapping[Hashable, Any], anchor: np.ndarray, mirrored: bool) -> View:
        """A window around a voxel of the volume, turned and zoomed about it."""
        image, ids = data["image"], plain(data["instances"])
        size, affine = image.shape[1:], affine_of(image)
        matrix = self._matrix(anchor, size, spacing_of(affine), mirrored)
        grid = sampling_grid(matrix, size, self.window)
        values = sample_bilinear(plain(image), grid)
        instances = sample_nearest(ids, grid)
        # A lesion of a voxel or two can fall between the voxels of a turned window.
        restore_lost(instances[0].numpy(), ids[0].numpy(), np.linalg.inv(matrix))
        return View(with_affine(values, affine @ matrix, image), instances)

    def _matrix(self, anchor: np.ndarray, size: Sequence[int], spacing: np.ndarray, mirrored: bool) -> np.ndarray:
        """Affine (4, 4) from indices of the window to indices of the volume; the anchor's voxel is one of the window's.

        Without rotation and zoom the window lies inside the volume, or the volume inside the window.
        """
        sizes, window = np.asarray(size), np.asarray(self.window)
        margin = np.floor(MARGIN * window)
        low, high = anchor - (window - 1 - margin), anchor - margin
        start = np.floor(low + self.R.random(3) * (high - low + 1))
        start = np.clip(start, np.minimum(0, sizes - window), np.maximum(0, sizes - window))
        here = anchor - start  # the anchor's index in the window
        flip = np.array([-1.0 if mirrored else 1.0, 1.0, 1.0])
        here = np.where(flip < 0, window - 1 - here, here)
        angles = np.deg2rad(self.rotate) * (2 * self.R.random(3) - 1)
        factor = self.zoom[0] + (self.zoom[1] - self.zoom[0]) * self.R.random()
        turn = np.eye(4)
        # Rotation is of the patient, in mm: on voxels of unequal sides it would shear.
        turn[:3, :3] = np.diag(1 / spacing) @ rotation(angles) @ np.diag(spacing * flip) / factor
        turn[:3, 3] = anchor - turn[:3, :3] @ here
        return turn

    def _click(self, view: View, chosen: int) -> tuple[np.ndarray, int]:
        """Index (3,) of a click in the window, and the id of the lesion it lies on, 0 for background."""
        ids, place = view.instances[0].numpy(), draw_place(self.places, self.R)
        if not chosen:
            outside = click_outside(ids > 0, plain(view.image)[0].numpy() > TISSUE, self.R)
            if outside is not None:
                return outside, 0
            chosen = int(ids.flat[0])  # the window is full of lesions
        return click_in(ids == chosen, place, self.R), chosen


def relabel(instances: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """Ids of a window as 1..M without gaps.

    Parameters
    ----------
    instances : Tensor of shape (1, X, Y, Z)
        Ids of the case.

    Returns
    -------
    instances : Tensor of shape (1, X, Y, Z), int64
    shown : ndarray of shape (M,), int64
        The case's ids, ascending: instance ``i + 1`` is ``shown[i]``.
    """
    found, places = torch.unique(instances, return_inverse=True)  # places of values among the sorted ones
    background = int(found[0] == 0)
    return places.long() + 1 - background, found[background:].long().numpy()
