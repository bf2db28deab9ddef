"""Tell each error of a command once, however many images, points or shares of it meet it."""

from __future__ import annotations

_known: set[str] = set()
"""Errors that this command has reported."""


def is_new_failure(error: str) -> bool:
    """Tell whether a command meets an error for the first time; from now on it is known."""
    is_new = error not in _known
    _known.add(error)
    return is_new


def forget_failures() -> None:
    """Begin a command, which has told nothing yet."""
    _known.clear()
