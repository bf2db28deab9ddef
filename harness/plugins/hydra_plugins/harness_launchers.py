"""Hydra launchers: a sweep's jobs on several workers, by submitit or by Ray.

submitit works on this machine, or submits to Slurm. A job is a command line
(harness/sweeps/worker.py), so that a worker needs nothing of this process, and what became of it
stands in the sweep's ledger. Hydra's own plugins for these engines start all jobs of this machine
at once, on its first GPU, and give up at the first that fails.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from harness import cli
from harness.records import UserError, one_line
from harness.sweeps.ledger import WHOLE, SweepPart
from harness.sweeps.progress import SweepProgress
from harness.sweeps.worker import Work, carry_out

POLL_S = 0.2
"""Seconds between two looks at the workers of this machine; ten times as many on Slurm."""
ATTEMPTS = 3
"""Times that a job is tried whose workers die."""

# Hydra holds a configuration against any of its name in the store: take those plugins' out.
for _name in ("submitit_local", "submitit_slurm", "ray"):
    ConfigStore.instance().repo.get("hydra", {}).get("launcher", {}).pop(f"{_name}.yaml", None)


class Submission:
    """A job as workers get it: a command line, and the part of a sweep that it computes."""

    # No dataclass: Hydra loads plugins without entering them in sys.modules.

    def __init__(self, arguments: tuple[str, ...], part: SweepPart) -> None:
        self.arguments = arguments
        self.part = part
        self.deaths = 0  # workers that ended without writing why

    def needs_worker(self) -> bool:
        """Return whether another worker has to try the job, after one has ended.

        A job that was preempted is tried as often as it takes, one whose workers die ATTEMPTS
        times.
        """
        status = self.part.status
        if status in ("finished", "failed", "not run"):
            return False
        if status != "preempted":
            self.deaths += 1
        return self.deaths < ATTEMPTS


class _Workers(Launcher):
    """What both launchers have in common: jobs as command lines, and a GPU each if there are."""

    _progress: SweepProgress  # of the jobs that are carried out

    def __init__(self, workers: int | None, gpus: int | None) -> None:
        self._workers = workers
        self._gpus = gpus

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take the sweep's configuration. Raises UserError for impossible numbers."""
        self.config = config
        for name, value, least in (("workers", self._workers, 1), ("gpus", self._gpus, 0)):
            if value is not None and value < least:
                raise UserError(f"hydra.launcher.{name}={value}: give {least} or more, or null")

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Carry out all jobs; returns when each has ended, well or not."""
        jobs = [self._make_submission(list(overrides)) for overrides in job_overrides]
        if jobs:
            self.carry_out_all(jobs)
        returns = []
        for overrides in job_overrides:
            job_return = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            job_return.return_value = None
            returns.append(job_return)
        return returns

    def carry_out_all(self, jobs: Sequence[Submission]) -> None:
        """Give the jobs to workers until each has ended."""
        raise NotImplementedError

    def make_work(self, job: Submission, **environment: str) -> Work:
        """Pack up a job for a worker that is to have these environment variables."""
        plugins = str(Path(__file__).parent.parent)
        path = tuple(os.path.abspath(place) for place in sys.path if place != plugins)
        return Work(cli.run_command, job.arguments, os.getcwd(), path, environment)

    def has_ended(self, job: Submission) -> bool:
        """Return whether a job whose worker has ended needs no other, and print the progress."""
        if job.needs_worker():
            return False
        self._progress.end()
        self._progress.print_ended()
        return True

    def _make_submission(self, overrides: list[str]) -> Submission:
        values = dict(override.split("=", 1) for override in overrides)
        part_of = values.get("hydra.sweeper.part_of")
        if part_of is None:
            raise UserError(
                f"stages={list(self.config.stages)} computes nothing: leave hydra/launcher out"
            )
        expect_device_of_worker(values.get("device", str(self.config.device)), self._gpus)
        part = SweepPart.parse(Path(self.config.results), part_of, values.get("shard", WHOLE))
        searched = [
            f"--config-dir={source.path}"
            for source in self.config.hydra.runtime.config_sources
            if source.provider == "command-line"
        ]
        return Submission((*searched, *overrides), part)


class Submitit(_Workers):
    """Launch jobs by submitit, on this machine or by Slurm.

    `cluster: local` keeps `workers` processes busy here, slurm submits all jobs as an array. A
    preempted job goes back into its queue (`Work.checkpoint`); one that submitit gives up, or whose
    worker died, is submitted again. `parameters` are those of submitit's executor.
    """

    def __init__(
        self,
        cluster: str,
        workers: int | None,
        gpus: int | None,
        folder: str,
        parameters: Mapping[str, Any],
    ) -> None:
        super().__init__(workers, gpus)
        self._cluster = cluster
        self._folder = folder
        if OmegaConf.is_config(parameters):
            self._parameters = OmegaConf.to_container(parameters)
        else:
            self._parameters = dict(parameters)

    def carry_out_all(self, jobs: Sequence[Submission]) -> None:
        """Give the jobs to submitit until each has ended."""
        import submitit

        self._progress = SweepProgress(len(jobs), unit="job")
        executor = submitit.AutoExecutor(folder=self._folder, cluster=self._cluster)
        executor.update_parameters(**self._parameters)  # type: ignore[arg-type]
        if self._cluster == "local":
            self._keep_busy(jobs, executor.submit)
        else:
            self._submit_array(jobs, executor)

    def _submit_array(self, jobs: Sequence[Submission], executor: Any) -> None:
        """Submit all jobs at once, and again those that have to be tried again."""
        executor.update_parameters(gpus_per_node=1 if self._gpus is None else self._gpus)
        if self._workers:
            executor.update_parameters(slurm_array_parallelism=self._workers)
        with executor.batch():
            running = [(job, executor.submit(self.make_work(job))) for job in jobs]
        while running:
            time.sleep(10 * POLL_S)
            gone = [(job, sent) for job, sent in running if sent.done()]
            again = [job for job, _ in gone if not self.has_ended(job)]
            running = [pair for pair in running if pair not in gone]
            running += [(job, executor.submit(self.make_work(job))) for job in again]

    def _keep_busy(self, jobs: Sequence[Submission], submit: Callable[[Work], Any]) -> None:
        """Give each worker of this machine a job, and another when it is done."""
        waiting = deque(jobs)
        free_gpus = deque(assign_gpus(self._workers, self._gpus))
        running: list[tuple[Submission, str, Any]] = []
        logs = Path(self._folder).parent
        print(f"{len(waiting)} jobs for {len(free_gpus)} workers, whose output is in {logs}")
        try:
            while waiting or running:
                # 1. Every idle worker takes a job.
                while waiting and free_gpus:
                    job = waiting.popleft()
                    gpus = free_gpus.popleft()
                    work = self.make_work(job, CUDA_VISIBLE_DEVICES=gpus)
                    running.append((job, gpus, submit(work)))
                time.sleep(POLL_S)

                # 2. Workers that have ended are idle, and their jobs perhaps not done.
                for entry in [entry for entry in running if entry[2].done()]:
                    job, gpus, _ = entry
                    running.remove(entry)
                    free_gpus.append(gpus)
                    if not self.has_ended(job):
                        waiting.appendleft(job)
        finally:
            for _, _, sent in running:
                sent.cancel()


class Ray(_Workers):
    """Launch jobs as tasks of a Ray cluster: the one at `address`, or one that is started here.

    Its GPUs are Ray's to give.
    """

    def __init__(
        self, workers: int | None, gpus: int | None, cpus: int, address: str | None
    ) -> None:
        super().__init__(workers, gpus)
        self._cpus = cpus
        self._address = address

    def carry_out_all(self, jobs: Sequence[Submission]) -> None:
        """Give the jobs to Ray until each has ended. Raises UserError where it is missing."""
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "hydra/launcher=ray needs Ray: pip install 'visual-ar-tts[ray]'"
            ) from error

        self._progress = SweepProgress(len(jobs), unit="job")
        self._join_cluster(ray)
        try:
            self._keep_busy(ray, jobs)
        finally:
            ray.shutdown()

    def _join_cluster(self, ray: Any) -> None:
        """Connect to the cluster, or start one. Raises UserError where there is none."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local: dict[str, Any] = {}
        if not self._address:
            processors = len(assign_gpus(self._workers, self._gpus)) * self._cpus
            local = {"num_cpus": processors, "include_dashboard": False}
        try:
            ray.init(address=self._address, configure_logging=False, **local)
        except Exception as error:
            raise UserError(f"Ray has no cluster for this sweep: {one_line(error)}") from error

    def _keep_busy(self, ray: Any, jobs: Sequence[Submission]) -> None:
        """Keep as many tasks running as there may be workers, until all jobs have ended."""
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        gpus = float(has_gpus) if self._gpus is None else self._gpus
        task = ray.remote(carry_out).options(num_cpus=self._cpus, num_gpus=gpus, max_retries=0)
        threads = os.environ.get("OMP_NUM_THREADS", "1")  # Ray sets it itself
        waiting = deque(jobs)
        running = dict[Any, Submission]()
        print(f"{len(waiting)} jobs for {self._workers or 'as many as fit'} workers")
        while waiting or running:
            while waiting and len(running) < (self._workers or len(jobs)):
                job = waiting.popleft()
                running[task.remote(self.make_work(job, OMP_NUM_THREADS=threads))] = job
            gone, _ = ray.wait(list(running), num_returns=1)
            for reference in gone:
                job = running.pop(reference)
                if not self.has_ended(job):
                    waiting.appendleft(job)


def assign_gpus(workers: int | None, gpus: int | None) -> list[str]:
    """Return what each worker of this machine sees of its GPUs, for CUDA_VISIBLE_DEVICES.

    Each gets `gpus` of them, one by default; there are `workers` workers, or as many as there are
    GPUs for. Without GPUs there are as many as there are processors to use. Raises UserError where
    there are too few GPUs.
    """
    visible = _visible_gpus()
    each = gpus if gpus is not None else min(1, len(visible))
    if each == 0:
        return [""] * (workers or len(os.sched_getaffinity(0)))
    if each * (workers or 1) > len(visible):
        raise UserError(
            f"hydra.launcher.workers={workers} with {each} GPUs each, "
            f"but {len(visible)} are visible: take fewer"
        )
    shares = [
        ",".join(visible[first : first + each]) for first in range(0, len(visible) - each + 1, each)
    ]
    return shares[: workers or len(shares)]


def expect_device_of_worker(device: str, gpus: int | None) -> None:
    """Raise UserError for a `device` that no worker sees: its GPUs are numbered from 0 on.

    Every worker gets `gpus` of them, one by default.
    """
    kind, _, number = device.partition(":")
    each = 1 if gpus is None else gpus
    if kind == "cuda" and number.isdigit() and int(number) >= each:
        raise UserError(
            f"device={device} is none of a worker's GPUs, which are numbered from 0 on "
            f"(hydra.launcher.gpus={each}): "
            "set device=auto or cuda, and CUDA_VISIBLE_DEVICES to the GPUs that workers may have"
        )


def _visible_gpus() -> list[str]:
    """List this machine's GPUs by the names or numbers that CUDA_VISIBLE_DEVICES may have."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(index) for index in range(count)]
    return [name for name in visible if name.strip()]
