"""Execute a run spec: draw its images, measure what that takes, and go on where memory runs out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from harness.engine.cuda_graphs import Graphs
from harness.engine.memory import short_of_memory
from harness.engine.meter import Meter, describe, warm_up
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.kernels import why_unused
from harness.records import Job, Timing, one_line

if TYPE_CHECKING:
    from harness.runs.spec import RunSpec

log = logging.getLogger("harness")

OnDelivery = Callable[[Delivery], None]


class Executor:
    """Draw the images of a run.

    `stamp` says what became of the run that its configuration does not say: the number of slots
    where memory ran out, and whether CUDA graphs are on. It belongs to the images drawn since.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.stamp: dict[str, str] = {}

    def draw(self, jobs: Iterable[Job], on_delivery: OnDelivery) -> None:
        """Draw images; `on_delivery` gets each one, or its error, as it ends.

        Where memory runs out, see `_Drawing`.
        """
        _Drawing(self.spec, self.stamp, jobs, on_delivery).run()

    def measure(self, jobs: Sequence[Job], on_delivery: OnDelivery, meter: Meter) -> Timing:
        """Draw images as `draw` does, and return what that took.

        Some images are drawn before to warm up, and thrown away; `meter` starts anew after them.
        """
        drawing = _Drawing(self.spec, self.stamp, jobs, on_delivery, meter)
        drawing.run()
        device = self.spec.model.device
        warm = drawing.warm_up or WarmUp([], False)
        return Timing(
            images=drawing.delivered,
            seconds=meter.seconds,
            scoring_s=meter.paused_s,
            slots=drawing.slots,
            rounds=drawing.decode_steps,
            fed=drawing.active_branch_steps,
            warm_up=len(warm.seconds),
            warm=warm.is_settled,
            first_s=warm.seconds[0] if warm.seconds else None,
            joules=meter.joules,
            peak_memory_gb=meter.peak_memory_gb,
            machine={
                **describe(device),
                "kernels": why_unused(device) or "Triton",
                **self.stamp,
            },
        )


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The seconds that each image of a warm-up took, and whether they settled."""

    seconds: list[float]
    is_settled: bool


class _Drawing:
    """One pass over jobs: what is left of them, with how many slots, and what was counted.

    Where memory runs out, another sampler with half the slots goes on with the jobs that are left.
    That is done on a CPU, where the number of slots changes no token, and under numerics=fast; the
    stamp of all images drawn from then on says so. Otherwise, and if one job alone is too much, the
    error is raised.
    """

    def __init__(
        self,
        spec: RunSpec,
        stamp: dict[str, str],
        jobs: Iterable[Job],
        on_delivery: OnDelivery,
        meter: Meter | None = None,
    ) -> None:
        self.slots = int(spec.sampler_sizes["slots"])
        self.delivered = 0
        self.decode_steps = 0
        self.active_branch_steps = 0
        self.warm_up: WarmUp | None = None
        self._spec = spec
        self._stamp = stamp
        self._left = {job.key: job for job in jobs}
        self._on_delivery = on_delivery
        self._meter = meter

    def run(self) -> None:
        """Draw all jobs, with fewer slots each time that memory runs out."""
        while (shortage := self._draw_what_is_left()) is not None:
            self._release_memory()
            self._halve_slots(shortage)

    def _draw_what_is_left(self) -> str | None:
        """Draw the jobs that are left. Returns None, or what memory ran out for.

        The scheduler stays in this function's locals, so that returning frees its memory.
        """
        try:
            scheduler = self._make_scheduler()
            if self._meter is not None and self.warm_up is None:
                self._warm_up_with(scheduler)
                self._meter.start()
            self._run_and_count(scheduler)
        except Exception as error:
            if not self._fewer_slots() or not short_of_memory(error):
                raise
            return one_line(error)[:120]
        return None

    def _make_scheduler(self) -> Scheduler:
        spec = self._spec
        sizes = {**spec.sampler_sizes, "slots": self.slots}
        concurrency = sizes.pop("concurrency")
        sizes["prefill"] = tuple(sizes["prefill"])
        sampler = Sampler(spec.model, spec.sampling, **sizes)
        return Scheduler(spec.method, sampler, seed=spec.seed, concurrency=concurrency)

    def _warm_up_with(self, scheduler: Scheduler) -> None:
        """Draw images and throw them away, the last jobs first.

        By the time that these jobs count, the cache of prompt embeddings has most likely dropped
        theirs, so that warming up does not make a measured image cheaper.
        """
        jobs = list(self._left.values())

        def draw_one(index: int) -> None:
            scheduler.run([jobs[-1 - index % len(jobs)]], lambda _: None)

        seconds, is_settled = warm_up(draw_one, self._spec.warm_up)
        self.warm_up = WarmUp(seconds, is_settled)

    def _run_and_count(self, scheduler: Scheduler) -> None:
        sampler = scheduler.sampler
        decode_steps = sampler.decode_steps
        active_branch_steps = sampler.active_branch_steps
        try:
            jobs = list(self._left.values())
            scheduler.run(jobs, partial(self._deliver, sampler.graphs))
        finally:
            self.decode_steps += sampler.decode_steps - decode_steps
            self.active_branch_steps += sampler.active_branch_steps - active_branch_steps

    def _deliver(self, graphs: Graphs, delivery: Delivery) -> None:
        if self._spec.model.device.type == "cuda":
            self._stamp["graphs"] = graphs.state
        self.delivered += delivery.image is not None
        self._on_delivery(delivery)
        del self._left[delivery.job.key]

    def _fewer_slots(self) -> int:
        """Return the slots for half as many jobs; 0 if that is none, or could change results."""
        device = self._spec.model.device
        if device.type != "cpu" and self._spec.numerics != "fast":
            return 0
        one_job = self._spec.method_spec.slots
        return self.slots // one_job // 2 * one_job

    def _release_memory(self) -> None:
        gc.collect()
        if self._spec.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _halve_slots(self, shortage: str) -> None:
        fewer = self._fewer_slots()
        log.warning(
            "memory ran out with sampler.slots=%d (%s): going on with %d",
            self.slots,
            shortage,
            fewer,
        )
        self._stamp["slots"] = f"{fewer}, as memory ran out with {self.slots}"
        self.slots = fewer
