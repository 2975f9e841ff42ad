"""The one exception that a user is meant to read, and how it reaches the screen through other people's wrappers."""

from __future__ import annotations

import sys
from types import TracebackType


class InputError(ValueError):
    """Something the user gave cannot be used.

    Parameters
    ----------
    what : str
        What is wrong, naming the value and where it stands (file, key).
    remedy : str
        What the user can do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = what, remedy
        super().__init__(what, remedy)  # both, with which pickle makes it anew on the way back from a worker process

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}"


def input_error(error: BaseException | None) -> InputError | None:
    """The :class:`InputError` that an exception is, or was raised from: MONAI wraps what its configs and transforms
    raise.
    """
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def show_input_errors_briefly() -> None:
    """From here on an :class:`InputError` that ends the program, or Ctrl-C, shows as one line; all else keeps its
    traceback.

    Configs call it first thing in ``initialize``: a wrong path would else end in MONAI's "Failed to evaluate" under
    a page of traceback.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        elif (found := input_error(error)) is not None:
            print(f"error: {found}", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = hook
