"""Which bundles this repository holds: each a description, so that one assembler and one checker serve all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from organdetr_monai.errors import InputError

__all__ = ["BUNDLES", "ROOT", "Bundle"]

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Bundle:
    """What a bundle is made of. Paths are relative to the repository and written with ``/``.

    Attributes
    ----------
    name : str
        Folder of the assembled bundle, and its name in the model zoo. Says task and modality: MONAI Label tells a
        detector by the word "detection" in it, and one that takes clicks by "deepgrow".
    configs : str
        Becomes ``configs/``. A folder below it that has a ``metadata.json`` of its own is another bundle and stays out.
    models : str
        Becomes ``models/``.
    model_files : tuple of str
        What of ``models`` is shipped; training leaves more there.
    docs : str
        Becomes ``docs/``.
    doc_files : tuple of str
        What of ``docs`` is shipped: the model card and the licence of the data, not the repository's handbook.
    package : str
        The Python package that the configs name, and whose ``__version__`` is the bundle's.
    license : str
        Becomes ``LICENSE``.
    """

    name: str
    configs: str = "configs"
    models: str = "models"
    model_files: tuple[str, ...] = ("model.pt", "model.json", "thresholds.json")
    docs: str = "docs"
    doc_files: tuple[str, ...] = ("README.md", "data_license.txt")
    package: str = "organdetr_monai"
    license: str = "LICENSE"

    def files(self, root: Path) -> Iterator[tuple[Path, str]]:
        """Every file to be shipped, and its path inside the bundle.

        Parameters
        ----------
        root : Path
            The repository.

        Raises
        ------
        InputError
            A file or folder of the description is missing.
        """
        configs = _folder(root, self.configs)
        others = {path.parent for path in configs.rglob("metadata.json")} - {configs}
        for path in _files_below(configs):
            if others.isdisjoint(path.parents):
                yield path, f"configs/{path.relative_to(configs).as_posix()}"
        for folder, names in (("models", self.model_files), ("docs", self.doc_files)):
            for name in names:
                yield _file(root, f"{getattr(self, folder)}/{name}"), f"{folder}/{name}"
        package = _folder(root, self.package)
        for path in _files_below(package):
            yield path, f"{package.name}/{path.relative_to(package).as_posix()}"
        yield _file(root, self.license), "LICENSE"


def _files_below(folder: Path) -> Iterator[Path]:
    """Neither hidden files nor caches."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inner):
            yield path


def _folder(root: Path, name: str) -> Path:
    path = root / name
    if not path.is_dir():
        raise InputError(f"There is no folder {path}.", "Assemble from a whole checkout of the repository.")
    return path


def _file(root: Path, name: str) -> Path:
    path = root / name
    if not path.is_file():
        remedy = "Assemble from a whole checkout of the repository."
        if Path(name).suffix in (".pt", ".json"):
            remedy = "Train first; evaluating on the validation split then fits the thresholds."
        raise InputError(f"There is no file {path}.", remedy)
    return path


BUNDLES = {
    bundle.name: bundle
    for bundle in (
        Bundle(
            "organ_detr_ct_detection",
            # With the weights for phantoms, on which anyone can try out the bundle, and it is checked.
            model_files=tuple(
                f"{folder}{name}"
                for folder in ("", "phantom/")
                for name in ("model.pt", "model.json", "thresholds.json")
            ),
        ),
        Bundle(
            "miq_sam3d_ct_deepgrow_annotation",
            configs="configs/miq_sam3d",
            models="models/miq_sam3d",
            model_files=("model.pt", "model.json"),
            docs="docs/miq_sam3d",
        ),
    )
}
