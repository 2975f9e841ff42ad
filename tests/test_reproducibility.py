"""The same training gives the same weights, to the last bit, on the same machine."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from tests.bundles import arguments
from tests.test_bundle import CONFIGS, overrides, phantoms, run  # noqa: F401 - a fixture


def test_another_process_and_loader_workers_change_no_bit(phantoms, tmp_path):  # noqa: F811
    # The other process has drawn no random numbers before, and loads in two workers.
    there = overrides(phantoms, tmp_path / "there", num_workers=2)
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(CONFIGS / "train.json")]
    command += arguments(there)
    # The number of threads decides in which order sums are taken.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=240)
    run(tmp_path / "here", phantoms)
    ours, theirs = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("here", "there"))
    for part in ("network", "ema"):
        assert all(torch.equal(v, theirs["parts"][part][k]) for k, v in ours["parts"][part].items()), part
    assert (tmp_path / "here/history.json").read_bytes() == (tmp_path / "there/history.json").read_bytes()


def test_another_seed_changes_the_weights(phantoms, tmp_path):  # noqa: F811
    for seed in (0, 1):
        run(tmp_path / str(seed), phantoms, seed=seed, max_epochs=1)
    zero, one = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("0", "1"))
    assert not any(torch.equal(v, one[k]) for k, v in zero.items() if v.is_floating_point() and v.ndim > 1)
