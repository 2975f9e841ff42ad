"""A small labelled scan whose organs are known in millimetres, stored in any way."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

ORGANS = ["liver", "spleen", "aorta"]
VALUES = {1: 5, 2: 3, 3: 9}  # id to value in the mask file
BODY = ((0.0, 0.0, 0.0), (105.0, 75.0, 100.0))  # centre and half axes, mm
ELLIPSOIDS = {5: ((40.0, 5.0, 15.0), (36.0, 32.0, 30.0)), 3: ((-50.0, -20.0, 10.0), (20.0, 18.0, 26.0))}
AORTA = ((-4.0, -40.0, -60.0), (4.0, -32.0, 60.0))  # a thin block, lowest and highest corner, mm


def axial_affine(spacing=(3.0, 3.0, 3.0), size=(240.0, 180.0, 228.0)):
    """Affine (RAS) and shape of a grid that is centred on the patient's origin."""
    shape = tuple(int(s / d) for s, d in zip(size, spacing, strict=True))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * d for n, d in zip(shape, spacing, strict=True)]
    return affine, shape


def oblique_affine(degrees=20.0, spacing=(3.0, 3.0, 3.0)):
    affine, shape = axial_affine(spacing)
    a = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    return turn @ affine, shape


def make_arrays(affine, shape):
    """CT in HU, int16, and mask, uint8, of the patient on a grid."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    mm = grid @ affine[:3, :3].T + affine[:3, 3]

    def ellipsoid(centre, half):
        return (((mm - centre) / half) ** 2).sum(-1) <= 1

    image = np.where(ellipsoid(*BODY), 40, -1000).astype(np.int16)
    mask = np.zeros(shape, np.uint8)
    for value, where in ELLIPSOIDS.items():
        mask[ellipsoid(*where)] = value
        image[mask == value] = 40 + 20 * value
    mask[((mm > AORTA[0]) & (mm < AORTA[1])).all(-1)] = 9
    image[mask == 9] = 250
    return image, mask


def save_case(folder, affine, shape, *, axcodes=None, name="case"):
    """Write image and mask, optionally with other storage axes; the item as a datalist gives it."""
    item = {"label_values": dict(VALUES), "annotated": [1, 2, 3], "truncated": [], "case": name}
    for key, array in zip(("image", "label"), make_arrays(affine, shape), strict=True):
        volume = nib.Nifti1Image(array, affine)
        volume.set_sform(affine, 1)
        if axcodes is not None:
            volume = volume.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(axcodes)))
        item[key] = str(folder / f"{name}_{key}.nii.gz")
        nib.save(volume, item[key])
    return item
