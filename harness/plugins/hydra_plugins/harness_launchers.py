"""Hydra launchers: a sweep's jobs on several workers, by submitit (this machine, or Slurm) or by
Ray.

A job is a command line (harness/worker.py), so that a worker needs nothing of this process, and
what became of it stands in the sweep's ledger. Hydra's own plugins for these engines start all jobs
of this machine at once, on its first GPU, and give up at the first that fails.
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
from harness.sweeps.ledger import Ledger
from harness.sweeps.worker import Work, carry_out

POLL_S = 0.2
ATTEMPTS = 3
"""Of a job whose workers die."""

for _name in (
    "submitit_local",
    "submitit_slurm",
    "ray",
):  # Hydra holds a config against any of its name in the store
    ConfigStore.instance().repo.get("hydra", {}).get("launcher", {}).pop(f"{_name}.yaml", None)


class _Job:
    """A command line on its way."""  # no dataclass: Hydra loads plugins without entering them in sys.modules

    def __init__(self, arguments: tuple[str, ...], ledger: Ledger, point: str, shard: str) -> None:
        self.arguments = arguments
        self.ledger = ledger
        self.point = point
        self.shard = shard
        self.attempts = 0

    @property
    def fate(self) -> str:
        """The last that the ledger says of it."""
        mine = [e for e in self.ledger.events() if (e.point, e.shard) == (self.point, self.shard)]
        return mine[-1].event if mine else ""

    def ended(self) -> bool:
        """Whether its worker, which is gone, had the last word; if not, the job may be tried
        again.
        """
        fate = self.fate
        if fate in ("finished", "failed", "not run"):
            return True
        self.attempts += fate != "preempted"
        return self.attempts >= ATTEMPTS


class _Workers(Launcher):
    """What both have in common: jobs as command lines, and a GPU each where there are GPUs."""

    def __init__(self, workers: int | None, gpus: int | None) -> None:
        self._workers = workers
        self._gpus = gpus

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Raises UserError for numbers that cannot be."""
        self.config = config
        for name, value, least in (("workers", self._workers, 1), ("gpus", self._gpus, 0)):
            if value is not None and value < least:
                raise UserError(f"hydra.launcher.{name}={value}: give {least} or more, or null")

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Carry out all jobs; returns when each has ended, well or not."""
        jobs = [self._job(list(overrides)) for overrides in job_overrides]
        if jobs:
            self._carry_out(jobs)
        ended = []
        for overrides in job_overrides:
            ended.append(JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED))
            ended[-1].return_value = None
        return ended

    def _carry_out(self, jobs: Sequence[_Job]) -> None:
        raise NotImplementedError

    def _job(self, overrides: list[str]) -> _Job:
        said = dict(override.split("=", 1) for override in overrides)
        part_of = said.get("hydra.sweeper.part_of")
        if part_of is None:
            raise UserError(
                f"stages={list(self.config.stages)} computes nothing: leave hydra/launcher out"
            )
        ledger, point = Ledger.of(Path(self.config.results), part_of)
        sources = self.config.hydra.runtime.config_sources
        searched = [
            f"--config-dir={source.path}" for source in sources if source.provider == "command-line"
        ]
        return _Job((*searched, *overrides), ledger, point, said.get("shard", "0/1"))

    def _work(self, job: _Job, **environment: str) -> Work:
        path = tuple(
            os.path.abspath(place)
            for place in sys.path
            if place != str(Path(__file__).parent.parent)
        )
        return Work(cli.command, job.arguments, os.getcwd(), path, environment)


class Submitit(_Workers):
    """Jobs by submitit: `cluster: local` keeps `workers` processes busy here, slurm submits all as
    a job array.

    A preempted job goes back into its queue (`Work.checkpoint`); one that submitit gives up, or
    whose worker died, is submitted again. `parameters` are those of submitit's executor.
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
        self._parameters = (
            OmegaConf.to_container(parameters)
            if OmegaConf.is_config(parameters)
            else dict(parameters)
        )

    def _carry_out(self, jobs: Sequence[_Job]) -> None:
        import submitit

        executor = submitit.AutoExecutor(folder=self._folder, cluster=self._cluster)
        executor.update_parameters(**self._parameters)  # type: ignore[arg-type]
        if self._cluster == "local":
            self._keep_busy(jobs, executor.submit)
            return
        executor.update_parameters(gpus_per_node=1 if self._gpus is None else self._gpus)
        if self._workers:
            executor.update_parameters(slurm_array_parallelism=self._workers)
        with executor.batch():
            running = [(job, executor.submit(self._work(job))) for job in jobs]
        while running:
            time.sleep(10 * POLL_S)
            gone = [(job, sent) for job, sent in running if sent.done()]
            again = [job for job, _ in gone if not job.ended()]
            running = [pair for pair in running if pair not in gone]
            running += [(job, executor.submit(self._work(job))) for job in again]

    def _keep_busy(self, jobs: Sequence[_Job], submit: Callable[[Work], Any]) -> None:
        """Give each worker a job, and another when it is done."""
        waiting = deque(jobs)
        places = deque(_places(self._workers, self._gpus))
        running: list[tuple[_Job, str, Any]] = []
        print(
            f"{len(waiting)} jobs for {len(places)} workers, whose output is in {Path(self._folder).parent}"
        )
        try:
            while waiting or running:
                while waiting and places:
                    job = waiting.popleft()
                    place = places.popleft()
                    running.append(
                        (job, place, submit(self._work(job, CUDA_VISIBLE_DEVICES=place)))
                    )
                time.sleep(POLL_S)
                for entry in [entry for entry in running if entry[2].done()]:
                    job, place, _ = entry
                    running.remove(entry)
                    places.append(place)
                    if not job.ended():
                        waiting.appendleft(job)
        finally:
            for _, _, sent in running:
                sent.cancel()


class Ray(_Workers):
    """Jobs as tasks of a Ray cluster: the one at `address`, or one that is started here. Its GPUs
    are Ray's to give.
    """

    def __init__(
        self, workers: int | None, gpus: int | None, cpus: int, address: str | None
    ) -> None:
        super().__init__(workers, gpus)
        self._cpus = cpus
        self._address = address

    def _carry_out(self, jobs: Sequence[_Job]) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "hydra/launcher=ray needs Ray: pip install 'visual-ar-tts[ray]'"
            ) from error

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        here: dict[str, Any] = {}
        if not self._address:
            processors = len(_places(self._workers, self._gpus)) * self._cpus
            here = {"num_cpus": processors, "include_dashboard": False}
        try:
            ray.init(address=self._address, configure_logging=False, **here)
        except Exception as error:
            raise UserError(f"Ray has no cluster for this sweep: {one_line(error)}") from error
        try:
            each = (
                self._gpus
                if self._gpus is not None
                else float(ray.cluster_resources().get("GPU", 0) > 0)
            )
            task = ray.remote(carry_out).options(num_cpus=self._cpus, num_gpus=each, max_retries=0)
            threads = os.environ.get("OMP_NUM_THREADS", "1")  # Ray sets it itself
            waiting = deque(jobs)
            running = dict[Any, _Job]()
            print(f"{len(waiting)} jobs for {self._workers or 'as many as fit'} workers")
            while waiting or running:
                while waiting and len(running) < (self._workers or len(jobs)):
                    job = waiting.popleft()
                    running[task.remote(self._work(job, OMP_NUM_THREADS=threads))] = job
                gone, _ = ray.wait(list(running), num_returns=1)
                for one in gone:
                    job = running.pop(one)
                    if not job.ended():
                        waiting.appendleft(job)
        finally:
            ray.shutdown()


def _places(workers: int | None, gpus: int | None) -> list[str]:
    """What each worker of this machine may see of its GPUs; without GPUs as many as there are
    processors to use.
    """
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = (
        named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
    )
    visible = [name for name in visible if name.strip()] if torch.cuda.device_count() else []
    each = gpus if gpus is not None else min(1, len(visible))
    if each == 0:
        return [""] * (workers or len(os.sched_getaffinity(0)))
    if each * (workers or 1) > len(visible):
        raise UserError(
            f"hydra.launcher.workers={workers} with {each} GPUs each, but {len(visible)} are visible: take fewer"
        )
    places = [
        ",".join(visible[first : first + each]) for first in range(0, len(visible) - each + 1, each)
    ]
    return places[: workers or len(places)]
