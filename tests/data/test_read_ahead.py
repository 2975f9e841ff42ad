"""Scans are read in order, one ahead, in another thread; errors come out where the scan is asked for."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import nibabel as nib
import numpy as np
import pytest

from organdetr_monai.data import read_ahead, readers
from organdetr_monai.data.nifti import read_voxels
from organdetr_monai.data.read_ahead import ReadAhead
from organdetr_monai.data.readers import LoadScand, read_scan
from organdetr_monai.data.scans import find_scans
from organdetr_monai.errors import InputError
from tests.data.scan_files import affine_of, hu, write

AFFINE = affine_of(np.eye(3))


@pytest.fixture
def scans(tmp_path):
    for seed, suffix in enumerate(("nii.gz", "nii.gz", "mha")):
        write(tmp_path / f"{seed}.{suffix}", hu(seed=seed), AFFINE)
    return find_scans([tmp_path])[0]


def test_every_scan_comes_once_in_order_with_its_own_voxels(scans):
    with ReadAhead(scans) as ahead:
        read = [(scan, reading.result()) for scan, reading in ahead.each(read_scan)]
    assert [scan for scan, _ in read] == scans
    for seed, (_, (array, affine)) in enumerate(read):
        np.testing.assert_array_equal(array, hu(seed=seed))
        np.testing.assert_allclose(affine, AFFINE, atol=1e-4)


def test_what_is_no_volume_is_never_inflated(tmp_path):
    path = tmp_path / "phases.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), AFFINE), path)
    with pytest.raises(ValueError, match=r"4, 4, 4, 3"):
        read_voxels(path)


def test_the_first_is_read_once_before_anyone_says_how(scans, monkeypatch):
    calls, begun = [], threading.Event()

    def reading(path):
        calls.append(path)
        begun.set()
        return hu(seed=9).astype(np.float32)

    monkeypatch.setattr(read_ahead, "read_voxels", reading)
    monkeypatch.setattr(readers, "read_voxels", reading)
    with ReadAhead(scans[:1]) as ahead:
        assert begun.wait(10)
        ((_, first),) = ahead.each(lambda scan: LoadScand("image")({"image": scan})["image"])
        np.testing.assert_array_equal(first.result().numpy(), hu(seed=9))
    assert calls == [scans[0].path]


def test_it_is_one_ahead_and_no_more(scans):
    started = {scan.name: threading.Event() for scan in scans}
    go_on = threading.Event()

    def read(scan):
        started[scan.name].set()
        return scan.name

    with ReadAhead(scans) as ahead:
        each = ahead.each(read)
        _, first = next(each)
        assert first.result(10) == scans[0].name and started[scans[1].name].wait(10)
        go_on.wait(0.05)
        assert not started[scans[2].name].is_set()
        next(each)
        assert started[scans[2].name].wait(10)


def test_an_error_belongs_to_its_scan(scans):
    write(scans[0].path, hu((40, 30, 20)), AFFINE)
    scans[0].path.write_bytes(scans[0].path.read_bytes()[:-12])
    scans[1].path.write_bytes(b"")
    errors = []
    with ReadAhead(scans) as ahead:
        for scan, reading in ahead.each(read_scan):
            try:
                reading.result()
            except InputError as error:
                errors.append((scan, str(error)))
    assert [scan for scan, _ in errors] == scans[:2]
    assert "cut off" in errors[0][1] and "empty" in errors[1][1]


def test_voxels_are_not_kept(scans):
    kept = []
    with ReadAhead(scans) as ahead:
        for _, reading in ahead.each(lambda scan: read_scan(scan)[0]):
            kept.append(weakref.ref(reading.result()))
            del reading
    gc.collect()
    assert len(kept) == 3 and not any(array() is not None for array in kept)


def test_leaving_it_reads_no_more(scans):
    hold, read = threading.Event(), []

    def slow(scan):
        hold.wait(10)
        read.append(scan.name)

    with pytest.raises(ZeroDivisionError), ReadAhead(scans) as ahead:
        each = ahead.each(slow)
        next(each)
        raise ZeroDivisionError
    hold.set()
    ahead._pool.shutdown(wait=True)
    assert read in ([], [scans[0].name])  # the second was given up


def test_reading_begins_without_torch():
    program = "import sys, organdetr_monai.data.read_ahead as r; r.ReadAhead([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0


def test_no_scan_is_no_reading():
    with ReadAhead([]) as ahead:
        assert list(ahead.each(read_scan)) == []
