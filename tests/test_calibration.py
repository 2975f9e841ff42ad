"""Thresholds: they part present from absent, and travel with the model."""

from types import SimpleNamespace

import numpy as np
import pytest

from organdetr_monai.calibration import fit_threshold, fit_thresholds, load_thresholds, save_thresholds
from organdetr_monai.errors import InputError


def test_threshold_parts_what_can_be_parted():
    present, absent = np.array([0.9, 0.7, 0.65]), np.array([0.1, 0.3, 0.2])
    assert fit_threshold(present, absent) == pytest.approx((0.3 + 0.65) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_is_better(seed):
    rng = np.random.default_rng(seed)
    present, absent = rng.beta(5, 2, 30), rng.beta(2, 5, 12)

    def youden(t):
        return (present >= t).mean() - (absent >= t).mean()

    assert youden(fit_threshold(present, absent)) >= max(youden(t) for t in np.linspace(0, 1, 1001)) - 1e-9


def test_never_seen_absent_keeps_every_case_that_was_seen():
    assert fit_threshold(np.array([0.9, 0.3]), np.array([])) == pytest.approx(0.15)
    assert fit_threshold(np.array([]), np.array([0.1])) == 0.5


def case(scores, truth, annotated=(True, True)):
    return SimpleNamespace(
        scores=np.array(scores), labels=np.array([1, 2]), truth_labels=np.array(truth), annotated=np.array(annotated)
    )


def test_cases_count_for_the_organs_they_annotate():
    cases = [
        case([0.9, 0.8], [1, 2]),
        case([0.2, 0.7], [2]),
        case([0.99, 0.01], [], annotated=(False, True)),  # organ 1 may be there: nobody looked
    ]
    assert fit_thresholds(cases, ["liver", "spleen"]) == pytest.approx({"liver": 0.55, "spleen": (0.01 + 0.7) / 2})


def test_file_round_trip_and_refusals(tmp_path):
    path = tmp_path / "thresholds.json"
    assert load_thresholds(path, ["liver"]) == {"liver": 0.5}
    save_thresholds({"liver": 0.3, "spleen": 0.2}, path)
    assert load_thresholds(path, ["spleen", "liver"]) == {"spleen": 0.2, "liver": 0.3}
    with pytest.raises(InputError, match="heart"):
        load_thresholds(path, ["heart"])
    path.write_text("[]")
    with pytest.raises(InputError, match="holds no thresholds"):
        load_thresholds(path, ["liver"])
