"""Deformable attention: fast and plain sampling agree, and axes are what they say."""

import pytest
import torch

from organdetr_monai.networks import compiled, sampling
from organdetr_monai.networks.compiled import sample_compiled
from organdetr_monai.networks.deformable import DeformableAttention, unit_directions
from organdetr_monai.networks.sampling import sample_bag, sample_grid

SHAPES = [(6, 4, 8), (3, 2, 4), (2, 1, 2)]


def arguments(batch=2, queries=5, heads=3, channels=4, points=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    length = sum(x * y * z for x, y, z in SHAPES)
    value = torch.randn(batch, length, heads, channels, generator=g, dtype=dtype)
    where = torch.rand(batch, queries, heads, len(SHAPES), points, 3, generator=g, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, len(SHAPES), points, generator=g, dtype=dtype)
    return value, where, weights


def needs_compiler(sample):
    if sample is sample_compiled and compiled.library() is None:
        pytest.skip("no C compiler here")


@pytest.mark.parametrize("fast", [sample_bag, sample_compiled])
@pytest.mark.parametrize("channels", [4, 7])
def test_fast_ways_equal_grid_forward_and_backward(fast, channels):
    needs_compiler(fast)
    results = []
    for sample in (sample_grid, fast):
        inputs = [t.requires_grad_() for t in arguments(channels=channels)]
        out = sample(inputs[0], SHAPES, inputs[1], inputs[2])
        out.square().sum().backward()
        results.append((out.detach(), *(t.grad for t in inputs)))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-4), (a - b).abs().max()


@pytest.mark.parametrize("fast", [sample_bag, sample_compiled])
def test_fast_ways_in_bfloat16_are_near_float32(fast):
    needs_compiler(fast)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        value, where, weights = arguments()
        inputs = [value.to(dtype).requires_grad_(), where.requires_grad_(), weights.to(dtype).requires_grad_()]
        out = fast(inputs[0], SHAPES, inputs[1], inputs[2])
        out.sum().backward()
        assert out.dtype == dtype
        assert [t.grad.dtype for t in inputs] == [dtype, torch.float32, dtype]
        results.append((out.detach().float(), *(t.grad.float() for t in inputs)))
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() < 0.02 * a.norm()


def test_portable_way_serves_where_nothing_compiles(monkeypatch):
    called = []
    monkeypatch.setattr(sampling.compiled, "library", lambda build: None)
    monkeypatch.setattr(sampling, "sample_bag", lambda *a: called.append(1) or sample_bag(*a))
    value, where, weights = arguments()
    assert torch.allclose(
        sampling.sample(value, SHAPES, where, weights), sample_grid(value, SHAPES, where, weights), atol=1e-5
    )
    assert called


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a new process of a user whose cache folder is empty."""
    monkeypatch.setattr(compiled, "_found", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled._path.cache_clear()
    yield tmp_path / "organdetr_monai"
    compiled._path.cache_clear()


needs_cc = pytest.mark.skipif(compiled._compiler() is None, reason="no C compiler here")


@needs_cc
def test_a_compiler_that_fails_is_a_warning_not_an_error(monkeypatch, fresh, caplog):
    broken = fresh.parent / "deformable.c"
    broken.write_text("this is not C")
    monkeypatch.setattr(compiled, "SOURCE", broken)
    assert compiled.library() is None
    assert "runs in PyTorch" in caplog.text
    assert not list(fresh.rglob("*.so"))


def test_it_can_be_switched_off(monkeypatch, fresh):
    monkeypatch.setenv("ORGANDETR_COMPILE", "0")
    assert compiled.library() is None
    assert not fresh.exists()


@needs_cc
def test_detection_uses_what_training_built_and_builds_nothing(fresh):
    assert compiled.library(build=False) is None and not fresh.exists()
    assert compiled.library() is not None
    assert compiled.library(build=False) is not None


@needs_cc
def test_a_damaged_file_is_built_again(fresh):
    path = compiled._path()
    fresh.mkdir(mode=0o700)
    path.write_bytes(b"")  # as a full disk leaves it
    assert compiled.library() is not None
    assert path.stat().st_size > 0


@needs_cc
def test_a_file_that_others_could_have_written_is_not_loaded(fresh, monkeypatch, caplog):
    compiled.library()
    (path,) = fresh.glob("*.so")
    for part in (path, fresh):
        before = part.stat().st_mode
        part.chmod(0o777)
        monkeypatch.setattr(compiled, "_found", {})
        assert compiled.library() is None
        assert "others may write" in caplog.text
        part.chmod(before)


@needs_cc
def test_threads_change_nothing(monkeypatch):
    results = []
    for least in (0, 10**12):
        monkeypatch.setattr(compiled, "WORTH_THREADS", least)
        inputs = [t.requires_grad_() for t in arguments()]
        out = sample_compiled(inputs[0], SHAPES, *inputs[1:])
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_cc
def test_sizes_that_do_not_fit_are_refused_before_memory_is_touched():
    value, where, weights = arguments()
    for wrong in ([(6, 4, 9), *SHAPES[1:]], SHAPES[:2]):
        with pytest.raises(ValueError, match="rows on 3 levels"):
            sample_compiled(value, wrong, where, weights)
    with pytest.raises(ValueError, match="do not fit together"):
        sample_compiled(value, SHAPES, where, weights[:1])
    assert sample_compiled(value, SHAPES, where[:, :0], weights[:, :0]).shape == (2, 0, 12)


@pytest.mark.parametrize("sample", [sample_grid, sample_bag, sample_compiled])
def test_sample_at_a_voxel_centre_is_that_voxel(sample):
    needs_compiler(sample)
    shape = (4, 3, 5)
    value = torch.arange(60.0).view(1, 60, 1, 1)
    index = torch.tensor([[0, 0, 0], [3, 2, 4], [1, 2, 3]])
    where = ((index + 0.5) / torch.tensor(shape)).view(1, 3, 1, 1, 1, 3)
    out = sample(value, [shape], where, torch.ones(1, 3, 1, 1, 1))
    want = index[:, 0] * 15 + index[:, 1] * 5 + index[:, 2]
    assert torch.allclose(out.flatten(), want.float(), atol=1e-4)


@pytest.mark.parametrize("sample", [sample_grid, sample_bag, sample_compiled])
def test_outside_is_zero_even_far_away(sample):
    needs_compiler(sample)
    value = torch.ones(1, 60, 1, 2)
    where = torch.tensor([[5.0, 0.5, 0.5], [0.5, -1e6, 0.5], [0.5, 0.5, 1e8]]).view(1, 3, 1, 1, 1, 3)
    out = sample(value, [(4, 3, 5)], where, torch.ones(1, 3, 1, 1, 1))
    assert out.abs().max() == 0


def test_six_heads_look_at_the_six_faces():
    attention = DeformableAttention(24, heads=6, levels=1, points=4)
    seen = []
    attention.sample = lambda value, shapes, points, weights: seen.append(points) or torch.zeros(*points.shape[:2], 24)
    box = torch.tensor([0.5, 0.4, 0.6, 0.2, 0.4, 0.1]).view(1, 1, 6)
    attention(torch.zeros(1, 1, 24), box, torch.zeros(1, 8, 24), [(2, 2, 2)])
    outermost = seen[0][0, 0, :, 0, -1]  # (heads, 3)
    centre, half = box[0, 0, :3], box[0, 0, 3:] / 2
    assert torch.allclose(outermost, centre + unit_directions(6) * half, atol=1e-6)
    assert {tuple(d.tolist()) for d in unit_directions(6)} == {
        (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1),
    }  # fmt: skip


@pytest.mark.parametrize("heads", [1, 3, 8, 12])
def test_directions_are_distinct_for_any_number_of_heads(heads):
    directions = unit_directions(heads)
    assert directions.shape == (heads, 3)
    assert torch.allclose(directions.abs().amax(-1), torch.ones(heads))
    assert len({tuple(d.tolist()) for d in directions}) == heads
