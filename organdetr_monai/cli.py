"""The command line: one function for each command, wired to where the work is done.

Functions return the exit code: 0 all done, 1 some case failed. `main` gives 2 for bad usage. What is slow to import is
imported in the functions, so that help comes at once. `debug` stands in the signatures for the help; `main` acts on it.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from typing import Any

from organdetr_monai import __version__
from organdetr_monai.errors import InputError, input_error

__all__ = ["COMMANDS", "main"]


def detect(
    *inputs: str,
    output: str,
    organs: str | None = None,
    crop: float | None = None,
    sr: bool = False,
    model: str | None = None,
    configs: str | None = None,
    device: str | None = None,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Find organs in CT scans: for each a box with a score, or that it is absent.

    Writes CASE/detections.json, CASE/detections.mrk.json (for 3D Slicer) and CASE/preview.png for each scan, and
    summary.csv. A scan that cannot be used is reported and does not stop the others; the exit code is then 1.

    Parameters
    ----------
    inputs
        NIfTI, NRRD, MHA or MHD files, DICOM files or folders, or folders of these to any depth.
    output
        Folder of the results, -o for short; files of an earlier run are replaced.
    organs
        Only these, such as liver,spleen (see `organdetr organs`).
    crop
        Write a NIfTI crop of each organ that is there, with this margin in mm, such as 20.
    sr
        Write a DICOM structured report for scans that come as DICOM (needs highdicom).
    model
        A bundle's folder, a checkpoint (.pt), an exported model (.onnx, .ts), or weights that come with this program:
        phantom. Where not given, its weights for head and neck.
    configs
        Config deltas that the model was trained with, such as configs/data/word.json,configs/size/paper.json.
    device
        Such as cpu or cuda; a GPU where there is one if not given.
    quiet
        Print errors only.
    debug
        Show where an error comes from.
    """
    from organdetr_monai.detect import DetectOptions, detect_folder

    report = detect_folder(
        inputs,
        output,
        model=model,
        configs=_names(configs) or (),
        device=device,
        options=DetectOptions(_names(organs), crop, sr),
        quiet=quiet,
        debug=debug,
    )
    if not quiet:
        partly = f" ({len(report.unreported)} without a DICOM report)" if report.unreported else ""
        print(f"{len(report.done)} done{partly}, {len(report.failed)} failed, results in {output}")
        if empty := [name for name, detections in report.done.items() if not detections.present]:
            print(f"no organ found in {', '.join(empty)}")
        if report.doubtful:
            print(f"no CT in HU, it seems, and boxes that mean nothing: {', '.join(report.doubtful)}")
        print(f"the weights know: {', '.join(report.organs)}; on scans of another region they find what is not there")
    return 1 if report.failed or report.unreported else 0


def click(
    scan: str,
    *,
    output: str,
    point: tuple[str, ...] = (),
    space: str | None = None,
    background: tuple[str, ...] = (),
    model: str | None = None,
    configs: str | None = None,
    device: str | None = None,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Find every lesion of the kind of a clicked one: one click, all of them.

    Writes lesions.nii.gz (a label map on the scan's own grid, 1 is the clicked lesion), lesions.json and preview.png.
    The exit code is 1 if there is nothing to find where the clicks lie.

    Parameters
    ----------
    scan
        A NIfTI, NRRD, MHA or MHD file, or a folder of one DICOM series.
    output
        Folder of the results; files of an earlier run are replaced.
    point
        x,y,z of a click on a lesion; may be given several times, also for lesions of several kinds.
    space
        What the numbers are, voxel (indices in the file's array, from 0) or lps (patient mm). There is no default.
    background
        x,y,z of a click on what is not wanted: the lesion there is left out. May be given several times.
    model
        A bundle's folder or a checkpoint (.pt); the bundle that this program is part of where not given.
    configs
        Config deltas that the model was trained with.
    device
        Such as cpu or cuda; a GPU where there is one if not given.
    quiet
        Print errors only.
    debug
        Show where an error comes from.
    """
    from organdetr_monai.click import click_scan

    answer = click_scan(
        scan,
        output,
        points=point,
        space=space,
        background=background,
        model=model,
        configs=_names(configs) or (),
        device=device,
    )
    if not quiet:
        from organdetr_monai.writers.lesions import format_table

        if answer.found:
            print(format_table(answer))
        print(answer.reason or f"{len(answer.lesions)} found, results in {output}")
    return 0 if answer.found else 1


def prepare(
    set_name: str,
    source: str,
    output: str,
    *,
    label_map: str | None = None,
    fractions: str = "0.7,0.1,0.2",
    seed: int = 0,
    workers: int = 2,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Make a datalist for training from a set of scans as it was downloaded.

    Writes datalist.json and, where labels must be merged or parted, labels/. The source is never changed. An
    interrupted run goes on where it stopped. Bad cases are left out and named; the exit code is then 1.

    Parameters
    ----------
    set_name
        abdomenct1k, word, totalsegmentator, amos, verse, nnunet, decathlon, or folder (images/ and labels/).
    source
        Folder of the unpacked download.
    output
        Folder of the datalist.
    label_map
        JSON of organs and their label values, for nnunet, decathlon and folder.
    fractions
        Shares of train, val and test where the set has no splits of its own.
    seed
        Of the random splits.
    workers
        Processes.
    quiet
        Show no progress.
    debug
        Show where an error comes from.
    """
    from organdetr_monai.data.prepare import prepare

    shares = _numbers("--fractions", fractions)
    report = prepare(
        set_name, source, output, seed=seed, fractions=shares, workers=workers, label_map=label_map, progress=not quiet
    )
    if not quiet:
        for note in report.notes:
            print(f"note: {note}")
        counts = ", ".join(f"{count} {split}" for split, count in report.counts.items())
        print(f"{report.datalist}: {counts}; {len(report.skipped)} skipped, {report.resumed} done before")
    return 1 if report.skipped else 0


def organs(set_name: str | None = None, *, debug: bool = False) -> int:
    """List the organs: names, labels in TotalSegmentator v2, and the sets they belong to.

    Parameters
    ----------
    set_name
        This set alone, in the order of its ids: phantom, openkbp, abdomenct1k, word, totalsegmentator, amos, verse.
    debug
        Show where an error comes from.
    """
    from organdetr_monai.organ_table import format_organs

    print(format_organs(set_name))
    return 0


def phantom(
    output: str,
    *,
    lesions: bool = False,
    cases: int = 100,
    seed: int = 0,
    spacing: str | None = None,
    axcodes: str | None = None,
    workers: int = 2,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Write synthetic torso CTs with the masks of their organs, or of lesions, and a datalist.

    An interrupted run goes on where it stopped.

    Parameters
    ----------
    output
        Folder of images/, labels/ and datalist.json.
    lesions
        Abdomens with lesions in liver and kidneys instead; instances/ (ids) and cases/ (their kinds) replace labels/.
    cases
        Number of scans.
    seed
        Another one gives other patients.
    spacing
        Voxel size in mm, such as 4,4,4; drawn for each case where not given, and 2.5,2.5,2.5 with --lesions.
    axcodes
        Orientation of the arrays, such as RAS; drawn for each case where not given. With --lesions always RAS.
    workers
        Processes.
    quiet
        Show no progress.
    debug
        Show where an error comes from.
    """
    size = {} if spacing is None else {"spacing": _numbers("--spacing", spacing)}
    options: dict[str, Any] = {"cases": cases, "seed": seed, "workers": workers, "progress": not quiet, **size}
    if lesions:
        from organdetr_monai.miq_sam3d.phantoms import write_lesion_phantoms

        if axcodes is not None:
            raise InputError("--axcodes is not for --lesions.", "Leave it out: these are RAS.")
        datalist = write_lesion_phantoms(output, **options)
    else:
        from organdetr_monai.data.phantom import write_phantoms

        datalist = write_phantoms(output, axcodes=axcodes, **options)
    if not quiet:
        print(datalist)
    return 0


def evaluate(
    predictions: str,
    datalist: str,
    *,
    split: str | None = None,
    organs: str | None = None,
    output: str | None = None,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Measure boxes of any tool, in the format of detections.json, against the masks of a datalist.

    A case without a usable prediction counts as one in which nothing was found, one without a usable mask is left out;
    both are reported, and the exit code is then 1.

    Parameters
    ----------
    predictions
        Folder of CASE/detections.json or CASE.json files.
    datalist
        As `organdetr prepare` writes it.
    split
        Only the cases of this split, such as test.
    organs
        Only these, such as liver,spleen; all that both sides speak of where not given.
    output
        Folder for metrics.json and metrics.csv.
    quiet
        Show no progress.
    debug
        Show where an error comes from.
    """
    from organdetr_monai.evaluation import evaluate_files
    from organdetr_monai.metric_report import format_table, save

    report = evaluate_files(predictions, datalist, split=split, organs=_names(organs), progress=not quiet)
    for name, reason in report.failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    print(format_table(report.result), end="")
    if output is not None:
        for suffix in ("json", "csv"):
            save(report.result, os.path.join(output, f"metrics.{suffix}"))
    return 1 if report.failed else 0


def export(
    output: str,
    *,
    model: str | None = None,
    format: str | None = None,
    configs: str | None = None,
    device: str | None = None,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Export a model as one file that holds all it needs, for `organdetr detect --model FILE` and other programs.

    The file is put in place when its answers to volumes of noise are the checkpoint's. ONNX takes a minute.

    Parameters
    ----------
    output
        A .onnx or .ts file.
    model
        As `organdetr detect` takes it, but no exported one.
    format
        onnx or torchscript; the suffix of the output says it where not given.
    configs
        Config deltas that the model was trained with, such as configs/data/word.json,configs/size/paper.json.
    device
        Where a TorchScript file will run, such as cuda; cpu where not given. An ONNX file runs on any.
    quiet
        Print errors only.
    debug
        Show where an error comes from.
    """
    from organdetr_monai.export_file import export_model

    report = export_model(output, model=model, format=format, configs=_names(configs) or (), device=device)
    if not quiet:
        size = report.path.stat().st_size / 1e6
        print(f"{report.path}: {size:.1f} MB, differs from the checkpoint by at most {report.difference:.0e}")
    return 0


class _Commands(dict[str, Callable]):
    """Organ detection in CT.

    Exit codes: 0 all done, 1 some case failed, 2 bad usage. `--version` alone tells the version. Training and
    evaluation of the model itself go through `python -m monai.bundle run`.
    """


COMMANDS = _Commands(
    detect=detect, click=click, prepare=prepare, organs=organs, phantom=phantom, evaluate=evaluate, export=export
)


def _names(text: str | None) -> tuple[str, ...] | None:
    """Names separated by commas."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(option: str, text: str) -> tuple[float, float, float]:
    """Three numbers separated by commas."""
    try:
        first, second, third = map(float, text.split(","))
    except ValueError:
        raise InputError(f"{option} is {text!r}.", "Give three numbers, such as 0.7,0.1,0.2.") from None
    return first, second, third


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        Command and arguments; those of the process where not given.

    Returns
    -------
    int
        Exit code.
    """
    import fire

    from organdetr_monai.arguments import for_fire

    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    if argv == ["--version"]:
        print(f"organdetr {__version__}")
        return 0
    try:
        command = for_fire(argv, COMMANDS)
        # Help that was asked for is a result, not an error: `organdetr --help | less`.
        with redirect_stderr(sys.stdout if command[-1] == "--help" else sys.stderr):
            code = fire.Fire(COMMANDS, command=command, name="organdetr", serialize=lambda result: None)
        if isinstance(code, str):  # fire's own: `organdetr -- --completion`
            print(code)
        sys.stdout.flush()  # a reader that has gone shows here, not when Python ends
        return code if isinstance(code, int) else 0
    except SystemExit as exit:  # fire has shown help (0) or found a fault in the arguments (2)
        return int(exit.code or 0) if argv else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # such as `organdetr organs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug:
            traceback.print_exc()
        found = input_error(error)
        if found is None:
            print(f"unexpected {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
            return 1
        print(f"error: {found}", file=sys.stderr)
        return 2
