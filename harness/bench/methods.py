"""Each method's speed over plain sampling, at several numbers of images in flight, over the same sampler.

`speedup` is plain's time over the method's for the same prompts, judges and drafters included: below 1 it is slower.
`row_steps` are the decoding rows it fed over plain's: what early termination saves, next to the seconds that it saves.
"""

from __future__ import annotations

import math
from typing import Any

import hydra
from omegaconf import DictConfig

from harness.bench.outcome import Outcome
from harness.bench.sampler import TEXTS, expect_batches, random_model
from harness.bench.timing import interleave
from harness.composed import build
from harness.hooks import Sampling
from harness.records import Job, Prompt, UserError
from harness.sampler import Sampler
from harness.scheduler import Delivery, Scheduler, demands

LEAST = 8
"""Images that a timed call draws at least."""


def run(config: DictConfig) -> bool:
    """Measure every method at every batch size. There are no bars on a CPU."""
    model, sampling = random_model(config)
    methods = {"plain": "plain", **{str(name): str(name) for name in config.methods}}
    outcome = Outcome("methods", model, [f"{model.name}: {', '.join(methods)}"])
    for images in expect_batches(config.batch):
        works = {name: Work(name, model, sampling, images) for name in methods}
        times = interleave(works, config.blocks, model.device, warm_up=config.warm_up)
        for name, work in works.items():
            speedup, low, high = times.ratio("plain", name) if name != "plain" else (1.0, math.nan, math.nan)
            steps = work.row_steps / works["plain"].row_steps
            outcome.add(
                batch=images,
                method=name,
                speedup=speedup,
                ci_low=low,
                ci_high=high,
                seconds_per_image=times.median(name) / work.images,
                ms_per_round=1000 * times.median(name) / max(1, work.rounds),
                row_steps=steps,
                passes=work.passes,
                spread=times.spread(name),
                blocks=config.blocks,
                warm=name not in times.unstable,
            )
    outcome.write(plot=("batch", "speedup", "method"))
    return True


class Work:
    """A method drawing `images` prompts at once; every call with the same number draws the same images."""

    def __init__(self, name: str, model: Any, sampling: Sampling, images: int) -> None:
        try:
            chosen = hydra.compose("config", overrides=[f"method={name}"]).method
        except hydra.errors.HydraException as error:
            raise UserError(f"methods={name}: {error}") from None
        self.method = build(chosen)
        slots = self.method.rows * self.method.streams * images
        self.sampler = Sampler(
            model,
            sampling,
            slots=slots,
            **demands(self.method),
            prefill=(min(16, slots), 32),
            render_batch=min(16, images),
        )
        self.images, self.concurrency = max(images, LEAST), images
        self.rounds = self.row_steps = 0
        self.passes = 0.0

    def __call__(self, block: int) -> None:
        prompts = [Prompt(f"bench/{block}/{i}", TEXTS[i % len(TEXTS)], "any") for i in range(self.images)]
        done: list[Delivery] = []
        before, fed = self.sampler.rounds, self.sampler.fed
        scheduler = Scheduler(self.method, self.sampler, seed=0, concurrency=self.concurrency)
        scheduler.run([Job(prompt, 0) for prompt in prompts], done.append)
        if broken := [delivery.error for delivery in done if delivery.error]:
            raise UserError(f"{type(self.method).__name__} fails with this model: {broken[0]}")
        self.rounds, self.row_steps = self.sampler.rounds - before, self.sampler.fed - fed
        self.passes = sum(delivery.usage.target_passes for delivery in done) / len(done)
