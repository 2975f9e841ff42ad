"""The one exception that a user is meant to read."""

from __future__ import annotations


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
        super().__init__(f"{what} {remedy}")
