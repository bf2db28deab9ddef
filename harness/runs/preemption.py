"""End a run within seconds when a signal asks for it, in a state from which it can go on."""

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
"""Signals that schedulers send before they take a machine away; SIGUSR2 is submitit's."""
PREEMPTED = {128 + number for number in SIGNALS}
"""Exit codes of a process that was asked to leave."""
PATIENCE_S = 4.0
"""Time for whatever was going on to come to its end. Journals survive an abrupt end as well."""


class Preempted(BaseException):
    """A signal asked this process to leave.

    It is no Exception: nothing but the end of the process may answer it.
    """

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"preempted ({name}); run the same command again to continue")
        self.code = 128 + number


@contextmanager
def preemptible(record_preemption: Callable[[], None]) -> Iterator[None]:
    """Raise Preempted inside when one of SIGNALS comes.

    If the process has not ended PATIENCE_S later, `record_preemption` is called, and it ends at
    once. Only the main thread can receive signals: in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Handler(record_preemption)
    former = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, former_handler in former.items():
            signal.signal(number, former_handler)
        handler.cancel()


class _Handler:
    """Answer the first signal, and only that one: after it the process is leaving."""

    def __init__(self, record_preemption: Callable[[], None]) -> None:
        self._record_preemption = record_preemption
        self._timer: threading.Timer | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._timer is not None:
            return
        code = 128 + number
        self._timer = threading.Timer(PATIENCE_S, end_process, (code, self._record_preemption))
        self._timer.daemon = True
        self._timer.start()
        raise Preempted(number)

    def cancel(self) -> None:
        """Leave it to the process to end by itself."""
        if self._timer is not None:
            self._timer.cancel()


def end_process(code: int, record_preemption: Callable[[], None] = lambda: None) -> NoReturn:
    """End the process now, without taking down the interpreter, which may take seconds."""
    try:
        record_preemption()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)
