"""Metrics: against a literal reading of the definitions, against MONAI, against figures worked out by hand."""

from __future__ import annotations

import csv
import json
import math
from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from organdetr_monai.average_precision import average_precision, box_iou, match_greedily
from organdetr_monai.errors import InputError
from organdetr_monai.metric_handler import OrganDetectionMetric
from organdetr_monai.metric_report import format_table, save
from organdetr_monai.metrics import DetectionMetrics

ORGANS = ["liver", "spleen", "aorta"]
SPACING = (1.5, 2.0, 3.0)
THRESHOLDS = [k / 20 for k in range(2, 20)]


def prediction(boxes, scores, labels):
    return {"boxes": np.reshape(boxes, (-1, 6)), "scores": np.array(scores, float), "labels": np.array(labels, int)}


def truth(boxes, labels, annotated=(1, 1, 1), **more):
    return {"boxes": np.reshape(boxes, (-1, 6)), "labels": np.array(labels, int), "annotated": annotated, **more}


def evaluate(pairs, organs=ORGANS, spacing=SPACING, **options):
    metrics = DetectionMetrics(organs, **options)
    for predicted, real in pairs:
        metrics.update(predicted, real, spacing=spacing)
    return metrics.compute()


def random_pairs(seed, *, cases=6, most_truths=2, most_boxes=4, ties=True, unannotated=0.2):
    """Boxes that overlap their truth by anything from nothing to almost all."""
    rng = np.random.default_rng(seed)
    pairs = []
    for c in range(cases):
        boxes, scores, labels, real, real_labels = [], [], [], [], []
        for k in range(1, len(ORGANS) + 1):
            start = rng.uniform(0, 20, (rng.integers(0, most_truths + 1), 3))
            own = np.concatenate([start, start + rng.uniform(4, 12, start.shape)], axis=1)
            real.append(own)
            real_labels += [k] * len(own)
            n = rng.integers(0, most_boxes + 1)
            near = own[rng.integers(0, len(own), n)] if len(own) else np.tile([0.0, 0, 0, 9, 9, 9], (n, 1))
            boxes.append(near + rng.normal(0, rng.choice([0.2, 1.5]), (n, 6)))
            scores += list(rng.integers(1, 5, n) / 4 if ties else rng.random(n))
            labels += [k] * n
        pairs.append(
            (
                prediction(np.concatenate(boxes), scores, labels),
                truth(np.concatenate(real), real_labels, rng.random(3) >= unannotated, case=f"case{c}"),
            )
        )
    return pairs


def slow_iou(a, b):
    def size(box):
        return math.prod(max(0.0, box[i + 3] - box[i]) for i in range(3))

    inter = size([*(max(a[i], b[i]) for i in range(3)), *(min(a[i + 3], b[i + 3]) for i in range(3))])
    union = size(a) + size(b) - inter
    return inter / union if union else 0.0


def slow_ap_and_recall(pairs, label, threshold, max_detections):
    """The definition, word for word: one box at a time, exact fractions."""
    outcomes, num_truth = [], 0
    for predicted, real in pairs:
        if not real["annotated"][label - 1]:
            continue
        free = list(real["boxes"][real["labels"] == label])
        num_truth += len(free)
        mine = predicted["labels"] == label
        boxes = list(zip(predicted["scores"][mine], predicted["boxes"][mine], strict=True))
        for score, box in sorted(boxes, key=lambda x: -x[0])[:max_detections]:
            overlaps = [slow_iou(box, other) for other in free]
            hit = bool(overlaps) and max(overlaps) >= threshold
            if hit:
                free.pop(int(np.argmax(overlaps)))
            outcomes.append((score, hit))
    if not num_truth:
        return None, None
    points = []
    for least in {score for score, _ in outcomes}:
        chosen = [hit for score, hit in outcomes if score >= least]
        points.append((Fraction(sum(chosen), num_truth), Fraction(sum(chosen), len(chosen))))
    best = [max((p for r, p in points if r >= Fraction(j, 100)), default=Fraction(0)) for j in range(101)]
    return float(sum(best) / 101), sum(hit for _, hit in outcomes) / num_truth


def same(a, b):
    """Equal results, NaN equal to NaN, up to the rounding of sums in another order."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == pytest.approx(b, nan_ok=True) if isinstance(a, float) else a == b


# ---------------------------------------------------------------- average precision


@pytest.mark.parametrize("max_detections", [1, 3, 100])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_agrees_with_the_definition(max_detections, seed):
    pairs = random_pairs(seed)
    result = evaluate(pairs, max_detections=max_detections, iou_thresholds=(0.15, 0.5, 0.75))
    ap, recall = [], []
    for k, organ in enumerate(ORGANS):
        expected = [slow_ap_and_recall(pairs, k + 1, t, max_detections) for t in THRESHOLDS]
        figures = result["per_organ"][organ]
        if expected[0][0] is None:
            assert math.isnan(figures["mAP_coco"]) and math.isnan(figures["mAR"]) and figures["num_truth"] == 0
            continue
        ap.append([e[0] for e in expected])
        recall.append([e[1] for e in expected])
        assert figures["mAP_coco"] == pytest.approx(np.mean(ap[-1][8:]))
        assert figures["mAP_nndet"] == pytest.approx(np.mean(ap[-1][:9]))
        assert figures["AP15"] == pytest.approx(ap[-1][1])
        assert figures["AP50"] == pytest.approx(ap[-1][8])
        assert figures["AP75"] == pytest.approx(ap[-1][13])
        assert figures["mAR"] == pytest.approx(np.mean(recall[-1][8:]))
        assert figures["recall50"] == pytest.approx(recall[-1][8])
    assert result["mAP_coco"] == pytest.approx(np.mean(np.array(ap)[:, 8:]))
    assert result["mAR"] == pytest.approx(np.mean(np.array(recall)[:, 8:]))


@pytest.mark.parametrize("max_detections", [1, 3])
def test_agrees_with_monai(max_detections):
    """Where MONAI's metric is right: every class has truth, no score ties, recalls of k / 7, which its floats bear."""
    from monai.apps.detection.metrics.coco import COCOMetric
    from monai.apps.detection.metrics.matching import matching_batch

    pairs = random_pairs(3, cases=60, most_truths=1, ties=False, unannotated=0)
    pairs = [p for p in pairs if len(p[1]["labels"]) == len(ORGANS)][:7]
    assert len(pairs) == 7
    coco = COCOMetric(ORGANS, iou_list=[0.5, 0.75], iou_range=(0.5, 0.95, 0.05), max_detection=[max_detections])
    theirs, _ = coco(
        matching_batch(
            iou_fn=lambda a, b: box_iou(a[:, None], b[None]),
            iou_thresholds=coco.iou_thresholds,
            pred_boxes=[p["boxes"] for p, _ in pairs],
            pred_classes=[p["labels"] - 1 for p, _ in pairs],
            pred_scores=[p["scores"] for p, _ in pairs],
            gt_boxes=[t["boxes"] for _, t in pairs],
            gt_classes=[t["labels"] - 1 for _, t in pairs],
            max_detections=max_detections,
        )
    )
    ours = evaluate(pairs, max_detections=max_detections)
    end = f"MaxDet_{max_detections}"
    for prefix, figures in [("", ours), *((f"{o}_", ours["per_organ"][o]) for o in ORGANS)]:
        for key, name in {"mAP_IoU_0.50_0.95_0.05": "mAP_coco", "AP_IoU_0.50": "AP50", "AP_IoU_0.75": "AP75"}.items():
            assert figures[name] == pytest.approx(theirs[f"{prefix}{key}_{end}"], abs=1e-6)
        assert figures["mAR"] == pytest.approx(theirs[f"{prefix}mAR_IoU_0.50_0.95_0.05_{end}"], abs=1e-6)
    assert 0.1 < ours["mAP_coco"] < 0.9


def test_average_precision_by_hand():
    # Hit, miss, hit of 4 truths: precision 1 up to recall 1/4, then 2/3 up to 1/2, then nothing.
    ap = average_precision(np.array([[True, False, True]]), np.array([0.9, 0.8, 0.7]), 4)
    assert ap[0] == pytest.approx((26 * 1 + 25 * 2 / 3) / 101)
    assert np.isnan(average_precision(np.zeros((1, 1), dtype=bool), np.ones(1), 0)).all()  # nothing to find


def test_boxes_of_equal_score_have_no_order():
    for hits in ([True, False], [False, True]):
        assert average_precision(np.array([hits]), np.array([0.5, 0.5]), 1)[0] == pytest.approx(0.5)


def test_a_truth_is_found_once():
    taken = match_greedily(np.array([[[0.9], [0.95]]]), np.array([0.5]))
    assert taken[0, 0].tolist() == [0, -1]


def test_reaching_the_threshold_is_enough():
    result = evaluate([(prediction([0, 0, 0, 1, 1, 1], [1], [1]), truth([0, 0, 0, 2, 1, 1], [1]))])
    assert result["mean_iou"] == 0.5 and result["AP50"] == result["recall50"] == result["mAP_nndet"] == 1


def test_iou_of_fractional_corners():
    assert box_iou(np.array([0, 0, 0, 1.5, 1, 1]), np.array([0.5, 0, 0, 2.5, 1, 1])) == pytest.approx(1 / 2.5)
    assert box_iou(np.zeros(6), np.zeros(6)) == 0.0
    assert box_iou(np.array([2.0, 2, 2, 1, 1, 1]), np.array([0.0, 0, 0, 3, 3, 3])) == 0.0  # inverted


def test_iou_does_not_depend_on_spacing():
    pairs = random_pairs(1)
    fine, coarse = evaluate(pairs, spacing=(0.7, 0.7, 0.7)), evaluate(pairs, spacing=(1, 2, 5))
    for name in ("mAP_coco", "mAP_nndet", "mAR", "mean_iou", "recall50"):
        assert fine[name] == coarse[name]
    assert fine["wall_mean"] < coarse["wall_mean"]


# ---------------------------------------------------------------- sets of cases


def test_perfect_boxes():
    pairs = []
    for _, t in random_pairs(5, most_truths=1):
        pairs.append((prediction(t["boxes"], np.ones(len(t["labels"])), t["labels"]), t))
    result = evaluate(pairs)
    ones = ("mAP_coco", "mAP_nndet", "AP50", "AP75", "mAR", "within_20mm", "recall50", "mean_iou")
    assert all(result[name] == pytest.approx(1) for name in ones)
    assert result["wall_mean"] == result["wall_p95"] == result["centre_mean"] == 0


def test_a_shift_hurts_more_the_larger_it_is():
    box = np.array([10.0, 10, 10, 30, 30, 30])
    results = [
        evaluate([(prediction(box + np.tile([shift, 0, 0], 2), [1], [1]), truth(box, [1]))])
        for shift in range(0, 20, 2)
    ]
    for name in ("mAP_coco", "mAP_nndet", "mean_iou"):
        values = [r[name] for r in results]
        assert values == sorted(values, reverse=True) and values[0] > values[-1]
    assert [r["centre_mean"] for r in results] == pytest.approx([1.5 * s for s in range(0, 20, 2)])


def test_shifting_everything_changes_nothing():
    pairs = random_pairs(8)
    shifted = [({**p, "boxes": p["boxes"] + 64}, {**t, "boxes": t["boxes"] + 64}) for p, t in pairs]
    assert same(evaluate(pairs, max_detections=3), evaluate(shifted, max_detections=3))


@given(order=st.permutations(range(6)))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_order_of_cases_does_not_matter(order):
    pairs = random_pairs(2)  # with equal scores in different cases
    options = {"max_detections": 3, "size_groups": "terciles"}
    assert same(evaluate([pairs[i] for i in order], **options), evaluate(pairs, **options))


def test_only_the_best_box_counts_unless_asked():
    box = np.array([0.0, 0, 0, 10, 10, 10])
    pairs = [(prediction([box + 100, box], [0.9, 0.8], [1, 1]), truth(box, [1]))]
    assert evaluate(pairs)["AP50"] == 0
    assert evaluate(pairs, max_detections=2)["AP50"] == pytest.approx(0.5)


def test_what_is_not_annotated_is_ignored():
    box = np.array([0.0, 0, 0, 10, 10, 10])
    known = (prediction(box, [0.5], [1]), truth(box, [1]))
    alone = evaluate([known])
    unknown = (
        prediction([box + 50, box], [0.9, 0.9], [1, 2]),  # would be a false positive of the liver
        truth([box, box * 0], [1, 1], annotated=(0, 1, 1)),  # truth of an organ that is not annotated, one box void
    )
    assert alone["AP50"] == 1
    result = evaluate([known, unknown])
    assert same(result["per_organ"]["liver"], alone["per_organ"]["liver"])
    assert result["per_organ"]["liver"]["num_cases_annotated"] == 1


def test_an_absent_organ_reported_is_a_false_positive():
    box = np.array([0.0, 0, 0, 10, 10, 10])
    known = (prediction(box, [0.5], [1]), truth(box, [1]))
    absent = (prediction(box, [0.9], [1]), truth([], []))
    silent = (prediction([], [], []), truth([], []))
    assert evaluate([known, silent])["AP50"] == 1
    result = evaluate([known, absent])
    assert result["AP50"] == pytest.approx(0.5)
    assert result["recall50"] == 1 and result["wall_mean"] == 0  # these look at present organs only


def test_a_class_without_truth_has_no_ap():
    box = np.array([0.0, 0, 0, 10, 10, 10])
    result = evaluate([(prediction([box, box], [0.5, 0.4], [1, 2]), truth(box, [1]))])
    assert result["mAP_coco"] == 1
    spleen = result["per_organ"]["spleen"]
    assert spleen["num_truth"] == 0 and spleen["num_cases_annotated"] == 1
    assert all(math.isnan(spleen[name]) for name in ("mAP_coco", "AP50", "mAR", "wall_mean", "recall50", "mean_iou"))


def test_nothing_reported():
    box = np.array([0.0, 0, 0, 10, 10, 10])
    result = evaluate([({"boxes": [], "scores": [], "labels": []}, truth(box, [1]))])
    assert result["mAP_coco"] == result["mAR"] == result["within_20mm"] == result["mean_iou"] == 0
    assert result["num_truth"] == 1 and result["num_found"] == 0
    assert math.isnan(result["wall_mean"]) and math.isnan(result["centre_mean"])  # there is no wall to measure


def test_no_case_is_an_error():
    with pytest.raises(InputError, match="no case"):
        DetectionMetrics(ORGANS).compute()


# ---------------------------------------------------------------- millimetres


def test_walls_by_hand():
    real = [10, 10, 10, 30, 30, 20]
    box = [12, 9, 10, 31, 34, 19]  # voxels: 2, 1, 0, 1, 4, 1; mm at 1.5 x 2 x 3: 3, 2, 0, 1.5, 8, 3
    result = evaluate([(prediction(box, [0.9], [2]), truth(real, [2]))])["per_organ"]["spleen"]
    assert result["wall_mean"] == pytest.approx(17.5 / 6)
    # 95th percentile of 6 values: position 4.75 of 0, 1.5, 2, 3, 3, 8.
    assert result["wall_p95"] == pytest.approx(3 + 0.75 * 5)
    # Centres: (21.5, 21.5, 14.5) and (20, 20, 15).
    assert result["centre_mean"] == pytest.approx(math.hypot(1.5 * 1.5, 1.5 * 2, 0.5 * 3))
    inter, a, b = 18 * 20 * 9, 20 * 20 * 10, 19 * 25 * 9
    assert result["mean_iou"] == pytest.approx(inter / (a + b - inter))


@pytest.mark.parametrize("wall", range(6))
def test_within_20mm_minds_only_what_is_cut_off(wall):
    real = np.array([50.0, 50, 50, 150, 150, 150])
    inwards = 1 if wall < 3 else -1
    mm = SPACING[wall % 3]

    def share(distance_mm):
        box = real.copy()
        box[wall] += inwards * distance_mm / mm
        return evaluate([(prediction(box, [1], [1]), truth(real, [1]))])["within_20mm"]

    assert share(-60) == 1  # far too large: nothing of the organ is lost
    assert share(19.9) == 1
    assert share(20.1) == 0


def test_a_missing_box_is_a_miss_within_20mm_and_no_wall():
    box = np.array([0.0, 0, 0, 10, 10, 10])
    result = evaluate([(prediction(box + 1, [1], [1]), truth([box, box], [1, 2]))])
    assert result["within_20mm"] == result["recall50"] == 0.5
    assert result["num_found"] == 1 and result["wall_mean"] == pytest.approx(6.5 / 3)


def test_spacing_of_the_case_comes_first():
    box = np.array([0.0, 0, 0, 10, 10, 10])
    pair = (prediction(box + 1, [1], [1]), truth(box, [1], spacing=(4, 4, 4)))
    assert evaluate([pair], spacing=(1, 1, 1))["wall_mean"] == pytest.approx(4)
    assert evaluate([pair], spacing=None)["wall_mean"] == pytest.approx(4)


def test_score_threshold_spares_ap():
    box = np.array([0.0, 0, 0, 10, 10, 10])
    pairs = [(prediction(box, [0.9], [1]), truth(box, [1])), (prediction(box + 1, [0.2], [1]), truth(box, [1]))]
    result, strict = evaluate(pairs), evaluate(pairs, score_threshold=0.5)
    assert strict["mAP_coco"] == result["mAP_coco"] and strict["mAR"] == result["mAR"]
    assert (strict["num_found"], strict["recall50"], strict["within_20mm"], strict["mean_iou"]) == (1, 0.5, 0.5, 0.5)
    assert strict["wall_mean"] == 0 < result["wall_mean"]


def test_several_truths_of_an_organ_take_one_box_each():
    box = np.array([0.0, 0, 0, 10, 10, 10])
    pairs = [(prediction([box + 50, box + 1], [0.5, 0.9], [1, 1]), truth([box, box + 50], [1, 1]))]
    both, best = evaluate(pairs, max_detections=2), evaluate(pairs)
    assert (both["num_found"], both["recall50"]) == (2, 1.0)
    assert (best["num_found"], best["recall50"]) == (1, 0.5)
    assert both["wall_mean"] == pytest.approx(6.5 / 6)  # one is off by 1 voxel, the other not at all


def test_size_groups():
    sizes = {1: 10.0, 2: 20.0, 3: 40.0}
    boxes = [np.array([0, 0, 0, s, s, s]) for s in sizes.values()]
    pairs = [(prediction(boxes, [1, 1, 1], [1, 2, 3]), truth(boxes, [1, 2, 3]))]
    groups = evaluate(pairs, size_groups="terciles")["per_group"]
    assert {g: f["organs"] for g, f in groups.items()} == {"small": ["liver"], "medium": ["spleen"], "large": ["aorta"]}
    groups = evaluate(pairs, size_groups=[20])["per_group"]  # 9, 72 and 576 ml
    assert {g: f["organs"] for g, f in groups.items()} == {"0-20 ml": ["liver"], "20-inf ml": ["spleen", "aorta"]}
    groups = evaluate(pairs, size_groups={"mine": ["aorta", "liver"], "none": []})["per_group"]
    assert groups["mine"]["num_truth"] == 2 and groups["mine"]["AP50"] == 1
    assert math.isnan(groups["none"]["AP50"])


# ---------------------------------------------------------------- input


def test_tensors_and_arrays_are_the_same():
    pairs = random_pairs(4)

    def tensors(source):
        return {k: torch.as_tensor(v) if k != "case" else v for k, v in source.items()}

    assert same(evaluate(pairs), evaluate([(tensors(p), tensors(t)) for p, t in pairs]))
    box = torch.tensor([[0.0, 0, 0, 8, 8, 8]], dtype=torch.bfloat16, requires_grad=True)
    low = {"boxes": box, "scores": torch.ones(1, dtype=torch.bfloat16), "labels": torch.ones(1, dtype=torch.int64)}
    assert evaluate([(low, truth([0, 0, 0, 8, 8, 8], [1]))])["AP50"] == 1


BOX = [[0.0, 0, 0, 5, 5, 5]]
GOOD = (prediction(BOX, [0.5], [1]), truth(BOX, [1]))


@pytest.mark.parametrize(
    ("bad_prediction", "bad_truth", "match"),
    [
        ({"labels": [0]}, {}, "ids from 1 to 3"),
        ({"labels": [4]}, {}, "ids from 1 to 3"),
        ({"scores": [0.5, 0.5]}, {}, "Shapes"),
        ({"scores": [float("nan")]}, {}, "finite"),
        ({"boxes": [[0, 0, 0, 5, 5, float("inf")]]}, {}, "finite"),
        ({"boxes": [[0, 0, 5, 5]]}, {}, "Shapes"),
        ({}, {"boxes": [[5, 5, 5, 5, 9, 9]]}, "empty"),
        ({}, {"annotated": [True]}, "one bool for each"),
        ({}, {"spacing": (1, 1, 0)}, "spacing"),
        ({}, {"spacing": (1, 1)}, "spacing"),
    ],
)
def test_bad_cases_are_refused(bad_prediction, bad_truth, match):
    with pytest.raises(InputError, match=match):
        evaluate([({**GOOD[0], **bad_prediction}, {**GOOD[1], **bad_truth})])


def test_missing_fields_are_named():
    with pytest.raises(InputError, match="scores"):
        evaluate([({k: v for k, v in GOOD[0].items() if k != "scores"}, GOOD[1])])
    with pytest.raises(InputError, match="spacing"):
        evaluate([GOOD], spacing=None)


@pytest.mark.parametrize(
    "options",
    [
        {"organs": []},
        {"organs": ["liver", "liver"]},
        {"organs": ORGANS, "max_detections": 0},
        {"organs": ORGANS, "iou_thresholds": [1.5]},
        {"organs": ORGANS, "size_groups": "quartiles"},
        {"organs": ORGANS, "size_groups": [500, 50]},
        {"organs": ORGANS, "size_groups": [-5, 50]},
        {"organs": ORGANS, "size_groups": {"mine": ["kidney"]}},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(InputError):
        DetectionMetrics(**options)


def test_a_case_counts_once():
    pairs = random_pairs(6)
    assert same(evaluate(pairs + pairs[:2]), evaluate(pairs))
    other = ({**pairs[0][0]}, {**pairs[1][1], "case": "case0"})
    with pytest.raises(InputError, match="case0"):
        evaluate([*pairs, other])
    nameless = [(p, {k: v for k, v in t.items() if k != "case"}) for p, t in pairs]
    assert evaluate(nameless + nameless)["num_cases"] == 12


# ---------------------------------------------------------------- report


def test_table_has_a_row_for_each_organ_and_all():
    result = evaluate(random_pairs(7), size_groups="terciles")
    lines = format_table(result).splitlines()
    assert "6 cases" in lines[0] and "mm" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == [*ORGANS, "small", "medium", "large", "all"]
    column = lines[1].split().index("mAP_coco") + 1
    assert float(lines[-1].split()[column]) == pytest.approx(result["mAP_coco"], abs=5e-4)
    box = np.array(BOX)
    assert " - " in format_table(evaluate([(prediction(box, [1], [1]), truth(box, [1]))])).splitlines()[3]


def test_saved_results_come_back(tmp_path):
    result = evaluate([*random_pairs(9, most_truths=0), GOOD], size_groups="terciles")
    save(result, tmp_path / "new" / "metrics.json")
    back = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert back["mAP_coco"] == result["mAP_coco"] and back["per_organ"]["spleen"]["mAP_coco"] is None
    save(result, tmp_path / "new" / "metrics.csv")
    with open(tmp_path / "new" / "metrics.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["all"]["mAP_coco"]) == result["mAP_coco"] and rows["spleen"]["mAP_coco"] == ""
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"metrics.json", "metrics.csv"}  # no drafts left
    with pytest.raises(InputError, match="json or"):
        save(result, tmp_path / "metrics.txt")


# ---------------------------------------------------------------- in an engine


def run_engine(batches, metric, name="mAP_coco"):
    """MONAI's evaluator over batches of (prediction, truth) pairs; the network passes on the index of the batch."""
    from monai.engines import SupervisedEvaluator

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.tensor([i])} for i in range(len(batches))],
        network=torch.nn.Identity(),
        prepare_batch=lambda batch, *args, **kw: (batch["image"], [t for _, t in batches[int(batch["image"])]]),
        inferer=lambda inputs, network: [p for p, _ in batches[int(inputs)]],
        key_val_metric={name: metric},
        decollate=False,
    )
    evaluator.run()
    return evaluator


def test_key_metric_of_a_monai_evaluator():
    pairs = random_pairs(10)
    expected = evaluate(pairs, max_detections=2)
    metric = OrganDetectionMetric(ORGANS, spacing=SPACING, max_detections=2)
    batches = [pairs[:2], pairs[2:5], pairs[5:]]
    evaluator = run_engine(batches, metric)
    assert evaluator.state.metrics["mAP_coco"] == evaluator.state.best_metric == pytest.approx(expected["mAP_coco"])
    assert evaluator.state.metrics["wall_mean"] == pytest.approx(expected["wall_mean"])
    assert same(metric.result, expected)
    batches[1:] = [[], []]
    evaluator.run()  # an epoch starts from nothing
    assert same(metric.result, evaluate(pairs[:2], max_detections=2))


def test_another_key_under_another_name():
    pairs = random_pairs(10)
    evaluator = run_engine([pairs], OrganDetectionMetric(ORGANS, key="AP50", spacing=SPACING), name="val_AP50")
    assert evaluator.state.metrics["val_AP50"] == evaluator.state.metrics["AP50"] != evaluator.state.metrics["mAP_coco"]
    with pytest.raises(InputError, match="wall_mean"):
        run_engine([pairs], OrganDetectionMetric(ORGANS, key="AP50"), name="wall_mean")
    with pytest.raises(InputError, match="mAP"):
        OrganDetectionMetric(ORGANS, key="mAP")


def test_an_engine_without_truth_says_so():
    from ignite.exceptions import NotComputableError

    metric = OrganDetectionMetric(ORGANS, spacing=SPACING)
    with pytest.raises(NotComputableError, match="no case"):
        metric.compute()
    metric.update(([prediction(BOX, [1], [1])], [truth([], [])]))
    with pytest.raises(InputError, match="organ"):
        metric.compute()
    with pytest.raises(ValueError, match="zip"):
        metric.update(([], [truth([], [])]))


def evaluate_share(rank, folder, pairs):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        metric = OrganDetectionMetric(ORGANS, spacing=SPACING, max_detections=2)
        metric.update(tuple(zip(*pairs[rank::2], strict=True)))
        value = metric.compute()
        save({**metric.result, "value": value}, f"{folder}/{rank}.json")
        metric.reset()
        nameless = {k: v for k, v in pairs[rank][1].items() if k != "case"}
        metric.update(([pairs[rank][0]], [nameless]))
        with pytest.raises(InputError, match="name"):
            metric.compute()
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_see_all_cases_once(tmp_path):
    pairs = random_pairs(11, cases=5)
    padded = [*pairs, pairs[0]]  # as DistributedSampler does to give both the same number
    other = torch.multiprocessing.get_context("spawn").Process(target=evaluate_share, args=(1, str(tmp_path), padded))
    other.start()
    evaluate_share(0, str(tmp_path), padded)
    other.join(60)
    assert other.exitcode == 0
    expected = evaluate(pairs, max_detections=2)
    save(expected, tmp_path / "expected.json")
    for rank in range(2):
        back = json.loads((tmp_path / f"{rank}.json").read_text())
        assert back.pop("value") == pytest.approx(expected["mAP_coco"])
        assert same(back, json.loads((tmp_path / "expected.json").read_text()))
