"""Define what a benchmark is: the members that it must have, and those that it may have.

`Benchmark` is for authors: a class with these members is a benchmark, wherever it lies.
`BenchmarkSpec` is for the harness: the members of one benchmark, read and checked once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.records import FeaturedScore, Prompt, Score, UserError

Key = tuple[str, int]
"""Prompt id and number of an image."""
Aggregates = Mapping[str, Mapping[str, float]]
"""Named linear combinations of category means: name -> category -> weight."""


class IdentifiedJudge(Protocol):
    """Whatever judges a benchmark's images. Its id names model, revision and question."""

    @property
    def id(self) -> str: ...


class Benchmark(Protocol):
    """Prompts, and scores for images of them: the members that every benchmark has.

    It may have more, which `BenchmarkSpec` describes one by one: `name` (else that of its class),
    `aggregates`, `summarise`, `files`, `estimate`, `ready`, `excluded`, `remark`, and for imported
    images `reads_folders` (on the class) and `found`.
    """

    @property
    def version(self) -> str:
        """Name its prompts and rules: the version changes whenever scores would change."""
        ...

    @property
    def images(self) -> int:
        """Count the images of each prompt."""
        ...

    @property
    def judge(self) -> IdentifiedJudge | None:
        """Whatever judges the images; None if nobody does, so that they have no scores."""
        ...

    def prompts(self) -> Sequence[Prompt]:
        """List the prompts, with their answer keys. Called once for each run."""
        ...

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterable[Score | FeaturedScore]:
        """Score image files that are named by their number ("images/00042/2.png"), in order.

        Scores may be yielded as they come: each is saved before the next is asked for. An image
        without a score is asked about again by the next run. A benchmark that compares sets of
        images yields their features, too.
        """
        ...


REQUIRED = {
    "version": 'version = "1", changed whenever its scores would change',
    "images": "images, the number of images of each prompt",
    "judge": "judge, the object that judges the images, with a string `id`, or None for no scores",
    "prompts": "def prompts(self) -> list[Prompt]",
    "score": "def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]",
}
"""The members of `Benchmark`, and what their author writes."""


def weigh_evenly(categories: Sequence[str]) -> Aggregates:
    """Aggregate as a benchmark does that says nothing else: the mean of all categories."""
    return {"score": dict.fromkeys(categories, 1 / len(categories))}


def be_ready() -> None:
    """Stand for `ready` in a benchmark whose judge has nothing to prepare."""


def make_no_files(scores: Sequence[Score], folder: Path) -> Mapping[str, str]:
    """Stand for `files` in a benchmark that has no files of its own."""
    return {}


@dataclass(frozen=True, slots=True)
class BenchmarkSpec:
    """The members of one benchmark, read and checked once. Optional ones have their defaults."""

    name: str
    version: str
    images: int
    judge: str
    """The id of its judge; "" if nobody judges its images."""
    prompts: tuple[Prompt, ...]
    score: Callable[[Iterable[tuple[Prompt, Path]]], Iterable[Score | FeaturedScore]]

    aggregates: Callable[[Sequence[str]], Aggregates] = weigh_evenly
    """Combine category means, "score" among them: `aggregates(categories)`."""
    ready: Callable[[], None] = be_ready
    """Prepare the judge before anything is drawn: `ready()` raises UserError if it cannot judge."""
    estimate: Callable[[Sequence[Prompt]], str] | None = None
    """Say what judging an image of each of these prompts costs: `estimate(prompts)`."""
    summarise: Callable[[Sequence[Score]], Iterable[str]] | None = None
    """Write lines about all scores of a run, for the log and summary.txt: `summarise(scores)`."""
    files: Callable[[Sequence[Score], Path], Mapping[str, str]] = make_no_files
    """Make files of a run folder, name -> text: `files(scores, folder)`."""
    excluded: str = ""
    """Why runs must not enter a leaderboard; "" if they may."""
    remark: str = ""
    """What must be said beside the scores, such as what cannot be reached; "" if nothing."""
    found: Mapping[Key, Path] = field(default_factory=dict)
    """Images that were found in the folder `benchmark.images`, by prompt id and number."""

    @classmethod
    def of(cls, benchmark: object) -> BenchmarkSpec:
        """Read a benchmark's members. Raises UserError that names a missing one."""
        required = {member: _require(benchmark, member) for member in REQUIRED}
        return cls(
            name=str(getattr(benchmark, "name", _class_name(benchmark))),
            version=required["version"],
            images=required["images"],
            judge=_read_judge(benchmark),
            prompts=tuple(required["prompts"]()),
            score=required["score"],
            aggregates=getattr(benchmark, "aggregates", weigh_evenly),
            ready=getattr(benchmark, "ready", be_ready),
            estimate=getattr(benchmark, "estimate", None),
            summarise=getattr(benchmark, "summarise", None),
            files=getattr(benchmark, "files", make_no_files),
            excluded=str(getattr(benchmark, "excluded", "")),
            remark=str(getattr(benchmark, "remark", "")),
            found=getattr(benchmark, "found", {}),
        )

    @property
    def is_judged(self) -> bool:
        """Tell whether anybody judges its images."""
        return bool(self.judge)

    def combine(self, categories: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return its aggregates of these categories as plain numbers.

        Raises UserError if "score" is not among them, if one is called as a category, or if one is
        of an unknown category.
        """
        aggregates: dict[str, dict[str, float]] = {}
        for name, weights in self.aggregates(categories).items():
            if name in categories:
                raise UserError(
                    f"benchmark {self.name}: a category of its prompts is called {name!r}, as an "
                    "aggregate is: name it otherwise"
                )
            aggregates[str(name)] = {str(c): float(weight) for c, weight in weights.items()}
            if unknown := set(aggregates[str(name)]) - set(categories):
                raise UserError(
                    f"benchmark {self.name}: the aggregate {name!r} is of unknown categories: "
                    f"{', '.join(sorted(unknown))}"
                )
        if "score" not in aggregates:
            raise UserError(f"benchmark {self.name}: its aggregates name no 'score': add it")
        return aggregates


def reads_folders(benchmark_class: type) -> bool:
    """Return whether a benchmark takes a folder of imported images (`benchmark.images`).

    Such a class has `reads_folders = True`; what it made of the folder is in `found`.
    """
    return bool(getattr(benchmark_class, "reads_folders", False))


def _read_judge(benchmark: object) -> str:
    """Return the id of a benchmark's judge, "" for None. Raises UserError for one without an id."""
    judge = getattr(benchmark, "judge", None)
    if judge is None:
        return ""
    judge_id = getattr(judge, "id", None)
    if not judge_id:
        raise UserError(
            f"benchmark {_class_name(benchmark)}: its judge {_class_name(judge)} "
            "has no `id`: write a string that names its model, revision and question"
        )
    return str(judge_id)


def _require(benchmark: object, member: str) -> Any:
    found = getattr(benchmark, member, None)
    is_method = REQUIRED[member].startswith("def ")
    is_meant = member == "judge" and hasattr(benchmark, member)  # None: nobody judges
    if (found is None and not is_meant) or (is_method and not callable(found)):
        raise UserError(
            f"benchmark {_class_name(benchmark)} has no `{member}`: write {REQUIRED[member]}"
        )
    return found


def _class_name(part: object) -> str:
    return type(part).__name__
