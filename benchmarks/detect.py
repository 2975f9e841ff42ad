"""``organdetr detect`` of a full-resolution scan against reading the file once.

``--scan FILE`` takes a scan of your own; without it a phantom of 512×512×133 voxels is written first. ``--model`` takes
other weights than those for phantoms.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from measure import ROOT, table
from scipy.ndimage import zoom

from organdetr_monai.data.phantom import write_phantoms

SHAPE, SPACING = (512, 512, 133), (0.7, 0.7, 2.5)


def full_resolution_phantom(folder: Path) -> Path:
    """A phantom with the size and the noise of a clinical scan, so that it compresses like one."""
    write_phantoms(folder / "phantom", cases=1, seed=0)
    small = nib.load(next((folder / "phantom" / "images").glob("*.nii.gz")))
    volume = small.get_fdata(dtype="float32")
    # Enlarged to the wanted number of voxels, whatever body that makes: time does not depend on the size of organs.
    volume = zoom(volume, [n / s for n, s in zip(SHAPE, volume.shape, strict=True)], order=1)
    volume += np.random.default_rng(0).normal(0, 12, volume.shape).astype(np.float32)
    path = folder / "scan.nii.gz"
    nib.save(nib.Nifti1Image(volume.astype(np.int16), np.diag([*SPACING, 1.0])), path)
    return path


def wall(*command: str, repeat: int = 3) -> float:
    """Least wall seconds of a command in a process of its own."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        best = min(best, time.perf_counter() - start)
    return best


def import_seconds(python: str, *arguments: str) -> float:
    """Seconds that a command spends on importing modules, by Python's own account; the second run, from warm files.

    Ask for a small scan: a large one is inflated beside the imports, which must not count as theirs.
    """
    for _ in range(2):
        done = subprocess.run([python, "-X", "importtime", *arguments], check=True, capture_output=True, text=True)
    lines = (line.removeprefix("import time:").split("|")[0] for line in done.stderr.splitlines() if "|" in line)
    return sum(int(own) for own in lines if own.strip().isdigit()) / 1e6


def rows(scan: Path | None = None, model: Path = ROOT / "models" / "phantom") -> str:
    """The table; the weights for phantoms are those for a trunk."""
    python = sys.executable
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = scan or full_resolution_phantom(folder)
        write_phantoms(folder / "small", cases=1, seed=0, spacing=(10.0, 10.0, 10.0))
        small = next((folder / "small" / "images").glob("*.nii.gz"))
        start = wall(python, "-c", "pass")
        load = wall(python, "-c", f"import nibabel; nibabel.load({str(scan)!r}).get_fdata(dtype='float32')")
        load -= wall(python, "-c", "import nibabel")
        usage = wall(python, "-m", "organdetr_monai", "--help")
        program = ("-m", "organdetr_monai", "detect", "--output", str(folder / "out"), "--model", str(model))
        imports = start + import_seconds(python, *program, str(small))
        detect = wall(python, *program, str(scan))
        copies = [shutil.copy(scan, folder / f"copy{k}.nii.gz") for k in range(3)]
        further = (wall(python, *program, *copies) - detect) / (len(copies) - 1)
        gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        shape = "x".join(map(str, nib.load(scan).shape))
    found = [
        ["interpreter", start, start / load],
        ["organdetr --help", usage, usage / load],
        ["interpreter and imports", imports, imports / load],
        ["nibabel.load(f).get_fdata(dtype='float32')", load, 1.0],
        ["organdetr detect", detect, detect / load],
        ["organdetr detect without interpreter and imports", detect - imports, (detect - imports) / load],
        ["each further scan of the same command", further, further / load],
    ]
    return table(f"Detection in {shape} voxels; peak {gib:.2f} GiB", ["", "s", "times nibabel"], found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scan", type=Path, help="a scan in place of a phantom")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "phantom")
    print(rows(**vars(parser.parse_args())))
