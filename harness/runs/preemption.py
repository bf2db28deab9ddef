"""Being asked to leave: a signal ends a run within seconds, in a state from which the same command
goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What schedulers send before they take a machine away; SIGUSR2 is submitit's."""
PREEMPTED = {128 + number for number in SIGNALS}
"""Exit codes of a process that was asked to leave."""
PATIENCE_S = 4.0
"""For whatever was going on to come to its end. Journals lose nothing to an abrupt one either."""


class Preempted(BaseException):
    """A signal asked this process to leave. Not an Exception: nothing but the process's end may
    answer it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(
            f"preempted ({signal.Signals(number).name}); run the same command again to continue"
        )
        self.code = 128 + number


@contextmanager
def preemptible(last_words: Callable[[], None]) -> Iterator[None]:
    """Raise Preempted in here when such a signal comes; after PATIENCE_S call `last_words`, and
    leave without more.

    Only the main thread can hear signals: in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[threading.Timer] = []

    def heard(number: int, _: FrameType | None) -> None:
        if asked:
            return  # it is leaving
        asked.append(threading.Timer(PATIENCE_S, leave, (128 + number, last_words)))
        asked[0].daemon = True
        asked[0].start()
        raise Preempted(number)

    former = {number: signal.signal(number, heard) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for timer in asked:
            timer.cancel()


def leave(code: int, last_words: Callable[[], None] = lambda: None) -> NoReturn:
    """End the process now. Taking an interpreter with its libraries down in order may take
    seconds.
    """
    try:
        last_words()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)
