"""Carry out one job of a sweep in a process of its own, wherever a launcher puts it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from typing import Any

from harness.runs.preemption import PREEMPTED


@dataclass(frozen=True)
class Work:
    """What a worker is sent: a command line, and what differs where it runs."""

    command: Callable[[Sequence[str]], int]  # carries out a command line, returns its exit code
    arguments: tuple[str, ...]  # without -m
    folder: str
    path: tuple[str, ...] = ()  # of modules
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> int:
        """Carry out the command line, and return its exit code.

        What became of the job stands in the sweep's ledger.
        """
        os.environ.update(self.environment)
        sys.path += [place for place in self.path if place not in sys.path]
        with chdir(self.folder):
            code = self.command(self.arguments)
        if code in PREEMPTED and "SUBMITIT_EXECUTOR" in os.environ:
            _requeue_job()
        return code

    def checkpoint(self) -> Any:
        """Return what submitit submits again after a preemption.

        It is the same work: the journals know how far it came.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def carry_out(work: Work) -> int:
    """Carry out a job, and return its exit code: a function, because Ray takes no callables."""
    return work()


def _requeue_job() -> None:
    """Let submitit put this job back into its queue, which it does when it gets its signal."""
    from submitit import JobEnvironment

    os.kill(os.getpid(), signal.Signals[f"SIG{JobEnvironment().USR_SIG}"])
