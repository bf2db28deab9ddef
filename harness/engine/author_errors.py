"""Tell the author of a method what is wrong with it, in one line with the remedy.

These are the mistakes that Python itself would answer far from their place, or not at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

from harness.engine.canvas import Canvas
from harness.records import UserError, near_path


@dataclass(frozen=True, slots=True)
class StartedCall:
    """A call of a session that has to be awaited, and the line that made it."""

    name: str
    coroutine: Coroutine[Any, Any, Any]
    file: str
    line: int

    @classmethod
    def of(
        cls, name: str, coroutine: Coroutine[Any, Any, Any], frame: FrameType | None
    ) -> StartedCall:
        """Note a call; whoever called the function of this `frame` made it."""
        caller = frame.f_back if frame is not None else None
        if caller is None:  # a Python without frames
            return cls(name, coroutine, "", 0)
        return cls(name, coroutine, caller.f_code.co_filename, caller.f_lineno)

    @property
    def is_forgotten(self) -> bool:
        """Tell whether nobody has awaited it so far."""
        return inspect.getcoroutinestate(self.coroutine) == inspect.CORO_CREATED

    @property
    def problem(self) -> str:
        """Say what is wrong with it, if it is never awaited."""
        return (
            f"s.{self.name} is called without await ({near_path(self.file)}, line {self.line}), "
            f"so nothing is done: write `await s.{self.name}(...)`"
        )

    def drop(self) -> None:
        """Let go of the coroutine, without Python's own warning."""
        self.coroutine.close()


def expect_awaitable(method: object, made: object) -> Awaitable[Any]:
    """Raise UserError if `generate` is no coroutine: no image of the run could be drawn."""
    if inspect.isasyncgen(made) or inspect.isgenerator(made):
        raise UserError(
            f"generate of {_describe(method)} has a `yield`, which makes it a generator: "
            "await the session's calls and return a canvas instead"
        )
    if not inspect.isawaitable(made):
        raise UserError(
            f"generate of {_describe(method)} is no coroutine: "
            "write `async def generate(self, prompt, s)`"
        )
    return made


def expect_canvas(method: object, returned: object, num_tokens: int) -> Canvas:
    """Raise TypeError or ValueError unless a method returned one canvas, finished."""
    generate = f"generate of {_describe(method)}"
    if returned is None:
        raise TypeError(f"{generate} returned None: end it with `return canvas`")
    if isinstance(returned, Sequence) and not isinstance(returned, str):
        raise TypeError(
            f"{generate} returned a {type(returned).__name__} of {len(returned)}: "
            "return one canvas, such as `canvases[0]`"
        )
    if not isinstance(returned, Canvas):
        raise TypeError(
            f"{generate} returned a {type(returned).__name__}: return one of its canvases"
        )
    if not returned.closed and not returned.done:
        raise ValueError(
            f"{generate} returned a canvas with {returned.length} of {num_tokens} tokens: "
            "draw it to its end first, with `await s.run([canvas])`"
        )
    return returned


def expect_rows(rows: object, call: str) -> None:
    """Raise TypeError, with the remedy, unless `rows` are canvases in a list or the like."""
    if isinstance(rows, Canvas):
        raise TypeError(f"s.{call} takes a list of canvases, not one: write `s.{call}([canvas])`")
    if not isinstance(rows, Sequence):
        raise TypeError(f"s.{call} takes a list of canvases, not a {type(rows).__name__}")
    for place, row in enumerate(cast(Sequence[object], rows)):
        if not isinstance(row, Canvas):
            raise TypeError(
                f"s.{call} takes a list of canvases: its element {place} "
                f"is a {type(row).__name__} (s.open returns a list)"
            )


def expect_one_canvas(canvas: object) -> None:
    """Raise TypeError, with the remedy, for what is no canvas."""
    if not isinstance(canvas, Canvas):
        raise TypeError(
            f"a canvas is expected, not a {type(canvas).__name__} (s.open returns a list of them)"
        )


def _describe(method: object) -> str:
    """Name a method's class and where its `generate` begins."""
    name = type(method).__name__
    function = inspect.unwrap(getattr(method, "generate", None) or (lambda: None))
    code = getattr(function, "__code__", None)
    if code is None:
        return name
    return f"{name} ({near_path(code.co_filename)}, line {code.co_firstlineno})"
