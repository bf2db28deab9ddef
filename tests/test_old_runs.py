"""A run folder that an earlier version left half done is resumed, reported and checked by this one.

`data/old_run` was made before the modules had rooms: its configuration names classes by their
earlier paths, and its journal ends in the middle of a line, as a kill leaves it.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from runs import harness, timeless

from harness.runs.instantiate import build_object
from harness.runs.read import read_run

DATA = Path(__file__).parent / "data" / "old_run"
COMMAND = ("embedded=pictogram_16", "benchmark.prompts=6", "benchmark.images=2", "seed=7")
COLUMNS = ("method", "params", "fingerprint", "images", "seed")
"""Of a leaderboard: what names a run."""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old results folder after its unfinished run was continued."""
    cwd = tmp_path_factory.mktemp("old")
    shutil.copytree(DATA / "results", cwd / "results")
    code, said = harness(cwd, "method=eagle_static", *COMMAND)
    assert code == 0, said
    assert "11 done, 1 to draw" in said
    return cwd


def run_folder(cwd: Path, method: str) -> Path:
    (found,) = cwd.glob(f"results/pictogram/*/{method}-*")
    return found


def test_it_is_completed_to_what_an_undisturbed_run_left(resumed: Path) -> None:
    here = f"{torch.__version__.split('+')[0]} {torch.backends.cpu.get_cpu_capability()}"
    if here != "2.15.0 AVX512":
        pytest.skip(f"the old run was drawn by torch 2.15.0 with AVX512, this is {here}")
    folder = run_folder(resumed, "eagle_static")
    scores = (folder / "scores.jsonl").read_text().splitlines()
    kept_scores = (DATA / "eagle_static-scores.jsonl").read_text().splitlines()
    assert sorted(scores) == sorted(kept_scores)
    records = (folder / "records-0.jsonl").read_text().splitlines()
    kept_records = (DATA / "eagle_static-records.jsonl").read_text().splitlines()
    assert {unstamped(line) for line in records} == {unstamped(line) for line in kept_records}


def unstamped(line: str) -> str:
    """A record without what differs between two drawings of the same image."""
    record = timeless(line)
    record["stamp"] = {}
    return json.dumps(record, sort_keys=True)


def test_it_is_reported_beside_a_finished_one(resumed: Path) -> None:
    rows = read_board(resumed / "results/leaderboard.csv")
    before = read_board(DATA / "leaderboard.csv")
    before = [row for row in before if row["method"] in ("plain", "eagle_static")]
    assert [name for name in rows[0] if name in before[0]] == list(before[0])
    assert [name_run(row) for row in rows] == [name_run(row) for row in before]


def read_board(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def name_run(row: dict[str, str]) -> list[str]:
    return [row[column] for column in COLUMNS]


def test_it_passes_its_audit(resumed: Path) -> None:
    for method in ("plain", "eagle_static"):
        folder = str(run_folder(resumed, method))
        code, said = harness(resumed, "run", folder, "--again", "0", module="harness.check")
        last = said.splitlines()[-1]
        assert code == 0 and last.endswith(" 0 failed"), said


def test_its_configuration_still_builds() -> None:
    """Every class that it names is found where it was."""
    run = read_run(run_folder(DATA, "eagle_static"))
    tree = run.config["method"]["gamma"]
    assert tree["_target_"] == "harness.trees.Static"
    assert build_object(tree).fed > 0
