"""From which score up an organ is reported: one threshold for each, fitted on validation cases and kept beside the
model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing

FORMAT = "organdetr thresholds"
DEFAULT = 0.5  # where nothing was fitted


def fit_threshold(present: np.ndarray, absent: np.ndarray) -> float:
    """Score that best parts the cases with an organ from those without.

    Maximises Youden's J, the share of present cases at or above the threshold less that of absent ones; of the best
    range of scores it takes the middle. Without absent cases to learn from, half of the lowest score that a present
    organ got, at most 0.5: an organ that nobody saw missing should not be lost easily. Without present cases 0.5.

    Parameters
    ----------
    present, absent : ndarray of shape (n,), (m,)
        Best scores of the organ in the cases that have it, and in those annotated as without.

    Returns
    -------
    float in (0, 1)
    """
    if len(present) == 0:
        return DEFAULT
    if len(absent) == 0:
        return float(np.clip(present.min() / 2, 1e-3, DEFAULT))
    scores = np.unique(np.concatenate([present, absent, [0.0, 1.0]]))
    middles = (scores[:-1] + scores[1:]) / 2
    found = (present >= middles[:, None]).mean(axis=1)
    wrong = (absent >= middles[:, None]).mean(axis=1)
    best = np.flatnonzero(found - wrong >= (found - wrong).max() - 1e-9)
    # The widest of the best ranges: there the next case's score is least likely to cross.
    width = scores[best + 1] - scores[best]
    return float(np.clip(middles[best[np.argmax(width)]], 1e-3, 1 - 1e-3))


def fit_thresholds(cases: Iterable[Any], organs: Sequence[str]) -> dict[str, float]:
    """Threshold of each organ.

    Parameters
    ----------
    cases : iterable of :class:`organdetr_monai.metrics.Case`
        Of validation, with the best box of every organ whatever its score.
    organs : sequence of str
        ``organs[k]`` has id ``k + 1``.
    """
    scores: dict[int, tuple[list[float], list[float]]] = {k: ([], []) for k in range(1, len(organs) + 1)}
    for case in cases:
        for k in (np.flatnonzero(case.annotated) + 1).tolist():
            best = case.scores[case.labels == k].max(initial=0.0)
            scores[k][0 if k in case.truth_labels else 1].append(float(best))
    return {organ: fit_threshold(*map(np.asarray, scores[k])) for k, organ in enumerate(organs, start=1)}


def save_thresholds(thresholds: Mapping[str, float], path: str | os.PathLike) -> None:
    """Write ``thresholds.json``."""
    document = {"format": FORMAT, "version": 1, "thresholds": dict(thresholds)}
    with replacing(path) as draft:
        draft.write_text(json.dumps(document, indent=1) + "\n")


def load_thresholds(path: str | os.PathLike, organs: Sequence[str]) -> dict[str, float]:
    """Read ``thresholds.json``; 0.5 for every organ where a model has none yet.

    Raises
    ------
    InputError
        The file is something else, or misses an organ of the model.
    """
    path = Path(path)
    if not path.exists():
        return dict.fromkeys(organs, DEFAULT)
    try:
        document = json.loads(path.read_text())
        thresholds = {organ: float(value) for organ, value in document["thresholds"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds no thresholds ({error}).", "Fit them again with configs/evaluate.json."
        ) from error
    missing = [organ for organ in organs if organ not in thresholds]
    if missing or not all(0 <= t <= 1 for t in thresholds.values()):
        raise InputError(
            f"{path} is of another model: {missing or thresholds}.", "Fit thresholds again with configs/evaluate.json."
        )
    return {organ: thresholds[organ] for organ in organs}
