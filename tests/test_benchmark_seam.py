"""What a benchmark must have and may have: a missing member is named, an optional one defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from toy import ToyBenchmark

from benchmarks.geneval import GenEval
from benchmarks.pictogram import Pictogram
from benchmarks.tiif.benchmark import Tiif
from harness.records import Prompt, Score, UserError
from harness.runs.benchmark import REQUIRED, Benchmark, BenchmarkSpec, reads_folders
from harness.runs.plan import Plan


class Shapes:
    """The least that is a benchmark."""

    name = "shapes"
    version = "1"
    images = 2

    def __init__(self) -> None:
        self.judge: Any = SimpleNamespace(id="judge-1")

    def prompts(self) -> list[Prompt]:
        texts = {"round": "a circle", "square": "a square"}
        return [Prompt(f"shapes/{kind}", text, kind) for kind, text in texts.items()]

    def score(self, items: Any) -> Iterator[Score]:
        for prompt, path in items:
            yield Score(prompt.id, int(path.stem), self.judge.id, 1.0)


class Incomplete(SimpleNamespace):
    """A benchmark that lacks a member."""


@pytest.mark.parametrize("member", REQUIRED)
def test_a_missing_member_is_named_with_its_class_and_what_to_write(member: str) -> None:
    benchmark = Shapes()
    members = {name: getattr(benchmark, name) for name in REQUIRED if name != member}
    with pytest.raises(UserError) as refused:
        BenchmarkSpec.of(Incomplete(**members))
    message = str(refused.value)
    assert message == f"benchmark Incomplete has no `{member}`: write {REQUIRED[member]}"
    assert member in REQUIRED[member]


@pytest.mark.parametrize("member", ["prompts", "score"])
def test_a_method_that_is_no_method_is_missing(member: str) -> None:
    benchmark = Shapes()
    setattr(benchmark, member, [])
    with pytest.raises(UserError, match=f"benchmark Shapes has no `{member}`: write def {member}"):
        BenchmarkSpec.of(benchmark)


def test_a_judge_without_an_id_is_named() -> None:
    benchmark = Shapes()
    benchmark.judge = [1]
    with pytest.raises(UserError, match="benchmark Shapes: its judge list has no `id`: write"):
        BenchmarkSpec.of(benchmark)


def test_optional_members_have_defaults() -> None:
    benchmark: Benchmark = Shapes()
    spec = BenchmarkSpec.of(benchmark)
    assert (spec.name, spec.version, spec.images, spec.judge) == ("shapes", "1", 2, "judge-1")
    assert [prompt.id for prompt in spec.prompts] == ["shapes/round", "shapes/square"]
    assert spec.combine(["a", "b"]) == {"score": {"a": 0.5, "b": 0.5}}
    spec.ready()
    assert spec.files([], Path()) == {}
    assert (spec.estimate, spec.summarise, spec.excluded, spec.found) == (None, None, "", {})
    assert spec.remark == ""
    assert not reads_folders(Shapes)


def test_optional_members_are_read_where_they_are() -> None:
    class Rich(Shapes):
        reads_folders = True
        excluded = "a trial"
        remark = "half of it cannot be reached"

        def __init__(self) -> None:
            super().__init__()
            self.found = {("shapes/round", 0): Path("0.png")}

        def aggregates(self, categories: Sequence[str]) -> dict[str, dict[str, int]]:
            return {"score": {categories[0]: 1}, "rest": {categories[1]: 2}}

        def ready(self) -> None:
            raise UserError("the judge is ill")

        def estimate(self, prompts: Sequence[Prompt]) -> str:
            return f"{len(prompts)} calls"

        def summarise(self, scores: Sequence[Score]) -> list[str]:
            return ["a line"]

        def files(self, scores: Sequence[Score], folder: Path) -> dict[str, str]:
            return {"results.jsonl": ""}

    spec = BenchmarkSpec.of(Rich())
    assert spec.combine(["a", "b"]) == {"score": {"a": 1.0}, "rest": {"b": 2.0}}
    with pytest.raises(UserError, match="the judge is ill"):
        spec.ready()
    assert spec.estimate is not None and spec.estimate(spec.prompts) == "2 calls"
    assert spec.summarise is not None and list(spec.summarise([])) == ["a line"]
    assert spec.files([], Path()) == {"results.jsonl": ""}
    assert (spec.excluded, list(spec.found)) == ("a trial", [("shapes/round", 0)])
    assert spec.remark == "half of it cannot be reached"
    assert reads_folders(Rich)


@pytest.mark.parametrize(
    ("aggregates", "words"),
    [
        (lambda categories: {"mean": {"a": 1}}, "its aggregates name no 'score': add it"),
        (lambda categories: {"score": {"c": 1}}, "'score' is of unknown categories: c"),
        (
            lambda categories: {"score": {"a": 1}, "a": {"b": 1}},
            "is called 'a', as an aggregate is",
        ),
    ],
)
def test_aggregates_are_checked(aggregates: Callable[..., object], words: str) -> None:
    benchmark = Shapes()
    benchmark.aggregates = aggregates  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=f"benchmark shapes: .*{words}"):
        BenchmarkSpec.of(benchmark).combine(["a", "b"])


def test_a_plan_has_a_job_for_each_image() -> None:
    config = OmegaConf.create({"images": 2, "metadata": "/somewhere", "judge": {"device": "cpu"}})
    plan = Plan.of(Shapes(), config)
    keys = [job.key for job in plan.jobs]
    assert keys == [(f"shapes/{kind}", image) for kind in ("round", "square") for image in (0, 1)]
    assert plan.settings == {"images": 2, "judge": {}}  # where things are names no result
    assert plan.describe({}, benchmark="b", fingerprint="f")["planned"] == 4


def test_the_project_s_own_benchmarks_read_folders_or_not() -> None:
    assert reads_folders(GenEval) and reads_folders(Tiif)
    assert not reads_folders(Pictogram) and not reads_folders(ToyBenchmark)
