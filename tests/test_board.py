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
from harness.runs.folder import RunFolder
from harness.runs.trace_codec import pack_series

BUNDLED = Path(__file__).parent.parent / "results" / "board"
VALUES = {f"{category}/{i}": [1.0, float(i % 2)] for category in "ab" for i in range(4)}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the report's and hidden ones, by its place."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {name: data for name, data in named.items() if not name.startswith(("report/", "."))}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The bundled board without its tables."""
    shutil.copytree(BUNDLED, tmp_path / "board")
    for table in [*tmp_path.glob("board/*.csv"), *tmp_path.glob("board/export/*")]:
        shutil.rmtree(table) if table.is_dir() else table.unlink()
    return tmp_path / "board"


def test_the_bundled_tables_follow_from_their_journals(copy: Path) -> None:
    write_exports(build(copy), copy / "export")
    assert contents(copy) == contents(BUNDLED)


@pytest.mark.long
def test_the_command_of_its_readme_makes_the_bundled_board(copy: Path) -> None:
    code, output = harness(copy.parent, "stages=[report]", "results=board")
    assert code == 0, output
    assert contents(copy) == contents(BUNDLED)
    assert (copy / "report/index.html").exists()


def test_the_bundled_board_is_small_and_complete() -> None:
    files = contents(BUNDLED)
    assert sum(map(len, files.values())) <= 1_100_000 * board.MOST_MB
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*.png")) < 1_000_000
    assert 0 < len(list(BUNDLED.rglob("*.png"))) <= board.THUMBNAILS
    methods = {
        name.split("/")[2].rpartition("-")[0] for name in files if name.endswith("config.yaml")
    }
    assert {"plain", "best_of_n", "scalingar", "gridar", "speculative", "lantern", "vvs"} <= methods
    assert b"results=results/board" in files["README.md"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_run(tmp_path / "source", VALUES)
    write_run(tmp_path / "source", VALUES, "m", fingerprint="00000002")
    return tmp_path / "source"


def test_packing_keeps_what_tables_need(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gap = write_run(source, VALUES, "gap", fingerprint="00000003")
    (gap / "records-0.jsonl").write_text("")
    for target in ("one", "two", "one"):  # the second time over itself
        assert board.main(["pack", str(source), str(tmp_path / target)]) == 0
    assert "left out" in (said := capsys.readouterr().out)
    assert "16 images missing" in said
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one/made/toy/plain-00000001").iterdir())
    assert names == ["config.yaml", "jobs.jsonl.gz", "records-0.jsonl.gz", "scores.jsonl.gz"]
    before = contents(tmp_path / "one")
    assert harness(tmp_path, "stages=[report]", "results=one")[0] == 0
    assert contents(tmp_path / "one") == before
    assert (
        board.main(["pack", str(tmp_path / "one"), str(tmp_path / "three")]) == 0
    )  # a board packs into itself
    assert contents(tmp_path / "three") == before


def test_packing_thins_traces_and_pictures_and_nothing_else(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = next(source.rglob("records-0.jsonl"))
    records = [SampleRecord.from_json(line) for line in journal.read_text().splitlines()]
    series = pack_series(np.zeros(2))
    notes = {
        "trace": {"threshold": series, "confidence": series},
        "chosen": 0,
        "terminated_at": [None],
    }
    notes["stages"] = [{"stage": "half", "possible": [True], "pictures": [series]}]
    traced = [dataclasses.replace(one, notes=notes) for one in records]
    journal.write_text("".join(one.to_json() + "\n" for one in traced))
    monkeypatch.setattr(board, "DETAILED", len(records) // 3)
    for start, target in (("source", "one"), ("one", "two")):
        assert board.main(["pack", str(tmp_path / start), str(tmp_path / target)]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    packed = tmp_path / "one" / journal.parent.relative_to(source) / "records-0.jsonl.gz"
    kept = [
        SampleRecord.from_json(line)
        for line in gzip.decompress(packed.read_bytes()).decode().splitlines()
    ]
    assert 0 < sum("trace" in one.notes for one in kept) <= len(records) // 3
    assert all(("pictures" in one.notes["stages"][0]) == ("trace" in one.notes) for one in kept)
    assert all(one.notes["stages"][0]["possible"] == [True] for one in kept)
    assert [dataclasses.replace(one, notes={}) for one in kept] == [
        dataclasses.replace(one, notes={}) for one in records
    ]
    assert all(one.notes["terminated_at"] == [None] for one in kept)


def test_nothing_is_lost_or_swollen_by_packing(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_run(tmp_path / "open", VALUES)
    kept = contents(tmp_path / "open")
    cases = [
        (source, "open", "is not packed, and would be lost"),
        (tmp_path / "none", "x", "no such results folder"),
    ]
    (tmp_path / "empty").mkdir()
    for start, target, problem in [
        *cases,
        (tmp_path / "empty", "x", "none of its 0 runs is complete"),
    ]:
        assert board.main(["pack", str(start), str(tmp_path / target)]) == 2
        assert problem in capsys.readouterr().err
    assert contents(tmp_path / "open") == kept
    monkeypatch.setattr(board, "MOST_MB", 0.0001)
    assert board.main(["pack", str(source), str(tmp_path / "x")]) == 2
    assert "a board at most 0.0001 MB" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_packed_run_is_not_continued(source: Path, tmp_path: Path) -> None:
    board.main(["pack", str(source), str(tmp_path / "board")])
    jobs = [Job(prompt, image) for prompt in prompts_of(VALUES) for image in range(2)]
    with pytest.raises(
        UserError, match="packed for publication, without images: choose another results="
    ):
        RunFolder(
            tmp_path / "board/made/toy/plain-00000001", {"run": {"fingerprint": "00000001"}}, jobs
        )
