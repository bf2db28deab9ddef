"""`python -m harness.check gpu`: carry out what is left of the steps, and print the tables."""

from __future__ import annotations

import argparse
import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from harness.check.gpu.children import run_parts
from harness.check.gpu.facts import ask_for_facts
from harness.check.gpu.finding import NotRunError, Part, Setting, Step
from harness.check.gpu.journal import Journal, Line, open_journal
from harness.check.gpu.plan import choose_steps
from harness.check.gpu.table import format_lines, format_tables
from harness.models.devices import device_named
from harness.records import UserError, one_line

SPARE_S = 5.0
"""Seconds that are kept for ending, of those that `--minutes` allows."""


def check_gpu(chosen: argparse.Namespace) -> int:
    """Carry out the steps that are left; return 1 if a part has failed, else 0.

    Without a GPU the simulated device's list is carried out instead. Raises UserError for options
    that cannot be.
    """
    if chosen.table is not None:
        print(format_tables(Journal.read(chosen.table)))
        return 0
    if chosen.minutes is not None and not chosen.minutes > 0:
        raise UserError(f"--minutes {chosen.minutes:g}: give a number above 0")
    if not re.fullmatch(r"cuda(:\d+)?", chosen.device):
        raise UserError(f"--device {chosen.device}: this examines a GPU, name one, as cuda:0")
    _expect_folders(chosen)
    steps = choose_steps(chosen.only)
    if not _has_gpu():
        from harness.check.gpu.simulated import check_simulated

        if ignored := _list_given(chosen):
            print(f"without a GPU the list is always the same: {', '.join(ignored)} are ignored")
        return check_simulated()

    device_named(chosen.device)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    setting = Setting(chosen.device, "full", _absolute(chosen.fixtures), _absolute(chosen.peer))
    journal = open_journal(chosen.out, ask_for_facts(setting.device, setting.size))
    return run_steps(steps, setting, journal, chosen.minutes)


def _expect_folders(chosen: argparse.Namespace) -> None:
    """Raise UserError for a folder that is not there, or that cannot be written to."""
    for option in ("fixtures", "peer"):
        folder = getattr(chosen, option)
        if folder is not None and not folder.is_dir():
            raise UserError(f"--{option} {folder}: there is no such folder")
    if chosen.out is not None:
        try:
            chosen.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {chosen.out}: cannot be made ({error.strerror})") from None
        if not os.access(chosen.out, os.W_OK):
            raise UserError(f"--out {chosen.out}: cannot be written to")


def _list_given(chosen: argparse.Namespace) -> list[str]:
    """List the options that were given and matter on a GPU alone."""
    names = ("out", "minutes", "only", "fixtures", "peer")
    return [f"--{name}" for name in names if getattr(chosen, name) is not None]


def run_steps(
    steps: Sequence[Step], setting: Setting, journal: Journal, minutes: float | None
) -> int:
    """Carry out the parts of steps that the journal has no verdict of; print the tables.

    Returns 1 if a part of these steps has failed, else 0.
    """
    seconds = math.inf if minutes is None else 60 * minutes - SPARE_S
    deadline = time.monotonic() + seconds
    print(f"{journal.header['device']}: results go to {journal.path}", flush=True)
    for step in steps:
        parts = _list_parts(step, setting, journal)
        left = [part for part in parts if not _is_done(journal, step, part)]
        for line in run_parts(step.name, left, setting, deadline):
            journal.append(line)
            print(format_lines([line]), flush=True)

    print(f"\n{format_tables(journal)}")
    names = {step.name for step in steps}
    lines = [line for line in journal.lines if line.step in names]
    if any("--minutes" in line.reason for line in lines):
        print("\nThe time was over: the same command goes on.")
    return int(any(line.status == "failed" for line in lines))


def _list_parts(step: Step, setting: Setting, journal: Journal) -> Sequence[Part]:
    """List the parts of a step; where that fails, the step itself has a line and no parts."""
    try:
        return step.list_parts(setting)
    except (NotRunError, ModuleNotFoundError) as error:
        line = Line(step.name, "all", "not run", 0.0, reason=one_line(error))
        journal.append(line)
        print(format_lines([line]), flush=True)
        return []


def _is_done(journal: Journal, step: Step, part: Part) -> bool:
    line = journal.find(step.name, part.name)
    return line is not None and line.is_final


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _absolute(path: Path | None) -> Path | None:
    """Return a path that means the same wherever a process was started."""
    return None if path is None else path.resolve()
