"""Step 10: a run that SIGTERM ends in a burst goes on, and its journal is that of one whole run.

It needs Hydra and what a run needs; where that is missing the step is not run.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.check.gpu.finding import Finding, NotRunError, Part, Setting
from harness.records import TIMES

PACKAGES = ("hydra", "omegaconf", "tqdm", "PIL", "yaml", "pandas")
"""What `python -m harness` needs besides the engine's packages."""
METHOD = "method=best_of_n_likelihood"
PROMPTS = 12
PREEMPTED = 128 + signal.SIGTERM
WAIT_S = 240.0
POLL_S = 0.02


def list_parts(_setting: Setting) -> Sequence[Part]:
    """List the only part."""
    return [Part("SIGTERM and resume", interrupt_and_resume, 120)]


def interrupt_and_resume(setting: Setting) -> Finding:
    """Draw a run whole, and another that is ended as soon as its first image is there."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise NotRunError(f"needs {', '.join(missing)}, which is not installed")
    prompts = PROMPTS if setting.is_full else 2
    with tempfile.TemporaryDirectory() as folder:
        options = [METHOD, f"benchmark.prompts={prompts}", f"device={setting.device}"]
        options += ["sampler.slots=8", "stages=[generate]"]
        whole = _Run(Path(folder, "whole"), options)
        whole.finish()
        broken = _Run(Path(folder, "broken"), options)
        code = broken.terminate_after_first_image()
        drawn_before = len(broken.records())
        broken.finish()
        return compare_journals(whole.records(), broken.records(), code, drawn_before)


class _Run:
    """A run in a process of its own, with a results folder of its own."""

    def __init__(self, results: Path, options: Sequence[str]) -> None:
        self._results = results
        results.mkdir()
        self._command = [sys.executable, "-m", "harness", *options, f"results={results}"]

    def finish(self) -> None:
        """Run to the end. Raises RuntimeError, with what was printed last, where it fails."""
        done = subprocess.run(self._command, capture_output=True, text=True, timeout=WAIT_S)
        if done.returncode:
            printed = (done.stderr or done.stdout).strip().rpartition("\n")[2]
            raise RuntimeError(f"python -m harness ended with {done.returncode}: {printed[:200]}")

    def terminate_after_first_image(self) -> int:
        """Send SIGTERM when the first image is in the journal; return the exit code."""
        process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until = time.monotonic() + WAIT_S
            while process.poll() is None and not self.records() and time.monotonic() < until:
                time.sleep(POLL_S)
            process.terminate()
            return process.wait(timeout=60)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def records(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Read the journal: of each image what does not depend on the clock or the machine."""
        found = {}
        for journal in self._results.rglob("records-*.jsonl"):
            for text in journal.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(text)
                except ValueError:
                    continue  # a line that is being written
                found[row["prompt_id"], row["image"]] = _without_clock(row)
        return found


def _without_clock(row: dict[str, Any]) -> dict[str, Any]:
    usage = {name: value for name, value in row["usage"].items() if name not in TIMES}
    kept = ("prompt_id", "image", "status", "tokens_sha", "image_sha", "notes")
    return {"usage": usage, **{name: row[name] for name in kept}}


def compare_journals(
    whole: dict[tuple[str, int], dict[str, Any]],
    resumed: dict[tuple[str, int], dict[str, Any]],
    code: int,
    drawn_before: int,
) -> Finding:
    """Compare the records of a whole run with those of one that was ended and went on."""
    failures = []
    if code != PREEMPTED:
        failures.append(f"SIGTERM made the run end with {code} instead of {PREEMPTED}")
    if drawn_before >= len(whole):
        failures.append("the run was done before SIGTERM came: nothing was tried")
    if whole.keys() != resumed.keys():
        failures.append(f"{len(resumed)} images are recorded instead of {len(whole)}")
    differing = [key for key in whole.keys() & resumed.keys() if whole[key] != resumed[key]]
    if differing:
        failures.append(f"{len(differing)} records differ, {sorted(differing)[0]} first")
    figures = {"images": len(whole), "drawn_before_signal": drawn_before, "exit_code": code}
    headline = f"{len(whole)} images, {drawn_before} before the signal, journals equal"
    return Finding(headline, figures, failures)
