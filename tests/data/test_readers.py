"""A scan is the same scan in every format, and what cannot be read exactly is refused."""

from __future__ import annotations

import gc
import gzip
import pickle
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import ITKReader, NibabelReader
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd, Spacingd

from organdetr_monai.data.readers import LoadScand, read_scan
from organdetr_monai.data.scans import find_scan, find_scans
from organdetr_monai.errors import InputError
from tests.data.scan_files import FORMATS, affine_of, canonical, hu, rotation, write, write_series

TORSO = Path(__file__).parents[2].parent / "shared" / "data" / "torso"
AFFINE = affine_of(np.eye(3))
ORIENTATIONS = {
    "RAS": np.eye(3),
    "LPS": np.diag([-1, -1, 1]),
    "LAS, left-handed": np.diag([-1, 1, 1]),
    "RPI": np.diag([1, -1, -1]),
    "sagittal": np.eye(3)[:, [1, 2, 0]],
    "coronal, flipped": np.eye(3)[:, [0, 2, 1]] * [1, -1, -1],
    "oblique": rotation(z=17, x=-8) @ np.diag([-1, -1, 1]),
    "oblique sagittal, left-handed": rotation(z=-5, x=12) @ np.eye(3)[:, [1, 0, 2]],
}


@pytest.mark.parametrize("directions", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_every_format_gives_the_same_voxels_in_the_same_place(tmp_path, directions):
    values, affine = hu(), affine_of(directions)
    expected, place = canonical(values, affine)
    for suffix in FORMATS:
        path = write(tmp_path / ("series" if suffix == "dicom" else f"scan.{suffix}"), values, affine)
        array, read_affine = read_scan(path)
        assert array.dtype == np.float32 and array.flags.f_contiguous and array.flags.writeable
        got, got_place = canonical(array, read_affine)
        np.testing.assert_array_equal(got, expected, err_msg=suffix)
        np.testing.assert_allclose(got_place, place, atol=1e-4, err_msg=suffix)


def test_array_follows_the_axes_of_the_file(tmp_path):
    values, affine = hu(), affine_of(np.diag([-1, -1, 1]))
    for suffix in FORMATS:
        array, read_affine = read_scan(write(tmp_path / ("s" if suffix == "dicom" else f"s.{suffix}"), values, affine))
        np.testing.assert_array_equal(array, values)
        np.testing.assert_allclose(read_affine, affine, atol=1e-4)


def test_array_outlives_the_library_that_read_it(tmp_path):
    values = hu((40, 50, 30))
    array, _ = read_scan(write(tmp_path / "scan.mha", values, AFFINE))
    gc.collect()
    [read_scan(write(tmp_path / "other.mha", hu((40, 50, 30), seed=k), AFFINE)) for k in range(3)]
    np.testing.assert_array_equal(array, values)


def test_monai_readers_agree_where_they_read_right(tmp_path):
    for suffix, reader in (("nii.gz", NibabelReader()), ("mha", ITKReader()), ("nrrd", ITKReader())):
        path = write(tmp_path / f"scan.{suffix}", hu(), affine_of(ORIENTATIONS["oblique"]))
        array, affine = read_scan(path)
        theirs, meta = reader.get_data(reader.read(path))
        np.testing.assert_array_equal(array, theirs)
        np.testing.assert_allclose(affine, meta["affine"], atol=1e-9)


def test_nifti_slope_and_foreign_byte_order(tmp_path):
    image = nib.Nifti1Image(hu().astype(np.float32) * 0.37, AFFINE)
    image.set_data_dtype(np.int16)  # nibabel then stores a slope and an intercept
    nib.save(image, tmp_path / "slope.nii.gz")
    big = nib.Nifti1Image(hu().astype(">i2"), AFFINE, nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "big.nii")
    stored = nib.load(tmp_path / "slope.nii.gz")
    assert stored.dataobj.slope not in (0, 1)
    np.testing.assert_allclose(read_scan(tmp_path / "slope.nii.gz")[0], stored.get_fdata(), rtol=1e-6, atol=1e-3)
    np.testing.assert_array_equal(read_scan(tmp_path / "big.nii")[0], hu())


def test_suffix_in_capitals(tmp_path):
    path = write(tmp_path / "scan.nii.gz", hu(), AFFINE).rename(tmp_path / "SCAN.NII.GZ")
    np.testing.assert_array_equal(read_scan(path)[0], hu())


def test_trailing_axes_of_length_one(tmp_path):
    import itk

    nib.save(nib.Nifti1Image(hu()[..., None, None], AFFINE), tmp_path / "five.nii.gz")
    itk.imwrite(itk.image_from_array(hu().astype(np.float32).T[None].copy()), str(tmp_path / "four.mha"))
    for name in ("five.nii.gz", "four.mha"):
        np.testing.assert_array_equal(read_scan(tmp_path / name)[0], hu())


def test_each_dicom_slice_has_its_own_rescaling(tmp_path):
    slopes = np.array([1.0, 0.5, 1.3, 2.0])
    write_series(tmp_path, hu(), AFFINE, slopes=slopes)
    expected = np.rint((hu() + 1024.0) / slopes) * slopes - 1024
    np.testing.assert_allclose(read_scan(tmp_path)[0], expected, atol=1e-3)


def test_dicom_with_odd_names_without_preamble_or_uid(tmp_path):
    odd = ["slice.nii.gz", "slice.txt", "slice", "slice.jpg"]
    paths = write_series(tmp_path, hu(), AFFINE, names=odd, SOPClassUID="", SeriesInstanceUID="")
    paths[1].write_bytes(paths[1].read_bytes()[132:])
    np.testing.assert_array_equal(read_scan(tmp_path)[0], hu())


def test_positions_rounded_by_the_scanner_are_fine(tmp_path):
    affine = affine_of(np.eye(3), spacing=(0.7, 0.7, 0.625))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    positions = [(lps @ [0, 0, k, 1])[:3].round(1).tolist() for k in range(12)]
    write_series(tmp_path, hu((5, 5, 12)), affine, ImagePositionPatient=positions)
    array, read_affine = read_scan(tmp_path)
    np.testing.assert_array_equal(array, hu((5, 5, 12)))
    np.testing.assert_allclose(read_affine @ [0, 0, 11, 1], affine @ [0, 0, 11, 1], atol=0.1)


# ---- refusals


def nifti(path: Path, array: np.ndarray | None = None, affine: np.ndarray = AFFINE, **header) -> Path:
    nib.save(nib.Nifti1Image(hu() if array is None else array, affine), path)
    with open(path, "r+b") as file:  # nibabel itself would not write a header that contradicts the image
        stored = nib.Nifti1Header.from_fileobj(file)
        for key, value in header.items():
            stored[key] = value
        file.seek(0)
        file.write(stored.binaryblock)
    return path


def with_values(bad: float) -> np.ndarray:
    values = hu().astype(np.float32)
    values[1, 2, 3] = bad
    return values


def rgb() -> np.ndarray:
    return np.zeros((6, 5, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))


SHEARED, SINGULAR = AFFINE.copy(), AFFINE.copy()
SHEARED[0, 2] = 0.8  # as dcm2niix stores a tilted gantry
SINGULAR[:3, 2] = SINGULAR[:3, 1]

NIFTI_REFUSALS = {
    "two axes": (lambda p: nifti(p, hu()[..., 0]), "axes"),
    "one slice": (lambda p: nifti(p, hu()[..., :1]), "axes"),
    "time series": (lambda p: nifti(p, np.stack([hu()] * 2, -1)), "axes"),
    "colour": (lambda p: nifti(p, rgb()), "type"),
    "complex": (lambda p: nifti(p, hu().astype(np.complex64)), "type"),
    "NaN": (lambda p: nifti(p, with_values(np.nan)), "1 voxels that are NaN"),
    "infinite": (lambda p: nifti(p, with_values(np.inf)), "NaN or infinite"),
    "both infinities": (lambda p: nifti(p, np.where(hu() > 0, np.inf, -np.inf).astype(np.float32)), "infinite"),
    "no orientation": (lambda p: nifti(p, sform_code=0, qform_code=0), "how the patient lies"),
    "sheared": (lambda p: nifti(p, affine=SHEARED), "sheared"),
    "metres": (lambda p: nifti(p, xyzt_units=1), "meter"),
    "pixdim against sform": (lambda p: nifti(p, pixdim=[1, 9, 9, 9, 1, 1, 1, 1], qform_code=0), "contradicts"),
    "flat": (lambda p: nifti(p, srow_x=[0] * 4, qform_code=0), "voxel size of"),
    "two axes in one direction": (lambda p: nifti(p, affine=SINGULAR), "off a right angle"),
    "more voxels than fit": (lambda p: nifti(p, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "32767×32767×32767 voxels"),
    "affine not finite": (lambda p: nifti(p, srow_x=[np.nan, 0, 0, 0], qform_code=0), "finite"),
}


@pytest.mark.parametrize(("build", "reason"), NIFTI_REFUSALS.values(), ids=NIFTI_REFUSALS)
def test_nifti_refused(tmp_path, build, reason):
    path = build(tmp_path / "scan.nii")
    with pytest.raises(InputError, match=reason) as caught:
        read_scan(path)
    assert str(path) in caught.value.what and caught.value.remedy


@pytest.mark.parametrize("suffix", ["nii.gz", "nii", "nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("content", [b"", b"This is no scan.\n", bytes(4000), bytes(range(256)) * 20])
def test_other_content_refused(tmp_path, suffix, content):
    path = tmp_path / f"scan.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"scan\."):
        read_scan(path)


@pytest.mark.parametrize("suffix", ["nii.gz", "nii", "nrrd", "mha", "compressed.mha", "compressed.nrrd"])
def test_a_cut_file_never_gives_other_voxels(tmp_path, suffix):
    values = hu((12, 10, 8))
    path = write(tmp_path / f"scan.{suffix}", values, AFFINE)
    whole, refused = path.read_bytes(), 0
    cuts = np.linspace(1, len(whole) - 1, 30).astype(int)
    for cut in cuts:
        path.write_bytes(whole[:cut])
        try:
            np.testing.assert_array_equal(read_scan(path)[0], values)
        except InputError:
            refused += 1
    assert refused >= len(cuts) - 1  # a cut in the checksum of a NRRD leaves all voxels there


@pytest.mark.parametrize("suffix", ["nii.gz", "compressed.mha", "compressed.nrrd"])
def test_a_flipped_byte_in_compressed_voxels_never_gives_other_voxels(tmp_path, suffix):
    values = hu((12, 10, 8))
    path = write(tmp_path / f"scan.{suffix}", values, AFFINE)
    whole = path.read_bytes()
    start = {"nii.gz": 400, "compressed.mha": whole.find(b"LOCAL") + 40}.get(suffix, whole.find(b"\n\n") + 40)
    for at in np.linspace(start, len(whole) - 20, 12).astype(int):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            read_scan(path)


def test_uncompressed_file_with_a_compressed_name(tmp_path):
    path = write(tmp_path / "scan.nii", hu(), AFFINE).rename(tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match="cannot be read as NIfTI"):
        read_scan(path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(read_scan(path)[0], hu())


def test_gzip_in_several_members_and_padded(tmp_path):
    path = write(tmp_path / "scan.nii", hu(), AFFINE)
    content = path.read_bytes()
    packed = path.with_suffix(".nii.gz")
    packed.write_bytes(gzip.compress(content[:401]) + gzip.compress(content[401:]) + bytes(512))
    np.testing.assert_array_equal(read_scan(packed)[0], hu())


def test_bytes_after_a_compressed_block_do_not_matter(tmp_path):
    path = write(tmp_path / "scan.compressed.mha", hu(), AFFINE)
    path.write_bytes(path.read_bytes() + b"\n")
    np.testing.assert_array_equal(read_scan(path)[0], hu())


def edit(path: Path, old: str, new: str) -> Path:
    """Change the text header of a NRRD or MetaImage."""
    content = path.read_bytes()
    assert content.count(old.encode()) == 1
    path.write_bytes(content.replace(old.encode(), new.encode()))
    return path


NRRD_SPACE = "space: left-posterior-superior\n"
TEXT_REFUSALS = {
    "NRRD without space": ("nrrd", NRRD_SPACE, "space dimension: 3\n", "how the patient lies"),
    "NRRD in scanner space": ("nrrd", NRRD_SPACE, "space: scanner-xyz\n", "scanner-xyz"),
    "NRRD sheared": ("nrrd", "(-0,0,2.5)", "(0.8,0,2.5)", "sheared"),
    "NRRD without its voxels": ("nhdr", "data file: scan.raw", "data file: gone.raw", "missing"),
    "MHD without its voxels": ("mhd", "ElementDataFile = scan.raw", "ElementDataFile = gone.raw", "without"),
    "MHA without directions": ("mha", "TransformMatrix =", "Comment =", "no TransformMatrix"),
    "MHA without voxel size": ("mha", "ElementSpacing =", "Comment =", "no ElementSpacing"),
    "MHA sheared": ("mha", "TransformMatrix = -1 0 0 -0 -1 0", "TransformMatrix = -1 0.5 0 0 -1 0", "sheared"),
    "MHA flat": ("mha", "TransformMatrix = -1 0 0 -0 -1 0", "TransformMatrix = -1 0 0 -1 0 0", "damaged"),
}


@pytest.mark.parametrize(("suffix", "old", "new", "reason"), TEXT_REFUSALS.values(), ids=TEXT_REFUSALS)
def test_nrrd_and_metaimage_refused(tmp_path, suffix, old, new, reason):
    path = write(tmp_path / f"scan.{suffix}", hu(), AFFINE)
    header = path.read_bytes()[:700].decode("latin-1")
    if old not in header:  # ITK writes minus zero in one version and zero in another
        old, new = old.replace("-0", "0"), new.replace("-0", "0")
    edit(path, old, new)
    with pytest.raises(InputError, match=reason):
        read_scan(path)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_itk_colour_plane_and_time_series_refused(tmp_path, suffix):
    import itk

    path = str(tmp_path / f"scan.{suffix}")
    itk.imwrite(itk.image_from_array(np.zeros((4, 5, 6, 3), np.uint8), is_vector=True), path)
    with pytest.raises(InputError, match="3 values in each voxel"):
        read_scan(path)
    itk.imwrite(itk.image_from_array(np.zeros((5, 6), np.int16)), path)
    with pytest.raises(InputError, match="axes"):
        read_scan(path)
    itk.imwrite(itk.image_from_array(np.zeros((2, 4, 5, 6), np.float32)), path)
    with pytest.raises(InputError, match="axes"):
        read_scan(path)


def test_nrrd_in_ras_space(tmp_path):
    path = write(tmp_path / "scan.nrrd", hu(), AFFINE)
    edit(path, NRRD_SPACE, "space: right-anterior-superior\n")
    flip = np.diag([-1, -1, 1, 1])
    np.testing.assert_allclose(read_scan(path)[1], flip @ AFFINE, atol=1e-6)


def moved(offsets: np.ndarray) -> list[list[float]]:
    """Positions of the slices of `AFFINE` in LPS, each moved by its row of `offsets` in mm."""
    lps = np.diag([-1, -1, 1, 1]) @ AFFINE
    return [((lps @ [0, 0, k, 1])[:3] + offset).tolist() for k, offset in enumerate(offsets)]


Y, Z = np.array([0, 1.0, 0]), np.array([0, 0, 1.0])
UPRIGHT = [1, 0, 0, 0, 1, 0]
DICOM_REFUSALS = {
    "gantry tilt": ({"ImagePositionPatient": moved(np.outer(range(4), 0.3 * Y))}, r"gantry tilt 6\.84"),
    "slight gantry tilt": ({"ImagePositionPatient": moved(np.outer(range(4), 0.09 * Y))}, "gantry tilt"),
    "slice shifted sideways": ({"ImagePositionPatient": moved(np.outer([0, 1, 0, 0], Y))}, "sideways"),
    "missing slice": ({"ImagePositionPatient": moved(np.outer([0, 0, 2.5, 2.5], Z))}, "missing.*2.5 mm.*but 5 mm"),
    "spacing that changes": ({"ImagePositionPatient": moved(np.outer([0, 0, 0, 0.5], Z))}, "unevenly spaced"),
    "duplicate slice": ({"ImagePositionPatient": moved(np.outer([0, 0, 0, -2.5], Z))}, "same position"),
    "all in one place": ({"ImagePositionPatient": [0, 0, 0]}, "same position"),
    "mixed orientations": ({"ImageOrientationPatient": [UPRIGHT] * 3 + [[0, 1, 0, 0, 0, 1]]}, "mixed orientations"),
    "mixed pixel spacings": ({"PixelSpacing": [[1, 1], [1, 1], [1, 1], [2, 2]]}, "mixed pixel spacings"),
    "mixed sizes": ({"Rows": [5, 5, 5, 4]}, "mixed sizes"),
    "no right angle": ({"ImageOrientationPatient": [1, 0, 0, 0.6, 0.8, 0]}, "right angle"),
    "no position": ({"ImagePositionPatient": None}, "ImagePositionPatient None"),
    "no orientation": ({"ImageOrientationPatient": None}, "ImageOrientationPatient None"),
    "no pixel spacing": ({"PixelSpacing": None}, "PixelSpacing None"),
    "pixel spacing of zero": ({"PixelSpacing": [0, 1]}, "pixel spacing of"),
    "no rescale intercept": ({"RescaleIntercept": None}, "RescaleIntercept None"),
    "rescale slope of zero": ({"RescaleSlope": 0}, "RescaleSlope of 0"),
    "other unit": ({"RescaleType": "Z_EFF"}, "Z_EFF"),
    "multi-frame": ({"NumberOfFrames": 2}, "multi-frame"),
    "enhanced CT": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1", "NumberOfFrames": 20}, "multi-frame"),
    "colour": ({"SamplesPerPixel": 3}, "3 samples"),
}


@pytest.mark.parametrize(("tags", "reason"), DICOM_REFUSALS.values(), ids=DICOM_REFUSALS)
def test_dicom_series_refused(tmp_path, tags, reason):
    upright = {"ImageOrientationPatient": UPRIGHT}  # as AFFINE is seen from LPS, but for two flips
    write_series(tmp_path, hu(), AFFINE, **{**upright, **tags})
    with pytest.raises(InputError, match=reason) as caught:
        read_scan(tmp_path)
    assert str(tmp_path) in caught.value.what and caught.value.remedy


def test_damaged_position_names_the_slice(tmp_path):
    path = write_series(tmp_path, hu(), AFFINE)[2]
    data = path.read_bytes()
    at = data.index(b"\x20\x00\x32\x00DS") + 8  # ImagePositionPatient
    path.write_bytes(data[:at] + b"x" * 4 + data[at + 4 :])
    with pytest.raises(InputError, match=f"{path.name} has ImagePositionPatient"):
        read_scan(tmp_path)


def test_a_cut_dicom_slice_never_gives_other_voxels(tmp_path):
    paths = write_series(tmp_path, hu(), AFFINE)
    path = next(p for k, p in enumerate(paths) if k == 1)  # not at an end, so that its absence shows
    whole = path.read_bytes()
    for kept in np.linspace(0, len(whole) - 1, 25).astype(int):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError):
            read_scan(tmp_path)


def test_single_and_damaged_dicom_slices_refused(tmp_path):
    paths = write_series(tmp_path, hu(), AFFINE)
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged or cut off"):
        read_scan(tmp_path)
    for path in paths[1:]:
        path.unlink()
    with pytest.raises(InputError, match="only slice"):
        read_scan(tmp_path)


def test_scan_gone_since_it_was_found(tmp_path):
    scan = find_scan(write(tmp_path / "scan.nii.gz", hu(), AFFINE))
    scan.path.unlink()
    with pytest.raises(InputError, match="does not exist"):
        read_scan(scan)


# ---- the transform


@pytest.mark.parametrize("suffix", ["nii.gz", "mha", "dicom"])
def test_transform_feeds_monai(tmp_path, suffix):
    affine = affine_of(np.diag([-1, -1, 1]))
    path = write(tmp_path / ("series" if suffix == "dicom" else f"scan.{suffix}"), hu((8, 9, 10)), affine)
    image = LoadScand("image")({"image": path, "case": "a"})["image"]
    assert image.shape == (8, 9, 10) and image.dtype == torch.float32
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    np.testing.assert_allclose(image.meta["original_affine"], affine, atol=1e-4)
    assert tuple(image.meta["spatial_shape"]) == (8, 9, 10)
    assert image.meta["filename_or_obj"] == str(path)
    assert ("series_uid" in image.meta) == (suffix == "dicom")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's own notices about its defaults
        chain = Compose([LoadScand("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS")])
        sample = Compose([chain, Spacingd("image", (1.5, 1.5, 1.5))])({"image": find_scan(path)})
        turned = chain({"image": path})["image"]
    np.testing.assert_array_equal(turned[0].numpy(), hu((8, 9, 10))[::-1, ::-1])
    np.testing.assert_allclose(np.diag(sample["image"].affine), (1.5, 1.5, 1.5, 1), atol=1e-6)


def test_transform_options(tmp_path):
    path = write(tmp_path / "scan.nii.gz", hu(), AFFINE)
    load = pickle.loads(pickle.dumps(LoadScand("image", ensure_channel_first=True, allow_missing_keys=True)))
    assert load({"image": str(path)})["image"].shape == (1, 6, 5, 4)
    assert load({"case": "a"}) == {"case": "a"}
    with pytest.raises(KeyError):
        LoadScand("image")({"case": "a"})
    with pytest.raises(InputError, match="does not exist"):
        LoadScand("image")({"image": tmp_path / "gone.nii.gz"})


# ---- a real scan


@pytest.mark.skipif(not TORSO.exists(), reason="needs shared/data/torso, which is on development machines only")
def test_real_series_agrees_with_its_labels_and_with_other_formats(tmp_path):
    scans = {scan.name: scan for scan in find_scans([TORSO])[0]}
    assert set(scans) == {"ct", "labels", "dicom", "dicom_labels"}
    array, affine = read_scan(scans["dicom"])
    labels, label_affine = canonical(*read_scan(scans["dicom_labels"]))
    image, image_affine = canonical(array, affine)
    assert image.shape == labels.shape == (512, 512, 20)
    np.testing.assert_allclose(image_affine, label_affine, atol=1e-3)
    assert 20 < np.median(image[labels == 5]) < 200  # liver (TotalSegmentator v2): only in place is it soft tissue
    assert np.median(image[:, -8:]) < -900  # air in front of the patient
    copy, copy_affine = read_scan(write(tmp_path / "torso.nrrd", array.astype(np.int16), affine))
    np.testing.assert_array_equal(copy, array)
    np.testing.assert_allclose(copy_affine, affine, atol=1e-6)
