"""`prepare` whatever the set: complete datalists, resuming, bad cases, splits, and a source that nobody touched."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from organdetr_monai.data.datalist import load_datalist
from organdetr_monai.data.sets.base import Case
from organdetr_monai.data.sets.masks import CaseError, check_image
from organdetr_monai.data.splits import assign_splits
from organdetr_monai.errors import InputError
from organdetr_monai.organs import SETS
from tests.data import trees
from tests.data.trees import run


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        f"{path.relative_to(root)} {path.stat().st_mtime_ns}": hashlib.md5(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.mark.parametrize("set_name", trees.TREES)
def test_datalist_is_complete_and_source_untouched(set_name, tmp_path):
    source = trees.TREES[set_name](tmp_path / "in")
    before = digest(source)
    report, content = run(set_name, source, tmp_path / "out")
    assert digest(source) == before
    assert sum(report.counts.values()) == len(content["cases"]) >= 3
    assert content["set"] == set_name
    if set_name in SETS:
        assert tuple(content["labels"]) == SETS[set_name].organs
        assert content["licence"]
    names = [case["name"] for case in content["cases"]]
    assert len(set(names)) == len(names)
    for case in content["cases"]:
        assert not Path(case["image"]).is_absolute()
        assert (report.datalist.parent / case["image"]).is_file()
        assert (report.datalist.parent / case["label"]).is_file()
        assert case["split"] in ("train", "val", "test")
        assert set(case["truncated"]) <= set(case["annotated"]) <= set(content["labels"])
    items = load_datalist(report.datalist, organs=tuple(content["labels"]))
    assert [item["case"] for item in items] == names
    assert not [path for path in (tmp_path / "out").rglob(".*")], "half-written files are left"


def break_cases(source: Path) -> dict[str, str]:
    """Spoil cases 1-7 of an AbdomenCT-1K tree in different ways; the reason expected for each."""
    images = {path.name[:10]: path for path in source.rglob("*_0000.nii.gz")}
    mask = {name: source / "Mask" / f"{name}.nii.gz" for name in images}
    one, two, three, four, five, six, seven = (f"Case_{k:05d}" for k in range(1, 8))
    images[one].write_text("not a volume")
    whole = images[two].read_bytes()
    images[two].write_bytes(whole[: len(whole) * 2 // 3])
    mask[three].unlink()
    shape, affine = trees.grid("RAS")
    trees.save(mask[four], np.ones((*shape[:2], 3), np.uint8), affine)
    shape, affine = trees.grid(trees.AXES[4 % 4])
    trees.save(mask[five], np.zeros(shape, np.uint8), affine)
    image = nib.load(images[six])
    moved = image.affine.copy()
    moved[0, 3] += 30
    trees.save(mask[six], np.ones(image.shape, np.uint8), moved)
    trees.save(mask[seven], np.full(nib.load(images[seven]).shape, 0.5, np.float32), nib.load(images[seven]).affine)
    return {
        one: "unreadable",
        two: "unreadable",
        three: "missing label",
        four: "grid mismatch",
        five: "empty",
        six: "30.0 mm away",
        seven: "no labels, such as 0.5",
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_cases_are_named_and_stop_nothing(workers, tmp_path):
    source = trees.abdomenct1k(tmp_path / "in")
    expected = break_cases(source)
    report, content = run("abdomenct1k", source, tmp_path / "out", workers=workers)
    assert [case["name"] for case in content["cases"]] == ["Case_00008"]
    assert {name for name, _ in report.skipped} == set(expected)
    for name, reason in report.skipped:
        assert expected[name] in reason, (name, reason)
    assert content["skipped"] == [{"name": name, "reason": reason} for name, reason in report.skipped]


def test_an_image_without_its_last_byte_is_not_whole(tmp_path):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(np.ones((6, 5, 4), np.int16), np.eye(4)), path)
    check_image(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CaseError, match="ends before its last voxel"):
        check_image(path)


def test_no_usable_case_is_an_error(tmp_path):
    source = trees.abdomenct1k(tmp_path / "in", cases=2)
    for path in (source / "Mask").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="missing label"):
        run("abdomenct1k", source, tmp_path / "out")


def test_resume_redoes_only_what_changed(tmp_path):
    source = trees.abdomenct1k(tmp_path / "in", cases=5)
    report, first = run("abdomenct1k", source, tmp_path / "out")
    assert report.resumed == 0
    labels = tmp_path / "out" / "labels"
    written = {path.name: path.stat().st_mtime_ns for path in labels.iterdir()}
    (labels / "Case_00001.nii.gz").unlink()  # lost
    record = tmp_path / "out" / "cases" / "Case_00002.json"
    record.write_text(record.read_text()[:20])  # cut short
    mask = source / "Mask" / "Case_00003.nii.gz"  # changed at the source
    os.utime(mask, ns=(1, 1))
    report, second = run("abdomenct1k", source, tmp_path / "out")
    assert report.resumed == 2
    assert second == first
    kept = {path.name for path in labels.iterdir() if path.stat().st_mtime_ns == written[path.name]}
    assert kept == {"Case_00004.nii.gz", "Case_00005.nii.gz"}


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    import organdetr_monai.data.prepare as module

    source = trees.abdomenct1k(tmp_path / "in", cases=4)
    real, done = module.prepare_case, []

    def interrupted(case, listing, output):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(case.name)
        return real(case, listing, output)

    monkeypatch.setattr(module, "prepare_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("abdomenct1k", source, tmp_path / "out")
    assert not (tmp_path / "out" / "datalist.json").exists()
    monkeypatch.setattr(module, "prepare_case", real)
    report, content = run("abdomenct1k", source, tmp_path / "out")
    assert report.resumed == 2 and len(content["cases"]) == 4


def test_workers_do_not_change_the_result(tmp_path):
    source = trees.word(tmp_path / "in")
    _, one = run("word", source, tmp_path / "one")
    _, two = run("word", source, tmp_path / "two", workers=2)
    assert one == two


def test_splits_are_seeded_disjoint_and_by_subject():
    cases = [Case(f"{subject}_{scan}", Path("x"), subject=str(subject)) for subject in range(20) for scan in range(2)]
    splits = assign_splits(cases, seed=3)
    assert splits == assign_splits(cases[::-1], seed=3)
    assert splits != assign_splits(cases, seed=4)
    assert all(splits[f"{subject}_0"] == splits[f"{subject}_1"] for subject in range(20))
    counts = [list(splits.values()).count(split) for split in ("train", "val", "test")]
    assert counts == [28, 4, 8]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_small_sets_keep_something_to_train_on(count):
    splits = assign_splits([Case(str(k), Path("x")) for k in range(count)], seed=0)
    assert len(splits) == count and "train" in splits.values()
    assert len(set(splits.values())) == min(count, 3)


@pytest.mark.parametrize("fractions", [(0.5, 0.1, 0.1), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1), (0.5, 0.5)])
def test_fractions_must_share_out_one(fractions, tmp_path):
    with pytest.raises(InputError, match="fractions"):
        assign_splits([Case("a", Path("x"))], fractions=fractions)


def test_bad_requests(tmp_path):
    source = trees.folder(tmp_path / "in", cases=1)
    with pytest.raises(InputError, match="Choose one of abdomenct1k"):
        run("flare", source, tmp_path / "out")
    with pytest.raises(InputError, match="nowhere"):
        run("amos", tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="inside the source"):
        run("folder", source, source / "out")
    with pytest.raises(InputError, match="fixed"):
        run("amos", source, tmp_path / "out", label_map={"liver": 1})
    with pytest.raises(InputError, match="imagesTr"):
        run("amos", source, tmp_path / "out")
    run("folder", source, tmp_path / "out")
    with pytest.raises(InputError, match="belongs to the set folder"):
        run("decathlon", trees.decathlon(tmp_path / "task"), tmp_path / "out")
