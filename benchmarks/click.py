"""How long a first and a further click in one scan take.

``python benchmarks/click.py`` clicks on the lesions of a phantom of clinical resolution. ``--scan FILE --points "x,y,z
x,y,z"`` clicks in a scan of your own, at voxels of its array. What finds nothing looks at a single window and is
quicker: the table says how many clicks found a lesion.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from measure import machine, peak_gib, table
from scipy.ndimage import zoom

from organdetr_monai.miq_sam3d.clicks import click_in
from organdetr_monai.miq_sam3d.finder import LesionFinder
from organdetr_monai.miq_sam3d.phantoms import write_lesion_phantoms

FINER = (3, 3, 1)  # than the 2.5 mm of a phantom: 0.8 mm in the slices, as in a clinic


def phantom(folder: Path) -> tuple[Path, list[np.ndarray]]:
    """A scan and the centres of its lesions."""
    write_lesion_phantoms(folder, cases=1, seed=1, workers=1, progress=False)
    image, ids = (nib.load(next((folder / name).glob("*.nii.gz"))) for name in ("images", "instances"))
    values = zoom(image.get_fdata(dtype=np.float32), FINER, order=1)
    path = folder / "scan.nii.gz"
    nib.save(nib.Nifti1Image(values.astype(np.int16), image.affine @ np.diag([*(1 / np.array(FINER)), 1])), path)
    labels, rng = np.asarray(ids.dataobj), np.random.default_rng(0)
    clicks = [click_in(labels == k, "centre", rng) for k in range(1, labels.max() + 1)]
    return path, [click * FINER + np.array(FINER) // 2 for click in clicks]


def rows(scan: Path | None = None, points: str = "", model: Path | None = None) -> str:
    """The table."""
    with tempfile.TemporaryDirectory() as name:
        clicks = [np.array(point.split(","), dtype=int) for point in points.split()]
        if scan is None:
            scan, clicks = phantom(Path(name))
        start = time.perf_counter()
        finder = LesionFinder.load(model, device="cpu")
        seconds = [("load the model", time.perf_counter() - start)]
        start = time.perf_counter()
        session = finder.open(scan)
        seconds.append(("read and prepare the scan", time.perf_counter() - start))
        each, found = [], 0
        for click in clicks:
            start = time.perf_counter()
            found += session.click([click], space="voxel").found
            each.append(time.perf_counter() - start)
        shape = "x".join(map(str, session.volume.shape[1:]))
    seconds.append(("first click", each[0]))
    if each[1:]:
        seconds += [
            ("a further click, median", float(np.median(each[1:]))),
            ("a further click, slowest", max(each[1:])),
        ]
    title = f"{len(clicks)} clicks in {shape} voxels, {found} of them found a lesion; peak {peak_gib():.2f} GiB"
    return table(title, ["", "s"], [list(row) for row in seconds])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scan", type=Path, help="a scan in place of the phantom; needs --points")
    parser.add_argument("--points", default="", help="voxels, such as '120,200,45 80,190,50'")
    parser.add_argument("--model", type=Path, help="other weights than the bundle's")
    options = parser.parse_args()
    if (options.scan is None) != (not options.points):
        parser.error("--scan and --points belong together")
    print(machine())
    print(rows(**vars(options)))
