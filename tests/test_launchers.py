"""Sweeps on several workers: submitit and Ray give what one process gives, through preemptions and
deaths as well.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from runs import TOY, deterministic, harness, start
from submitit.core.submission import process_job
from submitit.slurm.test_slurm import mocked_slurm

from harness import cli
from harness.records import UserError
from harness.runs.lock import find_writers
from harness.sweeps.ledger import Event, Ledger, ledger_folder, read_events
from harness.sweeps.worker import Work

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
    visible: str,
    workers: int | None,
    gpus: int | None,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(
        "torch.cuda.device_count", lambda: len(visible.split(",")) if visible else 0
    )
    assert places(workers, gpus) == expected


def test_more_gpus_than_there_are_cannot_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="workers=3 with 1 GPUs each, but 2 are visible"):
        places(3, None)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back the signal handlers that submitit sets where it carries out a job."""
    former = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)
    }
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def test_slurm_gets_an_array_and_once_more_what_was_preempted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    """Against submitit's own stand-in for Slurm: jobs are pickled, submitted, and carried out as
    Slurm's would be.
    """
    cli.enable_plugins()
    module = import_module("hydra_plugins.harness_launchers")
    ledger = Ledger(tmp_path / "sweep.jsonl", "call")
    jobs = [
        module._Job(("stages=[report]", "results=nowhere"), ledger, "point", f"{index}/3")
        for index in range(3)
    ]
    fates = {
        "12_0": [jobs[0], "finished"],
        "12_1": [jobs[1], "preempted"],
        "12_2": [jobs[2], "failed"],
    }
    again = {"13": [jobs[1], "finished"]}
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", ["hydra/launcher=submitit_slurm"], return_hydra_config=True)
    GlobalHydra.instance().clear()
    parameters = {**config.hydra.launcher.parameters, "timeout_min": 60, "slurm_partition": "gpu"}
    launcher = module.Submitit("slurm", 2, None, str(tmp_path / "logs/%j"), parameters)
    monkeypatch.setattr(
        launcher, "_work", lambda job: Work(cli.run_command, job.arguments, str(tmp_path))
    )

    with mocked_slurm() as slurm:

        def carry_out(_: float) -> None:
            for number, (job, fate) in (fates or again).items():
                with slurm.job_context(number):
                    process_job(tmp_path / "logs" / number)
                ledger.write(fate, point=job.point, shard=job.shard)
            (fates or again).clear()

        monkeypatch.setattr(module.time, "sleep", carry_out)
        launcher._carry_out(jobs)
    assert not fates and not again
    script = next(
        path.read_text() for path in tmp_path.rglob("*.sh") if "--array" in path.read_text()
    )
    for option in (
        "--array=0-2%2",
        "--gpus-per-node=1",
        "--time=60",
        "--signal=USR2@120",
        "--partition=gpu",
    ):
        assert f"#SBATCH {option}" in script, script


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What worker processes need to find the toy model and this checkout."""
    tests = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{tests.parent}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def events(cwd: Path) -> list[Event]:
    return [
        event for path in ledger_folder(cwd / "results").glob("*.jsonl") for event in read_events(path)
    ]


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
        pytest.importorskip(
            "ray", reason="Ray is an optional extra: pip install 'visual-ar-tts[ray]'"
        )
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
        yield from (writer.pid for writer in find_writers(folder))


def lines(cwd: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in cwd.rglob("records-*.jsonl"))


@pytest.mark.long
def test_twenty_preemptions_in_a_row_change_nothing(
    tmp_path: Path, alone: dict[str, object], environment: None
) -> None:
    """submitit's controller starts a preempted job again five times, then our launcher does; one
    worker is killed.
    """
    process = start(
        tmp_path,
        *SWEEP,
        "benchmark.pause=0.05",
        "hydra/launcher=submitit_local",
        "hydra.launcher.workers=1",
    )
    asked = before = 0
    while asked < 21 and process.poll() is None:
        working = list(busy(tmp_path))
        if working and lines(tmp_path) > before:
            number = (
                (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)[asked % 3]
                if asked != 9
                else signal.SIGKILL
            )
            os.kill(working[0], number)
            asked += 1
            while process.poll() is None and working[0] in busy(tmp_path):
                time.sleep(0.01)
            before = lines(tmp_path)
        time.sleep(0.01)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert asked == 21
    assert [event.event for event in events(tmp_path)].count("preempted") == 20
    assert deterministic(tmp_path) == alone
