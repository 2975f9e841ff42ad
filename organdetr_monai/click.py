"""`organdetr click`: clicks in one scan, and the files that they leave."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from organdetr_monai.errors import InputError

if TYPE_CHECKING:
    from organdetr_monai.miq_sam3d.answer import Answer

__all__ = ["click_scan"]


def click_scan(
    scan: str | os.PathLike,
    output: str | os.PathLike,
    *,
    points: Sequence[str],
    space: str | None,
    background: Sequence[str] = (),
    model: str | os.PathLike | None = None,
    configs: Sequence[str | os.PathLike] = (),
    device: str | None = None,
) -> Answer:
    """Answer clicks in one scan.

    Parameters
    ----------
    scan : path
        A file, or a folder of one DICOM series.
    output : path
        Folder; gets ``lesions.nii.gz``, ``lesions.json`` and ``preview.png``. Files of an earlier run are replaced.
    points, background : sequence of str
        Such as ``"120,200,45"``.
    space : {"voxel", "lps"}
    model, configs, device
        See `LesionFinder.load`.

    Raises
    ------
    InputError
        Whatever makes scan, clicks or model unusable; nothing was written.
    """
    from organdetr_monai.data.scans import find_scan
    from organdetr_monai.miq_sam3d.points import SPACES, parse_points

    output = Path(output).expanduser()
    if output.exists() and not output.is_dir():
        raise InputError(f"The output {output} is a file.", "Name a folder.")
    if space not in SPACES:  # before the seconds that loading takes
        said = "The clicks have no unit." if space is None else f"The clicks' space is {space!r}."
        raise InputError(said, "Say --space voxel (indices in the file's array) or --space lps (patient mm).")
    where, rejected = parse_points(points), parse_points(background)
    if len(where) == 0:
        raise InputError("There is no click.", "Give at least one, such as --point 120,200,45.")
    found = find_scan(Path(scan).expanduser())

    from organdetr_monai.miq_sam3d.finder import LesionFinder
    from organdetr_monai.writers.lesions import write_answer

    finder = LesionFinder.load(model, device=device, configs=configs)
    session = finder.open(found)
    answer = session.click(where, space=space, background=rejected)
    write_answer(answer, session.volume[0].numpy(), output)
    return answer
