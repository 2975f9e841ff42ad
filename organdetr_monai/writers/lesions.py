"""What an answer to clicks leaves: a label map, the table, and a picture."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from organdetr_monai.files import replacing
from organdetr_monai.miq_sam3d.answer import Answer
from organdetr_monai.writers.preview import write_preview

__all__ = ["format_table", "write_answer", "write_labels"]


def write_labels(answer: Answer, path: str | os.PathLike) -> None:
    """Write the label map as NIfTI, on the grid of the scan; 0 is background, the other values are the lesions' ids."""
    import nibabel as nib

    image = nib.Nifti1Image(answer.labels, answer.affine, dtype=np.uint16)
    image.header.set_xyzt_units("mm")
    image.set_qform(answer.affine, code="scanner")
    image.set_sform(answer.affine, code="scanner")
    with replacing(path) as draft:
        nib.save(image, draft)


def write_answer(answer: Answer, image: np.ndarray, folder: str | os.PathLike) -> None:
    """Write ``lesions.nii.gz``, ``lesions.json`` and ``preview.png``.

    Parameters
    ----------
    answer : Answer
    image : ndarray of shape (X, Y, Z)
        The scan's own array in HU.
    folder : path
    """
    folder = Path(folder)
    write_labels(answer, folder / "lesions.nii.gz")
    answer.save(folder / "lesions.json")
    count = len(answer.lesions)
    write_preview(
        answer.as_detections(),
        image,
        folder / "preview.png",
        labels=answer.labels,
        points=[click.voxel for click in answer.clicks],
        heading=f"{count} {'lesion' if count == 1 else 'lesions'} found, + a click" if count else "nothing found at +",
    )


def format_table(answer: Answer) -> str:
    """A line for each lesion, for a terminal; kinds are told where there is more than one."""
    kinds = {lesion.kind for lesion in answer.lesions}
    lines = [f"{'id':>4} {'score':>6} {'volume':>10}  centroid (LPS mm)"]
    for lesion in answer.lesions:
        center = ", ".join(f"{number:.1f}" for number in lesion.centroid_mm)
        notes = ["clicked"] if lesion.clicked else []
        notes += [f"kind {lesion.kind}"] if len(kinds) > 1 else []
        notes += [f"cut: {', '.join(lesion.truncated)}"] if lesion.truncated else []
        line = f"{lesion.id:>4} {lesion.score:>6.2f} {lesion.volume_ml:>7.2f} ml  ({center})  {'; '.join(notes)}"
        lines.append(line.rstrip())
    return "\n".join(lines)
