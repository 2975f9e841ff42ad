"""What a run leaves on disk: the state to go on from, and the best model."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from organdetr_monai.errors import InputError
from organdetr_monai.files import replacing
from organdetr_monai.organs import NAME

logger = logging.getLogger(__name__)


def beside(path: str | Path, name: str) -> Path:
    """Path of another file in the folder of a checkpoint."""
    return Path(path).with_name(name)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON keeps it: tuples are lists."""
    return json.loads(json.dumps(dict(settings)))


def save_atomically(obj: Any, path: Path) -> None:
    """``torch.save`` that leaves either the old file or the new one, whatever happens in between."""
    with replacing(path) as draft:
        torch.save(obj, draft)


SETTINGS = (
    *("organs", "spacing", "window", "hu_window", "channels", "hidden_dim", "num_queries", "num_kinds"),
    "refiner_size",
)


def load_settings(path: str | Path) -> dict[str, Any]:
    """Read ``model.json``, what training wrote beside ``model.pt``: keys of `SETTINGS`; empty where there is none.

    Raises
    ------
    InputError
        The file holds anything but names and numbers: settings enter a config, and a config's strings can be code.
    """
    path = Path(path)
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text())
        values = [v for value in settings.values() for v in (value if isinstance(value, list) else [value])]
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}).", "Take it from the training that made the model."
        ) from error
    strange = [v for v in values if not (isinstance(v, int | float) or (isinstance(v, str) and NAME.fullmatch(v)))]
    strange += [key for key in settings if key not in SETTINGS]
    if strange:
        raise InputError(
            f"{path} holds {strange[0]!r}, and may hold {', '.join(SETTINGS)} as names and numbers only.",
            "Take it from the training that made the model.",
        )
    return settings


def settings_of(checkpoint: str | Path, *, required: bool = False) -> dict[str, Any]:
    """:func:`load_settings` of what training wrote beside a checkpoint: ``model.json`` for ``model.pt``.

    Raises
    ------
    InputError
        There is none, and it is required.
    """
    path = Path(checkpoint).with_suffix(".json")
    settings = load_settings(path)
    if required and not settings:
        raise InputError(f"there is no {path}.", f"Copy it from where {Path(checkpoint).name} was trained.")
    return settings


def check_settings(checkpoint: str | Path, settings: Mapping[str, Any]) -> None:
    """Refuse to use weights on another grid, or for other organs, than they were trained with.

    They would load, and give figures that are wrong. Keys that ``model.json`` does not have pass.

    Raises
    ------
    InputError
        It names the first key that differs.
    """
    trained = settings_of(checkpoint)
    for key, value in _plain(settings).items():
        if trained.get(key, value) != value:
            raise InputError(
                f"{checkpoint} was trained with {key} {trained[key]}, and is asked for {value}.",
                "Use the configs and options that it was trained with, or name other weights with --ckpt_path.",
            )


#: Folder beside ``model.pt`` for the weights that were there before the first training.
AS_INSTALLED = "as_installed"
#: Start of the names of weights that work in training only: ``last.pt`` keeps them, ``model.pt`` does not.
EXTRA_QUERIES = "extra_queries."


class TrainingState:
    """Handler: saves after each epoch what a run needs to go on, restores it at the start, keeps the best model.

    ``last.pt`` holds the state of the run (not to be shared); ``model.pt`` is the plain state dict of the best model
    so far by the evaluator's key metric, which is what a MONAI bundle ships. Weights that were in the folder before its
    first run are kept: :func:`keep_weights`.

    Parameters
    ----------
    folder : path
        Where ``last.pt`` lives.
    parts : mapping of name to object
        Whatever has ``state_dict`` and ``load_state_dict``: network, optimiser, scheduler, average.
    model : nn.Module
        Whose weights the evaluator measures and ``model.pt`` keeps.
    evaluator : MONAI Evaluator, optional
        Its ``best_metric`` decides; without one the last epoch's model is kept.
    model_path : path, optional
        Default ``folder/model.pt``.
    settings : mapping, optional
        Keys and values of the config that a user of the model needs: organs, spacing, window. Written to ``model.json``
        beside the model, so that a checkpoint of other organs explains itself.
    resume : bool
        False: start afresh, and overwrite.
    save : bool
        False on the processes of a distributed run that must not write.
    """

    def __init__(
        self,
        folder: str | Path,
        parts: Mapping[str, Any],
        model: nn.Module,
        evaluator: Any = None,
        *,
        model_path: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        resume: bool = True,
        save: bool = True,
    ) -> None:
        self.path = Path(folder) / "last.pt"
        self.model_path = Path(model_path) if model_path else Path(folder) / "model.pt"
        self.parts, self.model, self.evaluator = dict(parts), model, evaluator
        self.settings, self.resume, self.save = dict(settings or {}), resume, save

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that validates."""
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.store)

    def restore(self, engine: Any) -> None:
        """Load ``last.pt`` where there is one; where there is none, keep the weights that the run will replace."""
        if self.save and not self.path.exists():
            keep_weights(self.model_path)
        if not self.resume or not self.path.exists():
            return
        try:
            state = torch.load(self.path, map_location=engine.state.device, weights_only=True)
            self._check_settings(state["settings"])
            self._check_parts(state["parts"])
            for name, part in self.parts.items():
                saved = state["parts"][name]
                if isinstance(part, torch.optim.lr_scheduler.LambdaLR):
                    # How long and how high the schedule is says the config of now: --max_epochs may have been raised.
                    saved = {k: v for k, v in saved.items() if k not in ("t_total", "warmup_steps", "base_lrs")}
                part.load_state_dict(saved)
            for part in self.parts.values():
                if isinstance(part, torch.optim.lr_scheduler.LambdaLR):
                    _follow(part)
        except InputError:
            raise
        except (RuntimeError, ValueError, KeyError, EOFError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"the run in {self.path.parent} cannot be resumed ({reason}).",
                "It is of another network or optimiser: give another --ckpt_dir, or --resume False to start anew.",
            ) from error
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        if self.evaluator is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        logger.info("resumed %s after epoch %d of %d", self.path, state["epoch"], engine.state.max_epochs)
        if state["epoch"] >= engine.state.max_epochs:
            logger.info("nothing left to train: raise --max_epochs, or give another --ckpt_dir to start anew")

    def _check_settings(self, before: Mapping[str, Any]) -> None:
        now = _plain(self.settings)
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            key = changed[0]
            raise InputError(
                f"the run in {self.path.parent} was of other {', '.join(changed)} ({key} was {before.get(key)}, is "
                f"{now.get(key)}).",
                "Give the same again, another --ckpt_dir, or --resume False to start anew.",
            )

    def _check_parts(self, before: Mapping[str, Any]) -> None:
        for name in sorted(before.keys() ^ self.parts.keys()):
            raise InputError(
                f"the run in {self.path.parent} was begun {'with' if name in before else 'without'} a {name}.",
                "Give the configs that it was begun with, another --ckpt_dir, or --resume False to start anew.",
            )

    def store(self, engine: Any) -> None:
        """Write ``model.pt`` if this epoch is the best, then ``last.pt``."""
        if not self.save:
            return
        best = self.evaluator.state if self.evaluator is not None else None
        # In this order: a kill in between repeats an epoch and never loses the best model.
        unseen = best is not None and best.best_metric_epoch < 1 and engine.state.epoch >= engine.state.max_epochs
        if unseen:
            logger.warning("no epoch was validated (--val_interval): %s holds the last one", self.model_path)
        if best is None or unseen or best.best_metric_epoch == engine.state.epoch:  # it counts the trainer's epochs
            with replacing(self.model_path.with_suffix(".json")) as draft:
                draft.write_text(json.dumps(_plain(self.settings), indent=1) + "\n")
            beside(self.model_path, "thresholds.json").unlink(missing_ok=True)  # fitted to the weights that go
            weights = {k: v for k, v in self.model.state_dict().items() if not k.startswith(EXTRA_QUERIES)}
            save_atomically(weights, self.model_path)
        state = {
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "settings": _plain(self.settings),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "best_metric": best.best_metric if best else None,
            "best_metric_epoch": best.best_metric_epoch if best else None,
        }
        save_atomically(state, self.path)


def _follow(schedule: torch.optim.lr_scheduler.LambdaLR) -> None:
    """Give the optimiser, which has the rates of before, those of the schedule as it is now."""
    for group, base, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(schedule.last_epoch)


def keep_weights(path: Path) -> None:
    """Copy a ``model.pt`` that a training is to replace, and what lies beside it, to ``as_installed/``, once.

    A first training in the bundle's own ``models`` would else leave nothing of the weights that came with it.
    """
    copy = path.parent / AS_INSTALLED
    if not path.exists() or copy.exists():
        return
    draft = copy.with_name(f".{AS_INSTALLED}")
    draft.mkdir(exist_ok=True)
    for file in (path, path.with_suffix(".json"), beside(path, "thresholds.json")):
        if file.exists():
            shutil.copy2(file, draft)
    draft.rename(copy)
    logger.info("the weights that were in %s are in %s now", path.parent, copy)


def weights_id(path: str | Path) -> str:
    """Which weights a file holds, for results to name: ``sha256:`` and the first 16 digits that ``sha256sum`` prints.

    Raises
    ------
    InputError
        There is no such file.
    """
    path = _weights_file(path)
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"


def _weights_file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there are no weights at {path}.", "Train first, or name the file with --ckpt_path.")
    return path


def load_weights(
    network: nn.Module, path: str | Path, *, device: str | torch.device = "cpu", fresh: str | None = None
) -> nn.Module:
    """Load ``model.pt`` strictly; queries that work in training only, which it does not hold, stay as they are.

    Parameters
    ----------
    network : torch.nn.Module
    path : path
    device : torch.device or str
    fresh : str, optional
        A part of the network, such as ``refiner``, that the file may lack: it then stays as it is, to be trained.

    Raises
    ------
    InputError
        The file is missing, is no checkpoint, or belongs to another architecture; the first differing names are given.
    """
    path = _weights_file(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise InputError(
            f"{path} is not a checkpoint ({type(error).__name__}).", "Give a model.pt of this bundle."
        ) from error
    own = {name: weight for name, weight in network.state_dict().items() if not name.startswith(EXTRA_QUERIES)}
    if not isinstance(state, Mapping):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state dict.", "Give a model.pt of this bundle.")
    if {"parts", "epoch"} <= state.keys():
        raise InputError(f"{path} is the state of a training.", f"Give {beside(path, 'model.pt')}, its best weights.")
    if fresh is not None and not any(name.startswith(f"{fresh}.") for name in state):
        own = {name: weight for name, weight in own.items() if not name.startswith(f"{fresh}.")}
        logger.info("%s has no %s: it is trained from the start", path, fresh)
    elif fresh is not None:
        logger.info("%s has a %s, which is trained further", path, fresh)
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    refiner = {name for name in own if name.startswith("refiner.")}
    wrong = [k for k in own.keys() & state.keys() if own[k].shape != getattr(state[k], "shape", None)]
    if missing or extra or wrong:
        example = f"first missing: {missing[0]}" if missing else f"first unknown: {extra[0]}" if extra else ""
        if wrong:
            example = f"{wrong[0]} has shape {tuple(state[wrong[0]].shape)}, the network {tuple(own[wrong[0]].shape)}"
        remedy = "Use the configs, organs and deltas it was trained with."
        if refiner and set(missing) == refiner and not extra and not wrong:
            remedy = "Give configs/refiner/none.json: it has no second look at each organ; refiner/add.json trains one."
        elif not missing and not wrong and all(name.startswith("refiner.") for name in extra):
            remedy = "Give configs/refiner/default.json, last: it has a second look at each organ."
        raise InputError(
            f"{path} belongs to another architecture ({len(missing)} missing, {len(extra)} unknown, {len(wrong)} of "
            f"another shape; {example}).",
            remedy,
        )
    network.load_state_dict(state, strict=False)  # all of its own is there
    return network
