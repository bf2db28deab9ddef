"""Execute a spec: draw its images, measure what that takes, and go on where memory runs out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from harness.engine.memory import short_of_memory
from harness.engine.meter import Meter, describe, warm_up
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.kernels import why_unused
from harness.models import HasTextEncoder
from harness.records import Job, Timing, one_line

if TYPE_CHECKING:
    from harness.runs.spec import DrawingSpec

log = logging.getLogger("harness")

OnDelivery = Callable[[Delivery], None]


class Executor:
    """Draw the images of a run, or of prompts without one.

    `stamp` says what became of the run that its configuration does not say: the number of slots
    where memory ran out, whether CUDA graphs are on, and which kernels serve. It belongs to the
    images drawn since.
    """

    def __init__(self, spec: DrawingSpec) -> None:
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


def rows_are_invariant(device: torch.device) -> bool:
    """Tell whether it was shown that a token does not depend on how many slots there are.

    Tests show it on a CPU. On a GPU it rests on the matrix library, and nothing has shown it yet.
    """
    return device.type == "cpu"


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The seconds that each image of a warm-up took, and whether they settled."""

    seconds: list[float]
    is_settled: bool


class _Drawing:
    """One pass over jobs: what is left of them, with how many slots, and what was counted.

    Where memory runs out, another sampler with half the slots goes on with the jobs that are left.
    That is done where the number of slots changes no token (`rows_are_invariant`), and under
    numerics=fast; the stamp of all images drawn from then on says so. Otherwise, and if one job
    alone is too much, the error is raised.
    """

    def __init__(
        self,
        spec: DrawingSpec,
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
        try:
            self._prepare_texts()
            while (shortage := self._draw_what_is_left()) is not None:
                self._release_memory()
                self._halve_slots(shortage)
        finally:
            self._spec.method_spec.release_parts()
            self._let_text_encoder_leave()

    def _prepare_texts(self) -> None:
        """Encode the texts of all jobs before there are slots, which need the encoder's memory."""
        model = self._spec.model
        if isinstance(model, HasTextEncoder):
            texts = [job.prompt.text for job in self._left.values()]
            model.prepare_texts(texts, stay=self._spec.method_spec.rewrites_prompts)

    def _let_text_encoder_leave(self) -> None:
        model = self._spec.model
        if isinstance(model, HasTextEncoder):
            model.prepare_texts([], stay=False)

    def _draw_what_is_left(self) -> str | None:
        """Draw the jobs that are left. Returns None, or what memory ran out for.

        Afterwards nothing holds the sampler any more: neither this function's locals, nor the
        drafters, nor captured graphs, which keep their memory as long as they are there.
        """
        scheduler: Scheduler | None = None
        try:
            scheduler = self._make_scheduler()
            if self._meter is not None and self.warm_up is None:
                self._warm_up_with(scheduler)
                self._meter.start()
            self._run_and_count(scheduler)
        except Exception as error:
            if not self._fewer_slots() or not short_of_memory(error):
                raise
            if scheduler is not None:
                scheduler.sampler.graphs.drop()
            return one_line(error)[:120]
        return None

    def _make_scheduler(self) -> Scheduler:
        spec = self._spec
        sizes = {**spec.sampler_sizes, "slots": self.slots}
        concurrency = sizes.pop("concurrency")
        sizes["prefill"] = tuple(sizes["prefill"])
        sampler = Sampler(spec.model, spec.sampling, **sizes)
        return Scheduler(
            spec.method,
            sampler,
            seed=spec.seed,
            concurrency=concurrency,
            stuck_after_s=spec.stuck_after_s,
        )

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
            scheduler.run(jobs, partial(self._deliver, sampler))
        finally:
            self.decode_steps += sampler.decode_steps - decode_steps
            self.active_branch_steps += sampler.active_branch_steps - active_branch_steps

    def _deliver(self, sampler: Sampler, delivery: Delivery) -> None:
        if self._spec.model.device.type == "cuda":
            self._stamp["graphs"] = sampler.graphs.state
            self._stamp["kernels"] = sampler.kernels_used
        self.delivered += delivery.image is not None
        self._on_delivery(delivery)
        del self._left[delivery.job.key]

    def _fewer_slots(self) -> int:
        """Return the slots for half as many jobs; 0 if that is none, or could change results."""
        if self._spec.numerics != "fast" and not rows_are_invariant(self._spec.model.device):
            return 0
        one_job = self._spec.method_spec.slots
        return self.slots // one_job // 2 * one_job

    def _release_memory(self) -> None:
        """Free what the sampler that is gone has held, the drafters' own samplers included."""
        self._spec.method_spec.release_parts()
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
