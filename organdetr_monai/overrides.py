"""Misspelt options of ``python -m monai.bundle run``: MONAI takes them for new keys and says nothing."""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.scripts import run

from organdetr_monai.errors import InputError

__all__ = ["check_overrides"]

#: What MONAI itself reads: the arguments of ``run``, and the settings of its experiment tracking.
_ARGUMENTS = {name for name, p in inspect.signature(run).parameters.items() if p.kind is not p.VAR_KEYWORD}
_TRACKING = {"output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config"}
#: What the same thing is called by `organdetr`.
_ELSEWHERE = {"model": "ckpt_path", "output": "output_dir"}
_CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def check_overrides(argv: Sequence[str] | None = None) -> None:
    """Refuse options that no config of the command knows. Configs call it in ``initialize``.

    An option that leads into a part, such as ``--network_def#decoder#dropout``, may add a key there; the part must
    exist. Nothing is checked where the program is not ``python -m monai.bundle run``, or has an ``--args_file``.

    Parameters
    ----------
    argv : sequence of str, optional
        The program and its arguments; default those of this process.

    Raises
    ------
    InputError
        Names the option and what it may have meant.
    """
    program, *words = (sys.argv if argv is None else argv) or [""]
    if Path(program).parts[-3:] != ("monai", "bundle", "__main__.py") or "run" not in words:
        return
    given = dict(_options(words))
    if "args_file" in given:
        return
    files = _files(given.get("config_file", ""))
    parser = ConfigParser()
    parser.read_config(files)
    config = parser.get()
    for option in given:
        _check(option, config, files)


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and values of ``--name value`` and ``--name=value``."""
    for word, following in itertools.pairwise([*words, ""]):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            yield name, value if equals else following


def _files(given: str) -> list[str]:
    """``a.json`` or ``['a.json','b.json']``, as MONAI takes it."""
    if given.startswith(("[", "(")):
        return [str(file) for file in ast.literal_eval(given)]
    return given.split(",")


def _delta_with(key: str) -> str | None:
    """A config of this bundle that has a key and is to be given after others."""
    for path in sorted(_CONFIGS.rglob("*.json")):  # not beside those that were given: any JSON may lie there
        content = json.loads(path.read_text(encoding="utf-8"))
        if key in content and "initialize" not in content:
            return str(path)
    return None


def _check(option: str, config: Mapping[str, Any], files: Sequence[str]) -> None:
    first, *path = option.lstrip("+").replace("::", "#").split("#")
    if not path and first in _ARGUMENTS | _TRACKING:
        return
    known: list[str] = list(config)
    part: Any = config
    for depth, key in enumerate([first, *path]):
        if isinstance(part, list):
            inside = key.isdigit() and int(key) < len(part)
            part, known = (part[int(key)] if inside else None), [str(k) for k in range(len(part))]
        else:
            known = list(part) if isinstance(part, Mapping) else []
            inside = key in known
            part = part[key] if inside else None
        if isinstance(part, str) and part.startswith("@"):
            return  # a reference: the part is written elsewhere
        if not inside and (depth == 0 or depth < len(path)):
            close = difflib.get_close_matches(key, known, n=1)
            if depth == 0 and _ELSEWHERE.get(key) in known:
                close = [_ELSEWHERE[key]]
            where = "#".join([first, *path][:depth])
            delta = _delta_with(key) if depth == 0 else None
            remedy = f"There is no {key!r} {f'in {where}' if where else 'in them'}; see {', '.join(files)}."
            if close:
                remedy = f"Did you mean --{'#'.join(filter(None, [where, close[0], *path[depth:]]))}?"
            elif delta is not None:
                remedy = f"There is no {key!r} in them; {delta} has it: name it after them in --config_file."
            raise InputError(f"No config of this command knows --{option}.", remedy)
