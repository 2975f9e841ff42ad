"""What is no CT is doubted, with the reason; what is one is not."""

from __future__ import annotations

import re

import numpy as np
import pytest

from organdetr_monai.data.hounsfield import why_not_hu
from organdetr_monai.data.phantom import make_phantom

NOISE = np.random.default_rng(0).random((24, 20, 16))


@pytest.mark.parametrize("field_of_view", ["torso", "abdomen"])
def test_a_ct_is_not_doubted(field_of_view):
    phantom = make_phantom(2, spacing=(8, 8, 8), field_of_view=field_of_view)
    assert why_not_hu(phantom.image) is None
    assert why_not_hu(phantom.image.astype(np.float32)) is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.round(NOISE * 12).astype(np.float32), r"\[0, 12\], whole numbers, 13 of them, like a mask's"),
        (np.zeros((9, 8, 7), np.uint8), r"\[0, 0\], whole numbers, 1 of them, like a mask's"),
        (NOISE * 800, "like an MR's or a rescaled image's"),
        (NOISE * 2 - 1, "like an MR's or a rescaled image's"),
        (NOISE * 4000, "without its offset of -1024"),
        (np.round(NOISE * 4000).astype(np.uint16), "without its offset of -1024"),
    ],
    ids=["mask", "empty mask", "MR", "rescaled", "CT stored from 0", "CT stored from 0, unsigned"],
)
def test_what_is_none_is_doubted_with_the_reason(values, reason):
    said = why_not_hu(values)
    assert said is not None and re.search(reason, said) and "air at -1000" in said
