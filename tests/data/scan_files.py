"""One made-up scan written in every format, each by the library that users write it with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SERIES = "1.2.826.0.1.3680043.8.498.1"
FORMATS = ("nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd", "compressed.mha", "compressed.nrrd", "dicom")


def hu(shape: tuple[int, int, int] = (6, 5, 4), *, seed: int = 0) -> np.ndarray:
    """Whole HU between -1000 and 2000, no two voxels alike, so that any mix-up of axes shows."""
    values = np.random.default_rng(seed).permutation(np.linspace(-1000, 2000, int(np.prod(shape))).astype(np.int16))
    return values.reshape(shape)


def rotation(*, z: float = 0.0, x: float = 0.0) -> np.ndarray:
    """Turn by degrees about x, then z."""
    (cz, sz), (cx, sx) = ((np.cos(np.radians(a)), np.sin(np.radians(a))) for a in (z, x))
    return np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])


def affine_of(directions: np.ndarray, spacing=(0.75, 1.25, 2.5), origin=(-120.5, 33.25, -804.5)) -> np.ndarray:
    """RAS affine from direction columns, voxel sizes in mm and the position of the first voxel."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions) * np.asarray(spacing)
    affine[:3, 3] = origin
    return affine


def write(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write a volume by the suffix of `path`; a path without suffix becomes a folder of DICOM slices."""
    if path.name.endswith((".nii", ".nii.gz")):
        import nibabel

        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    elif path.suffix:
        import itk

        lps = LPS @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image = itk.image_from_array(np.ascontiguousarray(array.T))
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection(lps[:3, :3] / spacing)
        itk.imwrite(image, str(path), compression="compressed" in path.name)
    else:
        write_series(path, array, affine)
    return path


def write_series(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    *,
    slopes: np.ndarray | None = None,
    names: list[str] | None = None,
    **tags,
) -> list[Path]:
    """Write one DICOM file for each index of the last axis, and return the paths in that order.

    Stored values are HU divided by the slice's slope, offset by 1024. `tags` set elements of every slice; a list of as
    many values as slices sets each slice's own, None removes the element.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    count = array.shape[2]
    slopes = np.ones(count) if slopes is None else slopes
    order = np.random.default_rng(1).permutation(count)  # names in another order than positions
    names = names or [f"IM{order[k]:04d}" for k in range(count)]
    for k in range(count):
        own = {
            "SeriesInstanceUID": SERIES,
            "SOPInstanceUID": f"{SERIES}.{k + 1}",
            "ImagePositionPatient": (lps @ [0, 0, k, 1])[:3].round(6).tolist(),
            "ImageOrientationPatient": (lps[:3, :2] / spacing[:2]).T.ravel().round(9).tolist(),
            "PixelSpacing": spacing[1::-1].round(9).tolist(),
            "RescaleSlope": float(slopes[k]),
            "RescaleIntercept": -1024.0,
        }
        for keyword, value in tags.items():
            own[keyword] = value[k] if isinstance(value, list) and len(value) == count else value
        stored = np.rint((array[:, :, k].T + 1024.0) / slopes[k]).astype("<u2")
        write_slice(folder / names[k], stored, **own)
    return [folder / name for name in names]


def write_slice(path: Path, stored: np.ndarray, **tags) -> Path:
    """Write one CT Image Storage file of 16-bit values (rows, columns)."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID") or CTImageStorage
    meta.MediaStorageSOPInstanceUID = tags.get("SOPInstanceUID") or SERIES
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    defaults = {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "StudyInstanceUID": "1.2.826.0.1.3680043.8.498",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "PixelData": stored.tobytes(),
    }
    for keyword, value in {**defaults, **tags}.items():
        if value is not None:
            setattr(data, keyword, value)
    data.save_as(path)
    return path


def canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip and permute axes towards R, A, S without moving a voxel in the patient."""
    import nibabel

    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.asarray(array, np.float32), affine))
    return np.asarray(image.dataobj), image.affine
