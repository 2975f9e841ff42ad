"""How much an answer depends on where a user clicks: every lesion clicked in its centre, at random and at its edge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from organdetr_monai.miq_sam3d.clicks import click_in, click_outside
from organdetr_monai.miq_sam3d.metrics import TOLERANCE_MM, aggregate, dice, evaluate_instances, mean

PLACES = {"centre": "centre", "random": "uniform", "edge": "boundary"}
"""Where each lesion is clicked, and what `click_in` calls it."""

Answer = Callable[[np.ndarray, int], np.ndarray]
"""From a click, the index (3,) of a voxel, and the kind of the lesion there (0 for none; for methods that need to be
told) to ids of instances (X, Y, Z)."""


class Click(NamedTuple):
    """A click on a lesion."""

    instance: int
    kind: int
    place: str
    voxel: np.ndarray  # (3,)


def clicks_on(instances: np.ndarray, kinds: Sequence[int], *, seed: int = 0) -> list[Click]:
    """Three clicks on each lesion of a case, those of `PLACES`.

    Parameters
    ----------
    instances : ndarray of shape (X, Y, Z)
        Ids 1..M.
    kinds : sequence of M int
        Kind of instance ``i + 1``; one without voxels is passed over.
    seed : int
        A lesion's clicks depend on it and on the lesion's id.
    """
    there = np.bincount(instances.reshape(-1).astype(np.int64), minlength=len(kinds) + 1)
    found = []
    for k, kind in enumerate(kinds, start=1):
        rng = np.random.default_rng((seed, k))
        if there[k]:
            mask = instances == k
            found += [Click(k, int(kind), place, click_in(mask, name, rng)) for place, name in PLACES.items()]
    return found


def ask_about(
    answer: Answer,
    instances: np.ndarray,
    kinds: Sequence[int],
    spacing: Sequence[float],
    *,
    tissue: np.ndarray | None = None,
    background: int = 0,
    seed: int = 0,
    tolerance: float = TOLERANCE_MM,
) -> dict[str, Any]:
    """Click on every lesion of a case and judge the answers.

    Parameters
    ----------
    answer : callable
        The method: a pure function of the click.
    instances, kinds
        As in `clicks_on`.
    spacing : sequence of 3 floats
        mm per voxel.
    tissue : ndarray of shape (X, Y, Z), bool, optional
        Where a click on background may fall; anywhere by default.
    background : int
        Clicks on background.
    seed : int
    tolerance : float
        mm, of NSD.

    Returns
    -------
    dict
        Ready for JSON but for NaN. ``answers``: for each click ``instance``, ``kind``, ``place``, ``click`` and the
        figures of `evaluate_instances`, the truth being all lesions of that kind. ``agreement``: for each kind (a
        string) the Dice between the unions of the answers to each two clicks on lesions of that kind, without pairs of
        two empty answers. ``silent``: for each click on background, whether nothing was found.
    """
    of_kind = np.array([0, *kinds], dtype=np.int64)
    answers, unions = [], defaultdict(list)
    for click in clicks_on(instances, kinds, seed=seed):
        predicted = answer(click.voxel, click.kind)
        truth = np.where(of_kind[instances] == click.kind, instances, 0)
        figures = evaluate_instances(predicted, truth, spacing, tolerance=tolerance)
        where = {"instance": click.instance, "kind": click.kind, "place": click.place, "click": click.voxel.tolist()}
        answers.append({**where, **figures})
        unions[str(click.kind)].append(np.packbits(predicted > 0))
    rng, lesions = np.random.default_rng((seed, 0)), instances > 0
    tissue = ~lesions if tissue is None else tissue
    outside = [click_outside(lesions, tissue, rng) for _ in range(background)]
    return {
        "answers": answers,
        "agreement": {kind: _agreement(masks) for kind, masks in unions.items()},
        "silent": [not answer(index, 0).any() for index in outside if index is not None],
    }


def _agreement(unions: Sequence[np.ndarray]) -> list[float]:
    """Dice between each two masks, packed to bits."""
    masks = [np.unpackbits(union).view(bool) for union in unions]
    found = [dice(a, b) for a, b in combinations(masks, 2)]
    return [value for value in found if not np.isnan(value)]


def summarise(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures over many cases.

    Parameters
    ----------
    cases : sequence of dict
        Of `ask_about`.

    Returns
    -------
    dict
        What `aggregate` gives, each (case, kind) weighing the same however many clicks asked about it, so that false
        positives are those of one answer; ``robustness`` of the union Dice: ``mean``, ``sd`` and ``worst`` over the
        clicks of a (case, kind), averaged over these, ``lowest`` of all clicks, and the mean for each of `PLACES`;
        ``agreement``: mean Dice between two answers of a (case, kind), averaged over these; ``silent``: share of the
        clicks on background to which the answer was nothing.

    Raises
    ------
    InputError
        There is no answer.
    """
    groups: dict[tuple[int, int], list[Mapping[str, float]]] = defaultdict(list)
    for number, case in enumerate(cases):
        for row in case["answers"]:
            groups[number, row["kind"]].append(row)
    rows = [row for group in groups.values() for row in group]
    figures: dict[str, Any] = aggregate(rows, [1 / len(group) for group in groups.values() for _ in group])
    scores = [np.array([row["union_dice"] for row in group]) for group in groups.values()]
    figures["robustness"] = {
        "mean": mean([score.mean() for score in scores]),
        "sd": mean([score.std() for score in scores]),
        "worst": mean([score.min() for score in scores]),
        "lowest": float(min(score.min() for score in scores)),
        **{place: mean([row["union_dice"] for row in rows if row["place"] == place]) for place in PLACES},
    }
    figures["agreement"] = mean([np.mean(found) for case in cases for found in case["agreement"].values() if found])
    figures["silent"] = mean([float(quiet) for case in cases for quiet in case["silent"]])
    return figures
