"""How an organ looks wherever it is shown: one colour and one title, so that all outputs agree."""

from __future__ import annotations

import colorsys

from organdetr_monai.organs import ORGANS

__all__ = ["color_of", "title_of"]

_GOLDEN = 0.618_033_988_75
_LUMINANCE = 0.5


def color_of(organ_id: int) -> tuple[float, float, float]:
    """RGB in [0, 1] of an organ by its id, bright enough for a dark picture; neighbouring ids differ most."""
    hue = (organ_id * _GOLDEN) % 1.0
    saturation, value = ((0.85, 1.0), (0.55, 1.0), (0.80, 0.85))[organ_id % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    white = max(_LUMINANCE - luminance, 0.0) / (1.0 - luminance)  # pure blue and red are too dark to read
    red, green, blue = (channel + white * (1.0 - channel) for channel in (red, green, blue))
    return red, green, blue


def title_of(organ: str) -> str:
    """Name for people: the registry's title; an organ that it does not know keeps its name."""
    return ORGANS[organ].title if organ in ORGANS else organ.replace("_", " ")
