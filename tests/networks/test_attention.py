"""Attention: the fast way in bfloat16 gives what the plain one gives, masks and gradients included."""

import pytest
import torch
import torch.nn.functional as F

from organdetr_monai.networks.attention import SHORT, attend

MASKS = {
    "none": lambda b, s: None,
    "bool": lambda b, s: torch.arange(s).expand(b, 1, 1, s) < s - 3,
    "bias": lambda b, s: torch.linspace(-2, 2, s).expand(b, 1, 1, s).bfloat16(),
    "learned": lambda b, s: torch.linspace(-2, 2, s).expand(b, 1, 1, s).bfloat16().requires_grad_(),
}


def inputs(queries: int, keys: int, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    # Rounded first, so that both precisions are asked the same.
    return [torch.randn(s, generator=generator).bfloat16().to(dtype).requires_grad_() for s in shapes]


def run(way, parts, mask):
    out = way(*parts, mask)
    out.float().square().sum().backward()
    learned = [mask] if mask is not None and mask.requires_grad else []
    return [out.detach().float(), *(part.grad.float() for part in (*parts, *learned))]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("queries", "keys"), [(17, 64), (5, SHORT + 1)])
def test_bfloat16_is_near_float32(mask, queries, keys):
    given = MASKS[mask](2, keys)
    if mask in ("bias", "learned"):
        given = given.detach().float().requires_grad_(mask == "learned")
    exact = run(F.scaled_dot_product_attention, inputs(queries, keys), given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = run(attend, inputs(queries, keys, dtype=torch.bfloat16), MASKS[mask](2, keys))
    for a, b in zip(exact, rounded, strict=True):
        assert 0 < (a - b).norm() < 0.02 * a.norm()


def test_float32_and_detection_take_the_library_s_own():
    parts = inputs(17, 64)
    assert torch.equal(attend(*parts), F.scaled_dot_product_attention(*parts))
    with torch.inference_mode():
        parts = inputs(17, 64, dtype=torch.bfloat16)
        assert torch.equal(attend(*parts), F.scaled_dot_product_attention(*parts))


def test_dropout_drops_weights_and_keeps_their_mean():
    torch.manual_seed(0)
    q, k, _ = inputs(50, 64, dtype=torch.bfloat16)
    ones = torch.ones(2, 3, 64, 8, dtype=torch.bfloat16)
    out = attend(q, k, ones, dropout=0.5).float()
    assert out.std() > 0.05 and out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.allclose(attend(q, k, ones).float(), torch.ones(()), atol=0.01)
