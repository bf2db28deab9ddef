"""Measure each method's speed over plain sampling, over the same sampler, at several batch sizes.

`speedup` is plain's time over the method's for the same prompts, judges and drafters included:
below 1 the method is slower. `row_steps` are the active branch steps of the method over plain's:
what early termination saves, next to the seconds that it saves. `bookkeeping` is how much longer a
decode step takes than one of plain sampling in a sampler of the same shape (as many slots and
tokens per step), as a share of that: the method's own code, its rules and signals, and what the
scheduler does for them. Prompts, prefills, drafts, judges and, on a CPU, image decoding are in
neither. On a GPU images are decoded beside the decode steps, and where a method waits for them with
nothing else to do, that counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.bench.roof import Bar, all_hold
from harness.bench.sampler import (
    TEXTS,
    expect_names,
    expect_plan,
    random_model,
    release_memory,
)
from harness.bench.timing import CLOCKS, Times, interleave
from harness.engine.guidance import Sampling
from harness.engine.memory import expect_memory
from harness.engine.memory_need import SamplerShape, need_beside
from harness.engine.method_spec import MethodSpec
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Method
from harness.records import Job, Prompt, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

FEWEST_IMAGES = 4
"""Images that a timed call draws at least."""
OUTSIDE_DECODING: tuple[str, ...] = ("text_s", "prefill_s", "draft_s", "judge_s")
"""Stages of an image besides decode steps. On a CPU also `render_s`, which a GPU does beside them.
"""


def run(config: DictConfig) -> bool:
    """Measure every method at every batch size; return whether the bars hold.

    They bind on a GPU only. On a CPU a decode step costs what its shape costs, whatever branches
    are active, and the host is the device.
    """
    from harness.bench.outcome import Outcome
    from harness.results.columns import BENCH_METHODS

    batches, blocks, warm_up = expect_plan(config)
    names = ["plain", *(name for name in expect_names(config, "methods") if name != "plain")]
    methods = {name: method_named(name) for name in names}
    terminating = [(name, *_method_and_rival(config, name)) for name in config.terminating]
    model, sampling = random_model(config)
    heading = f"{model.name}: {', '.join(names)}"
    outcome = Outcome(BENCH_METHODS, model, heading, {"model": model.name})

    bars = []
    for images in batches:
        for name in names:
            # One method at a time, each beside plain sampling: their samplers are large.
            row, is_warm = _compare(methods, name, model, sampling, images, blocks, warm_up)
            outcome.add(batch=images, method=name, **row, blocks=blocks, warm=is_warm)
            MethodSpec.of(methods[name]).release_parts()
            release_memory(model.device)
            if name in config.kept_light:
                what = f"{name}, {images} images: bookkeeping"
                bars.append(_bar(model, what, row["bookkeeping"], config.most_bookkeeping))
        outcome.write(plot=("batch", "speedup", "method"))

    for name, method, rival in terminating:
        bars.append(_measure_termination(config, name, method, rival, model, sampling))
    return all_hold(bars)


def _compare(
    methods: Mapping[str, Method],
    name: str,
    model: Any,
    sampling: Sampling,
    images: int,
    blocks: int,
    warm_up: int,
) -> tuple[dict[str, Any], bool]:
    """Time a method beside plain sampling; return its columns, and whether it was warm."""
    compared = Comparison.build(methods, name, model, sampling, images)
    times = interleave(compared.subjects, blocks, model.device, warm_up=warm_up)
    return compared.make_row(times), times.is_warm(name)


def _bar(model: Any, what: str, measured: float, most: float) -> Bar:
    return Bar(what, measured, most=most, binding=model.device.type == "cuda")


def method_named(name: str, *options: str, option: str = "methods") -> Method:
    """Build a configured method, which `option` names. Raises UserError for one that is not.

    Options may follow the name: "beam method.branch=2".
    """
    import hydra

    from harness.runs.instantiate import build_object

    try:
        overrides = [*f"method={name}".split(), *options]
        made: Method = build_object(hydra.compose("config", overrides=overrides).method)
    except hydra.errors.HydraException as error:
        raise UserError(f"{option}={name}: {error}") from None
    return made


# --- speed and bookkeeping ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """A method at one batch size, plain sampling, and plain sampling in the method's shape."""

    name: str
    work: Work
    plain: Work
    alike: Work | None  # None: the method is plain sampling

    @classmethod
    def build(
        cls,
        methods: Mapping[str, Method],
        name: str,
        model: Any,
        sampling: Sampling,
        images: int,
    ) -> Comparison:
        """Make their samplers."""
        plain = Work(methods["plain"], model, sampling, images)
        if name == "plain":
            return cls(name, plain, plain, None)
        work = Work(methods[name], model, sampling, images)
        return cls(name, work, plain, Work(methods["plain"], model, sampling, images, like=work))

    @property
    def subjects(self) -> dict[str, Work]:
        """List all that is timed."""
        subjects = {"plain": self.plain, self.name: self.work}
        if self.alike is not None:
            subjects["plain in its shape"] = self.alike
        return subjects

    def make_row(self, times: Times) -> dict[str, Any]:
        """Return the measured columns of the method."""
        name = self.name
        work = self.work
        call_s = times.median(name)
        speedup, ci_low, ci_high = _measure_speedup(times, name)
        bookkeeping, bookkeeping_low, bookkeeping_high = self._measure_bookkeeping()
        return {
            "speedup": speedup,
            "ci_low": ci_low,
            "ci_high": ci_high,
            "seconds_per_image": call_s / work.images,
            "ms_per_round": 1000 * call_s / max(1, work.decode_steps),
            "ms_per_decode": 1000 * float(np.median(list(work.decode_s.values()))),
            "bookkeeping": bookkeeping,
            "bookkeeping_low": bookkeeping_low,
            "bookkeeping_high": bookkeeping_high,
            "row_steps": self._compare_branch_steps(),
            "passes": work.passes,
            "first_s": times.first.get(name, math.nan),
            "spread": times.spread(name),
        }

    def _measure_bookkeeping(self) -> tuple[float, float, float]:
        """Return how much longer a decode step takes than plain's, as a share, and its interval."""
        if self.alike is None:
            return 0.0, math.nan, math.nan
        ratio, low, high = _pair_decode_steps(self.work, self.alike).ratio("method", "plain")
        return ratio - 1, low - 1, high - 1

    def _compare_branch_steps(self) -> float:
        """Return the active branch steps of an image over those of plain sampling."""
        work = self.work
        plain = self.plain
        return work.branch_steps / plain.branch_steps * plain.images / work.images


def _measure_speedup(times: Times, name: str) -> tuple[float, float, float]:
    """Return plain's time over the method's, and its interval."""
    return times.ratio("plain", name) if name != "plain" else (1.0, math.nan, math.nan)


def _pair_decode_steps(method: Work, plain: Work) -> Times:
    """Return the seconds of a decode step of both, in the blocks that both have run."""
    blocks = sorted(method.decode_s.keys() & plain.decode_s.keys())
    seconds = {
        "method": np.array([method.decode_s[block] for block in blocks]),
        "plain": np.array([plain.decode_s[block] for block in blocks]),
    }
    return Times(seconds)


# --- early termination ----------------------------------------------------------------------------


def _method_and_rival(config: DictConfig, name: str) -> tuple[Method, Method]:
    """Build a method that ends candidates early, and the one with as many that does not."""
    method = method_named(name, option="terminating")
    rows = MethodSpec.of(method).rows
    return method, method_named(str(config.against), f"method.n={rows}", option="against")


def _measure_termination(
    config: DictConfig, name: str, method: Method, against: Method, model: Any, sampling: Sampling
) -> Bar:
    """Measure the time ratio of ending candidates early over the ratio of branch steps.

    It is 1 if all that is saved in branch steps is saved in seconds. Both methods have the same
    slots, for `slots_for` prompts, which are refilled from a queue of `queue` prompts.
    """
    from harness.bench.outcome import Outcome
    from harness.results.columns import BENCH_TERMINATION

    _, blocks, warm_up = expect_plan(config)
    other = str(config.against)
    rows = MethodSpec.of(method).rows
    work = Work(method, model, sampling, config.slots_for, queue=config.queue)
    whole = Work(against, model, sampling, config.slots_for, queue=config.queue)
    times = interleave({"method": work, "best": whole}, blocks, model.device, warm_up=warm_up)

    time_ratio, low, high = times.ratio("method", "best")
    step_ratio = work.branch_steps / whole.branch_steps
    excess = time_ratio / step_ratio
    heading = f"{name} over {other} of {rows}"
    outcome = Outcome(BENCH_TERMINATION, model, heading, {"model": model.name})
    outcome.add(
        batch=config.slots_for,
        queue=config.queue,
        method=name,
        against=f"{other} n={rows}",
        time_ratio=time_ratio,
        ci_low=low,
        ci_high=high,
        row_step_ratio=step_ratio,
        excess=excess,
        round_ratio=work.decode_steps / whole.decode_steps,
        blocks=blocks,
        warm=not times.unstable,
    )
    outcome.write()
    what = f"{name}, slots for {config.slots_for} prompts: ratio of times over that of row-steps"
    return _bar(model, what, excess, config.most_excess)


# --- what is timed --------------------------------------------------------------------------------


@dataclass
class Work:
    """A method drawing `images` prompts at once; calls with the same number draw the same images.

    With a `queue`, so many prompts are drawn in the slots of `images`, as many at once as fit;
    without one, `images` are in flight all the time. With `like`, another work, a sampler of that
    one's shape is filled once. A call leaves the counts of its decode steps here.
    """

    method: Method
    model: Any
    sampling: Sampling
    images: int
    queue: int | None = None
    like: Work | None = None
    decode_s: dict[int, float] = field(default_factory=dict)  # seconds of a decode step, by block
    decode_steps: int = 0
    branch_steps: int = 0  # active branches, summed over the decode steps
    passes: float = 0.0  # target passes of an image
    shape: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        spec = MethodSpec.of(self.method)
        self.shape = {"slots": spec.slots * self.images, **spec.sampler_sizes()}
        concurrency: int | None = None
        if self.like:
            self.shape = self.like.shape
            self.images = self.shape["slots"] // spec.slots
        elif self.queue:
            self.images = self.queue
        else:
            concurrency = self.images
            self.images = max(self.images, FEWEST_IMAGES)

        sizes = dict(self.shape)
        slots = sizes.pop("slots")
        sizes |= {"prefill": (min(16, slots), 32), "render_batch": min(16, self.images)}
        spec.expect_target(self.model)
        shape = SamplerShape(self.model.device, trees=spec.trees, **sizes)
        need = need_beside(self.model, shape, [part for _, part in spec.parts])
        expect_memory(need, self.model.device, slots)
        self.sampler = Sampler(self.model, self.sampling, slots=slots, **sizes)
        self._scheduler = Scheduler(self.method, self.sampler, seed=0, concurrency=concurrency)

    def __call__(self, block: int) -> None:
        """Draw the images of a block. Raises UserError if the method fails with this model."""
        jobs = [Job(prompt, 0) for prompt in self._list_prompts(block)]
        done: list[Delivery] = []
        steps_before = self.sampler.decode_steps
        branch_steps_before = self.sampler.active_branch_steps

        wall_began = time.perf_counter()
        clock = CLOCKS[self.model.device.type]
        began = clock()
        self._scheduler.run(jobs, done.append)
        seconds = clock() - began
        wall_s = time.perf_counter() - wall_began

        errors = [delivery.error for delivery in done if delivery.error]
        if errors:
            raise UserError(f"{type(self.method).__name__} fails with this model: {errors[0]}")
        self.decode_steps = self.sampler.decode_steps - steps_before
        self.branch_steps = self.sampler.active_branch_steps - branch_steps_before
        self.passes = sum(delivery.usage.target_passes for delivery in done) / len(done)
        share = sum(self._list_other_seconds(done)) / wall_s
        self.decode_s[block] = seconds * (1 - share) / max(1, self.decode_steps)

    def _list_prompts(self, block: int) -> list[Prompt]:
        texts = [TEXTS[i % len(TEXTS)] for i in range(self.images)]
        return [Prompt(f"bench/{block}/{i}", text, "any") for i, text in enumerate(texts)]

    def _list_other_seconds(self, done: list[Delivery]) -> Iterator[float]:
        """Yield the wall seconds of what is no part of a decode step."""
        stages = OUTSIDE_DECODING
        if self.model.device.type != "cuda":
            stages = (*stages, "render_s")
        for delivery in done:
            for stage in stages:
                yield getattr(delivery.usage, stage)
