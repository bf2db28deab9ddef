"""End a method that makes no progress: one that never awaits, and one that awaits for nothing.

A method is a coroutine of somebody's own on the scheduler's thread, so a loop that does not end
would hold up all other images. `TurnTimer` interrupts a turn that lasts too long, by a signal.
`Progress` counts the turns of a job that bring no token. Both raise `StuckError` at the method's
own line.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

STUCK_AFTER_S = 30.0
"""Seconds without progress after which a job is ended, if nothing else is asked for."""
IDLE_TURNS = 1000
"""Turns without a token that a job has at least: one that waits for slow judges takes few."""
STUCK_IN_A_ROW = 3
"""Jobs that are ended one after the other, none delivered between them, before the run is."""
REPEAT_S = 1.0
"""Seconds between two interruptions of a turn that goes on after the first."""
ENGINE_FACTOR = 10
"""Times the limit that a turn may take while it is inside a call of its session.

Such a call may load a text encoder; that is no fault of the method.
"""


class StuckError(BaseException):
    """A method makes no progress.

    It is no Exception, so that a method's own `except Exception` in a loop does not keep it.
    """


@dataclass(slots=True)
class Progress:
    """When a job last drew a token, and how many turns its method has had since."""

    tokens: int = -1
    turns: int = 0
    since_s: float = field(default_factory=time.monotonic)

    def count_turn(self, tokens: int, limit_s: float | None) -> StuckError | None:
        """Count a turn of a job that has drawn `tokens` so far; return an error if it is stuck."""
        if tokens != self.tokens:
            self.tokens = tokens
            self.turns = 0
            self.since_s = time.monotonic()
            return None
        self.turns += 1
        if limit_s is None or self.turns < IDLE_TURNS:
            return None
        idle_s = time.monotonic() - self.since_s
        if idle_s < limit_s:
            return None
        return StuckError(
            f"the method has awaited {self.turns} times in {idle_s:.3g} s and drawn no token: "
            "see whether its loop ends (stuck_after_s sets the seconds)"
        )


class TurnTimer:
    """Interrupt a turn of a method that lasts longer than `limit_s` seconds; None never does.

    A signal does it, which only the main thread can have, and only if nobody else uses SIGALRM.
    """

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._is_armed = False
        self._began_s: float | None = None  # when the turn of this moment began

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signal inside."""
        if self._limit_s is None or not _may_handle_alarms():
            yield
            return
        former = signal.signal(signal.SIGALRM, self._interrupt)
        self._is_armed = True
        try:
            yield
        finally:
            self._is_armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Time a turn. Raises StuckError inside, where the method is, if it lasts too long."""
        if not self._is_armed or self._limit_s is None:
            yield
            return
        self._began_s = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, self._limit_s, REPEAT_S)
        try:
            yield
        finally:
            self._began_s = None
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._began_s is None or self._limit_s is None:
            return
        lasted_s = time.monotonic() - self._began_s
        if _is_in_session(frame) and lasted_s < ENGINE_FACTOR * self._limit_s:
            return
        raise StuckError(
            f"the method has not awaited anything for {lasted_s:.3g} s: "
            "see whether its loop ends and awaits its session (stuck_after_s sets the seconds)"
        )


def _may_handle_alarms() -> bool:
    """Tell whether this thread may handle SIGALRM, and nobody else does."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def _is_in_session(frame: FrameType | None) -> bool:
    """Tell whether a frame was called, at whatever distance, by a call of a session."""
    session = str(Path(__file__).with_name("session.py"))
    while frame is not None:
        if frame.f_code.co_filename == session:
            return True
        frame = frame.f_back
    return False
