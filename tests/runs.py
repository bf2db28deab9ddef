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
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import IO

from harness.records import TIMES, SampleRecord
from harness.results.columns import TIMED

TESTS = Path(__file__).parent
TOY = ("--config-dir", str(TESTS / "toy_conf"), "model=toy", "benchmark=toy", "sampler.slots=24")


def start(
    cwd: Path, *arguments: str, output: int | IO[bytes] = subprocess.PIPE
) -> subprocess.Popen:
    """`python -m harness` of this checkout in a process of its own."""
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
    """Exit code and output of a command, run inside this process: a fresh one costs seconds of
    imports.
    """
    entry = {"harness": "harness.cli", "harness.bench": "harness.bench.__main__"}.get(
        module, module
    )
    output = io.StringIO()
    before = Path.cwd()
    argv = sys.argv
    sys.argv = [module, *arguments]
    os.chdir(cwd)
    try:
        with redirect_stdout(output), redirect_stderr(output):
            code = import_module(entry).main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os.chdir(before)
        sys.argv = argv
    return int(code or 0), output.getvalue()


def kill_after(cwd: Path, lines: int, *arguments: str) -> None:
    """Run a command and `kill -9` it once its journals have `lines` lines (at once, for 0)."""
    process = start(cwd, *arguments)
    while process.poll() is None:
        if (
            sum(journal.read_bytes().count(b"\n") for journal in cwd.rglob("records-*.jsonl"))
            >= lines
        ):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate()


def folders(cwd: Path) -> list[Path]:
    return sorted(path.parent for path in (cwd / "results").rglob("config.yaml"))


def deterministic(cwd: Path) -> dict[str, object]:
    """Everything below results/ that must not depend on kills: images, journals as sets, the CSV
    without its times.

    The commit is left out too: it may move while tests run.
    """
    content: dict[str, object] = {}
    for folder in folders(cwd):
        name = str(folder.relative_to(cwd))
        for file in ("config.yaml", "jobs.jsonl"):
            content[f"{name}/{file}"] = (folder / file).read_bytes()
        content |= {
            str(image.relative_to(cwd)): image.read_bytes() for image in folder.rglob("*.png")
        }
        lines = [
            line
            for path in folder.glob("records-*.jsonl")
            for line in path.read_text().splitlines()
        ]
        content[f"{name}/records"] = sorted(
            json.dumps(timeless(line), sort_keys=True) for line in lines
        )
        scores = [
            line for path in folder.glob("scores*.jsonl") for line in path.read_text().splitlines()
        ]
        content[f"{name}/scores"] = sorted(scores)
    if (board := cwd / "results/leaderboard.csv").exists():
        rows = csv.DictReader(board.read_text().splitlines())
        content["csv"] = [
            {k: v for k, v in row.items() if k not in (*TIMED, "commit")} for row in rows
        ]
    return content


def finished(cwd: Path, *arguments: str) -> dict[str, object]:
    """What a command that must succeed leaves behind, as far as it must not depend on kills."""
    code, output = harness(cwd, *arguments)
    assert code == 0, output
    return deterministic(cwd)


def timeless(line: str) -> dict[str, object]:
    record = json.loads(SampleRecord.from_json(line).to_json())
    for name in TIMES:
        record["usage"].pop(name)
    record["stamp"].pop("commit")
    return record
