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
COMMAND = ("benchmark.prompts=6", "benchmark.images=2", "seed=7")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old results folder after its unfinished run was continued."""
    cwd = tmp_path_factory.mktemp("old")
    shutil.copytree(DATA / "results", cwd / "results")
    code, said = harness(cwd, "method=eagle_static", *COMMAND)
    assert code == 0, said
    assert "8 done, 4 to draw" in said
    return cwd


def run_folder(cwd: Path, method: str) -> Path:
    (found,) = cwd.glob(f"results/pictogram/*/{method}-*")
    return found


def test_it_is_completed_to_what_an_undisturbed_run_left(resumed: Path) -> None:
    here = f"{torch.__version__.split('+')[0]} {torch.backends.cpu.get_cpu_capability()}"
    if here != "2.15.0 AVX512":
        pytest.skip(f"the old run was drawn by torch 2.15.0 with AVX512, this is {here}")
    mine = run_folder(resumed, "eagle_static")
    for journal, reference in (("records-0.jsonl", "records"), ("scores.jsonl", "scores")):
        made = (mine / journal).read_text().splitlines()
        kept = (DATA / f"eagle_static-{reference}.jsonl").read_text().splitlines()
        if reference == "scores":
            assert sorted(made) == sorted(kept)
            continue
        assert {shown(line) for line in made} == {shown(line) for line in kept}


def shown(line: str) -> str:
    """A record without what differs between two drawings of the same image."""
    record = timeless(line)
    record["stamp"] = {}
    return json.dumps(record, sort_keys=True)


def test_it_is_reported_beside_a_finished_one(resumed: Path) -> None:
    columns = ("method", "params", "fingerprint", "images", "seed")
    rows = list(csv.DictReader((resumed / "results/leaderboard.csv").read_text().splitlines()))
    before = list(csv.DictReader((DATA / "leaderboard.csv").read_text().splitlines()))
    before = [row for row in before if row["method"] in ("plain", "eagle_static")]
    assert list(rows[0]) == list(before[0])
    assert [[row[c] for c in columns] for row in rows] == [
        [row[c] for c in columns] for row in before
    ]


def test_it_passes_its_audit(resumed: Path) -> None:
    for method in ("plain", "eagle_static"):
        folder = str(run_folder(resumed, method))
        code, said = harness(resumed, "run", folder, "--again", "0", module="harness.check")
        assert (code, said.splitlines()[-1].endswith(" 0 failed")) == (0, True), said


def test_its_configuration_still_builds() -> None:
    """Every class that it names is found where it was."""
    run = read_run(run_folder(DATA, "eagle_static"))
    tree = run.config["method"]["gamma"]
    assert tree["_target_"] == "harness.trees.Static"
    assert build_object(tree).fed > 0
