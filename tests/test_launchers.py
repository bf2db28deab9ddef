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
from types import ModuleType

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from runs import TOY, count_records, deterministic, harness, start
from submitit.core.submission import process_job
from submitit.slurm.test_slurm import mocked_slurm

from harness import cli
from harness.records import UserError
from harness.runs.lock import find_writers
from harness.sweeps.ledger import Event, Ledger, SweepPart, ledger_folder, read_events
from harness.sweeps.worker import Work

SWEEP = ("-m", *TOY, "method=plain,toy_best", "benchmark.pause=0.05")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def load_launchers() -> ModuleType:
    return import_module("hydra_plugins.harness_launchers")


# ------------------------------------------------------------------ GPUs


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
    count = len(visible.split(",")) if visible else 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert load_launchers().assign_gpus(workers, gpus) == expected


def test_more_gpus_than_there_are_cannot_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="workers=3 with 1 GPUs each, but 2 are visible"):
        load_launchers().assign_gpus(3, None)


@pytest.mark.parametrize(
    ("device", "gpus", "seen"),
    [
        ("auto", None, True),
        ("cpu", 0, True),
        ("cuda", None, True),
        ("cuda:0", None, True),
        ("cuda:1", 2, True),
        ("cuda:1", None, False),
        ("cuda:0", 0, False),
    ],
)
def test_a_device_that_no_worker_sees_is_refused(device: str, gpus: int | None, seen: bool) -> None:
    """Before anything is launched: each worker would fail at it."""
    expect = load_launchers().expect_device_of_worker
    if seen:
        expect(device, gpus)
        return
    with pytest.raises(UserError, match=rf"device={device} is none of a worker's GPUs"):
        expect(device, gpus)


# ------------------------------------------------------------------ Slurm


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back the signal handlers that submitit sets where it carries out a job."""
    numbers = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)
    former = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def slurm_parameters() -> dict[str, object]:
    """Parameters of submitit's executor, as configured and typed."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", ["hydra/launcher=submitit_slurm"], return_hydra_config=True)
    GlobalHydra.instance().clear()
    return {**config.hydra.launcher.parameters, "timeout_min": 60, "slurm_partition": "gpu"}


def test_slurm_gets_an_array_and_once_more_what_was_preempted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    """Against submitit's own stand-in for Slurm: jobs are pickled, submitted, and carried out as
    Slurm's would be.
    """
    module = load_launchers()
    ledger = Ledger(tmp_path / "sweep.jsonl", "call")
    arguments = ("stages=[report]", "results=nowhere")
    jobs = [
        module.Submission(arguments, SweepPart(ledger, "point", f"{index}/3")) for index in range(3)
    ]
    # Each round of jobs by Slurm's number, and the status that each ends with.
    rounds = [
        {
            "12_0": (jobs[0], "finished"),
            "12_1": (jobs[1], "preempted"),
            "12_2": (jobs[2], "failed"),
        },
        {"13": (jobs[1], "finished")},
    ]
    launcher = module.Submitit("slurm", 2, None, str(tmp_path / "logs/%j"), slurm_parameters())

    def make_work(job: object) -> Work:
        return Work(cli.run_command, arguments, str(tmp_path))

    monkeypatch.setattr(launcher, "make_work", make_work)
    with mocked_slurm() as slurm:

        def carry_out(_: float) -> None:
            for number, (job, status) in rounds.pop(0).items():
                with slurm.job_context(number):
                    process_job(tmp_path / "logs" / number)
                job.part.write(status)

        monkeypatch.setattr(module.time, "sleep", carry_out)
        launcher.carry_out_all(jobs)
    assert not rounds

    scripts = [path.read_text() for path in tmp_path.rglob("*.sh")]
    script = next(text for text in scripts if "--array" in text)
    for option in (
        "--array=0-2%2",
        "--gpus-per-node=1",
        "--time=60",
        "--signal=USR2@120",
        "--partition=gpu",
    ):
        assert f"#SBATCH {option}" in script, script


# ------------------------------------------------------------------ workers of this machine


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What worker processes need to find the toy model and this checkout."""
    tests = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{tests.parent}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def read_ledgers(cwd: Path) -> list[Event]:
    """Read the events of all sweeps."""
    events = []
    for path in ledger_folder(cwd / "results").glob("*.jsonl"):
        events += read_events(path)
    return events


def busy_processes(cwd: Path) -> list[int]:
    """List the processes that write a run folder now."""
    writers = []
    for config in (cwd / "results").rglob("config.yaml"):
        writers += find_writers(config.parent)
    return [writer.pid for writer in writers]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the sweep leaves behind if one process carries it out."""
    cwd = tmp_path_factory.mktemp("alone")
    code, said = harness(cwd, *SWEEP)
    assert code == 0, said
    return deterministic(cwd)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_two_workers_give_what_one_process_gives(
    launcher: str, tmp_path: Path, alone: dict[str, object], environment: None
) -> None:
    if launcher == "ray":
        reason = "Ray is an optional extra: pip install 'visual-ar-tts[ray]'"
        pytest.importorskip("ray", reason=reason)
    launched = (f"hydra/launcher={launcher}", "hydra.launcher.workers=2", "shards=2")
    process = start(tmp_path, *SWEEP, *launched)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert deterministic(tmp_path) == alone
    workers = {event.pid for event in read_ledgers(tmp_path) if event.event == "finished"}
    assert len(workers) >= 2 and process.pid not in workers

    code, said = harness(tmp_path, *SWEEP)
    assert code == 0
    assert "2 of 2 points are finished" in said


@pytest.mark.long
def test_twenty_preemptions_in_a_row_change_nothing(
    tmp_path: Path, alone: dict[str, object], environment: None
) -> None:
    """submitit's controller starts a preempted job again five times, then our launcher does; one
    worker is killed.
    """
    launched = ("hydra/launcher=submitit_local", "hydra.launcher.workers=1")
    process = start(tmp_path, *SWEEP, *launched)
    asked = 0
    records = 0
    while asked < 21 and process.poll() is None:
        working = busy_processes(tmp_path)
        if working and count_records(tmp_path) > records:
            number = signal.SIGKILL if asked == 9 else SIGNALS[asked % 3]
            os.kill(working[0], number)
            asked += 1
            while process.poll() is None and working[0] in busy_processes(tmp_path):
                time.sleep(0.01)
            records = count_records(tmp_path)
        time.sleep(0.01)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert asked == 21
    statuses = [event.event for event in read_ledgers(tmp_path)]
    assert statuses.count("preempted") == 20
    assert deterministic(tmp_path) == alone
