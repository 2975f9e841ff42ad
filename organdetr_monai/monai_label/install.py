"""Put the bundle into a MONAI Label app."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing, replacing_folder

__all__ = ["CLICK_NAME", "DEFAULT_NAME", "install"]

#: MONAI Label takes a bundle for a detector by the word "detection" in its folder's name, and sends clicks to one with
#: the word "deepgrow".
DEFAULT_NAME, CLICK_NAME = "organ_detr_ct_detection", "miq_sam3d_ct_deepgrow_annotation"

_GET_APP = "Get one with `monailabel apps --download --name monaibundle --output apps`, then give apps/monaibundle."
_STOCK_MAIN, _OWN_MARK = "monaibundle_main.py", "OrganDetrApp"
_MODEL_FILES = ("model.pt", "model.json", "thresholds.json")
_SKIP = shutil.ignore_patterns("__pycache__", ".*", "*.pyc")


def install(
    app: str | os.PathLike,
    *,
    bundle: str | os.PathLike = Path(__file__).parents[2],
    name: str | None = None,
    replace_models: bool = False,
) -> Path:
    """Copy a bundle into an app of MONAI Label and let the app use the bundle's tasks; again for a newer version.

    Parameters
    ----------
    app : path
        Folder of a monaibundle app.
    bundle : path
        A bundle's root: this repository, or what the model zoo gives. The default is that of this package.
    name : str, optional
        Of the folder below ``app/model``, and of the model in the client. Default `DEFAULT_NAME` or `CLICK_NAME`.
    replace_models : bool
        False: a model that is there already stays, since annotators may have trained it.

    Returns
    -------
    Path
        ``app/model/name``

    Raises
    ------
    InputError
        No monaibundle app, no bundle, no weights, a name without "detection" or "deepgrow": nothing was written.
    """
    app, bundle = Path(app), Path(bundle).resolve()
    clicks = _answers_clicks(bundle)
    target = app / "model" / (name or (CLICK_NAME if clicks else DEFAULT_NAME))
    _check(app, bundle, target, "deepgrow" if clicks else "detection")
    for part in ("configs", "organdetr_monai"):
        with replacing_folder(target / part) as draft:
            shutil.copytree(bundle / part, draft, ignore=_SKIP)
    for document in ("LICENSE", "docs/README.md", "docs/data_license.txt"):
        _copy(bundle / document, target / document)
    if replace_models or not (target / "models" / "model.pt").is_file():
        for file in _MODEL_FILES:
            (target / "models" / file).unlink(missing_ok=True)
            if (bundle / "models" / file).is_file():
                _copy(bundle / "models" / file, target / "models" / file)
    main = app / "main.py"
    if _OWN_MARK not in main.read_text(encoding="utf-8"):
        _copy(main, app / _STOCK_MAIN)
    _copy(Path(__file__).with_name("app_main.py"), main)
    return target


def _answers_clicks(bundle: Path) -> bool:
    """Whether a bundle's config is of the kind that takes clicks; one with a detector is not."""
    config = bundle / "configs" / "inference.json"
    return config.is_file() and "ClickInferer" in config.read_text(encoding="utf-8")


def _check(app: Path, bundle: Path, target: Path, word: str) -> None:
    main = app / "main.py"
    if not main.is_file():
        raise InputError(f"{app} is no app of MONAI Label: it has no main.py.", _GET_APP)
    source = main.read_text(encoding="utf-8")
    if _OWN_MARK in source:
        if not (app / _STOCK_MAIN).is_file():
            raise InputError(f"{app} has lost its {_STOCK_MAIN}.", _GET_APP)
    elif "class MyApp(MONAILabelApp)" not in source or "get_bundle_models" not in source:
        raise InputError(f"{app} is another app than monaibundle.", _GET_APP)
    if word not in target.name:
        example = CLICK_NAME if word == "deepgrow" else DEFAULT_NAME
        raise InputError(f"The name {target.name!r} has no {word!r} in it.", f"Use one such as {example}.")
    for part in ("configs/inference.json", "configs/train.json", "models/model.pt", "organdetr_monai/monai_label"):
        if not (bundle / part).exists():
            raise InputError(f"{bundle} is no bundle with weights: it has no {part}.", "Give a bundle's root.")
    if target.resolve() == bundle:
        raise InputError(f"{bundle} lies in the app already.", "Give the bundle from which to install.")
    if target.is_symlink():
        raise InputError(
            f"{target} is a link: training would change the bundle that it leads to.", "Remove the link and try again."
        )


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as draft:
        shutil.copyfile(source, draft)
