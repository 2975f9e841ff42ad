"""Reading scans: every format to the same array and the same affine, or an `InputError` that says why not.

MONAI's own `LoadImage` is not used for scans because it tries one reader after another until one gives something, which
would undo each refusal here; its NibabelReader and ITKReader are.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ITKReader, MetaTensor, NibabelReader
from monai.transforms import EnsureChannelFirst, MapTransform
from monai.utils import MetaKeys, SpaceKeys

from organdetr_monai.data.dicom import series_geometry
from organdetr_monai.data.headers import load_nifti
from organdetr_monai.data.nifti import inflate, read_voxels
from organdetr_monai.data.scans import Scan, find_scan
from organdetr_monai.errors import InputError

SHEAR_TOLERANCE = 1e-3  # cosine between two array axes in space; stored rotations round to about 1e-6

_GET_AGAIN = "Get the file again from its source."
_SET_ORIENTATION = "Convert the original DICOM series again, e.g. with dcm2niix, so that the file says where it lies."
_REGRID = "Resample it to a rectangular grid, e.g. with 3D Slicer."
_HU_VOLUME = "Give one 3D volume of HU."


def read_scan(scan: Scan | str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read a scan in HU.

    Parameters
    ----------
    scan : Scan or path
        What `find_scans` found, or a file or folder that holds exactly one scan.

    Returns
    -------
    array : ndarray of shape (X, Y, Z), float32, Fortran order
        HU in the order of the file's axes (DICOM: column, row, slice).
    affine : ndarray of shape (4, 4), float64
        From indices of voxel centres to patient RAS mm.

    Raises
    ------
    InputError
        If the file is missing, empty, damaged or cut off, is not one 3D volume of finite scalars, or does not place its
        voxels on a rectangular grid in the patient. Nothing of this is guessed.
    """
    if not isinstance(scan, Scan):
        scan = find_scan(scan)
    for path in scan.paths:
        _check_file(path)
    if scan.kind == "dicom":
        array, affine = _read_dicom(scan.paths)
    elif scan.kind == "nifti":
        array, affine = _read_nifti(scan.paths[0], scan.voxels or partial(read_voxels, scan.paths[0]))
    else:
        array, affine = _read_itk(scan.paths[0])
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):  # a NaN anywhere is both
        count = array.size - np.count_nonzero(np.isfinite(array))
        raise InputError(f"{scan.path} has {count} voxels that are NaN or infinite.", "Replace them, e.g. by -1024 HU.")
    return array, affine


class LoadScand(MapTransform):
    """Load scans as MetaTensors of shape (X, Y, Z), float32, in HU, with their affine in RAS mm.

    The metadata has `original_affine`, `spatial_shape`, `filename_or_obj` and, for DICOM, `series_uid`.

    Parameters
    ----------
    keys : str or sequence of str
        Keys whose value is a `Scan`, or the path of a file or folder that holds exactly one scan.
    ensure_channel_first : bool
        Give (1, X, Y, Z) instead.
    allow_missing_keys : bool
        Pass over keys that a sample lacks.
    """

    def __init__(
        self, keys: KeysCollection, *, ensure_channel_first: bool = False, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ensure_channel_first = ensure_channel_first

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        sample = dict(data)
        for key in self.key_iterator(sample):
            scan = sample[key] if isinstance(sample[key], Scan) else find_scan(sample[key])
            image = _to_metatensor(scan, *read_scan(scan))
            sample[key] = EnsureChannelFirst()(image) if self.ensure_channel_first else image
        return sample


def _to_metatensor(scan: Scan, array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    meta = {
        MetaKeys.ORIGINAL_AFFINE: affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.array(array.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # MONAI's way to say that there is no channel axis
        "filename_or_obj": str(scan.path),
    }
    if scan.series_uid is not None:
        meta["series_uid"] = scan.series_uid
    return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine), meta=meta)


def _read_nifti(path: Path, voxels: Callable[[], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    try:
        image = NibabelReader(mmap=False).read(path)
        stored = load_nifti(path).affine
    except Exception as error:  # nibabel promises no set of exceptions for damaged files
        raise InputError(f"{path} cannot be read as NIfTI ({error}).", _GET_AGAIN) from error
    header = image.header
    if not (header["sform_code"] > 0 or header["qform_code"] > 0):
        raise InputError(f"{path} does not say how the patient lies (sform and qform codes are 0).", _SET_ORIENTATION)
    if header.get_xyzt_units()[0] not in ("mm", "unknown"):
        raise InputError(f"{path} is measured in {header.get_xyzt_units()[0]}.", "Store it in mm.")
    if image.dataobj.dtype.fields is not None or image.dataobj.dtype.kind not in "iuf":
        raise InputError(f"{path} has voxels of type {image.dataobj.dtype}, not one number each.", _HU_VOLUME)
    _check_shape(path, image.shape)
    _check_affine(path, stored)
    # Where voxel sizes and orientation contradict each other, MONAI's reader silently puts another affine in place.
    if not np.allclose(stored, image.affine, atol=1e-2, equal_nan=True):
        raise InputError(
            f"{path} contradicts itself: pixdim is {header['pixdim'][1:4].tolist()} mm, but its orientation says "
            f"{np.linalg.norm(stored[:3, :3], axis=0).tolist()} mm.",
            _SET_ORIENTATION,
        )
    try:
        array = voxels()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} is damaged or cut off ({error}).", _GET_AGAIN) from error
    except (MemoryError, OverflowError) as error:
        what = f"{path} has {'×'.join(map(str, image.shape))} voxels by its header, too many for this machine."
        raise InputError(what, "Crop it; or get it again: its header may be damaged.") from error
    return array.reshape(array.shape[:3], order="F"), np.array(stored, dtype=float)


def _read_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import itk

    nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    if not nrrd and "NDims" not in _metaimage_header(path)[0]:
        raise InputError(f"{path} has no valid MetaImage header.", _GET_AGAIN)  # ITK says so, too, in five lines
    image_io = (itk.NrrdImageIO if nrrd else itk.MetaImageIO).New(FileName=str(path))
    try:
        image_io.ReadImageInformation()
    except RuntimeError as error:
        what = f"{path} has no valid {'NRRD' if nrrd else 'MetaImage'} header, or its voxel file is missing."
        raise InputError(what, _GET_AGAIN) from error
    # Asked to give floats, ITK turns colour into grey without a word: look first.
    if image_io.GetNumberOfComponents() != 1:
        raise InputError(f"{path} has {image_io.GetNumberOfComponents()} values in each voxel.", _HU_VOLUME)
    _check_shape(path, [image_io.GetDimensions(i) for i in range(image_io.GetNumberOfDimensions())])
    (_check_nrrd_space if nrrd else _check_metaimage)(path, image_io)
    try:
        reader = ITKReader(pixel_type=itk.F, imageio=image_io)
        array, meta = reader.get_data(reader.read(path))
    except RuntimeError as error:
        raise InputError(f"{path} is damaged or cut off, or its voxel file is missing.", _GET_AGAIN) from error
    affine = np.array(meta[MetaKeys.AFFINE], dtype=float)
    _check_affine(path, affine)
    return np.asarray(array).reshape(array.shape[:3], order="F"), affine


def _check_nrrd_space(path: Path, image_io: Any) -> None:
    """Refuse a NRRD without anatomical directions: ITK would take LPS for granted."""
    meta = image_io.GetMetaDataDictionary()
    space = str(meta["NRRD_space"]) if meta.HasKey("NRRD_space") else "none"
    if not space.endswith(("posterior-superior", "anterior-superior")):
        raise InputError(f"{path} does not say how the patient lies (NRRD space: {space}).", _SET_ORIENTATION)


def _check_metaimage(path: Path, image_io: Any) -> None:
    """Refuse a MetaImage without geometry, for which ITK takes defaults, or with an incomplete block of voxels."""
    header, start = _metaimage_header(path)
    for names in (("TransformMatrix", "Orientation", "Rotation"), ("ElementSpacing", "ElementSize")):
        if not any(name in header for name in names):
            raise InputError(f"{path} has no {names[0]} in its header.", _SET_ORIENTATION)
    source = header.get("ElementDataFile", "LOCAL")
    local = source.upper() == "LOCAL"
    block = path if local else path.parent / source
    if source.upper().startswith("LIST") or "%" in source or "HeaderSize" in header:
        return  # ITK alone knows where the voxels are
    expected = int(image_io.GetImageSizeInBytes())
    try:
        size = block.stat().st_size - start * local
        if header.get("CompressedData", "").lower() == "true":
            # ITK prints "Uncompress failed", goes on with what it has and returns it, so the block is checked here.
            size = sum(map(len, inflate(block, start * local)))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged, cut off or without its voxel file ({error}).", _GET_AGAIN) from error
    if size < expected:
        raise InputError(f"{path} is cut off: it holds {size} of {expected} bytes of voxels.", _GET_AGAIN)


def _metaimage_header(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields of a MetaImage header and where the data after it start."""
    fields = {}
    with open(path, "rb") as file:
        while file.tell() < 1 << 16 and (line := file.readline(1 << 16)):  # bounded: the file may be anything
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":  # by definition the last line
                break
        return fields, file.tell()


def _read_dicom(paths: tuple[Path, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Geometry from the headers, pixels from ITK, which decodes every common compression and rescales each slice."""
    import itk

    ordered, affine = series_geometry(paths)
    reader = itk.ImageSeriesReader[itk.Image[itk.F, 3]].New(
        FileNames=[str(path) for path in ordered], ImageIO=itk.GDCMImageIO.New()
    )
    try:
        reader.Update()
    except RuntimeError as error:
        raise InputError(f"A slice in {ordered[0].parent} is damaged or cut off.", _GET_AGAIN) from error
    array, _ = ITKReader().get_data(reader.GetOutput())
    return np.asarray(array), affine


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path} does not exist.", "Check the path.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes).", _GET_AGAIN)


def _check_shape(path: Path, shape: Any) -> None:
    """Refuse what is not a 3D volume; further axes of length 1 are let pass."""
    shape = tuple(int(n) for n in shape)
    if len(shape) < 3 or min(shape[:3]) < 2 or any(n != 1 for n in shape[3:]):
        raise InputError(f"{path} has {len(shape)} axes of {shape} voxels.", _HU_VOLUME)


def _check_affine(path: Path, affine: np.ndarray) -> None:
    """Refuse an affine that is not a rectangular grid: not finite, flat or sheared."""
    if not np.isfinite(affine).all():
        raise InputError(f"{path} has an affine that is not finite: {affine.tolist()}.", _SET_ORIENTATION)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() <= 0:
        raise InputError(f"{path} has a voxel size of {lengths.tolist()} mm.", _SET_ORIENTATION)
    cosines = np.abs((affine[:3, :3] / lengths).T @ (affine[:3, :3] / lengths) - np.eye(3)).max()
    if cosines > SHEAR_TOLERANCE:
        angle = 90 - np.degrees(np.arccos(min(cosines, 1.0)))
        raise InputError(f"{path} has axes that are {angle:.3g} degrees off a right angle (sheared).", _REGRID)
