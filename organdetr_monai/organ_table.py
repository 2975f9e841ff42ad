"""The registry of organs as text."""

from __future__ import annotations

from collections.abc import Sequence

from organdetr_monai.errors import InputError
from organdetr_monai.organs import ORGANS, SETS

__all__ = ["format_organs"]


def format_organs(set_name: str | None = None) -> str:
    """Table of the registry, or of one set.

    Parameters
    ----------
    set_name : str, optional
        A key of `SETS`: its organs in the order of their ids, with its working grid above.

    Raises
    ------
    InputError
        Unknown set.
    """
    if set_name is None:
        rows: list[tuple[str, ...]] = [("name", "title", "TotalSegmentator v2", "id in sets")]
        rows += [(o.name, o.title, str(o.totalsegmentator_id or "-"), _in_sets(o.name)) for o in ORGANS.values()]
        return _aligned(rows)
    if set_name not in SETS:
        raise InputError(f"Unknown set {set_name!r}.", f"Choose one of {', '.join(SETS)}.")
    one = SETS[set_name]
    spacing, window = ("×".join(f"{n:g}" for n in numbers) for numbers in (one.spacing, one.window))
    head = f"{one.title}: {len(one.organs)} organs, window of {window} voxels of {spacing} mm"
    rows = [("id", "name", "title")]
    rows += [(str(number), name, ORGANS[name].title) for number, name in enumerate(one.organs, start=1)]
    return f"{head}\n{_aligned(rows)}"


def _in_sets(organ: str) -> str:
    return " ".join(f"{name}:{one.organs.index(organ) + 1}" for name, one in SETS.items() if organ in one.organs) or "-"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
