"""Samples that depend on their case and epoch alone, and a cache that processes share."""

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose, Lambdad, RandGaussianNoised

from organdetr_monai import distributed
from organdetr_monai.data.cache import SampleDataset
from organdetr_monai.errors import InputError, input_error


def dataset(cases=4, *, prepare=lambda x: x + 1, **options):
    data = [{"image": MetaTensor(torch.full((1, 2, 2, 2), float(k))), "case": str(k)} for k in range(cases)]
    transform = Compose([Lambdad("image", prepare), RandGaussianNoised("image", prob=1.0)])
    return SampleDataset(data, transform, progress=False, **options)


def test_a_sample_depends_on_seed_epoch_and_case_alone():
    one, other = dataset(seed=1), dataset(seed=1)
    forward = [one[k]["image"] for k in range(4)]
    backward = [other[k]["image"] for k in reversed(range(4))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    noise = torch.stack([image - k - 1 for k, image in enumerate(forward)])
    assert len(noise.unique()) == noise.numel(), "cases draw alike"
    other.set_epoch(1)
    assert not torch.equal(other[0]["image"], forward[0])
    assert not torch.equal(dataset(seed=2)[0]["image"], forward[0])


def test_loader_workers_change_nothing():
    def epoch(workers):
        data = dataset(seed=1)
        loader = DataLoader(data, batch_size=2, num_workers=workers, collate_fn=lambda x: [s["image"] for s in x])
        data.set_epoch(7)
        return torch.stack([image for batch in loader for image in batch])

    assert torch.equal(epoch(0), epoch(2))


def test_what_comes_before_the_random_transforms_is_computed_once():
    calls = []
    data = dataset(prepare=lambda x: calls.append(1) or x)
    for _ in range(3):
        data[0]
    assert len(calls) == 4


def prepare_together(folder, rank):
    """What each of two processes does: prepare its half, see all, and hear of the other's error."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        prepared = []
        data = dataset(5, shared=True, prepare=lambda x: prepared.append(int(x.max())) or x + 1)
        assert prepared == [rank, rank + 2, *([4] if rank == 0 else [])]
        assert isinstance(data._cache[0]["image"], MetaTensor)
        alone = dataset(5)
        assert all(torch.equal(data[k]["image"], alone[k]["image"]) for k in range(5))

        def refuse(image):
            if image.max() == 3:  # of process 1
                raise InputError("case 3 is broken.", "Mend it.")
            return image

        with pytest.raises(Exception) as failure:
            dataset(5, shared=True, prepare=refuse)
        if rank == 1:
            assert "case 3 is broken" in str(input_error(failure.value))
        else:
            assert failure.type is distributed.OtherProcessError
        assert distributed.once(lambda: rank) == 0
        assert distributed.share("abc") == [["a", "c"], ["b"]][rank] and distributed.share("a") == ["a"]
        assert np.allclose(distributed.mean(torch.tensor([1.0 + rank, 4.0])), [1.5, 4.0])
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_prepare_half_each_and_see_all(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    other = torch.multiprocessing.get_context("spawn").Process(target=prepare_together, args=(str(tmp_path), 1))
    other.start()
    prepare_together(str(tmp_path), 0)
    other.join(60)
    assert other.exitcode == 0
    assert not list(scratch.iterdir()), "files are left behind"
