"""Every lesion clicked at three places: what a method that ignores, or only heeds, the click scores."""

from __future__ import annotations

import json

import numpy as np
import pytest

from organdetr_monai.miq_sam3d.clicks import PLACES as TRAINING_PLACES
from organdetr_monai.miq_sam3d.robustness import PLACES, ask_about, clicks_on, summarise
from tests.miq_sam3d.cases import instances

SPACING = (2.0, 2.0, 2.0)
IDS, KINDS = instances()
OF_KIND = np.concatenate([[0], KINDS])


def perfect(click, kind):
    return np.where(OF_KIND[IDS] == kind, IDS, 0) if kind else np.zeros_like(IDS)


def single(click, kind):
    """One click, one mask."""
    lesion = IDS[tuple(click)]
    return (IDS == lesion).astype(int) if lesion else np.zeros_like(IDS)


def ask(answer, **options):
    return ask_about(answer, IDS, KINDS.tolist(), SPACING, background=2, **options)


def test_clicks_are_three_on_every_lesion_and_inside_it():
    clicks = clicks_on(IDS, KINDS)
    assert [(c.instance, c.place) for c in clicks] == [(k, place) for k in (1, 2, 3, 4) for place in PLACES]
    for click in clicks:
        assert IDS[tuple(click.voxel)] == click.instance and KINDS[click.instance - 1] == click.kind
    again = clicks_on(IDS, KINDS)
    assert [c.voxel.tolist() for c in clicks] == [c.voxel.tolist() for c in again]
    assert set(PLACES.values()) <= {*TRAINING_PLACES, "centre"}
    assert len(clicks_on(np.where(IDS == 2, 0, IDS), KINDS)) == 9  # one without voxels cannot be clicked


def test_a_perfect_method():
    found = summarise([ask(perfect), ask(perfect, seed=1)])
    assert (found["union_dice"], found["lesion_recall"], found["pq"], found["agreement"]) == (1, 1, 1, 1)
    assert found["false_positives"] == 0 and found["silent"] == 1.0 and found["num_answers"] == 24
    assert found["robustness"] == {
        "mean": 1, "sd": 0, "worst": 1, "lowest": 1, "centre": 1, "random": 1, "edge": 1
    }  # fmt: skip


def test_one_click_one_mask():
    result = ask(single)
    sizes = np.bincount(IDS.reshape(-1))[1:].astype(float)
    scores = [2 * sizes[k] / (sizes[k] + sizes[OF_KIND[1:] == OF_KIND[k + 1]].sum()) for k in range(4)]
    for row in result["answers"]:
        assert row["union_dice"] == pytest.approx(scores[row["instance"] - 1])
        assert row["lesion_recall"] == 0.5 and row["false_positives"] == 0
    # of six answers about a kind, three and three agree, and nine of fifteen pairs have nothing in common
    assert np.mean(result["agreement"]["1"]) == np.mean(result["agreement"]["2"]) == pytest.approx(6 / 15)
    found = summarise([result])
    assert found["agreement"] == pytest.approx(0.4) and found["lesion_recall"] == 0.5
    assert found["robustness"]["mean"] == pytest.approx(np.mean(scores))
    assert found["robustness"]["worst"] == pytest.approx((min(scores[:2]) + min(scores[2:])) / 2)
    assert found["robustness"]["lowest"] == pytest.approx(min(scores))
    assert found["robustness"]["sd"] == pytest.approx((np.std(scores[:2]) + np.std(scores[2:])) / 2)


def test_a_method_that_says_nothing_or_everything():
    silent = summarise([ask(lambda click, kind: np.zeros_like(IDS))])
    assert silent["union_dice"] == 0 and silent["lesion_recall"] == 0 and silent["silent"] == 1.0
    assert np.isnan(silent["agreement"])  # two empty answers agree about nothing
    loud = summarise([ask(lambda click, kind: IDS)])
    assert loud["lesion_recall"] == 1.0 and loud["false_positives"] == 2 and loud["silent"] == 0.0
    assert np.isnan(summarise([ask_about(perfect, IDS, KINDS.tolist(), SPACING)])["silent"])


def test_a_kind_weighs_the_same_however_many_lesions_it_has():
    kinds = [1, 1, 1, 2]
    of_kind = np.array([0, *kinds])

    def only_kind_2(click, kind):
        return np.where(of_kind[IDS] == 2, IDS, 0) if kind == 2 else np.zeros_like(IDS)

    found = summarise([ask_about(only_kind_2, IDS, kinds, SPACING)])
    assert found["union_dice"] == pytest.approx(0.5)  # two kinds
    assert found["lesion_recall"] == pytest.approx(0.25)  # four lesions


def test_results_are_json():
    assert json.loads(json.dumps(ask(single)))["answers"][0]["place"] == "centre"
