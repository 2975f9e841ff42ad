"""A user's clicks: from voxels or patient millimetres to the voxel that was meant, or an `InputError`.

A click is the voxel of the original array in which it falls; nothing finer is kept, so that it means the same in
whatever unit it was given, and a click on a thick slice is a click on the slice. In ``"voxel"`` space coordinates are
indices of voxel centres, as viewers show and MONAI Label sends them: 3.4 falls into voxel 3. In ``"lps"`` space they
are patient millimetres.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from numpy.typing import ArrayLike

from organdetr_monai.data.transforms import affine_of, plain, source_of, with_affine
from organdetr_monai.errors import InputError
from organdetr_monai.geometry import lps_to_voxel, voxel_to_lps
from organdetr_monai.miq_sam3d.grids import GridMap

__all__ = [
    "AIR",
    "SPACES",
    "EncodeClicksd",
    "LocateClicksd",
    "check_tissue",
    "parse_points",
    "read_clicks",
    "to_voxels",
]

SPACES = ("voxel", "lps")
#: HU; a voxel below is air, and no lesion.
AIR = -500.0
_EXAMPLE = '{"space": "voxel", "cases": [{"image": "scan.nii.gz", "points": [[120, 200, 45]]}]}'


def parse_points(texts: Sequence[str]) -> np.ndarray:
    """Points (n, 3) from texts such as ``"120,200,45"``."""
    points = []
    for text in texts:
        try:
            x, y, z = (float(number) for number in text.split(","))
        except ValueError:
            raise InputError(f"The point {text!r} is not three numbers.", "Write x,y,z, such as 120,200,45.") from None
        points.append((x, y, z))
    return np.asarray(points, dtype=np.float64).reshape(-1, 3)


def to_voxels(points: ArrayLike, *, space: str | None, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Voxels in which clicks fall.

    Parameters
    ----------
    points : array_like of shape (n, 3)
    space : {"voxel", "lps"}
        What the numbers are; there is no default, because a guess that is wrong looks like a right one.
    affine : ndarray of shape (4, 4)
        Of the original array, voxel centres to RAS mm.
    shape : (X, Y, Z)
        Of the original array.

    Returns
    -------
    ndarray of shape (n, 3), int64
        Each inside the array; n is at least 1.

    Raises
    ------
    InputError
        No click, no or an unknown space, numbers that are not finite, or a click outside of the scan.
    """
    if space is None:
        raise InputError(
            "The clicks have no unit.", "Say whether they are voxel indices (voxel) or patient millimetres (lps)."
        )
    if space not in SPACES:
        raise InputError(f"The clicks' space is {space!r}.", f"Give one of {', '.join(SPACES)}.")
    try:
        values = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"The clicks are {points!r}.", "Give (x, y, z) for each.") from None
    if values.size == 0:
        raise InputError("There is no click.", "Give at least one point, (x, y, z).")
    if values.ndim != 2 or values.shape[1] != 3 or not np.isfinite(values).all():
        raise InputError(f"The clicks are {values.tolist()}.", "Give three finite numbers, (x, y, z), for each.")
    corners = values + 0.5 if space == "voxel" else lps_to_voxel(values, affine)
    voxels = np.floor(corners + 1e-6).astype(np.int64)  # a point on a face must not fall out of the scan by rounding
    size = np.asarray(shape)
    voxels = np.where((voxels == size) & (corners < size + 1e-4), size - 1, voxels)
    outside = ((voxels < 0) | (voxels >= size)).any(axis=1)
    if outside.any():
        point = ", ".join(f"{number:g}" for number in values[outside][0])
        if space == "voxel":
            last = ", ".join(str(n - 1) for n in shape)
            raise InputError(
                f"The click ({point}) lies outside of the scan, whose voxels go from (0, 0, 0) to ({last}).",
                "Count in the scan's own array, from 0; if these are patient millimetres, say so (lps).",
            )
        ends = voxel_to_lps([(x, y, z) for x in (0, size[0]) for y in (0, size[1]) for z in (0, size[2])], affine)
        low, high = (", ".join(f"{number:.0f}" for number in end) for end in (ends.min(axis=0), ends.max(axis=0)))
        raise InputError(
            f"The click ({point}) mm lies outside of the scan, which stands between ({low}) and ({high}) mm.",
            "Give patient LPS (x grows to the left, y to the back); of RAS change the signs of x and y.",
        )
    return voxels


def check_tissue(voxels: np.ndarray, hu: np.ndarray) -> None:
    """Refuse clicks on air.

    Parameters
    ----------
    voxels : ndarray of shape (n, 3), int
    hu : ndarray of shape (X, Y, Z)
        The original array.
    """
    for voxel in voxels:
        value = float(hu[tuple(voxel)])
        if value < AIR:
            raise InputError(
                f"The click at voxel {tuple(voxel.tolist())} lies on air ({value:.0f} HU).",
                "Click on the lesion; check the order of the axes, and whether the numbers are voxels or millimetres.",
            )


def read_clicks(path: str | Path, folder: str | Path) -> list[dict[str, Any]]:
    """Cases of a JSON file of clicks: what ``python -m monai.bundle run inference`` answers.

    Parameters
    ----------
    path : path
        ``{"space": "voxel", "cases": [{"image": "scan.nii.gz", "points": [[x, y, z], ...]}, ...]}``; a case may have a
        ``space`` and a ``name`` of its own.
    folder : path
        To which image paths are relative.

    Returns
    -------
    list of dict
        ``image``, ``points``, ``space``, ``case``; the case is the name, else the number and file of the image.

    Raises
    ------
    InputError
        There is no such file, or it is not of this form.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The clicks {path} cannot be read ({error}).", f"Write {_EXAMPLE}") from error
    cases = document.get("cases") if isinstance(document, Mapping) else None
    if not isinstance(cases, list) or not cases:
        raise InputError(f"{path} lists no cases.", f"Write {_EXAMPLE}")
    items = []
    for k, case in enumerate(cases):
        if not isinstance(case, Mapping) or not isinstance(case.get("image"), str) or "points" not in case:
            raise InputError(f"Case {k} of {path} has no image or no points.", f"Write {_EXAMPLE}")
        items.append(
            {
                "image": str(Path(folder) / case["image"]),
                "points": case["points"],
                "space": case.get("space", document.get("space")),
                "case": str(case.get("name", f"{k:03d}_{Path(case['image']).name.partition('.')[0]}")),
            }
        )
    return items


class LocateClicksd(MapTransform):
    """Clicks of a request to voxels of the original array; stands after loading, before anything moves the image.

    Reads ``points`` and ``space`` of the sample, or ``foreground``, MONAI Label's voxel indices, and likewise
    ``background``: clicks that say "not this one". Sets ``clicks`` (n, 3) and ``rejected`` (m, 3), int64. A sample
    without any click passes unchanged.

    Raises
    ------
    InputError
        What `to_voxels` and `check_tissue` refuse.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Locate the clicks; with several images in the first one."""
        d = dict(data)
        if "points" not in d and "foreground" not in d:
            return d
        image = d[self.keys[0]]
        space = d.get("space") if "points" in d else "voxel"
        where: dict[str, Any] = {"space": space, "affine": affine_of(image), "shape": tuple(image.shape[1:])}
        d["clicks"] = to_voxels(d["points"] if "points" in d else d["foreground"], **where)
        check_tissue(d["clicks"], plain(image)[0].numpy())
        no = d.get("background")
        d["rejected"] = to_voxels(no, **where) if no is not None and len(no) else np.zeros((0, 3), dtype=np.int64)
        return d


class EncodeClicksd(MapTransform):
    """Clicks as a second channel of the image, in which they reach an inferer that is given nothing else.

    The channel is 0, ``k`` at click ``k`` (from 1 up) and ``-k`` at click ``k`` of those that say "not this one". The
    last step of preprocessing, after ``RecordFramed``; a sample without clicks passes unchanged.

    Raises
    ------
    InputError
        A click beside the body, or one voxel of the working grid that is said to lie and not to lie on a lesion.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the channel to each key."""
        d = dict(data)
        if "clicks" not in d:
            return d
        for key in self.key_iterator(d):
            image = d[key]
            grid = GridMap(affine_of(image), image.shape[1:], d["frame"]["affine"], d["frame"]["shape"])
            channel = torch.zeros_like(plain(image))
            for sign, voxels in ((1, d["clicks"]), (-1, d["rejected"])):
                inside = grid.to_working(voxels)
                if sign == 1:
                    check_inside(inside, d["clicks"], source_of(image))
                for k, (x, y, z) in enumerate(inside.tolist(), start=1):
                    if x < 0:
                        continue
                    if sign < 0 < channel[0, x, y, z]:
                        raise InputError(
                            "A background click lies in the voxel of a click on a lesion.", "Leave one of them out."
                        )
                    channel[0, x, y, z] = sign * k
            d[key] = with_affine(torch.cat([plain(image), channel]), affine_of(image), image)
        return d


def check_inside(working: np.ndarray, voxels: np.ndarray, source: str) -> None:
    """Refuse clicks that `GridMap.to_working` found beside the working volume, which is cropped to the body."""
    beside = voxels[(working < 0).any(axis=1)]
    if len(beside):
        raise InputError(
            f"The click at voxel {tuple(beside[0].tolist())} of {source} lies beside the body.", "Click on it."
        )
