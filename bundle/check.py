"""Check an assembled bundle as MONAI's model zoo does (``ci/verify_bundle.py``), offline, and run it uninstalled."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works in a checkout that is not installed

from bundle.bundles import BUNDLES, ROOT
from bundle.zoo import code_format, configs, files, metadata, network, readme, running, uninstalled
from bundle.zoo.failure import CheckError
from organdetr_monai.errors import InputError

__all__ = ["CHECKS", "QUICK", "check"]

#: Take seconds in all; they look and run nothing of the bundle.
QUICK: dict[str, Callable[[Path], None]] = {
    "files": files.required_files,
    "name": files.name,
    "sizes": files.sizes,
    "personal paths": files.personal_paths,
    "schema": metadata.schema,
    "version": metadata.version,
    "requirements": metadata.requirements,
    "model": metadata.model,
    "ids": configs.ids,
    "readme": readme.readme,
    "code format": code_format.code_format,
    "uninstalled": uninstalled.uninstalled,
}
#: In this order: training makes the phantoms that the later ones take, or else make themselves.
CHECKS = QUICK | {
    "net in/out": network.net_in_out,
    "ckpt_export": network.ckpt_export,
    "training": running.training,
    "evaluating": running.evaluating,
    "inference": running.inference,
    "elsewhere": running.elsewhere,
    "command line": running.command_line,
    "properties": network.properties,
}


def check(folder: Path, names: Iterable[str] = CHECKS, *, debug: bool = False) -> list[str]:
    """Run checks on a copy of a bundle, and print a line for each.

    Parameters
    ----------
    folder : Path
        The bundle. It is not changed.
    names : iterable of str
        Keys of `CHECKS`.
    debug : bool
        Show what a failed program printed, or the traceback.

    Returns
    -------
    list of str
        Names of those that failed.
    """
    failed = []
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        for name in names:
            # What only looks must see the bundle itself; what runs leaves results behind, and gets a copy.
            bundle = folder if name in QUICK else Path(scratch, folder.name)
            if bundle != folder and not bundle.exists():
                shutil.copytree(folder, bundle)
            start = time.monotonic()
            logging.disable(logging.WARNING)  # MONAI's tell of each step; a check is one line
            try:
                CHECKS[name](bundle)
            except Exception as error:  # whatever a broken bundle makes a library raise is its failure, not ours
                failed.append(name)
                print(f"FAILED  {name}: {_reason(error)}", flush=True)
                if debug:
                    print(getattr(error, "output", "") or traceback.format_exc(), flush=True)
            else:
                print(f"ok      {name} ({time.monotonic() - start:.1f} s)", flush=True)
            finally:
                logging.disable(logging.NOTSET)
    return failed


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    known = isinstance(error, CheckError | InputError)
    return lines[0] if known else f"{type(error).__name__}: {lines[0]}"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    default = ROOT / "dist" / next(iter(BUNDLES))
    parser = argparse.ArgumentParser(description="Check an assembled bundle as MONAI's model zoo does, offline.")
    parser.add_argument("folder", nargs="?", type=Path, default=default, help=f"the bundle (dist/{default.name})")
    parser.add_argument("--only", help=f"names of checks, by commas: {', '.join(CHECKS)}")
    parser.add_argument("--quick", action="store_true", help="only those that run nothing of the bundle")
    parser.add_argument("--debug", action="store_true", help="show what failed programs printed")
    options = parser.parse_args(argv)
    names = options.only.split(",") if options.only else list(QUICK if options.quick else CHECKS)
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"there is no check {unknown[0]!r}: {', '.join(CHECKS)}")
    folder = options.folder.resolve()
    if not folder.is_dir():
        parser.error(f"there is no folder {folder}: make it with `python bundle/assemble.py`")
    failed = check(folder, names, debug=options.debug)
    print(f"{len(names) - len(failed)} of {len(names)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
