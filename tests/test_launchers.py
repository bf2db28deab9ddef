"""Sweeps on several workers: submitit and Ray give what one process gives, through preemptions and deaths as well."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from runs import TOY, deterministic, harness, start

from harness import cli
from harness.ledger import Event, ledgers, read_events
from harness.records import UserError
from harness.store import writers

SWEEP = ("-m", *TOY, "method=plain,toy_best")


def places(workers: int | None, gpus: int | None) -> list[str]:
    cli.enable_plugins()
    return import_module("hydra_plugins.harness_launchers")._places(workers, gpus)


@pytest.mark.parametrize(
    ("visible", "workers", "gpus", "expected"),
    [
        ("", 2, None, ["", ""]),
        ("0,1", None, None, ["0", "1"]),
        ("2,3,5", None, 1, ["2", "3", "5"]),
        ("2,3,5", 2, None, ["2", "3"]),
        ("GPU-a,GPU-b", None, 2, ["GPU-a,GPU-b"]),
        ("0,1,2,3", None, 2, ["0,1", "2,3"]),
        ("0", 3, 0, ["", "", ""]),
    ],
)
def test_each_worker_sees_gpus_of_its_own(
    visible: str, workers: int | None, gpus: int | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(visible.split(",")) if visible else 0)
    assert places(workers, gpus) == expected


def test_more_gpus_than_there_are_cannot_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="workers=3 with 1 GPUs each, but 2 are visible"):
        places(3, None)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What worker processes need to find the toy model and this checkout."""
    tests = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{tests.parent}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def events(cwd: Path) -> list[Event]:
    return [event for path in ledgers(cwd / "results").glob("*.jsonl") for event in read_events(path)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    cwd = tmp_path_factory.mktemp("alone")
    code, said = harness(cwd, *SWEEP, "benchmark.pause=0.05")
    assert code == 0, said
    return deterministic(cwd)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_two_workers_give_what_one_process_gives(
    launcher: str, tmp_path: Path, alone: dict[str, object], environment: None
) -> None:
    if launcher == "ray":
        pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'visual-ar-tts[ray]'")
    launched = (f"hydra/launcher={launcher}", "hydra.launcher.workers=2", "shards=2")
    process = start(tmp_path, *SWEEP, "benchmark.pause=0.05", *launched)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert deterministic(tmp_path) == alone
    workers = {event.pid for event in events(tmp_path) if event.event == "finished"}
    assert len(workers) >= 2 and process.pid not in workers
    code, said = harness(tmp_path, *SWEEP, "benchmark.pause=0.05")
    assert code == 0 and "2 of 2 points are finished" in said


def busy(cwd: Path) -> Iterator[int]:
    """Processes that write a run folder now."""
    for folder in (path.parent for path in (cwd / "results").rglob("config.yaml")):
        yield from (writer.pid for writer in writers(folder))


def lines(cwd: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in cwd.rglob("records-*.jsonl"))


@pytest.mark.long
def test_twenty_preemptions_in_a_row_change_nothing(
    tmp_path: Path, alone: dict[str, object], environment: None
) -> None:
    """submitit's controller starts a preempted job again five times, then our launcher does; one worker is killed."""
    process = start(
        tmp_path, *SWEEP, "benchmark.pause=0.05", "hydra/launcher=submitit_local", "hydra.launcher.workers=1"
    )
    asked = before = 0
    while asked < 20 and process.poll() is None:
        working = list(busy(tmp_path))
        if working and lines(tmp_path) > before:
            number = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)[asked % 3] if asked != 9 else signal.SIGKILL
            os.kill(working[0], number)
            asked += 1
            while process.poll() is None and working[0] in busy(tmp_path):
                time.sleep(0.01)
            before = lines(tmp_path)
        time.sleep(0.01)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert asked == 20
    assert [event.event for event in events(tmp_path)].count("preempted") == 19
    assert deterministic(tmp_path) == alone
