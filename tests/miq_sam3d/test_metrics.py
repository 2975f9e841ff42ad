"""Figures against hand-computed examples; what is not defined is NaN."""

from __future__ import annotations

import numpy as np
import pytest

from organdetr_monai.errors import InputError
from organdetr_monai.miq_sam3d.metrics import aggregate, dice, evaluate_instances, iou_table
from tests.miq_sam3d.cases import instances

SPACING = (2.0, 2.0, 2.0)


def row(*parts) -> np.ndarray:
    """A volume of 40 voxels in a row: ``(id, start, stop)`` each."""
    ids = np.zeros((40, 1, 1), np.int32)
    for number, start, stop in parts:
        ids[start:stop] = number
    return ids


def test_a_perfect_answer_gives_1():
    truth = instances()[0]
    renumbered = np.array([0, 4, 2, 1, 3])[truth]
    for answer in (truth, renumbered):
        found = evaluate_instances(answer, truth, SPACING)
        assert [found[k] for k in ("union_dice", "union_nsd", "lesion_recall", "pq", "sq", "rq")] == [1.0] * 6
        assert (found["false_positives"], found["num_truth"], found["num_found"]) == (0, 4, 4)


def test_hand_computed():
    truth = row((1, 0, 10), (2, 20, 30))
    # the first shares 8 of 12 voxels (IoU 2/3), the second 3 of 11 (IoU 3/11), the third none
    answer = row((5, 2, 12), (6, 27, 31), (9, 35, 36))
    np.testing.assert_allclose(iou_table(answer, truth), [[8 / 12, 0], [0, 3 / 11], [0, 0]])
    found = evaluate_instances(answer, truth, SPACING)
    assert found["union_dice"] == pytest.approx(2 * 11 / (15 + 20))
    assert found["lesion_recall"] == 1.0 and found["false_positives"] == 1
    assert found["sq"] == pytest.approx(2 / 3)
    assert found["rq"] == pytest.approx(1 / (1 + 2 / 2 + 1 / 2))
    assert found["pq"] == pytest.approx(found["sq"] * found["rq"])
    strict = evaluate_instances(answer, truth, SPACING, found_iou=0.3)
    assert strict["lesion_recall"] == 0.5 and strict["false_positives"] == 2


def test_one_answer_finds_one_lesion():
    truth = row((1, 0, 5), (2, 5, 10))
    merged = evaluate_instances(row((1, 0, 10)), truth, SPACING)
    assert merged["union_dice"] == 1.0
    assert merged["lesion_recall"] == 0.5 and merged["false_positives"] == 0
    assert merged["pq"] == 0.0 and np.isnan(merged["sq"])  # IoU 0.5 is not above 0.5
    split = evaluate_instances(truth, row((1, 0, 10)), SPACING)
    assert split["lesion_recall"] == 1.0 and split["false_positives"] == 1


def test_pairs_are_as_many_as_possible():
    """The best pair first would leave the other two without a partner."""
    truth, answer = row((1, 0, 8), (2, 8, 16)), row((1, 4, 16), (2, 0, 4))
    found = evaluate_instances(answer, truth, SPACING)
    assert found["lesion_recall"] == 1.0 and found["false_positives"] == 0


def test_surfaces_within_the_tolerance():
    truth, answer = np.zeros((2, 20, 8, 8), bool)
    truth[4:12, 2:6, 2:6], answer[5:13, 2:6, 2:6] = True, True
    assert evaluate_instances(answer, truth, SPACING, tolerance=2.0)["union_nsd"] == 1.0  # shifted by 2 mm
    assert evaluate_instances(answer, truth, SPACING, tolerance=1.9)["union_nsd"] < 1.0
    far = np.roll(truth, 8, axis=0)
    assert evaluate_instances(far, truth, SPACING, tolerance=2.0)["union_nsd"] < 0.3
    stretched = evaluate_instances(answer, truth, (3.0, 2.0, 2.0), tolerance=2.0)["union_nsd"]
    assert stretched < 1.0  # voxels of 3 mm: shifted by 3 mm


def test_what_is_not_defined_is_nan():
    nothing, lesion = row(), row((1, 0, 3))
    both = evaluate_instances(nothing, nothing, SPACING)
    assert all(np.isnan(both[k]) for k in ("union_dice", "union_nsd", "lesion_recall", "pq", "sq", "rq"))
    alarm = evaluate_instances(lesion, nothing, SPACING)
    assert all(np.isnan(alarm[k]) for k in ("union_dice", "union_nsd", "lesion_recall", "pq"))
    assert alarm["false_positives"] == 1
    missed = evaluate_instances(nothing, lesion, SPACING)
    assert [missed[k] for k in ("union_dice", "union_nsd", "lesion_recall", "pq")] == [0.0] * 4
    assert np.isnan(dice(nothing > 0, nothing > 0))


def test_a_lesion_of_one_voxel_counts():
    truth = row((1, 7, 8))
    assert evaluate_instances(truth, truth, SPACING)["pq"] == 1.0
    assert evaluate_instances(truth, truth, SPACING)["union_nsd"] == 1.0


def test_aggregate_pools_lesions_and_averages_answers():
    one = evaluate_instances(row((1, 0, 10)), row((1, 0, 10)), SPACING)
    two = evaluate_instances(row((1, 30, 35)), row((1, 0, 10), (2, 20, 30)), SPACING)
    empty = evaluate_instances(row((1, 0, 3)), row(), SPACING)
    found = aggregate([one, two, empty])
    assert found["union_dice"] == pytest.approx(0.5)  # the third has no truth
    assert found["lesion_recall"] == pytest.approx(1 / 3)
    assert found["false_positives"] == pytest.approx(2 / 3)
    assert found["pq"] == pytest.approx(1 / (1 + 2 / 2 + 2 / 2))
    weighted = aggregate([one, one, two], [0.5, 0.5, 1])
    assert weighted["lesion_recall"] == pytest.approx(1 / 3) and weighted["union_dice"] == pytest.approx(0.5)
    assert np.isnan(aggregate([empty])["lesion_recall"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": np.zeros((3, 3, 3), int)}, "shape"),
        ({"spacing": (2, 2)}, "spacing"),
        ({"spacing": (2, 2, 0)}, "spacing"),
        ({"tolerance": -1}, "tolerance"),
        ({"found_iou": 1}, "found_iou"),
        ({"predicted": row((-1, 0, 2))}, "Ids"),
        ({"predicted": row((70_000, 0, 2))}, "70000"),
    ],
)
def test_wrong_input(change, message):
    with pytest.raises(InputError, match=message):
        evaluate_instances(**{"predicted": row(), "truth": row((1, 0, 2)), "spacing": SPACING, **change})
    with pytest.raises(InputError, match="no answer"):
        aggregate([])
