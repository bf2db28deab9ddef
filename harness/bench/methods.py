"""Each method's speed over plain sampling, at several numbers of images in flight, over the same
sampler.

`speedup` is plain's time over the method's for the same prompts, judges and drafters included:
below 1 it is slower. `row_steps` are the decoding rows it fed over plain's: what early termination
saves, next to the seconds that it saves. `bookkeeping` is what a decoding round takes longer than
one of plain sampling in a sampler of the same shape (as many slots, as wide), as a share of that:
the method's own code, its rules and signals, and whatever the scheduler does for them. Prompts,
prefills, drafts, judges and, on a CPU, image decoding are in neither; on a GPU images are decoded
beside the rounds, and where a method waits for them with nothing else to do, that counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig

from harness.bench.outcome import Outcome
from harness.bench.roof import Bar, all_hold
from harness.bench.sampler import TEXTS, expect_names, expect_plan, random_model
from harness.bench.timing import CLOCKS, Times, interleave
from harness.engine.guidance import Sampling
from harness.engine.memory import estimate_need, expect_memory
from harness.engine.method_spec import MethodSpec
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Method
from harness.records import Job, Prompt, UserError
from harness.runs.instantiate import build_object

LEAST = 4
"""Images that a timed call draws at least."""
APART = ("text_s", "prefill_s", "draft_s", "judge_s")
"""What an image takes besides decoding rounds. On a CPU also its decoding, which a GPU does beside
them.
"""


def run(config: DictConfig) -> bool:
    """Measure every method at every batch size; returns whether the bars hold, which bind on a GPU
    only.

    On a CPU a round costs what its shape costs, whatever rows are alive, and its host is its
    device.
    """
    batches, blocks, warm_up = expect_plan(config)
    names = ["plain", *(name for name in expect_names(config, "methods") if name != "plain")]
    methods = {name: method_named(name) for name in names}
    model, sampling = random_model(config)
    outcome = Outcome("methods", model, f"{model.name}: {', '.join(names)}", {"model": model.name})
    bars = []
    for images in batches:
        works = {name: Work(method, model, sampling, images) for name, method in methods.items()}
        alike = {
            name: Work(methods["plain"], model, sampling, images, like=work)
            for name, work in works.items()
        }
        shapes = {
            str(work.shape): work for work in alike.values()
        }  # one plain sampler for all of a shape
        times = interleave({**works, **shapes}, blocks, model.device, warm_up=warm_up)
        for name, work in works.items():
            speedup, low, high = (
                times.ratio("plain", name) if name != "plain" else (1.0, math.nan, math.nan)
            )
            rounds = _rounds({"own": work, "plain": shapes[str(work.shape)]}).ratio("own", "plain")
            more, *ends = (
                (0.0, math.nan, math.nan) if name == "plain" else (ratio - 1 for ratio in rounds)
            )
            outcome.add(
                batch=images,
                method=name,
                speedup=speedup,
                ci_low=low,
                ci_high=high,
                seconds_per_image=times.median(name) / work.images,
                ms_per_round=1000 * times.median(name) / max(1, work.rounds),
                ms_per_decode=1000 * float(np.median(list(work.decode_s.values()))),
                bookkeeping=more,
                bookkeeping_low=ends[0],
                bookkeeping_high=ends[1],
                row_steps=work.row_steps
                / works["plain"].row_steps
                * works["plain"].images
                / work.images,
                passes=work.passes,
                first_s=times.first.get(name, math.nan),
                spread=times.spread(name),
                blocks=blocks,
                warm=name not in times.unstable,
            )
            if name in config.kept_light:
                bars.append(
                    _bar(
                        model,
                        f"{name}, {images} images: bookkeeping",
                        more,
                        config.most_bookkeeping,
                    )
                )
        outcome.write(plot=("batch", "speedup", "method"))
    for name in config.terminating:
        bars.append(_terminating(config, str(name), model, sampling))
    return all_hold(bars)


def _bar(model: Any, what: str, measured: float, most: float) -> Bar:
    return Bar(what, measured, most=most, binding=model.device.type == "cuda")


def _terminating(config: DictConfig, name: str, model: Any, sampling: Sampling) -> Bar:
    """What ending candidates early saves in seconds, over what it saves in row-steps: 1 is all of
    it.

    Both methods have the same slots, for `slots_for` prompts, which are refilled from a queue of
    `queue` prompts.
    """
    _, blocks, warm_up = expect_plan(config)
    for option in ("slots_for", "queue"):
        if not isinstance(config[option], int) or config[option] < 1:
            raise UserError(f"{option}={config[option]}: give a number of prompts of at least 1")
    method = method_named(name)
    against = str(config.against)
    best = method_named(against, f"method.n={method.rows}")
    works = {
        role: Work(one, model, sampling, config.slots_for, queue=config.queue)
        for role, one in (("method", method), ("best", best))
    }
    times = interleave(works, blocks, model.device, warm_up=warm_up)
    ratio, low, high = times.ratio("method", "best")
    steps = works["method"].row_steps / works["best"].row_steps
    outcome = Outcome(
        "termination", model, f"{name} over {against} of {method.rows}", {"model": model.name}
    )
    outcome.add(
        batch=config.slots_for,
        queue=config.queue,
        method=name,
        against=f"{against} n={method.rows}",
        time_ratio=ratio,
        ci_low=low,
        ci_high=high,
        row_step_ratio=steps,
        excess=ratio / steps,
        round_ratio=works["method"].rounds / works["best"].rounds,
        blocks=blocks,
        warm=not times.unstable,
    )
    outcome.write()
    what = f"{name}, slots for {config.slots_for} prompts: ratio of times over that of row-steps"
    return _bar(model, what, ratio / steps, config.most_excess)


def method_named(name: str, *options: str) -> Method:
    """A configured method. Raises UserError for one that there is not."""
    try:
        made: Method = build_object(
            hydra.compose("config", overrides=[f"method={name}", *options]).method
        )
    except hydra.errors.HydraException as error:
        raise UserError(f"methods={name}: {error}") from None
    return made


def _rounds(works: Mapping[str, Work]) -> Times:
    """Seconds of a decoding round, by block."""
    blocks = sorted(set.intersection(*(set(work.decode_s) for work in works.values())))
    return Times(
        {name: np.array([work.decode_s[block] for block in blocks]) for name, work in works.items()}
    )


@dataclass
class Work:
    """A method drawing `images` prompts at once; every call with the same number draws the same
    images.

    A `queue` of prompts is drawn in the slots of `images`, as many at once as fit; otherwise
    `images` are in flight all the time. `like` another work, it fills a sampler of that one's shape
    once.
    """

    method: Method
    model: Any
    sampling: Sampling
    images: int
    queue: int | None = None
    like: Work | None = None
    decode_s: dict[int, float] = field(
        default_factory=dict
    )  # seconds of a decoding round, by block
    rounds: int = 0
    row_steps: int = 0
    passes: float = 0.0
    shape: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        need = self.method.rows * self.method.branches
        self.shape = (
            self.like.shape
            if self.like
            else {"slots": need * self.images, **MethodSpec.of(self.method).sampler_sizes()}
        )
        concurrency: int | None = None
        if self.like:
            self.images = self.shape["slots"] // need
        elif self.queue:
            self.images = self.queue
        else:
            concurrency = self.images
            self.images = max(self.images, LEAST)
        slots = self.shape["slots"]
        rest = {name: value for name, value in self.shape.items() if name != "slots"}
        rest |= {"prefill": (min(16, slots), 32), "render_batch": min(16, self.images)}
        expect_memory(estimate_need(self.model, **rest), self.model.device, slots)
        self.sampler = Sampler(self.model, self.sampling, slots=slots, **rest)
        self._scheduler = Scheduler(self.method, self.sampler, seed=0, concurrency=concurrency)

    def __call__(self, block: int) -> None:
        prompts = [
            Prompt(f"bench/{block}/{i}", TEXTS[i % len(TEXTS)], "any") for i in range(self.images)
        ]
        done: list[Delivery] = []
        before = self.sampler.decode_steps
        fed = self.sampler.active_branch_steps
        wall = time.perf_counter()
        clock = CLOCKS[self.model.device.type]
        began = clock()
        self._scheduler.run([Job(prompt, 0) for prompt in prompts], done.append)
        seconds = clock() - began
        wall = time.perf_counter() - wall
        if broken := [delivery.error for delivery in done if delivery.error]:
            raise UserError(f"{type(self.method).__name__} fails with this model: {broken[0]}")
        self.rounds = self.sampler.decode_steps - before
        self.row_steps = self.sampler.active_branch_steps - fed
        self.passes = sum(delivery.usage.target_passes for delivery in done) / len(done)
        names = APART if self.model.device.type == "cuda" else (*APART, "render_s")
        apart = sum(getattr(delivery.usage, name) for delivery in done for name in names)
        self.decode_s[block] = seconds * (1 - apart / wall) / max(1, self.rounds)
