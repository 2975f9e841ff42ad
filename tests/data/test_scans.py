"""Every scan is found once, nothing else is, and no case takes another's name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from organdetr_monai.data.scans import Scan, find_scan, find_scans
from organdetr_monai.errors import InputError
from tests.data.scan_files import FORMATS, SERIES, affine_of, hu, write, write_series, write_slice

AFFINE = affine_of(np.eye(3))
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


def touch(path: Path, content: bytes = b"\n") -> Path:
    """Discovery goes by name for all but DICOM, so most files here need no real content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(scans: list[Scan]) -> list[str]:
    return [scan.name for scan in scans]


def test_finding_loads_neither_torch_nor_a_reader():
    code = "import sys, organdetr_monai.data.scans; print({'torch', 'monai', 'itk', 'pydicom'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_mixed_folder_gives_every_format_once(tmp_path):
    for suffix in FORMATS:
        write(tmp_path / ("scan" if suffix == "dicom" else f"scan.{suffix}"), hu(), AFFINE)
    touch(tmp_path / "text.nii.gz")
    touch(tmp_path / "notes.txt")
    scans, skipped = find_scans([tmp_path])
    assert len(scans) == len(FORMATS) + 1
    assert sorted(scan.kind for scan in scans).count("dicom") == 1
    assert len({name.casefold() for name in names(scans)}) == len(scans)
    assert skipped == [(tmp_path / "notes.txt", "not a NIfTI, NRRD, MHA, MHD or DICOM file")]


def test_dicom_is_known_by_content_whatever_the_name(tmp_path):
    odd = ["slice", "slice.txt", "slice.jpg", "slice.nii.gz"]
    write_series(tmp_path, hu(), AFFINE, names=odd)
    scans, skipped = find_scans([tmp_path])
    assert [(scan.kind, len(scan.paths)) for scan in scans] == [("dicom", 4)]
    assert not skipped


def test_dicom_without_preamble(tmp_path):
    for path in write_series(tmp_path, hu(), AFFINE):
        path.write_bytes(path.read_bytes()[132:])
    scans, skipped = find_scans([tmp_path])
    assert [len(scan.paths) for scan in scans] == [4] and not skipped


def test_nested_folders_and_several_series_in_one(tmp_path):
    deep = tmp_path / "patient" / "study" / "A"
    write_series(deep, hu(), AFFINE, names=list("abcd"), SeriesInstanceUID=f"{SERIES}.7", SeriesNumber=7)
    write_series(deep, hu(seed=1), AFFINE, names=list("wxyz"), SeriesInstanceUID=f"{SERIES}.8", SeriesNumber=8)
    write_series(tmp_path / "patient" / "B", hu(), AFFINE, SeriesInstanceUID=f"{SERIES}.9")
    scans, _ = find_scans([tmp_path])
    assert {scan.name: scan.series_uid for scan in scans} == {
        "B": f"{SERIES}.9",
        "A_series7": f"{SERIES}.7",
        "A_series8": f"{SERIES}.8",
    }
    assert {path.name for scan in scans if scan.name == "A_series7" for path in scan.paths} == set("abcd")


def test_series_split_over_folders_stays_one_scan(tmp_path):
    paths = write_series(tmp_path / "S1", hu(), AFFINE)
    (tmp_path / "S2").mkdir()
    paths[1].rename(tmp_path / "S2" / "rest")
    (scan,) = find_scans([tmp_path])[0]
    assert len(scan.paths) == 4 and scan.path == tmp_path


def test_series_without_uid_is_kept_together_by_its_folder(tmp_path):
    for folder in ("one", "two"):
        write_series(tmp_path / folder, hu(), AFFINE, SeriesInstanceUID="", SOPClassUID="")
    scans, skipped = find_scans([tmp_path])
    assert [(scan.name, len(scan.paths), scan.series_uid) for scan in scans] == [("one", 4, None), ("two", 4, None)]
    assert not skipped


def test_dicom_that_is_no_ct_volume_is_skipped_with_a_reason(tmp_path):
    write_series(tmp_path, hu(), AFFINE)
    pixels = np.zeros((5, 6), "<u2")
    write_slice(tmp_path / "rs", pixels, SOPClassUID=RTSTRUCT, Modality="RTSTRUCT", SeriesInstanceUID="1.5")
    write_slice(tmp_path / "mr", pixels, SOPClassUID="", Modality="MR", SeriesInstanceUID="1.6", SOPInstanceUID="1.6")
    write_slice(tmp_path / "scout", pixels, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID=SERIES)
    (tmp_path / "mr").write_bytes((tmp_path / "mr").read_bytes().replace(b"5.1.4.1.1.2\0", b"5.1.4.1.1.4\0"))
    scans, skipped = find_scans([tmp_path])
    assert [len(scan.paths) for scan in scans] == [4]
    reasons = {path.name: reason for path, reason in skipped}
    assert set(reasons) == {"rs", "mr", "scout"}
    assert "RT Structure Set" in reasons["rs"] and "MR" in reasons["mr"] and "scout" in reasons["scout"]


def test_one_dicom_file_stands_for_its_series_in_its_folder(tmp_path):
    first = write_series(tmp_path, hu(), AFFINE, names=list("abcd"))
    write_series(tmp_path, hu(), AFFINE, names=list("wxyz"), SeriesInstanceUID=f"{SERIES}.2")
    (scan,), skipped = find_scans([first[2]])
    assert set(scan.paths) == set(first) and not skipped
    # A shell expands dicom/* to all the files: still two scans.
    assert [len(scan.paths) for scan in find_scans(sorted(tmp_path.iterdir()))[0]] == [4, 4]


def test_same_input_twice_is_one_scan(tmp_path):
    file = touch(tmp_path / "ct.nii.gz")
    for inputs in ([file, file], [tmp_path, file], [file, tmp_path], [tmp_path, tmp_path]):
        scans, skipped = find_scans(inputs)
        assert names(scans) == ["ct"] and not skipped


def test_links_to_parents_do_not_loop(tmp_path):
    touch(tmp_path / "a" / "ct.nii.gz")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert names(find_scans([tmp_path])[0]) == ["ct"]


def test_an_input_without_scan_stands_in_skipped_under_its_own_path(tmp_path):
    good = touch(tmp_path / "ct.nii.gz")
    bad = [tmp_path / "missing.nii.gz", touch(tmp_path / "notes.txt"), tmp_path / "empty", tmp_path / "junk"]
    bad[2].mkdir()
    touch(bad[3] / "readme.md")
    touch(bad[3] / "readme2.md")
    scans, skipped = find_scans([*bad, good])
    assert names(scans) == ["ct"]
    assert set(bad) <= {path for path, _ in skipped}
    assert (bad[3], "2 files: not a NIfTI, NRRD, MHA, MHD or DICOM file") in skipped
    assert dict(skipped)[bad[0]] == "does not exist"


def test_hidden_files_voxel_files_and_indexes_are_passed_over(tmp_path):
    for name in (".DS_Store", "._ct.nii.gz", "DICOMDIR", "ct.raw", "ct.zraw", ".git/ct.nii.gz"):
        touch(tmp_path / name)
    touch(tmp_path / "ct.mhd")
    scans, skipped = find_scans([tmp_path])
    assert names(scans) == ["ct"] and not skipped


def test_slicer_segmentation_is_no_scan(tmp_path):
    touch(tmp_path / "organs.seg.nrrd")
    scans, skipped = find_scans([tmp_path])
    assert not scans and "segmentation" in skipped[-1][1]


@pytest.mark.parametrize("kept", [0, 140, 150, 170, 300])
def test_a_slice_cut_in_its_header_is_named(tmp_path, kept):
    paths = write_series(tmp_path, hu(), AFFINE)
    paths[0].write_bytes(paths[0].read_bytes()[:kept])
    scans, skipped = find_scans([tmp_path])
    assert [len(scan.paths) for scan in scans] == [3]
    assert skipped[0][0] == paths[0] and any(word in skipped[0][1] for word in ("damaged", "empty"))


def test_a_cut_dicom_file_never_stops_the_search(tmp_path):
    path = write_series(tmp_path, hu(), AFFINE)[0]
    whole = path.read_bytes()
    for kept in range(0, len(whole), 23):
        path.write_bytes(whole[:kept])
        scans, skipped = find_scans([tmp_path])
        assert (len(scans[0].paths) == 3 and skipped) or len(scans[0].paths) == 4 or len(scans) == 2


@pytest.mark.parametrize("suffix", ["NII.GZ", "Nrrd", "MHA"])
def test_suffix_in_capitals(tmp_path, suffix):
    touch(tmp_path / f"ct.{suffix}")
    assert names(find_scans([tmp_path])[0]) == ["ct"]


def test_names_are_unique_and_safe(tmp_path):
    for name in (
        "p1/ct.nii.gz",
        "p2/ct.nii.gz",
        "p2/CT.nrrd",
        "p3/a b:c*.mha",
        "p3/-rf.nii",
        "p3/" + "x" * 200 + ".nii",
        "site1/q/im.nii",
        "site2/q/im.nii",
        "deep/site1/q/im.nii",
    ):
        touch(tmp_path / name)
    found = names(find_scans([tmp_path])[0])
    assert len({name.casefold() for name in found}) == 9
    assert {"p1_ct", "p2_ct", "CT_nrrd", "a_b_c_", "rf", "x" * 100, "site2_q_im_nii"} <= set(found)
    assert all(len(name) <= 104 and "/" not in name and name[0] not in ".-" for name in found)


def test_dotted_stems_survive(tmp_path):
    touch(tmp_path / "case.v2.nii.gz")
    touch(tmp_path / "case.v3.nii.gz")
    assert names(find_scans([tmp_path])[0]) == ["case.v2", "case.v3"]


def test_find_scan_wants_exactly_one(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        find_scan(tmp_path / "no.nii.gz")
    one = touch(tmp_path / "one.nii.gz")
    assert find_scan(tmp_path) == find_scan(str(one)) == Scan("one", "nifti", (one,))
    touch(tmp_path / "two.nii.gz")
    with pytest.raises(InputError, match="2 scans: one, two"):
        find_scan(tmp_path)


def test_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "scan.nii.gz")
    assert find_scan(".").name == "scan"
    with pytest.raises(InputError, match="path of a scan is empty"):
        find_scan("")
