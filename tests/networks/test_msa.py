"""MSA: every token looks at its own place, and at nobody else's image."""

import pytest
import torch

from organdetr_monai.networks import MSAEncoder
from organdetr_monai.networks.msa import MSALevel, from_windows, to_windows, window_constants, window_layout


@pytest.mark.parametrize(("shape", "window"), [((8, 8, 8), 4), ((10, 7, 5), 4), ((3, 3, 9), 8)])
def test_windows_round_trip_and_hold_neighbours(shape, window):
    size, count = window_layout(shape, window)
    grid = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"), -1)[None]
    windows = to_windows(grid + 1, size, count)
    assert torch.equal(from_windows(windows, size, count, shape), grid + 1)
    real = windows.amin(-1) > 0
    for tokens, mask in zip(windows, real, strict=True):  # no window spans more than its own size
        if mask.any():
            extent = tokens[mask].amax(0) - tokens[mask].amin(0)
            assert all(e < s for e, s in zip(extent.tolist(), size, strict=True))


@pytest.mark.parametrize("shape", [(32, 16, 16), (32, 24, 16), (24, 16, 40)])
def test_one_coarse_token_changes_only_the_fine_window_under_it(shape):
    level = MSALevel(24, 3, 32, 4, has_coarser=True).eval()
    fmap = torch.randn(1, 24, *shape)
    coarse = torch.randn(1, *(n // 4 for n in shape), 24)
    changed = coarse.clone()
    place = (3, 1, 2)  # asymmetric, so that an axis taken for another shows
    changed[(0, *place)] += torch.randn(24)  # not a constant: the norm would take it away
    with torch.inference_mode():
        _, before = level(fmap, coarse)
        _, after = level(fmap, changed)
    moved = ((before - after).abs().amax(-1) > 1e-6)[0].nonzero()
    # A window of 4 fine tokens lies over 2 coarse tokens: tokens 4 * (p // 2) up to 4 * (p // 2) + 4.
    low = torch.tensor([4 * (p // 2) for p in place])
    assert len(moved) > 0
    assert (moved >= low).all() and (moved < low + 4).all()
    assert len(moved) == 64, "the whole window sees the coarse token"


@pytest.mark.parametrize("shape", [(32, 16, 24), (20, 12, 28)])
def test_batch_of_two_equals_two_batches_of_one(shape):
    encoder = MSAEncoder(24, (4, 6, 8), heads=3, hidden=32).eval()
    maps = [torch.randn(2, 24, *(-(-n // s) for n in shape)) for s in (1, 2, 4)]
    with torch.inference_mode():
        both = encoder(maps)
        for i in range(2):
            for whole, alone in zip(both, encoder([m[i : i + 1] for m in maps]), strict=True):
                assert torch.allclose(whole[i : i + 1], alone, atol=1e-5)


@pytest.mark.parametrize("shape", [(17, 13, 9), (8, 8, 8), (33, 6, 5)])
def test_shapes_stay_for_any_size(shape):
    encoder = MSAEncoder(24, (4, 4, 4), heads=3, hidden=32).eval()
    maps = [torch.randn(1, 24, *(-(-n // s) for n in shape)) for s in (1, 2, 4)]
    out = encoder(maps)
    assert [m.shape for m in out] == [m.shape for m in maps]
    assert all(m.isfinite().all() for m in out)


def test_coarse_context_reaches_the_finest_map():
    encoder = MSAEncoder(24, (4, 4, 4), heads=3, hidden=32).eval()
    maps = [torch.randn(1, 24, n, n, n) for n in (16, 8, 4)]
    changed = [maps[0], maps[1], maps[2] + torch.randn(1, 24, 4, 4, 4)]
    assert (encoder(maps)[0] - encoder(changed)[0]).abs().max() > 1e-3


def test_encoder_is_not_linear_at_the_start():
    # A vanishing layer scale would make f(2x) - f(0) = 2 (f(x) - f(0)); residuals alone would make f(x) = x.
    encoder = MSAEncoder(24, (4, 4, 4), heads=3, hidden=32).eval()
    maps = [torch.randn(1, 24, n, n, n) for n in (8, 4, 2)]
    with torch.inference_mode():
        zero, one, two = (encoder([k * m for m in maps])[0] for k in (0.0, 1.0, 2.0))
    residual = ((two - zero) - 2 * (one - zero)).norm() / (one - zero).norm()
    assert residual > 0.1


def test_padding_is_masked_and_nothing_else():
    grid = torch.ones(2, 6, 4, 5, 24)
    size, count = window_layout((6, 4, 5), 4)
    _, mask = window_constants(grid, size, count)
    real = to_windows(grid, size, count)[..., 0] > 0  # padding is zero
    assert torch.equal(mask[:, 0, 0], real) and not real.all()
    assert window_constants(torch.ones(1, 8, 4, 4, 24), (4, 4, 4), (2, 1, 1))[1] is None


@pytest.mark.parametrize("window", [3, 5, 2])
def test_window_over_no_whole_or_a_single_coarse_token_is_refused(window):
    with pytest.raises(ValueError, match=f"even.*{window}"):
        MSAEncoder(24, (window, 4, 4), heads=3)
