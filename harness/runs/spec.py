"""A run's parts, built from its configuration: model, method, benchmark, jobs, and the fingerprint
that names them.
"""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from harness.engine.cuda_graphs import Graphs
from harness.engine.guidance import Sampling
from harness.engine.memory import GB, choose_slots, estimate_need, short_of_memory
from harness.engine.meter import Meter, describe, warm_up
from harness.engine.method_spec import MethodSpec
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.kernels import why_unused
from harness.models.checkpoint import device_named
from harness.records import Job, Prompt, Timing, UserError, digest, dump, one_line
from harness.runs.folder import SCHEMA, fingerprint
from harness.runs.instantiate import OF_THE_COMMAND, build, container

log = logging.getLogger("harness")

SIZES_RECORDED_AS = {"tokens_per_step": "width", "tree_capacity": "room"}
"""Sizes of the sampler, and the names under which fingerprints know them for good."""

NUMERICS = ("constant", "fast")
"""What results may depend on: nothing but the job; or also, through the shapes of forwards, on its
company.
"""


class Point:
    """A run's parts, built from its configuration and checked against each other before anything is
    computed.
    """

    def __init__(self, config: DictConfig, choices: dict[str, str]) -> None:
        self.config = config
        self.choices = choices
        model = container(config.model)
        self.sampling = Sampling(**model.pop("sampling"))
        if model.get("weights") == "random":
            raise UserError(
                "model.weights=random is for measuring speed: its images must not enter a leaderboard; "
                "leave it out, or set model.weights=published and model.checkpoint=PATH"
            )
        device = str(config.device)
        self.model = load_model(dump(model), device)
        self.method = build(config.method)
        self.method_spec = MethodSpec.of(self.method)
        self._take(build(config.benchmark, **self._known_classes()))
        self.asked = self.method_spec.part_ids
        self.sampler = self._sampler_shape()
        self.stamp: dict[
            str, str
        ] = {}  # what became of the run that its configuration does not say
        self.fingerprint = self._fingerprint(model)

    def _take(self, benchmark: Any) -> None:
        """What a benchmark makes of a run: prompts, jobs, judge."""
        self.benchmark = benchmark
        self.prompts: list[Prompt] = benchmark.prompts()
        self.jobs = [
            Job(prompt, image) for prompt in self.prompts for image in range(benchmark.images)
        ]
        self.judge: str = benchmark.judge.id
        self.prompts_sha = digest(dump([_row(prompt) for prompt in self.prompts]).encode())
        self.aggregates = _aggregates(
            benchmark, sorted({prompt.category for prompt in self.prompts})
        )
        self.settings = _named(container(self.config.benchmark))

    def _known_classes(self) -> dict[str, Sequence[str]]:
        """For benchmark.classes=model: the classes that the model was taught."""
        if self.config.benchmark.get("classes") != "model":
            return {}
        if not hasattr(self.model, "classes"):
            raise UserError(
                f"benchmark.classes=model: {self.model.name} has no list of classes; leave it out"
            )
        return {"classes": list(self.model.classes)}

    def _sampler_shape(self) -> dict[str, Any]:
        """The sampler's sizes, with the number of slots that memory allows; `memory_gb` itself
        names no result.
        """
        shape = container(self.config.sampler)
        memory_gb = shape.pop("memory_gb", None)
        needs = self.method_spec.sampler_sizes()
        self.warm_up = self._warm_up(shape.pop("warm_up", 0))
        one_job = self.method_spec.slots
        if shape["slots"] is None and shape["concurrency"] is not None:
            shape["slots"] = one_job * shape["concurrency"]
        shape |= self._shapes(shape.pop("compact", False), shape["concurrency"])
        shape["slots"] = choose_slots(
            estimate_need(
                self.model,
                prefill=tuple(shape["prefill"]),
                render_batch=shape["render_batch"],
                **needs,
            ),
            self.model.device,
            asked=shape["slots"],
            one_job=one_job,
            most=one_job * max(1, len(self.jobs)),
            memory_gb=memory_gb,
        )
        self.method_spec.expect_fit(self.model, self.sampling, slots=shape["slots"], **needs)
        return {**shape, **needs}

    def _shapes(self, compact: bool, concurrency: int | None) -> dict[str, bool]:
        """Whether forwards feed only the branches that are alive: shapes then say how many there
        are.

        The numerics `constant` promise results that no other job can change; alone, a job has only
        itself in them.
        """
        if self.config.numerics not in NUMERICS:
            raise UserError(f"numerics={self.config.numerics}: choose from {', '.join(NUMERICS)}")
        if self.config.numerics == "constant" and compact and concurrency != 1:
            raise UserError(
                f"sampler.compact=true with sampler.concurrency={concurrency}: results would depend on which images "
                "are drawn together; set sampler.concurrency=1, or numerics=fast to have it recorded so"
            )
        return {"compact": True} if compact or self.config.numerics == "fast" else {}

    def _memory_gb(self) -> float:
        """What the target and the slots of one image need; judges and drafters apart."""
        need = estimate_need(
            self.model,
            tokens_per_step=self.method_spec.tokens_per_step,
            prefill=tuple(self.sampler["prefill"]),
            render_batch=1,
        )
        return round(need.total(self.method_spec.slots) / GB, 6)

    def _fingerprint(self, model: dict[str, Any]) -> str:
        return fingerprint(
            {
                "model": [self.model.name, self.model.revision, str(self.model.dtype), model],
                "sampling": container(self.config.model.sampling),
                "method": [self.choices["method"], container(self.config.method), self.asked],
                "benchmark": [self.benchmark.version, self.settings, self.prompts_sha, self.judge],
                "sampler": {SIZES_RECORDED_AS.get(k, k): v for k, v in self.sampler.items()},
                "numerics": self.config.numerics,
                "seed": self.config.seed,
            }
        )

    def folder(self, results: Path) -> Path:
        name = f"{self.choices['method']}-{self.fingerprint}"
        return results / self.choices["benchmark"] / self.model.name / name

    def draw(self, jobs: Iterable[Job], deliver: Callable[[Delivery], None]) -> None:
        """Draw images, each handed to `deliver` as it ends. Where memory runs out, see
        `_within_memory`.
        """
        self._within_memory(
            list(jobs), deliver, lambda scheduler, some, told: scheduler.run(some, told)
        )

    def measure(
        self, jobs: Sequence[Job], deliver: Callable[[Delivery], None], meter: Meter
    ) -> Timing:
        """Draw images as `draw` does, and say what that took by `meter`, which starts anew after
        the warm-up.

        For warming up the last jobs are drawn, which come latest to what is kept of their prompts,
        and thrown away.
        """
        delivered = rounds = fed = 0
        warmth: tuple[list[float], bool] | None = None

        def work(
            scheduler: Scheduler, some: Sequence[Job], told: Callable[[Delivery], None]
        ) -> None:
            nonlocal warmth, rounds, fed
            if warmth is None:
                warmth = warm_up(
                    lambda i: scheduler.run([some[-1 - i % len(some)]], lambda _: None),
                    self.warm_up,
                )
                meter.start()
            sampler = scheduler.sampler
            before = sampler.decode_steps, sampler.active_branch_steps
            try:
                scheduler.run(some, told)
            finally:
                rounds = rounds + sampler.decode_steps - before[0]
                fed = fed + sampler.active_branch_steps - before[1]

        def count(delivery: Delivery) -> None:
            nonlocal delivered
            delivered += delivery.image is not None
            deliver(delivery)

        slots = self._within_memory(list(jobs), count, work)
        seconds, warm = warmth or ([], False)
        return Timing(
            images=delivered,
            seconds=meter.seconds,
            scoring_s=meter.paused_s,
            slots=slots,
            rounds=rounds,
            fed=fed,
            warm_up=len(seconds),
            warm=warm,
            first_s=seconds[0] if seconds else None,
            joules=meter.joules,
            peak_memory_gb=meter.peak_memory_gb,
            machine={
                **describe(self.model.device),
                "kernels": why_unused(self.model.device) or "Triton",
                **self.stamp,
            },
        )

    def _within_memory(
        self,
        jobs: Sequence[Job],
        deliver: Callable[[Delivery], None],
        work: Callable[[Scheduler, Sequence[Job], Callable[[Delivery], None]], None],
    ) -> int:
        """Let a scheduler work on jobs; where memory runs out, another with half the slots goes on
        with those left.

        That is done on a CPU, where the number of slots changes no token, and where numerics=fast,
        and the stamp of what is drawn from then on says so. Otherwise, and where one job is too
        much, the error is raised. Returns the number of slots in the end.
        """
        left = {job.key: job for job in jobs}
        slots = int(self.sampler["slots"])
        while True:
            scheduler = None
            try:
                scheduler = self._scheduler(slots)
                graphs = scheduler.sampler.graphs

                def told(delivery: Delivery, graphs: Graphs = graphs) -> None:
                    if self.model.device.type == "cuda":
                        self.stamp["graphs"] = graphs.state
                    deliver(delivery)
                    del left[delivery.job.key]

                work(scheduler, list(left.values()), told)
                return slots
            except Exception as error:
                fewer = self._fewer(slots)
                if not fewer or not short_of_memory(error):
                    raise
                trouble = one_line(error)[:120]
            del scheduler  # with all its memory, now that nothing holds it any more
            gc.collect()
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
            log.warning(
                "memory ran out with sampler.slots=%d (%s): going on with %d", slots, trouble, fewer
            )
            self.stamp["slots"] = f"{fewer}, as memory ran out with {slots}"
            slots = fewer

    def _fewer(self, slots: int) -> int:
        """Half as many jobs' slots, where results allow for it; 0 where they do not, or one job has
        all of them.
        """
        one_job = self.method_spec.slots
        allowed = self.model.device.type == "cpu" or self.config.numerics == "fast"
        return slots // one_job // 2 * one_job if allowed else 0

    def _scheduler(self, slots: int) -> Scheduler:
        shape = {name: value for name, value in self.sampler.items() if name != "concurrency"}
        shape |= {"slots": slots, "prefill": tuple(shape["prefill"])}
        sampler = Sampler(self.model, self.sampling, **shape)
        return Scheduler(
            self.method, sampler, seed=self.config.seed, concurrency=self.sampler["concurrency"]
        )

    def _warm_up(self, most: int | None) -> int:
        """Images drawn at most before seconds count; null: one on a GPU, which compiles and
        captures for it.
        """
        if most is None:
            return int(self.model.device.type == "cuda")
        if not isinstance(most, int) or most < 0:
            raise UserError(f"sampler.warm_up={most}: give a number of images, 0 for none, or null")
        return most

    def record(self) -> dict[str, Any]:
        """What config.yaml says: the resolved configuration, and under `run` what the leaderboard
        reads.
        """
        config = container(self.config)
        for option in OF_THE_COMMAND:
            config.pop(option, None)
        config["sampler"]["slots"] = self.sampler["slots"]
        made = {
            "model": self.model.name,
            "method": self.choices["method"],
            "params": _changed(self.config, self.choices),
            "seed": self.config.seed,
            "numerics": self.config.numerics,
            "asked": self.asked,
            "memory_gb": self._memory_gb(),
        }
        return {**config, "run": self._about(made)}

    def _about(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """What the leaderboard reads of a run whose images were `made` so."""
        about = {
            **made,
            "benchmark": self.choices["benchmark"],
            "fingerprint": self.fingerprint,
            "images_per_prompt": self.benchmark.images,
            "planned": len(self.jobs),
            "judge": self.judge,
            "version": self.benchmark.version,
            "prompts_sha": self.prompts_sha[:16],
            "aggregates": self.aggregates,
            "schema": SCHEMA,
        }
        if excluded := str(getattr(self.benchmark, "excluded", "")):
            about["excluded"] = excluded  # why the run must not enter a leaderboard
        return about


PLACES = (
    *("metadata", "checkpoint", "device", "images_of"),
    *(
        "base_url",
        "needs_key",
        "timeout_s",
        "retries",
        "backoff_s",
        "longest_pause_s",
        "concurrency",
    ),
)
"""Benchmark options, at any depth, that say where something is or how it is reached: what it is is
in version, prompts and judge."""


def _named(settings: Any) -> Any:
    """Settings that name a result."""
    if not isinstance(settings, dict):
        return settings
    return {key: _named(value) for key, value in settings.items() if key not in PLACES}


def _row(prompt: Prompt) -> list[Any]:
    """What of a prompt names a result; weight and cluster only where they are set."""
    row = [prompt.id, prompt.text, prompt.category, dict(prompt.spec)]
    return [*row, prompt.extra_fields] if prompt.extra_fields else row


def _aggregates(benchmark: Any, categories: Sequence[str]) -> dict[str, dict[str, float]]:
    """The benchmark's named linear combinations of category means, "score" among them."""
    uniform = {"score": dict.fromkeys(categories, 1 / len(categories))}
    named = benchmark.aggregates(categories) if hasattr(benchmark, "aggregates") else uniform
    aggregates = {
        str(name): {str(c): float(w) for c, w in parts.items()} for name, parts in named.items()
    }
    assert "score" in aggregates, f"{type(benchmark).__name__}.aggregates names no score"
    assert all(set(parts) <= set(categories) for parts in aggregates.values()), (
        "an aggregate of unknown categories"
    )
    return aggregates


@lru_cache(maxsize=1)
def load_model(config: str, device: str) -> Any:
    """The model, kept between the runs of one multirun."""
    target = device_named(device)
    if target.type == "cpu":
        torch.set_num_threads(
            int(os.environ.get("OMP_NUM_THREADS", "1"))
        )  # two spinning threads are slower than one
    return build(OmegaConf.create(json.loads(config)), device=target)


def _changed(config: DictConfig, choices: dict[str, str]) -> str:
    """The method's options that differ from its configuration file, as "n=8, reward=other"."""
    default = hydra.compose("config", overrides=[f"method={choices['method']}"]).method
    mine, theirs = (_flat(container(part)) for part in (config.method, default))
    return ", ".join(
        f"{key}={value}" for key, value in sorted(mine.items()) if theirs.get(key, ...) != value
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v
        for key, inner in value.items()
        for k, v in _flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }
