"""Detection over many scans: each leaves its files, a bad one costs only itself, and a table sums up."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from organdetr_monai.data.hounsfield import why_not_hu
from organdetr_monai.errors import InputError, input_error
from organdetr_monai.organs import resolve

if TYPE_CHECKING:
    from concurrent.futures import Future

    from monai.data import MetaTensor

    from organdetr_monai.data.scans import Scan
    from organdetr_monai.detections import Detections
    from organdetr_monai.detector import OrganDetector

__all__ = ["DetectOptions", "DetectReport", "detect_folder", "select_organs", "write_results"]

CROPS, REPORT = "crops", "detections.dcm"


@dataclass(frozen=True)
class DetectOptions:
    """What is written for each case.

    Parameters
    ----------
    organs : tuple of str, optional
        Of the model's organs, those wanted. Default all.
    crop : float, optional
        Margin in mm: write a NIfTI crop for each organ that is present.
    report : bool
        Write a DICOM structured report for scans that come as DICOM.
    """

    organs: tuple[str, ...] | None = None
    crop: float | None = None
    report: bool = False

    def __post_init__(self) -> None:
        if self.crop is not None and not (isinstance(self.crop, int | float) and 0 <= self.crop < np.inf):
            raise InputError(f"The crop's margin is {self.crop!r}.", "Give millimetres, 0 or more.")
        if self.report and find_spec("highdicom") is None:
            raise InputError("DICOM reports need highdicom, which is not installed.", "pip install highdicom")


@dataclass(frozen=True)
class DetectReport:
    """What became of the cases.

    Attributes
    ----------
    done : dict from str to Detections
        By name of the case.
    failed : dict from str to str
        Name of the case, or input that leads to no scan, and the reason.
    unreported : dict from str to str
        Cases among those done of which only the DICOM report failed, and the reason.
    doubtful : dict from str to str
        Cases among those done that look like something else than a CT in HU, and why.
    organs : tuple of str
        All that the weights know.
    """

    done: dict[str, Detections]
    failed: dict[str, str]
    unreported: dict[str, str]
    doubtful: dict[str, str]
    organs: tuple[str, ...]


def detect_folder(
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    model: str | os.PathLike | None = None,
    configs: Sequence[str | os.PathLike] = (),
    device: str | None = None,
    options: DetectOptions | None = None,
    quiet: bool = False,
    debug: bool = False,
) -> DetectReport:
    """Detect in every scan that files and folders hold.

    Parameters
    ----------
    inputs : sequence of path
        As `data.scans.find_scans` takes them.
    output : path
        Gets ``<case>/detections.json``, ``detections.mrk.json`` and ``preview.png`` for each case, what `options` add,
        and ``summary.csv``. Files of an earlier run are replaced.
    model, configs, device
        See `OrganDetector.load`.
    options : DetectOptions, optional
    quiet : bool
        Show no progress, no notes on what was passed over and no doubts whether a scan is a CT in HU; errors always
        show, one line each on stderr.
    debug : bool
        Show the traceback of each error, too.

    Raises
    ------
    InputError
        Nothing can be done at all: no scan, no model, an organ that the model does not know.
    """
    from tqdm import tqdm

    from organdetr_monai.data.read_ahead import ReadAhead
    from organdetr_monai.writers.table import write_table

    options = options or DetectOptions()
    output = Path(output).expanduser()
    if output.exists() and not output.is_dir():
        raise InputError(f"The output {output} is a file.", "Name a folder.")
    scans, failed = _find(inputs, output, quiet=quiet)
    done: dict[str, Detections] = {}
    unreported: dict[str, str] = {}
    doubtful: dict[str, str] = {}
    with ReadAhead(scans) as ahead:
        from organdetr_monai.detector import OrganDetector  # seconds, in which the first scan is inflated

        detector = OrganDetector.load(model, device=device, configs=configs)
        wanted = detector.organs if options.organs is None else select_organs(options.organs, detector.organs)
        readings = ahead.each(partial(_read, detector))
        bar = tqdm(readings, desc="detect", total=len(scans), unit="scan", disable=True if quiet else None)
        for scan, reading in bar:
            folder = output / scan.name
            try:
                done[scan.name], doubt = _detect(detector, reading, folder, wanted, crop=options.crop)
            except Exception as error:  # whatever it is, the other scans want their results
                failed[scan.name] = _reason(error)
                if folder.exists():
                    failed[scan.name] += f" {folder} holds files of an earlier or unfinished run."
                _complain(scan, failed, error, debug=debug)
                continue
            if doubt is not None:
                doubtful[scan.name] = doubt
                if not quiet:
                    _say(f"{scan.name}: warning: {doubt}")
            try:
                if options.report:
                    _report(done[scan.name], scan, folder)
            except Exception as error:
                unreported[scan.name] = f"no DICOM report: {_reason(error)}"
                _complain(scan, unreported, error, debug=debug)
    write_table(done.items(), output / "summary.csv", failed=failed, notes=unreported, doubts=doubtful)
    return DetectReport(done, failed, unreported, doubtful, detector.organs)


def _detect(
    detector: OrganDetector,
    reading: Future[tuple[MetaTensor, str | None]],
    folder: Path,
    organs: Sequence[str],
    *,
    crop: float | None,
) -> tuple[Detections, str | None]:
    """One case, written to its folder, and what makes it look like something else than a CT in HU."""
    volume, doubt = reading.result()
    detections = detector(volume).select(organs)
    write_results(detections, volume[0].numpy(), folder, crop=crop)
    return detections, doubt


def _report(detections: Detections, scan: Scan, folder: Path) -> None:
    """The DICOM report of a case that came as DICOM."""
    if scan.kind == "dicom":
        from organdetr_monai.writers.dicom_sr import write_dicom_sr

        write_dicom_sr(detections, scan.paths, folder / REPORT)


def _find(inputs: Sequence[str | os.PathLike], output: Path, *, quiet: bool) -> tuple[list[Scan], dict[str, str]]:
    """Scans, and the inputs that lead to none with the reason; says what was passed over."""
    from organdetr_monai.data.scans import find_scans

    found, skipped = find_scans(inputs)
    named = {Path(path).expanduser() for path in inputs}
    scans = [scan for scan in found if scan.path in named or not _is_own_crop(scan.path)]
    failed = {str(path): reason for path, reason in skipped if path in named}
    if not scans:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(failed.items())[:3]) or "no input was given"
        raise InputError(f"There is no scan ({reasons}).", "Give NIfTI, NRRD, MHA or MHD files or DICOM folders.")
    for path, reason in skipped:
        if path in named:
            _say(f"{path}: {reason}")
        elif not quiet and not path.resolve().is_relative_to(output.resolve()):  # pictures and tables of an earlier run
            _say(f"passed over {path}: {reason}")
    return scans, failed


def select_organs(names: Iterable[str], organs: Sequence[str]) -> list[str]:
    """The model's own spelling of organs that a user names, each once, in the order given.

    Raises
    ------
    InputError
        An organ that nobody knows, or that the model does not look for.
    """
    found: dict[str, None] = {}
    own = {_canonical(organ): organ for organ in organs}
    for name in names:
        organ = name if name in organs else own.get(resolve(name))
        if organ is None:
            raise InputError(f"The model does not look for {name!r}.", f"It knows {', '.join(organs)}.")
        found[organ] = None
    if not found:
        raise InputError("No organ is named.", f"Choose among {', '.join(organs)}.")
    return list(found)


def _canonical(organ: str) -> str:
    try:
        return resolve(organ)
    except InputError:
        return organ  # one of the model's own, which the registry does not know


def _read(detector: OrganDetector, scan: Scan) -> tuple[MetaTensor, str | None]:
    """Volume of a scan, and what makes it look like something else than HU."""
    volume = detector.read(scan)
    return volume, why_not_hu(volume[0].numpy())


def write_results(detections: Detections, image: np.ndarray, folder: Path, *, crop: float | None = None) -> None:
    """Write everything that one case leaves.

    Parameters
    ----------
    detections : Detections
    image : ndarray of shape (X, Y, Z)
        The scan's own array in HU.
    folder : path
        Gets ``detections.json``, ``detections.mrk.json``, ``preview.png`` and, with a margin, ``crops/<organ>.nii.gz``.
        Crops and the DICOM report of an earlier run, which may show other organs, go.
    crop : float, optional
        Margin of the crops in mm.
    """
    from organdetr_monai.writers.preview import write_preview
    from organdetr_monai.writers.slicer import write_slicer

    if (folder / "detections.json").exists():  # what lies beside is ours
        (folder / REPORT).unlink(missing_ok=True)
        if (folder / CROPS).exists():
            shutil.rmtree(folder / CROPS)
    detections.save(folder / "detections.json")
    write_slicer(detections, folder / "detections.mrk.json")
    write_preview(detections, image, folder / "preview.png")
    if crop is not None:
        from organdetr_monai.writers.crops import write_crops

        write_crops(detections, _compact(image), folder / CROPS, margin=crop)


def _compact(image: np.ndarray) -> np.ndarray:
    """HU as int16, half the size, where that loses nothing."""
    with np.errstate(invalid="ignore"):  # what does not fit shows in the comparison
        whole = image.astype(np.int16)
    return whole if np.array_equal(whole, image) else image


def _is_own_crop(path: Path) -> bool:
    """Whether a file is a crop that an earlier run left in a folder which is now searched."""
    return path.parent.name == CROPS and (path.parent.parent / "detections.json").is_file()


def _reason(error: Exception) -> str:
    """One line."""
    found = input_error(error)
    text = str(found) if found is not None else f"unexpected {type(error).__name__}: {error} (--debug shows where)"
    return " ".join(text.split())


def _complain(scan: Scan, reasons: dict[str, str], error: Exception, *, debug: bool) -> None:
    _say(f"{scan.name}: {reasons[scan.name]}")
    if debug:
        _say("".join(traceback.format_exception(error)))


def _say(line: str) -> None:
    """A line on stderr, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
