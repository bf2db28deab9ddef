"""The published board: tables follow from packed journals, byte for byte, without an image."""

from __future__ import annotations

import dataclasses
import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import harness
from written_runs import prompts_of, write_run

from harness import board
from harness.records import Job, SampleRecord, UserError
from harness.results.exports import write_exports
from harness.results.leaderboard import build
from harness.results.pages import render_pages
from harness.runs.folder import RunFolder
from harness.runs.trace_codec import pack_series

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "results" / "board"
METHODS = {"plain", "best_of_n", "scalingar", "gridar", "speculative", "lantern", "vvs"}
"""Methods that the bundled board shows, at least."""
PROMPTS = [f"{category}/{i}" for category in "ab" for i in range(4)]
VALUES = {prompt: [1.0, float(int(prompt[-1]) % 2)] for prompt in PROMPTS}
"""Scores of two images of each prompt."""


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder but the report's and hidden ones, by its place."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith(("report/", ".")):
            found[name] = path.read_bytes()
    return found


def pack(source: Path, target: Path) -> int:
    """Run the command; returns its exit code."""
    return board.main(["pack", str(source), str(target)])


def parse_records(journal: str) -> list[SampleRecord]:
    return [SampleRecord.from_json(line) for line in journal.splitlines()]


def without_notes(records: list[SampleRecord]) -> list[SampleRecord]:
    return [dataclasses.replace(record, notes={}) for record in records]


# --- the bundled board ----------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The bundled board without its tables."""
    copy = tmp_path / "board"
    shutil.copytree(BUNDLED, copy)
    for table in copy.glob("*.csv"):
        table.unlink()
    for export in copy.glob("export/*"):
        if export.is_dir():
            shutil.rmtree(export)
        else:
            export.unlink()
    return copy


def test_the_bundled_tables_follow_from_their_journals(copy: Path) -> None:
    derived = build(copy)
    write_exports(derived, copy / "export")
    assert contents(copy) == contents(BUNDLED)

    for page, text in render_pages(derived, ROOT).items():
        problem = f"{page}: write it by `python -m harness.board pages`"
        assert page.read_text(encoding="utf-8") == text, problem


@pytest.mark.long
def test_the_command_of_its_readme_makes_the_bundled_board(copy: Path) -> None:
    code, output = harness(copy.parent, "stages=[report]", "results=board")
    assert code == 0, output
    assert contents(copy) == contents(BUNDLED)
    assert (copy / "report/index.html").exists()


def test_the_bundled_board_is_small_and_complete() -> None:
    files = contents(BUNDLED)
    assert sum(map(len, files.values())) <= 1_100_000 * board.MOST_MB

    thumbnails = list(BUNDLED.rglob("*.png"))
    assert sum(path.stat().st_size for path in thumbnails) < 1_000_000
    assert 0 < len(thumbnails) <= board.THUMBNAILS

    runs = [name.split("/")[2] for name in files if name.endswith("config.yaml")]
    assert {run.rpartition("-")[0] for run in runs} >= METHODS
    assert b"results=results/board" in files["README.md"]
    assert files["README.md"].endswith(files["export/leaderboard.md"])


# --- packing --------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A results folder with two complete runs."""
    write_run(tmp_path / "source", VALUES)
    write_run(tmp_path / "source", VALUES, "m", fingerprint="00000002")
    return tmp_path / "source"


def test_packing_keeps_what_tables_need(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gap = write_run(source, VALUES, "gap", fingerprint="00000003")
    (gap / "records-0.jsonl").write_text("")
    for target in ("one", "two", "one"):  # the second time over itself
        assert pack(source, tmp_path / target) == 0
    output = capsys.readouterr().out
    assert "left out" in output
    assert "16 images missing" in output

    packed = contents(tmp_path / "one")
    assert packed == contents(tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one/made/toy/plain-00000001").iterdir())
    assert names == ["config.yaml", "jobs.jsonl.gz", "records-0.jsonl.gz", "scores.jsonl.gz"]

    assert harness(tmp_path, "stages=[report]", "results=one")[0] == 0
    assert contents(tmp_path / "one") == packed


def test_a_packed_board_packs_into_itself(source: Path, tmp_path: Path) -> None:
    assert pack(source, tmp_path / "one") == 0
    assert pack(tmp_path / "one", tmp_path / "two") == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_packing_thins_traces_and_pictures_and_nothing_else(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = next(source.rglob("records-0.jsonl"))
    records = parse_records(journal.read_text())
    series = pack_series(np.zeros(2))
    notes = {
        "trace": {"threshold": series, "confidence": series},
        "chosen": 0,
        "terminated_at": [None],
        "stages": [{"stage": "half", "possible": [True], "pictures": [series]}],
    }
    traced = [dataclasses.replace(record, notes=notes) for record in records]
    journal.write_text("".join(f"{record.to_json()}\n" for record in traced))

    detailed = len(records) // 3
    monkeypatch.setattr(board, "DETAILED", detailed)
    assert pack(source, tmp_path / "one") == 0
    assert pack(tmp_path / "one", tmp_path / "two") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")

    packed = tmp_path / "one" / journal.parent.relative_to(source) / "records-0.jsonl.gz"
    kept = parse_records(gzip.decompress(packed.read_bytes()).decode())
    assert without_notes(kept) == without_notes(records)
    assert 0 < sum("trace" in record.notes for record in kept) <= detailed
    for record in kept:
        (stage,) = record.notes["stages"]
        assert ("pictures" in stage) == ("trace" in record.notes)
        assert stage["possible"] == [True]
        assert record.notes["terminated_at"] == [None]


def test_a_folder_that_cannot_be_packed_is_refused_and_nothing_is_lost(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "open", VALUES)
    (tmp_path / "empty").mkdir()
    kept = contents(tmp_path / "open")
    cases = (
        (source, "open", "is not packed, and would be lost"),
        (tmp_path / "none", "x", "no such results folder"),
        (tmp_path / "empty", "x", "none of its 0 runs is complete"),
    )
    for start, target, problem in cases:
        assert pack(start, tmp_path / target) == 2
        assert problem in capsys.readouterr().err
    assert contents(tmp_path / "open") == kept
    assert not (tmp_path / "x").exists()


def test_a_board_that_would_be_too_large_is_refused(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(board, "MOST_MB", 0.0001)
    assert pack(source, tmp_path / "x") == 2
    assert "a board at most 0.0001 MB" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_packed_run_is_not_continued(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "board")
    folder = tmp_path / "board/made/toy/plain-00000001"
    jobs = [Job(prompt, image) for prompt in prompts_of(VALUES) for image in range(2)]
    problem = "packed for publication, without images: choose another results="
    with pytest.raises(UserError, match=problem):
        RunFolder(folder, {"run": {"fingerprint": "00000001"}}, jobs)
