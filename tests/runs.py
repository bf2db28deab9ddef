"""Whole runs on the toy model: what a user types, and what lies on disk afterwards."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import IO

from harness.cli import run_command
from harness.records import TIMES, SampleRecord
from harness.results.columns import TIMED

TESTS = Path(__file__).parent
TOY = ("--config-dir", str(TESTS / "toy_conf"), "model=toy", "benchmark=toy", "sampler.slots=24")
"""Options of a run on the toy model."""
ENTRY = {
    "harness": "harness.cli",
    "harness.bench": "harness.bench.__main__",
    "benchmarks.coco": "benchmarks.coco.__main__",
    "benchmarks.geneval": "benchmarks.geneval.__main__",
    "benchmarks.pie_bench": "benchmarks.pie_bench.__main__",
    "benchmarks.t2i_compbench": "benchmarks.t2i_compbench.__main__",
}
"""Modules whose `main` lies in another one."""


def start(
    cwd: Path, *arguments: str, output: int | IO[bytes] = subprocess.PIPE
) -> subprocess.Popen:
    """Start `python -m harness` of this checkout in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
    )


def harness(cwd: Path, *arguments: str, module: str = "harness") -> tuple[int, str]:
    """Run a command inside this process, and return its exit code and output.

    A process of its own would cost seconds of imports.
    """
    output = io.StringIO()
    before = Path.cwd()
    argv = sys.argv
    sys.argv = [module, *arguments]
    os.chdir(cwd)
    try:
        with redirect_stdout(output), redirect_stderr(output):
            code = import_module(ENTRY.get(module, module)).main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os.chdir(before)
        sys.argv = argv
    return int(code or 0), output.getvalue()


def count_records(cwd: Path) -> int:
    """Count the whole lines of all journals of images below a folder."""
    return sum(journal.read_bytes().count(b"\n") for journal in cwd.rglob("records-*.jsonl"))


def fork(cwd: Path, work: Callable[[], None]) -> int:
    """Carry out `work` in a child, in `cwd`. Returns its process id.

    Its output goes to a file there.
    """
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        out = os.open(cwd / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(cwd)
        work()
        sys.stdout.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def kill_after(cwd: Path, lines: int, *arguments: str) -> None:
    """Run a command and `kill -9` it once its journals have `lines` lines (at once, for 0).

    It is a fork of this process: one that begins anew would cost seconds of imports.
    """
    pid = fork(cwd, lambda: os._exit(run_command(arguments)))
    ended = 0
    while not ended and count_records(cwd) < lines:
        time.sleep(0.002)
        ended, _ = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def folders(cwd: Path) -> list[Path]:
    """List the run folders of a working directory."""
    return sorted(path.parent for path in (cwd / "results").rglob("config.yaml"))


def deterministic(cwd: Path) -> dict[str, object]:
    """Read everything below results/ that must not depend on kills.

    That is images, journals as sorted lines, and the CSV without its times. The commit is left out
    too: it may move while tests run.
    """
    content: dict[str, object] = {}
    for folder in folders(cwd):
        name = str(folder.relative_to(cwd))
        for file in ("config.yaml", "jobs.jsonl"):
            content[f"{name}/{file}"] = (folder / file).read_bytes()
        for image in folder.rglob("*.png"):
            content[str(image.relative_to(cwd))] = image.read_bytes()
        records = (timeless(line) for line in _read_lines(folder, "records-*.jsonl"))
        content[f"{name}/records"] = sorted(json.dumps(row, sort_keys=True) for row in records)
        content[f"{name}/scores"] = sorted(_read_lines(folder, "scores*.jsonl"))
    if (board := cwd / "results/leaderboard.csv").exists():
        content["csv"] = _read_board(board)
    return content


def _read_lines(folder: Path, name: str) -> list[str]:
    """Read the lines of all files of a name."""
    lines = []
    for path in folder.glob(name):
        lines += path.read_text().splitlines()
    return lines


def _read_board(board: Path) -> list[dict[str, str]]:
    """Read a leaderboard without the columns that differ between two makings of the same runs."""
    rows = []
    for row in csv.DictReader(board.read_text().splitlines()):
        for column in (*TIMED, "commit"):
            row.pop(column, None)
        rows.append(row)
    return rows


def finished(cwd: Path, *arguments: str) -> dict[str, object]:
    """Run a command that must succeed, and read what it leaves behind (see `deterministic`)."""
    code, output = harness(cwd, *arguments)
    assert code == 0, output
    return deterministic(cwd)


def timeless(line: str) -> dict[str, object]:
    """Parse a line of a journal of images, without what differs between two drawings."""
    record = json.loads(SampleRecord.from_json(line).to_json())
    for name in TIMES:
        record["usage"].pop(name)
    record["stamp"].pop("commit")
    return record
