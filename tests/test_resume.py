"""Resume: killed after any record and run again leaves the bytes of one uninterrupted run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import TOY, deterministic, finished, folders, harness, kill_after

SWEEP = ("-m", *TOY, "method=plain,toy_best")
FAULTY = ("-m", *TOY, "method=toy_faulty,plain")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return finished(tmp_path_factory.mktemp("uninterrupted"), *SWEEP)


@pytest.mark.parametrize("kills", [[1, 47]], ids=str)
def test_a_killed_sweep_ends_in_the_same_bytes(
    kills: list[int], tmp_path: Path, uninterrupted: dict[str, object]
) -> None:
    """Killed when its journals have so many lines."""
    for lines in kills:
        kill_after(tmp_path, lines, *SWEEP)
    assert finished(tmp_path, *SWEEP) == uninterrupted


def test_a_finished_sweep_draws_nothing_again(tmp_path: Path) -> None:
    harness(tmp_path, *TOY)
    (folder,) = folders(tmp_path)
    before = (folder / "records-0.jsonl").read_bytes()
    code, output = harness(tmp_path, *TOY)
    assert code == 0
    assert "24 prompts x 2 images planned, 48 done, 0 to draw" in output
    assert (folder / "records-0.jsonl").read_bytes() == before


def test_a_torn_line_and_a_lost_image_are_made_good(
    tmp_path: Path, uninterrupted: dict[str, object]
) -> None:
    harness(tmp_path, *SWEEP)
    folder = folders(tmp_path)[0]
    journal = folder / "records-0.jsonl"
    *whole_lines, last = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(whole_lines) + last[:40])
    torn = folder / json.loads(whole_lines[0])["path"]
    torn.write_bytes(torn.read_bytes()[:20])

    code, output = harness(tmp_path, *SWEEP)
    assert code == 0, output
    assert "images planned, 46 done, 2 to draw" in output
    content: dict[str, Any] = deterministic(tmp_path)
    assert len(set(content[f"{folder.relative_to(tmp_path)}/records"])) == 48
    assert content["csv"] == uninterrupted["csv"]


def test_failed_jobs_are_recorded_and_retried_and_the_sweep_goes_on(tmp_path: Path) -> None:
    code, output = harness(tmp_path, *FAULTY)
    assert code == 1
    assert "24 of 48 images failed: mend what is named above" in output
    assert [row["failed"] for row in leaderboard(tmp_path)] == ["0", "24"]

    (tmp_path / "mended").touch()
    code, output = harness(tmp_path, *FAULTY)
    assert code == 0, output
    plain, mended = leaderboard(tmp_path)
    assert mended["failed"] == "0"
    assert mended["score"] == plain["score"]


def leaderboard(cwd: Path) -> list[dict[str, str]]:
    content: dict[str, Any] = deterministic(cwd)
    return content["csv"]


def test_generating_and_scoring_apart_gives_the_same(
    tmp_path: Path, uninterrupted: dict[str, object]
) -> None:
    for stage in ("generate", "score", "report"):
        code, output = harness(tmp_path, *SWEEP, f"stages=[{stage}]")
        assert code == 0, output
    assert deterministic(tmp_path) == uninterrupted
