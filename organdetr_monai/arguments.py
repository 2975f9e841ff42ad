"""Command lines for fire: checked against the function's signature before it runs, and passed on as they were typed.

Left alone, fire runs a command first and complains of an unknown option afterwards, takes the argument after
``--quiet`` for its value, and turns a file called ``1e5`` into a number.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence

from organdetr_monai.errors import InputError

__all__ = ["for_fire"]

_HELP = ("-h", "--help")


def for_fire(argv: Sequence[str], commands: Mapping[str, Callable]) -> list[str]:
    """Check a command line and write it so that fire takes it literally.

    Options are checked against the annotations ``bool``, ``int`` and ``float``; everything else stays text. An option
    whose annotation is a ``tuple`` may be given several times. What stands after a lone ``--`` is fire's
    (``-- --completion``).

    Raises
    ------
    InputError
        Unknown command or option, an option twice or without a fitting value, too many arguments.
    """
    argv = list(argv)
    if not argv or argv[0] in (*_HELP, "--"):
        return argv or ["--help"]
    command, *rest = argv
    if command not in commands:
        raise InputError(f"Unknown command {command!r}.", _choices(command, commands, "organdetr --help"))
    own, fires = (rest[: rest.index("--")], rest[rest.index("--") :]) if "--" in rest else (rest, [])
    if any(word in _HELP for word in own):
        return [command, "--help"]
    if stray := [word for word in fires if not word.startswith("-")]:
        raise InputError(f"{stray[0]!r} stands after '--'.", "Leave the '--' out; names that start with a dash need ./")
    parameters = inspect.signature(commands[command]).parameters
    positional, options = _split(command, own, parameters)
    free = [p for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and name not in options]
    if len(positional) > len(free) and not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        raise InputError(f"{command} does not take {positional[len(free)]!r}.", f"See `organdetr {command} --help`.")
    return [command, *map(repr, positional), *(f"--{name}={value}" for name, value in options.items()), *fires]


def _split(
    command: str, words: Sequence[str], parameters: Mapping[str, inspect.Parameter]
) -> tuple[list[str], dict[str, str]]:
    """Positional arguments, and options by parameter with values as fire is to read them."""
    positional: list[str] = []
    options: dict[str, str] = {}
    repeated: dict[str, tuple[str, ...]] = {}
    flags = {name: p for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        typed, equals, value = word.partition("=")
        name = _name(typed, flags)
        if name is None:
            hint = _choices(typed, [f"--{flag}" for flag in flags], f"organdetr {command} --help")
            raise InputError(f"{command} has no option {typed}.", hint)
        parameter = flags[name]
        if name in options:
            raise InputError(f"{typed} is given twice.", "Give it once.")
        if isinstance(parameter.default, bool):
            if equals and value not in ("True", "False"):
                raise InputError(f"{typed} is {value!r}.", f"Write {typed} alone: it is on or off.")
            options[name] = value if equals else "True"
            continue
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise InputError(f"{typed} has no value.", f"See `organdetr {command} --help`.")
            value = queue.pop(0)
        if "tuple" in str(parameter.annotation):
            repeated[name] = (*repeated.get(name, ()), value)
        else:
            options[name] = _literal(typed, value, parameter)
    return positional, options | {name: repr(values) for name, values in repeated.items()}


def _name(typed: str, flags: Mapping[str, inspect.Parameter]) -> str | None:
    """Parameter that an option means; a letter that begins one option alone stands for it, as fire's help says.

    So does one that begins several of which one is required. Positional parameters may be named, too, but have no
    letter.
    """
    if typed.startswith("--"):
        name = typed[2:].replace("-", "_")
        return name if name in flags else None
    starting = [name for name, p in flags.items() if p.kind is p.KEYWORD_ONLY and name[0] == typed[1:]]
    if len(starting) > 1:
        starting = [name for name in starting if flags[name].default is inspect.Parameter.empty]
    return starting[0] if len(starting) == 1 else None


def _literal(typed: str, value: str, parameter: inspect.Parameter) -> str:
    """A value as the Python literal that fire reads, of the type that the function asks for."""
    for kind, what in ((int, "a whole number"), (float, "a number")):
        if kind.__name__ in str(parameter.annotation):
            try:
                return repr(kind(value))
            except ValueError:
                raise InputError(f"{typed} is {value!r}.", f"Give {what}.") from None
    return repr(value)


def _choices(typed: str, known: Sequence[str] | Mapping[str, Callable], page: str) -> str:
    near = difflib.get_close_matches(typed, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}; see `{page}`."
