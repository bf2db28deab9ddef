"""Plan a run: the images that its benchmark asks for, and how they are judged and summed up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from harness.records import Job
from harness.runs.benchmark import BenchmarkSpec
from harness.runs.fingerprint import SCHEMA, drop_places, hash_prompts
from harness.runs.instantiate import resolve_config


class IncompleteRunError(Exception):
    """Some planned images could not be made or scored; the others are there."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a benchmark makes of a run, whoever makes the images."""

    benchmark: BenchmarkSpec
    jobs: tuple[Job, ...]  # one for each image, prompt by prompt
    prompts_sha: str
    aggregates: Mapping[str, Mapping[str, float]]  # combinations of category means
    settings: Mapping[str, Any]  # options of the benchmark that name a result

    @classmethod
    def of(cls, benchmark: object, config: DictConfig) -> Plan:
        """Plan the images of a benchmark that was built from `config`.

        Raises UserError for a benchmark that lacks a member or aggregates unknown categories.
        """
        spec = BenchmarkSpec.of(benchmark)
        jobs = [Job(prompt, image) for prompt in spec.prompts for image in range(spec.images)]
        categories = sorted({prompt.category for prompt in spec.prompts})
        return cls(
            benchmark=spec,
            jobs=tuple(jobs),
            prompts_sha=hash_prompts(spec.prompts),
            aggregates=spec.combine(categories),
            settings=drop_places(resolve_config(config)),
        )

    def describe(
        self, made: Mapping[str, Any], *, benchmark: str, fingerprint: str
    ) -> dict[str, Any]:
        """Return what config.yaml says under `run`, which is what the leaderboard reads.

        `made` says how the images were made; `benchmark` is the name of its configuration.
        """
        described = {
            **made,
            "benchmark": benchmark,
            "fingerprint": fingerprint,
            "images_per_prompt": self.benchmark.images,
            "planned": len(self.jobs),
            "judge": self.benchmark.judge,
            "version": self.benchmark.version,
            "prompts_sha": self.prompts_sha[:16],
            "aggregates": self.aggregates,
            "schema": SCHEMA,
        }
        if self.benchmark.excluded:
            described["excluded"] = self.benchmark.excluded
        if self.benchmark.remark:
            described["remark"] = self.benchmark.remark
        return described

    def identify(self, without: Collection[str] = ()) -> list[Any]:
        """List what names the prompts and their judge in a fingerprint; some settings may not."""
        settings = {name: value for name, value in self.settings.items() if name not in without}
        return [self.benchmark.version, settings, self.prompts_sha, self.benchmark.judge]


def wants_scores(plan: Plan, config: DictConfig) -> bool:
    """Tell whether images are to be scored: it is asked for, and somebody judges them."""
    return "score" in config.stages and plan.benchmark.is_judged
