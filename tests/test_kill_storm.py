"""R1, R2: `kill -9` at any instant loses no finished image, corrupts no file, and changes no byte.

`pytest -m kill_storm -s` shows the log of the whole storm; the quick suite has a breeze of the same
code.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import TESTS, TOY, folders, harness
from storm import Findings, Seen, examine


def run_storm(folder: Path, scene: str, *options: str) -> str:
    """Let a storm loose in a process that was made for being forked, and return its log."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "storm.py"), str(folder), "--scene", scene, *options]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    ("scene", "kills"),
    [
        ("toy", "4"),
        pytest.param("newest", "2", marks=pytest.mark.long),
        pytest.param("edits", "2", marks=pytest.mark.long),
    ],
)
def test_a_breeze_of_kills_changes_nothing(scene: str, kills: str, tmp_path: Path) -> None:
    log = run_storm(tmp_path / "storm", scene, "--kills", kills, "--points", kills)
    assert "lost 0, corrupt files 0" in log


@pytest.mark.kill_storm
@pytest.mark.parametrize(
    ("scene", "options"),
    [
        ("toy", ("--kills", "150", "--points", "-1", "--commands", "30")),
        ("newest", ("--kills", "60")),
        ("pictogram", ("--kills", "60")),
        ("edits", ("--kills", "60")),
    ],
)
def test_a_storm_of_kills_changes_nothing(
    scene: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    log = run_storm(tmp_path / "storm", scene, *options)
    assert "lost 0, corrupt files 0" in log


def test_the_examination_sees_what_a_kill_must_not_do(tmp_path: Path) -> None:
    code, output = harness(tmp_path, *TOY, "benchmark.prompts=3")
    assert code == 0, output
    (folder,) = folders(tmp_path)
    findings = Findings()
    before = examine(tmp_path, Seen(), findings)
    assert findings.good
    assert len(before.finished) == 6

    def examine_again() -> list[int]:
        """Count what is lost and what is corrupt."""
        findings = Findings()
        examine(tmp_path, before, findings)
        return [len(findings.lost), len(findings.corrupt)]

    journal = folder / "records-0.jsonl"
    picture = folder / "images/00000/0.png"
    lines = journal.read_bytes()
    pixels = picture.read_bytes()

    journal.write_bytes(lines[:-9])
    assert examine_again() == [2, 0]  # the line, and the image that only it knew
    journal.write_bytes(lines.replace(b'"done"', b'"d', 1))
    assert examine_again() == [2, 1]
    journal.write_bytes(lines)

    picture.write_bytes(pixels[:60])
    assert examine_again() == [0, 2]  # not what the journal says, and no picture
    picture.write_bytes(pixels)

    table = tmp_path / "results/leaderboard.csv"
    table.write_bytes(table.read_bytes()[:-40])
    assert examine_again() == [0, 1]
