"""Sweeps: what is finished costs nothing again, what failed is tried again, and a ledger tells it
all.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest
import toy
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from runs import TOY, count_records, deterministic, folders, fork, harness

from harness import cli
from harness.records import Job, Prompt
from harness.runs import source
from harness.runs.folder import RunFolder
from harness.runs.lock import Shard
from harness.runs.plugins import OWN_PACKAGES
from harness.runs.spec import RunSpec
from harness.sweeps.finished import find_outside_files
from harness.sweeps.ledger import Event, ledger_folder, list_outcomes, name_points, read_events
from harness.sweeps.overrides import defer_swept_options

FEW = (*TOY, "benchmark.prompts=4", "benchmark.pause=0.02")
SWEEP = ("-m", *FEW, "method=plain,toy_best")
FAULTY = ("-m", *TOY, "benchmark.prompts=8", "method=toy_faulty,plain", "stages=[generate,score]")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a finished sweep lies."""
    cwd = tmp_path_factory.mktemp("done")
    code, said = harness(cwd, *SWEEP)
    assert code == 0, said
    return cwd


@pytest.fixture
def cwd(done: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    return tmp_path


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """List the methods of runs that are built, and "forward" for each forward of the target."""
    seen: list[str] = []
    build = source.build_run_spec
    forward = toy.ToyModel.forward

    def build_and_note(config: DictConfig, choices: Mapping[str, str]) -> RunSpec:
        seen.append(choices["method"])
        return build(config, choices)

    def forward_and_note(self: toy.ToyModel, *inputs: object) -> object:
        seen.append("forward")
        return forward(self, *inputs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(source, "build_run_spec", build_and_note)
        patch.setattr(toy.ToyModel, "forward", forward_and_note)
        yield seen


def read_ledgers(cwd: Path) -> list[Event]:
    """Read the events of all sweeps."""
    events = []
    for path in sorted(ledger_folder(cwd / "results").glob("*.jsonl")):
        events += read_events(path)
    return events


def statuses(cwd: Path) -> list[str]:
    return [event.event for event in read_ledgers(cwd)]


# ------------------------------------------------------------------ what is finished


def test_a_finished_sweep_builds_nothing_and_a_new_point_only_itself(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = deterministic(cwd)
    with watched(monkeypatch) as seen:
        for more in ((), ("stages=[generate]", "shards=3")):
            code, said = harness(cwd, *SWEEP, *more)
            assert (code, seen) == (0, []), said
            assert "2 of 2 points are finished and left out" in said
    assert deterministic(cwd) == before

    larger = ("-m", *FEW, "method=plain,toy_best,best_of_n_likelihood")
    with watched(monkeypatch) as seen:
        code, said = harness(cwd, *larger, "stages=[generate]")
        assert code == 0, said
        assert set(seen) == {"best_of_n_likelihood", "forward"}
    assert len(folders(cwd)) == 3


def test_a_report_that_would_be_the_same_is_left_alone(cwd: Path) -> None:
    board = cwd / "results/leaderboard.csv"
    written = board.stat().st_mtime_ns
    code, said = harness(cwd, *SWEEP)
    assert code == 0
    assert "leaderboard.csv: nothing has changed since it was written" in said
    assert board.stat().st_mtime_ns == written

    journal = folders(cwd)[0] / "records-0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines, lines[0]]))
    code, said = harness(cwd, *SWEEP)
    assert code == 0
    assert "leaderboard.csv: 2 runs" in said
    assert board.stat().st_mtime_ns != written


@pytest.mark.parametrize("harm", ["image", "record", "score", "code"])
def test_a_point_is_left_out_only_if_its_folder_is_complete(
    harm: str, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = deterministic(cwd)
    folder = next(folder for folder in folders(cwd) if "plain" in folder.name)
    if harm == "image":
        next(folder.rglob("*.png")).write_bytes(b"torn")
    elif harm in ("record", "score"):
        journal = folder / ("records-0.jsonl" if harm == "record" else "scores.jsonl")
        lines = journal.read_text().splitlines(keepends=True)
        journal.write_text("".join(lines[1:]))
    else:
        monkeypatch.setattr(
            "harness.sweeps.finished.has_changed", lambda path, state: "toy.py" in path
        )
    with watched(monkeypatch) as seen:
        code, said = harness(cwd, *SWEEP, "stages=[generate,score]")
    assert code == 0, said
    assert (seen.count("plain"), seen.count("toy_best")) == (1, harm == "code")
    assert ("forward" in seen) == (harm in ("image", "record"))

    after = deterministic(cwd)
    if harm == "image":  # drawn again, and noted again
        name = f"{folder.relative_to(cwd)}/records"
        after[name] = sorted(set(after[name]))  # type: ignore[call-overload]
    assert after == before


def test_a_point_is_named_by_the_project_s_own_files_and_watches_the_others() -> None:
    assert all(folder.is_dir() for folder in OWN_PACKAGES)
    config = {"_target_": "toy.ToyModel", "reward": {"_target_": "harness.judges.verifier.V"}}
    assert list(find_outside_files(config)) == [toy.__file__]


def test_shares_of_a_sweep_are_one_worker_s_run(tmp_path: Path, done: Path) -> None:
    code, said = harness(tmp_path, *SWEEP, "shards=2")
    assert code == 0, said
    assert deterministic(tmp_path) == deterministic(done)
    assert len(list(tmp_path.rglob("records-*.jsonl"))) == 4


# ------------------------------------------------------------------ what failed


def test_failures_stand_in_a_table_and_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = harness(tmp_path, *FAULTY)
    assert code == 1
    assert "\nerror: method=toy_faulty: " in said
    last = "1 of the sweep's runs did not end well; the same command tries them again"
    assert said.rstrip().endswith(last)
    first_try = ["begun", "planned", "planned", "started", "failed", "started", "finished"]
    assert statuses(tmp_path) == first_try

    (tmp_path / "mended").touch()
    with watched(monkeypatch) as seen:
        code, said = harness(tmp_path, *FAULTY)
    assert (code, set(seen)) == (0, {"toy_faulty", "forward"}), said
    assert len(list(ledger_folder(tmp_path / "results").iterdir())) == 1


def test_a_sweep_may_stop_at_its_first_failure(tmp_path: Path) -> None:
    code, said = harness(tmp_path, *FAULTY, "on_error=stop")
    assert code == 1
    assert "method=plain: not run, because another point failed (on_error=stop)" in said
    (folder,) = folders(tmp_path)
    assert (folder / "records-0.jsonl").read_text().count('"failed"') == 1

    code, said = harness(tmp_path, *FEW, "on_error=panic")
    assert code == 2
    assert "on_error=panic: choose from continue, stop" in said


def test_what_is_of_the_whole_sweep_cannot_be_swept(tmp_path: Path) -> None:
    launched = ("-m", *FEW, "hydra/launcher=submitit_local")
    for arguments, words in [
        (("-m", *FEW, "shards=1,2"), "shards is of the whole sweep"),
        (("-m", *FEW, "shards=0"), "shards=0: give"),
        (("-m", *FEW, "shards=2", "shard=1/2"), "shard=1/2 and shards=2: give one of them"),
        ((*FEW, "shards=2"), "shards=2 is for sweeps: add -m"),
        ((*FEW, "shard=2/2"), "shard=2/2: write i/n"),
        ((*launched, "hydra.launcher.workers=0"), "workers=0"),
    ]:
        code, said = harness(tmp_path, *arguments)
        assert code == 2 and words in said, said


def test_a_share_whose_worker_died_has_failed() -> None:
    lines = [
        Event("begun", "c"),
        Event("planned", "c", "p", overrides=["method=plain"], shards=2),
        Event("started", "c", "p", "0/2", folder="a/b/c"),
        Event("started", "c", "p", "1/2", folder="a/b/c"),
        Event("finished", "c", "p", "0/2"),
    ]
    first, second = list_outcomes(lines)
    assert name_points([first, second]) == ["the defaults"] * 2
    assert first.event == "finished"
    assert (second.event, second.shard, second.code) == ("failed", "1/2", 1)
    assert "ended without a word" in second.error


def test_a_sweep_of_a_share_ends_well_when_its_share_is_done(tmp_path: Path, done: Path) -> None:
    """Two processes that were given a share each, without a launcher, draw the whole sweep."""
    for shard in ("0/2", "1/2"):
        code, said = harness(tmp_path, *SWEEP, f"shard={shard}")
        assert code == 0, said
        assert "did not end well" not in said
    assert deterministic(tmp_path) == deterministic(done)
    outcomes = list_outcomes([Event("planned", "c", "p", "1/2"), Event("started", "c", "p", "1/2")])
    assert [(end.shard, end.event) for end in outcomes] == [("1/2", "failed")]


def test_a_torn_line_of_a_ledger_is_cut_off_by_the_next(cwd: Path) -> None:
    (path,) = ledger_folder(cwd / "results").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    code, said = harness(cwd, *SWEEP)
    assert code == 0
    assert "2 of 2 points are finished" in said
    assert statuses(cwd)[-4:] == ["started", "begun", "skipped", "skipped"]


# ------------------------------------------------------------------ status


def show_status(cwd: Path, folder: str = "results") -> tuple[int, str]:
    return harness(cwd, "status", folder, module="harness.sweep")


def test_status_tells_how_far_sweeps_are_while_they_are_written(tmp_path: Path) -> None:
    harness(tmp_path, *FAULTY)
    code, said = show_status(tmp_path)
    assert code == 1
    rows = [line.split()[-4:] for line in said.splitlines() if line.endswith("-")]
    assert rows == [["16", "12", "4", "-"], ["16", "16", "0", "-"]]
    assert "32 images planned, 28 done, 4 failed, 0 workers running, time left unknown" in said
    assert "4 of 16 images failed" in said

    jobs = [Job(Prompt(f"toy/{index}", "a cat", "any"), 0) for index in range(5)]
    about = {
        "benchmark": "toy",
        "model": "toy",
        "method": "plain",
        "params": "",
        "fingerprint": "0" * 8,
        "seed": 0,
        "planned": 5,
    }
    name = "toy/toy/plain-00000000"
    with RunFolder(tmp_path / "results" / name, {"run": about}, jobs, Shard(1, 2)):
        code, said = show_status(tmp_path)
    assert code == 1
    assert "runs of no sweep: 1 points, 0 done" in said
    assert name in said and "1/2" in said and "1 workers running" in said

    code, said = show_status(tmp_path, "nowhere")
    assert code == 2
    assert "nowhere" in said


# ------------------------------------------------------------------ points


def test_what_is_typed_wins_over_a_point_and_a_rehearsal_over_both() -> None:
    sweeper = import_module("hydra_plugins.harness_points").PointSweeper
    points = [
        ["model=big", "method=a", "method.k=9"],
        ["model=big", "method=b", "+x=1"],
        ["model=huge", "method=a", "~x"],
    ]

    def list_jobs(*typed: str, **rehearsal: object) -> list[list[str]]:
        overrides = OverridesParser.create().parse_overrides(list(typed))
        batches = sweeper(points, **rehearsal).split_arguments(overrides, None)
        return list(chain.from_iterable(batches))

    assert list_jobs() == points
    assert list_jobs("model=small", "seed=0,1") == [
        ["model=small", "seed=0", "method=a", "method.k=9"],
        ["model=small", "seed=1", "method=a", "method.k=9"],
        ["model=small", "seed=0", "method=b", "+x=1"],
        ["model=small", "seed=1", "method=b", "+x=1"],
        ["model=small", "seed=0", "method=a", "~x"],
        ["model=small", "seed=1", "method=a", "~x"],
    ]
    assert list_jobs(always=["model=tiny"], instead={"method.k": "2", "+x": None}) == [
        ["model=tiny", "method=a", "method.k=2"],
        ["model=tiny", "method=b"],
        ["model=tiny", "method=a", "~x"],
    ]


def test_hydras_own_options_are_no_part_of_points() -> None:
    typed = ["-m", "experiment=any", "hydra.launcher.workers=2", "method.n=2"]
    assert defer_swept_options(typed)[2:] == ["hydra.launcher.workers=2", "method.n=choice(2)"]


def test_null_may_be_typed_beside_a_sweep() -> None:
    sweeper = import_module("hydra_plugins.harness_points").PointSweeper
    _, *typed = defer_swept_options(["-m", "experiment=any", "sampler.slots=null", "seed=0"])
    overrides = OverridesParser.create().parse_overrides(typed[1:])
    jobs = list(chain.from_iterable(sweeper([["method=a"]]).split_arguments(overrides, None)))
    assert jobs == [["sampler.slots=null", "seed=0", "method=a"]]


# ------------------------------------------------------------------ preemption


def test_a_preempted_sweep_goes_on_until_it_is_the_same(tmp_path: Path, done: Path) -> None:
    """The requeue loop in short: forks of this process, each asked to leave by another signal, then
    one left alone.
    """
    codes = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, None):
        before = count_records(tmp_path)
        pid = fork(tmp_path, lambda: os._exit(cli.run_command(SWEEP)))
        while number and count_records(tmp_path) < before + 3:
            time.sleep(0.005)
        began = time.monotonic()
        if number:
            os.kill(pid, number)
        _, status = os.waitpid(pid, 0)
        codes.append(os.waitstatus_to_exitcode(status))
        assert not number or time.monotonic() - began < 5
    assert codes == [143, 138, 140, 0], (tmp_path / "output.txt").read_text()
    assert deterministic(tmp_path) == deterministic(done)
    assert statuses(tmp_path).count("preempted") == 3
