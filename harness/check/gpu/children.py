"""Carry out the parts of a step in processes of their own, each with a time limit.

A kernel that fails can take the whole process with it. The part it was in has failed then; the
others go on in a fresh process.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

from harness.check.gpu.finding import Part, Setting
from harness.check.gpu.journal import Line
from harness.check.gpu.worker import CONTEXT_LOST
from harness.records import one_line

WORKER = [sys.executable, "-m", "harness.check.gpu.worker"]
"""The command that carries parts out; a request follows it."""
START_S = 120.0
"""Seconds that a process may take before its first part begins: imports, and a CUDA context."""
SLOWER = 3.0
"""How many times the seconds of an H100 a part may take."""


class _EndedError(Exception):
    """The process has ended before the part that was waited for was done."""


def run_parts(
    step: str, parts: Sequence[Part], setting: Setting, deadline: float
) -> Iterator[Line]:
    """Yield the line of each part as it ends, until `deadline` (of `time.monotonic`).

    A part that the deadline stops, and those behind it, are not run.
    """
    left = list(parts)
    while left and time.monotonic() < deadline:
        with _Child(step, left, setting) as child:
            yield from _read_lines(child, step, left, deadline)
    for part in left:
        yield Line(step, part.name, "not run", 0.0, reason="the time of --minutes was over")


def _read_lines(child: _Child, step: str, left: list[Part], deadline: float) -> Iterator[Line]:
    """Yield lines of one process until it is done, ends or is too slow; shorten `left` by them."""
    start_s = START_S
    while left:
        part = left[0]
        began = time.monotonic()
        limit = began + start_s + SLOWER * part.limit_s
        start_s = 0.0
        try:
            row = child.wait_for_row(min(limit, deadline))
        except _EndedError as error:
            if not child.context_was_lost:
                del left[0]
                yield Line(step, part.name, "failed", _since(began), reason=str(error))
            return
        if row is None:
            if time.monotonic() < deadline:
                del left[0]
                reason = f"stopped: it took longer than {limit - began:.0f} s"
                yield Line(step, part.name, "failed", _since(began), reason=reason)
            return
        del left[0]
        yield Line(**row)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 2)


class _Child:
    """A process that carries out parts; leaving the context ends it."""

    def __init__(self, step: str, parts: Sequence[Part], setting: Setting) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._reading, writing = os.pipe()
        self._unread = b""
        request = {
            "step": step,
            "parts": [part.name for part in parts],
            "setting": setting.to_json(),
            "reports": writing,
        }
        self._process = subprocess.Popen(
            [*WORKER, json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            pass_fds=(writing,),
        )
        os.close(writing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._reading)
        self._output.close()
        if self._process.stdin:
            self._process.stdin.close()

    @property
    def context_was_lost(self) -> bool:
        """Tell whether the process ended because its device computes nothing any more."""
        return self._process.wait() == CONTEXT_LOST

    def wait_for_row(self, until: float) -> dict[str, Any] | None:
        """Return the next part's line as plain values, or None if it is not done by `until`.

        Raises _EndedError, with what the process printed last, if it has ended.
        """
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            read = os.read(self._reading, 1 << 16)
            if not read:
                raise _EndedError(self._describe_end())
            self._unread += read
        text, _, self._unread = self._unread.partition(b"\n")
        row: dict[str, Any] = json.loads(text)
        return row

    def _describe_end(self) -> str:
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._output.seek(0)
        printed = self._output.read()[-2000:].decode(errors="replace").strip()
        last = one_line(printed.rpartition("\n")[2])[:300]
        return f"the process ended with {how}: {last or 'it printed nothing'}"
