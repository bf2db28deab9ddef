"""Read the arguments of commands that are made with argparse, and say what is wrong with them."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from harness.records import UserError, one_line

P = ParamSpec("P")
Number = TypeVar("Number", int, float)


def count(text: str) -> int:
    """Read a whole number of at least 1, for argparse."""
    return _expect(_whole(text), text, 1)


def natural(text: str) -> int:
    """Read a whole number of at least 0, for argparse."""
    return _expect(_whole(text), text, 0)


def not_negative(text: str) -> float:
    """Read a finite number of at least 0, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number")
    return _expect(number, text, 0)


def share(text: str) -> float:
    """Read a number of 0 to 1, for argparse."""
    number = not_negative(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be at most 1")
    return number


def explain_mistakes(main: Callable[P, int | None]) -> Callable[P, int]:
    """Let a command end with one line and exit code 2 for what its user can mend.

    That is a UserError, and a file or folder that cannot be read or written.
    """

    @wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except (UserError, OSError) as error:
            return print_error(error)

    return run


def print_error(message: BaseException | str, code: int = 2) -> int:
    """Print an error in one line, and return the exit code."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number") from None


def _expect(number: Number, text: str, least: int) -> Number:
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r}: must be at least {least}")
    return number
