"""The command line: what each command leaves, what it says, and the exit codes 0, 1 and 2."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import organdetr_monai
from organdetr_monai import loading
from organdetr_monai.cli import COMMANDS, main
from organdetr_monai.data.phantom import PHANTOM_ORGANS, make_phantom
from organdetr_monai.detections import Detections
from organdetr_monai.organs import ORGANS
from organdetr_monai.writers.schema import validate
from tests.bundles import make_bundle
from tests.data.scan_files import write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, spacing=(8, 8, 8))


@pytest.fixture(scope="module")
def folder(phantom, tmp_path_factory):
    """Good scans in two formats and a DICOM series; a text that calls itself NIfTI, a file cut off, and a note."""
    folder = tmp_path_factory.mktemp("scans")
    for name in ("good.nii.gz", "other.mha", "series"):
        write(folder / name, phantom.image, phantom.affine)
    (folder / "text.nii.gz").write_text("hello")
    whole = (folder / "good.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("hello")
    return folder


def run(*argv) -> int:
    return main([str(word) for word in argv])


@pytest.fixture(scope="module")
def mixed(bundle, folder, tmp_path_factory):
    """Output and exit code of a run over the folder."""
    output = tmp_path_factory.mktemp("mixed")
    return output, run("detect", folder, "--output", output, "--model", bundle, "--crop", 20)


def test_good_scans_have_results_although_others_are_bad(mixed, phantom):
    output, code = mixed
    assert code == 1
    assert sorted(p.name for p in output.iterdir()) == ["good", "other", "series", "summary.csv"]
    for name in ("good", "other", "series"):
        document = json.loads((output / name / "detections.json").read_text())
        validate(document)
        present = {organ["name"] for organ in document["organs"] if organ["status"] == "present"}
        markups = json.loads((output / name / "detections.mrk.json").read_text())["markups"]
        assert {m["name"] for m in markups} == present != set()
        assert (output / name / "preview.png").read_bytes().startswith(b"\x89PNG")
        assert {p.name for p in (output / name / "crops").iterdir()} == {f"{organ}.nii.gz" for organ in present}


def test_table_has_every_case_the_failed_ones_too(mixed):
    with (mixed[0] / "summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    failed = {row["case"]: row["error"] for row in rows if row["status"] == "failed"}
    assert set(failed) == {"text", "cut"} and all(failed.values())
    assert {row["case"] for row in rows} - set(failed) == {"good", "other", "series"}


def test_crops_hold_the_scans_own_voxels(mixed, phantom):
    detections = Detections.load(mixed[0] / "good" / "detections.json")
    organ = detections.present[0]
    crop = nib.load(mixed[0] / "good" / "crops" / f"{organ.organ}.nii.gz")
    assert crop.get_data_dtype() == np.int16  # whole HU need no floats
    start = np.rint(np.linalg.solve(phantom.affine, crop.affine[:, 3])[:3]).astype(int)
    where = tuple(slice(a, a + n) for a, n in zip(start, crop.shape, strict=True))
    assert np.array_equal(np.asarray(crop.dataobj), phantom.image[where])
    low, high = np.reshape(organ.box_voxel, (2, 3))
    assert (start <= low).all() and (start + crop.shape >= high).all()


def test_each_bad_case_is_one_line_without_traceback(bundle, folder, tmp_path, capsys):
    code = run("detect", folder, tmp_path / "gone.nii", "--output", tmp_path / "out", "--model", bundle, "--quiet")
    out, err = capsys.readouterr()
    assert code == 1 and out == ""
    lines = err.splitlines()
    assert len(lines) == 3 and "Traceback" not in err
    for start in (f"{tmp_path / 'gone.nii'}: does not exist", "cut: ", "text: "):
        assert sum(line.startswith(start) for line in lines) == 1


def test_notes_and_sum_without_quiet(bundle, folder, tmp_path, capsys):
    assert run("detect", folder / "good.nii.gz", folder / "notes.txt", "--output", tmp_path, "--model", bundle) == 1
    out, err = capsys.readouterr()
    assert "1 done, 1 failed" in out and "notes.txt" in err


def test_it_says_which_organs_the_weights_know_and_where_none_was_found(folder, tmp_path, capsys):
    strict = make_bundle(tmp_path / "b", thresholds="$dict.fromkeys(@organs, 1.0)")
    scan = folder / "good.nii.gz"
    assert run("detect", scan, "-o", tmp_path / "out", "--model", strict, "--organs", "liver") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "no organ found in good"
    assert lines[2].startswith(f"the weights know: {', '.join(PHANTOM_ORGANS)}; on scans of another region")


def test_what_does_not_look_like_a_ct_is_detected_in_with_a_warning(bundle, phantom, tmp_path, capsys):
    mask = (phantom.image > -500).astype(np.uint8)
    scan = write(tmp_path / "mask.nii.gz", mask, phantom.affine)
    assert run("detect", scan, "-o", tmp_path / "out", "--model", bundle) == 0
    shown = capsys.readouterr()
    assert "no CT in HU, it seems, and boxes that mean nothing: mask\n" in shown.out
    (line,) = [line for line in shown.err.splitlines() if "warning" in line]
    assert line.startswith("mask: warning: its values lie in [0, 1], ") and "like a mask's" in line
    assert (tmp_path / "out" / "mask" / "detections.json").exists()
    with (tmp_path / "out" / "summary.csv").open() as table:
        assert {row["warning"] for row in csv.DictReader(table)} == {line.removeprefix("mask: warning: ")}
    assert run("detect", scan, "-o", tmp_path / "out", "--model", bundle, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_all_good_is_0_and_a_second_run_replaces_the_first(bundle, folder, tmp_path, capsys):
    arguments = ("detect", folder / "good.nii.gz", "--output", tmp_path, "--model", bundle, "-q")
    assert run(*arguments, "--organs", "liver,Left Kidney") == 0
    written = tmp_path / "good" / "detections.json"
    assert [o.organ for o in Detections.load(written).organs] == ["liver", "kidney_left"]
    assert run(*arguments) == 0
    assert [o.organ for o in Detections.load(written).organs] == list(PHANTOM_ORGANS)
    assert capsys.readouterr() == ("", "")
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]  # no drafts are left


def test_crops_of_an_earlier_run_are_no_scans(bundle, folder, tmp_path):
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes((folder / "good.nii.gz").read_bytes())
    for _ in range(2):
        assert run("detect", tmp_path, "--output", tmp_path, "--model", bundle, "--crop", 0, "-q") == 0
    assert {row.split(",")[0] for row in (tmp_path / "summary.csv").read_text().splitlines()[1:]} == {"scan"}


def test_results_of_an_earlier_run_go(bundle, folder, tmp_path):
    """A crop of an organ that is absent now, or a report of other boxes, would contradict the new detections."""
    case = tmp_path / "good"
    assert run("detect", folder / "good.nii.gz", "--output", tmp_path, "--model", bundle, "--crop", 0, "-q") == 0
    crops = sorted(p.name for p in (case / "crops").iterdir())
    (case / "crops" / "spleen_of_before.nii.gz").touch()
    (case / "detections.dcm").touch()
    assert run("detect", folder / "good.nii.gz", "--output", tmp_path, "--model", bundle, "--crop", 0, "-q") == 0
    assert sorted(p.name for p in (case / "crops").iterdir()) == crops
    assert run("detect", folder / "good.nii.gz", "--output", tmp_path, "--model", bundle, "-q") == 0
    assert sorted(p.name for p in case.iterdir()) == ["detections.json", "detections.mrk.json", "preview.png"]


def test_report_for_dicom_alone(bundle, folder, phantom, tmp_path, capsys):
    pydicom, _ = pytest.importorskip("pydicom"), pytest.importorskip("highdicom")
    from tests.data.scan_files import write_series

    blank = dict.fromkeys(
        "PatientName PatientBirthDate PatientSex StudyDate StudyTime AccessionNumber StudyID".split(), ""
    )
    tags = {**blank, "PatientID": "P1", "FrameOfReferenceUID": "1.2.3"}
    write_series(tmp_path / "in" / "series", phantom.image, phantom.affine, **tags)
    (tmp_path / "in" / "good.nii.gz").write_bytes((folder / "good.nii.gz").read_bytes())
    assert run("detect", tmp_path / "in", "--output", tmp_path / "out", "--model", bundle, "--sr") == 0
    assert pydicom.dcmread(tmp_path / "out" / "series" / "detections.dcm").Modality == "SR"
    assert not (tmp_path / "out" / "good" / "detections.dcm").exists()
    # Without a frame of reference there is no report, but the rest is there.
    assert run("detect", folder / "series", "--output", tmp_path / "bare", "--model", bundle, "--sr") == 1
    assert (tmp_path / "bare" / "series" / "preview.png").exists()
    out, err = capsys.readouterr()
    assert "series: no DICOM report: " in err and "1 done (1 without a DICOM report), 0 failed" in out
    with (tmp_path / "bare" / "summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["status"] for row in rows} <= {"present", "absent"}, "the case has its result"
    assert all(row["error"].startswith("no DICOM report: ") for row in rows) and len(rows) == len(PHANTOM_ORGANS)


def test_debug_shows_where(bundle, folder, tmp_path, capsys):
    bad = folder / "text.nii.gz"
    assert run("detect", bad, "--output", tmp_path, "--model", bundle, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err
    assert run("organs", "nonesuch", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err
    assert run("organs", "nonesuch") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_defect_of_the_program_is_one_line_too(monkeypatch, capsys):
    def broken(*, debug: bool = False) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(COMMANDS, "organs", broken)
    assert run("organs") == 1
    assert capsys.readouterr().err == "unexpected ZeroDivisionError: oops (--debug shows where)\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["dtect"], "Did you mean detect?"),
        (["detect", "a.nii", "--output", "out", "--organ", "liver"], "Did you mean --organs?"),
        (["detect", "a.nii", "--output", "out", "--cropp=3"], "Did you mean --crop?"),
        (["detect", "a.nii", "--output", "out", "-x"], "no option -x"),
        (["detect", "a.nii", "--output", "out", "-d"], "no option -d"),  # device or debug
        (["detect", "a.nii", "-o", "out", "--output", "out"], "given twice"),
        (["click", "a.nii", "-o", "out", "-p", "1,2,3", "-p", "4,5,6", "--space", "mm"], "space is 'mm'"),  # not twice
        (["evaluate", "a", "b.json", "-o", "out"], "no option -o"),  # organs or output, none required
        (["detect", "a.nii", "--output"], "--output has no value"),
        (["detect", "a.nii", "--output", "--quiet"], "--output has no value"),
        (["detect", "a.nii", "--output", "a", "--output", "b"], "given twice"),
        (["detect", "a.nii", "--output", "out", "--quiet=perhaps"], "on or off"),
        (["detect", "a.nii", "--output", "out", "--crop", "wide"], "Give a number"),
        (["detect", "a.nii", "--output", "out", "--crop=-5"], "margin is -5.0"),
        (["detect", "a.nii", "--output", "out", "--crop", "nan"], "margin is"),
        (["detect", "a.nii"], "output"),
        (["detect", "--output", "out"], "no input was given"),
        (["detect", "a.nii", "--output", "out", "--", "b.nii"], "stands after '--'"),
        (["organs", "word", "more"], "does not take 'more'"),
        (["phantom", "out", "--cases", "1.5"], "Give a whole number"),
        (["phantom", "out", "--spacing", "4,4"], "three numbers"),
        (["phantom", "out", "--lesions", "--axcodes", "LPS"], "not for --lesions"),
        (["prepare", "nonesuch", "a", "b"], "Unknown set"),
        (["prepare", "word"], "source"),
        (["evaluate", "nowhere", "datalist.json"], "do not exist"),
    ],
)
def test_bad_usage_is_2_and_names_what_is_wrong(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_unusable_model_or_organ_is_2(bundle, folder, tmp_path, monkeypatch, capsys):
    scan, output = folder / "good.nii.gz", tmp_path / "out"
    for arguments, message in (
        (["--model", tmp_path], "is no bundle"),
        (["--model", tmp_path / "gone.pt"], "does not exist"),
        (["--model", bundle, "--organs", "livr"], "Did you mean liver?"),
        (["--model", bundle, "--organs", "brain"], "does not look for 'brain'"),
        (["--model", bundle, "--organs", ","], "No organ is named"),
        (["--model", bundle, "--device", "abacus"], "device 'abacus'"),
    ):
        assert run("detect", scan, "--output", output, *arguments) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(loading, "DEFAULT_BUNDLE", make_bundle(tmp_path / "bare", weights=False))
    assert run("detect", scan, "--output", output) == 2
    assert "has no weights" in capsys.readouterr().err
    assert not output.exists()


def test_flags_take_no_neighbour_and_names_stay_as_typed(bundle, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("1e5", "1,2", "True"):  # fire alone would read a number, a tuple and a bool
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.nii.gz").write_bytes((folder / "good.nii.gz").read_bytes())
    assert main(["detect", "--quiet", "1e5", "1,2", "True", "--output=007", f"--model={bundle}"]) == 0
    assert sorted(p.name for p in (tmp_path / "007").iterdir()) == ["1_2", "1e5", "True", "summary.csv"]


def test_help_names_every_command_option_and_exit_code(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS) and "2 bad usage" in text
    assert main(["detect", "a.nii", "--help"]) == 0  # whatever stands before: nothing is run
    text = capsys.readouterr().out
    for option in "output organs crop sr model configs device quiet debug".split():
        assert f"--{option}=" in text
    assert "margin in mm" in text and "FIRE_METADATA" not in text
    assert main([]) == 2


def test_positional_arguments_may_be_named(capsys):
    assert main(["organs", "--set-name=abdomenct1k"]) == main(["organs", "--set_name", "abdomenct1k"]) == 0
    assert capsys.readouterr().out.count("AbdomenCT-1K") == 2
    assert main(["organs", "word", "--set_name", "verse"]) == 2
    assert "does not take 'word'" in capsys.readouterr().err


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"organdetr {organdetr_monai.__version__}\n"


def test_completion_is_a_script(capsys):
    assert main(["--", "--completion"]) == 0
    assert "complete -F" in capsys.readouterr().out


def test_organs_lists_the_registry_and_the_sets(capsys):
    assert main(["organs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(ORGANS)
    assert main(["organs", "abdomenct1k"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:2] == ["1", "pancreas"]


def process(*argv) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, argv)], capture_output=True, text=True, timeout=120, check=False)


def test_help_and_organs_import_nothing_heavy():
    program = (
        "import sys; from organdetr_monai.cli import main;"
        "main(['--help']); main(['detect', '--help']); main(['organs']);"
        "sys.exit(', '.join({'torch', 'monai', 'numpy', 'matplotlib', 'pydicom'} & set(sys.modules)))"
    )
    assert process("-c", program).stderr.strip() == ""


def test_exit_codes_of_the_process(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), affine), tmp_path / "images" / f"{name}.nii.gz")
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2:5, 2:5, 2:5] = 1
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "labels" / "a.nii.gz")  # b has none
    (tmp_path / "map.json").write_text('{"liver": 1}')
    assert process("-m", "organdetr_monai", "organs", "word").returncode == 0
    out = tmp_path.parent / f"{tmp_path.name}_out"
    options = ("--label_map", tmp_path / "map.json", "--workers", 1)
    bad = process("-m", "organdetr_monai", "prepare", "folder", tmp_path, out, *options)
    assert (bad.returncode, "Traceback" in bad.stderr) == (1, False)
    assert "1 skipped" in bad.stdout and (out / "datalist.json").exists()
    wrong = process("-m", "organdetr_monai", "organs", "--nonesuch")
    assert wrong.returncode == 2 and "no option --nonesuch" in wrong.stderr
