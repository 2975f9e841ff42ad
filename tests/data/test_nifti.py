"""Voxels of NIfTI files are what nibabel reads, however the file cuts them into pieces."""

from __future__ import annotations

import gzip
import zlib

import nibabel as nib
import numpy as np
import pytest

from organdetr_monai.data import nifti
from organdetr_monai.data.nifti import inflate, read_voxels
from tests.data.scan_files import affine_of, hu

AFFINE = affine_of(np.eye(3))


@pytest.fixture(params=[1, 7, 1 << 17], ids="chunks of {}".format)
def chunk(request, monkeypatch):
    """Bytes of the compressed file at once: few enough cut numbers and the header in pieces."""
    monkeypatch.setattr(nifti, "_CHUNK", request.param)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<i4", "<f4", ">f8"])
def test_voxels_are_those_that_nibabel_reads(tmp_path, chunk, dtype, suffix):
    values = hu((7, 6, 5)) if dtype != "u1" else hu((7, 6, 5)) % 251
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    path = tmp_path / f"scan.{suffix}"
    nib.save(nib.Nifti1Image(values.astype(dtype), AFFINE, header), path)
    array = read_voxels(path)
    assert array.dtype == np.float32 and array.flags.f_contiguous and array.flags.writeable
    np.testing.assert_array_equal(array, nib.load(path).get_fdata(dtype="float32"))


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_slope_and_extensions_of_the_header_are_minded(tmp_path, chunk, suffix):
    image = nib.Nifti1Image(hu().astype(np.float32) * 0.37, AFFINE)
    image.set_data_dtype(np.int16)  # nibabel then stores a slope and an intercept
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"moves the voxels" * 9))
    path = tmp_path / f"scan.{suffix}"
    nib.save(image, path)
    stored = nib.load(path)
    assert stored.dataobj.slope not in (0, 1) and stored.dataobj.offset > 352
    np.testing.assert_allclose(read_voxels(path), stored.get_fdata(), rtol=1e-6, atol=1e-3)


def test_members_and_padding_of_a_compressed_file_do_not_matter(tmp_path, chunk):
    nib.save(nib.Nifti1Image(hu(), AFFINE), tmp_path / "scan.nii")
    content = (tmp_path / "scan.nii").read_bytes()
    packed = tmp_path / "scan.nii.gz"
    members = content[:401], content[401:] + b"beyond the last voxel"
    packed.write_bytes(b"".join(map(gzip.compress, members)) + bytes(9))
    np.testing.assert_array_equal(read_voxels(packed), hu())
    assert b"".join(inflate(packed)).startswith(content)


def test_what_is_damaged_or_short_is_an_error(tmp_path, chunk):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(hu((12, 10, 8)), AFFINE), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(EOFError, match="end early"):
        read_voxels(path)
    path.write_bytes(whole[:-8] + bytes(4) + whole[-4:])  # the checksum
    with pytest.raises(zlib.error):
        read_voxels(path)
    content = gzip.decompress(whole)
    path.write_bytes(gzip.compress(content[:-3]))
    with pytest.raises(EOFError, match="holds 958 of 960 voxels"):
        read_voxels(path)
    (tmp_path / "scan.nii").write_bytes(content[:-3])
    with pytest.raises(ValueError):
        read_voxels(tmp_path / "scan.nii")


def test_what_is_not_one_number_for_each_voxel_is_an_error(tmp_path):
    nib.save(nib.Nifti1Image(hu().astype(np.complex64), AFFINE), tmp_path / "scan.nii.gz")
    with pytest.raises(ValueError, match="complex64"):
        read_voxels(tmp_path / "scan.nii.gz")
