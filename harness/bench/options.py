"""The options of each bench, checked before anything is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import DictConfig

from harness.records import STRICT, Count, Natural, Positive
from harness.runs.options import expect_fields

Bars = list[tuple[Count, Positive]]
"""Images drawn together, and the bar for so many."""


@dataclass(frozen=True, slots=True)
class JudgesOptions:
    """The options of conf/bench/judges.yaml."""

    __pydantic_config__: ClassVar = STRICT

    batch: Count | list[Count]
    judges: str | list[str]
    blocks: Count
    warm_up: Natural


@dataclass(frozen=True, slots=True)
class MethodsOptions:
    """The options of conf/bench/methods.yaml."""

    __pydantic_config__: ClassVar = STRICT

    batch: Count | list[Count]
    methods: str | list[str]
    blocks: Count
    warm_up: Natural
    kept_light: list[str]
    most_bookkeeping: Positive
    terminating: list[str]
    against: str
    slots_for: Count
    queue: Count
    most_excess: Positive


@dataclass(frozen=True, slots=True)
class SamplerOptions:
    """The options of conf/bench/sampler.yaml."""

    __pydantic_config__: ClassVar = STRICT

    peer: str | None
    batch: Count | list[Count]
    blocks: Count
    warm_up: Natural
    bars: Bars
    gpu_bars: dict[str, Bars]


OPTIONS = {"judges": JudgesOptions, "methods": MethodsOptions, "sampler": SamplerOptions}
"""The options of each bench by its name."""


def expect_bench_options(name: str, config: DictConfig) -> None:
    """Check the options of a bench. Raises UserError that names the first bad one."""
    expect_fields(OPTIONS[name], config)
