"""Who is trained on, validated on and tested on: the set's own word, or a seeded draw of subjects."""

from __future__ import annotations

import random
from collections.abc import Sequence

from organdetr_monai.data.sets.base import Case
from organdetr_monai.errors import InputError

SPLITS = ("train", "val", "test")


def assign_splits(
    cases: Sequence[Case], *, seed: int = 0, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> dict[str, str]:
    """Split for each case, the same for the same cases whatever their order.

    Parameters
    ----------
    cases : sequence of Case
        Their own splits count where there are several. With a part for training and one held out, the one held out is
        the test, and validation is drawn from training in its proportion. Otherwise all is drawn. A case without a
        split in a set that has them is trained on.
    seed : int
    fractions : (train, val, test)

    Returns
    -------
    dict of str to str
        Case name to one of `SPLITS`; a subject's scans stay together.

    Raises
    ------
    InputError
        The fractions are not three shares of one.
    """
    check_fractions(fractions)
    own = {case.split for case in cases} - {None}
    if "train" not in own or len(own) == 1:
        return _draw(cases, fractions, seed)
    if own == set(SPLITS):
        return {case.name: case.split or "train" for case in cases}
    train = [case for case in cases if case.split in ("train", None)]
    share = fractions[1] / (fractions[0] + fractions[1])
    return {**{case.name: "test" for case in cases}, **_draw(train, (1 - share, share, 0.0), seed)}


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise `InputError` unless these are three shares of one, with something to train on."""
    if len(fractions) != 3 or min(fractions) < 0 or fractions[0] == 0 or abs(sum(fractions) - 1) > 1e-6:
        raise InputError(f"The fractions {tuple(fractions)} do not share out one whole.", "Give, say, 0.7,0.1,0.2.")


def _draw(cases: Sequence[Case], fractions: tuple[float, float, float], seed: int) -> dict[str, str]:
    subjects = sorted({case.subject or case.name for case in cases})
    random.Random(seed).shuffle(subjects)
    # Held-out parts that were asked for get at least one subject while one is left to train on.
    sizes = {}
    room = len(subjects) - 1
    for split, fraction in zip(("test", "val"), (fractions[2], fractions[1]), strict=True):
        wanted = max(1, round(fraction * len(subjects))) if fraction > 0 else 0
        sizes[split] = min(wanted, room)
        room -= sizes[split]
    order = ["test"] * sizes["test"] + ["val"] * sizes["val"]
    drawn = dict(zip(subjects, order + ["train"] * (len(subjects) - len(order)), strict=True))
    return {case.name: drawn[case.subject or case.name] for case in cases}
