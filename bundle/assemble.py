"""Make ``dist/organ_detr_ct_detection/``, a bundle that needs nothing of this repository."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works in a checkout that is not installed

from bundle import large_files
from bundle.bundles import BUNDLES, ROOT, Bundle
from bundle.versions import bundle_version
from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing_folder

__all__ = ["assemble"]


def assemble(
    bundle: Bundle, output: str | os.PathLike, *, root: Path = ROOT, large_files_url: str | None = None
) -> Path:
    """Copy what belongs to a bundle into a folder of its own.

    The folder is built beside the one that it replaces and put in its place when it is whole.

    Parameters
    ----------
    bundle : Bundle
    output : path
        Where the folder ``bundle.name`` goes.
    root : Path
        The repository.
    large_files_url : str, optional
        Under which files over 25 MB can be downloaded; they are then named in ``large_files.yml``, and stay in the
        folder all the same.

    Returns
    -------
    Path
        ``output/bundle.name``

    Raises
    ------
    InputError
        Versions disagree, a file is missing, or what would be replaced holds more than an assembled bundle: nothing
        was written or removed.
    """
    bundle_version(root / bundle.configs / "metadata.json", root / bundle.package)
    files = {inside: source for source, inside in bundle.files(root)}
    target = Path(output) / bundle.name
    _check_replaceable(target, bundle)
    with replacing_folder(target) as draft:
        for inside, source in files.items():
            (draft / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, draft / inside)
        entries = large_files.describe(draft, large_files_url)
        (draft / large_files.NAME).write_text(large_files.as_yaml(entries), encoding="utf-8")
    return target


def _check_replaceable(target: Path, bundle: Bundle) -> None:
    """Refuse to remove what assembling did not make, such as the results of a training in there."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target} is not a folder.", "Give another --output.")
    if not target.exists():
        return
    own = {f"models/{name}" for name in bundle.model_files} | {f"docs/{name}" for name in bundle.doc_files}
    own |= {"LICENSE", large_files.NAME}
    for path in sorted(target.rglob("*")):
        inside = path.relative_to(target).as_posix()
        ours = inside in own or inside.startswith(("configs/", f"{bundle.package}/")) or "__pycache__" in path.parts
        if not path.is_dir() and not ours:
            raise InputError(
                f"{target} would be replaced, but holds {inside}, which is not of the bundle.",
                "Move it away, or give another --output.",
            )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Assemble a bundle for MONAI's model zoo and MONAI Label.")
    parser.add_argument("--output", default=ROOT / "dist", help="folder in which the bundle's folder is made (dist)")
    parser.add_argument("--bundle", choices=sorted(BUNDLES), default=next(iter(BUNDLES)), help="which one")
    parser.add_argument("--large_files_url", help="under which files over 25 MB can be downloaded")
    options = parser.parse_args(argv)
    try:
        folder = assemble(BUNDLES[options.bundle], options.output, large_files_url=options.large_files_url)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    files = [path for path in folder.rglob("*") if path.is_file()]
    print(f"{folder}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
