"""What ``benchmarks/accuracy.py`` compares: names, and the config deltas behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from measure import ROOT

CONFIGS = ROOT / "configs"

#: The paper's rivals, its ablations, and the peers. ``default`` is the bundle as it is: dense matching and MSA.
CONTENDERS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "hungarian": ("matcher/hungarian.json",),
    "hybrid": ("matcher/hybrid.json",),
    "dn": ("matcher/dn.json",),
    "cdn": ("matcher/cdn.json",),
    "distinct": ("matcher/distinct.json",),
    "encoder_none": ("encoder/none.json",),
    "encoder_deformable": ("encoder/deformable.json",),
    "resnet3d": ("backbone/resnet3d.json",),
    "swin": ("backbone/swin.json",),
    "swin_unetr": ("backbone/swin_unetr.json",),
    "segmentation_off": ("segmentation/off.json",),
    "two_stage": ("queries/two_stage.json",),
    "quality": ("decoder/quality.json",),
    "refiner_none": ("refiner/none.json",),
    "no_refinement": ("decoder/no_refinement.json",),
    "auxiliary": ("decoder/auxiliary.json",),
    "no_average": ("average/off.json",),
    "retinanet": ("peers/retinanet.json",),
    "retina_unet": ("peers/retina_unet.json",),
    "focused_decoder": ("peers/focused_decoder.json",),
    "d_detr": ("peers/d_detr.json",),
    "unet": ("peers/unet.json",),
}


def deltas(name: str) -> list[Path]:
    """Config files of a contender, in order; whether they exist is not asked.

    Parameters
    ----------
    name : str
        One of `CONTENDERS`, a file of ``configs/`` (``matcher/dn.json``), any other JSON file, or several of these
        joined by ``+``: ``dn+encoder/none.json``.

    Raises
    ------
    ValueError
        For a name that is neither.
    """
    files: list[Path] = []
    for part in name.split("+"):
        if part in CONTENDERS:
            files += [CONFIGS / delta for delta in CONTENDERS[part]]
        elif part.endswith(".json"):
            inside = CONFIGS / part
            files.append(inside if inside.is_file() else Path(part).resolve())
        else:
            raise ValueError(f"no contender is called {part!r}; there are {', '.join(CONTENDERS)}, or give JSON files")
    return files
