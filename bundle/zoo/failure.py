"""How a check says no."""

from __future__ import annotations


class CheckError(Exception):
    """A bundle does not pass a check.

    Parameters
    ----------
    reason : str
        Why, in one line.
    output : str
        What the program that failed printed.
    """

    def __init__(self, reason: str, output: str = "") -> None:
        self.reason, self.output = reason, output
        super().__init__(reason, output)

    def __str__(self) -> str:
        return self.reason
