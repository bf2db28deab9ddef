"""One job of a sweep in a process of its own: a command line, carried out wherever a launcher puts
it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from typing import Any

from harness.runs.preemption import PREEMPTED


@dataclass(frozen=True)
class Work:
    """What a worker is sent: a command line without `-m`, where it runs, and the environment that
    differs there.
    """

    command: Callable[[Sequence[str]], int]  # carries out a command line, returns its exit code
    arguments: tuple[str, ...]
    folder: str
    path: tuple[str, ...] = ()  # of modules
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> int:
        """Carry it out; returns its exit code. What became of the job stands in the sweep's
        ledger.
        """
        os.environ.update(self.environment)
        sys.path += [place for place in self.path if place not in sys.path]
        with chdir(self.folder):
            code = self.command(self.arguments)
        if code in PREEMPTED and "SUBMITIT_EXECUTOR" in os.environ:
            _requeue()
        return code

    def checkpoint(self) -> Any:
        """What submitit is to submit again after a preemption: the same, because the journals know
        how far it came.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def carry_out(work: Work) -> int:
    """See `Work.__call__`; a function is what Ray takes."""
    return work()


def _requeue() -> None:
    """Let submitit put this job back into its queue: it listens to a signal."""
    from submitit import JobEnvironment

    os.kill(os.getpid(), JobEnvironment()._usr_sig())
