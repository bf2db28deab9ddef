"""Read run folders: what was planned, delivered and judged, and under which protocol.

A folder holds `config.yaml` (with what the run is, under `run`), `jobs.jsonl` (the planned images),
`records-*.jsonl` (what was delivered or failed, one file per shard), `scores*.jsonl` and, where
seconds were measured, `timings-*.jsonl`; each may be packed (`.gz`). `metrics` are read by a module
of their own. Images are not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd
import yaml

from harness.records import (
    PROMPT_CUT,
    SET_METRICS,
    STRICT,
    Prompt,
    SampleRecord,
    Score,
    SetMetrics,
    Timing,
    UserError,
    digest,
    dump,
    one_line,
    parse_row,
)
from harness.runs.fingerprint import SCHEMA
from harness.runs.folder import source_path
from harness.runs.journal import find_journals, read_journals, read_lines
from harness.runs.metrics import Measured, MetricAbout, read_metrics
from harness.runs.plugins import list_targets

Key = tuple[str, int]
"""Prompt id and number of an image."""

NEEDED: Mapping[str, type] = {
    "benchmark": str,
    "model": str,
    "method": str,
    "params": str,
    "fingerprint": str,
    "seed": int,
    "planned": int,
}
"""What config.yaml must say under `run`, and of which type."""
OPTIONAL: Mapping[str, type] = {
    "title": str,
    "judge": str,
    "version": str,
    "prompts_sha": str,
    "numerics": str,
    "excluded": str,
    "remark": str,
    "aggregates": dict,
    "asked": dict,
    "plugins": dict,
    "memory_gb": float,
    "schema": int,
}
"""What it may say besides."""
OWN_NAMES = ("harness.", "methods.", "benchmarks.")
"""What the names of the project's own classes begin with."""
IN_DETAIL = "metrics"
"""What a score's detail calls the metrics of its image, name -> number."""
TABLE_COLUMNS = ("prompt_id", "image", "category", "weight", "cluster", "value")
"""Columns of `Run.table`."""


class RankingProtocol(NamedTuple):
    """What two runs must share to be put into one ranking."""

    benchmark: str
    version: str
    prompts_sha: str
    judge: str
    images_per_prompt: int
    numerics: str
    model: str

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that name it."""
        return digest(dump(list(self)).encode(), 8)


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    path: Path
    config: Mapping[str, Any]
    about: Mapping[str, Any]  # the `run` mapping of config.yaml
    prompts: Mapping[str, Prompt]  # by id, without answer keys
    planned: Mapping[Key, str]  # (prompt_id, image) -> category
    done: Mapping[Key, SampleRecord]
    failed: frozenset[Key]  # not done, and the last attempt failed
    scores: Mapping[Key, Score]
    judge: str  # "" before the first score
    timings: Sequence[Timing] = ()  # one for each process that drew to its end
    sets: SetMetrics | None = None  # metrics of its images as a set, where its benchmark has any
    metrics: Mapping[str, Measured] = field(default_factory=dict)  # by name
    sources: Mapping[str, str] = field(default_factory=dict)
    """The hash of the image that a prompt asks to edit, by the prompt's id."""
    unanswered: Mapping[Key, int] = field(default_factory=dict)
    """Questions that the method's judges left without an answer, in the last attempt."""

    @property
    def fingerprint(self) -> str:
        return str(self.about["fingerprint"])

    @property
    def title(self) -> str:
        """Return the method's name for people, without options: "Best-of-N".

        Runs that were made before methods had titles take that of the preset; a plug-in without
        one has the name of its configuration.
        """
        method = str(self.about["method"])
        return str(self.about.get("title") or _shipped_titles().get(method) or method)

    @property
    def excluded(self) -> str:
        """Why the run must not enter a leaderboard; "" if it may."""
        return str(self.about.get("excluded") or "")

    @property
    def complete(self) -> bool:
        """Tell whether every planned image was delivered, as for a baseline of others."""
        return len(self.done) == len(self.planned)

    @property
    def concurrency(self) -> int | None:
        """Return the images in flight: 1 for a latency run, None for as many as fit."""
        return (self.config.get("sampler") or {}).get("concurrency")

    @property
    def scenario(self) -> str:
        """Name the way in which seconds were measured, in MLPerf's words."""
        return "SingleStream" if self.concurrency == 1 else "Offline"

    @property
    def options(self) -> Mapping[str, Any]:
        """Return the method's options."""
        return self.config.get("method") or {}

    @property
    def candidates(self) -> int | None:
        """Return the candidates of an image; None for methods that have no number of them."""
        n = self.options.get("n")
        return n if isinstance(n, int) else None

    def source(self, prompt_id: str) -> Path | None:
        """Return the file of the image that a prompt asks to edit; None without one."""
        sha = self.sources.get(prompt_id)
        if sha is None:
            return None
        path = self.path / source_path(sha)
        return path if path.is_file() else None

    def image(self, record: SampleRecord) -> Path | None:
        """Return a delivered image's file if it is still there; never one outside the folder."""
        file = self.path / record.path
        if not record.path or not file.is_file():
            return None
        return file if file.resolve().is_relative_to(self.path.resolve()) else None

    @cached_property
    def device(self) -> str:
        """Name the device, or devices, that drew its images."""
        return self.stamped("device")

    def stamped(self, name: str) -> str:
        """Return the "device" or "commit" in the images' stamps, joined where they differ."""
        found = {record.stamp.get(name) or "" for record in self.done.values()}
        return "+".join(sorted(found - {""}))

    @cached_property
    def marks(self) -> list[str]:
        """What a reader must know of how the run was made, a clause each."""
        marks = []
        commits = {record.stamp.get("commit") or "unknown" for record in self.done.values()}
        if len(commits) > 1:
            marks.append(f"drawn by several versions of the code: {', '.join(sorted(commits))}")
        elif any(commit.endswith("-dirty") for commit in commits):
            marks.append("drawn by code that differs from its commit")
        if self.cut_prompts:
            marks.append(
                f"{len(self.cut_prompts)} prompts are longer than the model reads: it drew them "
                "from their beginnings"
            )
        if self.has_unnamed_source:
            marks.append("drawn by a plug-in whose source was not recorded")
        return marks

    @cached_property
    def cut_prompts(self) -> frozenset[str]:
        """The ids of prompts of which the model read the beginning only."""
        cut = [record.prompt_id for record in self.done.values() if PROMPT_CUT in record.notes]
        return frozenset(cut)

    @property
    def has_unnamed_source(self) -> bool:
        """Tell whether a class is a plug-in's, in a run that is too old to name its source."""
        if "plugins" in self.about:
            return False
        parts = [self.config.get(name) for name in ("model", "method", "benchmark")]
        known = (*OWN_NAMES, "hydra.")
        return not all(target.startswith(known) for target in list_targets(parts))

    @cached_property
    def protocol(self) -> RankingProtocol:
        about = self.about
        return RankingProtocol(
            benchmark=str(about["benchmark"]),
            version=str(about.get("version") or ""),
            prompts_sha=str(about.get("prompts_sha") or self._hash_prompts()),
            judge=self.judge,
            images_per_prompt=max(image for _, image in self.planned) + 1,
            numerics=str(about.get("numerics") or ""),
            model=str(about["model"]),
        )

    @cached_property
    def aggregates(self) -> dict[str, dict[str, float]]:
        """Named linear combinations of category means; "score" is the first."""
        named = dict(self.about.get("aggregates") or {})
        if "score" not in named:
            categories = sorted(set(self.planned.values()))
            named["score"] = dict.fromkeys(categories, 1 / len(categories))
        others = sorted(set(named) - {"score"})
        return {name: dict(named[name]) for name in ["score", *others]}

    @property
    def is_judged(self) -> bool:
        """Tell whether its benchmark has a judge. One without a judge has written "" as its id."""
        return self.about.get("judge") != ""

    @cached_property
    def unjudged(self) -> frozenset[Key]:
        """Delivered images without a value; none where there is no judge to give them."""
        if not self.is_judged:
            return frozenset()
        judged = {key for key, score in self.scores.items() if score.value is not None}
        return frozenset(self.done.keys() - judged)

    @property
    def is_scored(self) -> bool:
        """Tell whether a judge has valued any delivered image; else there is nothing to rank."""
        return self.is_judged and len(self.unjudged) < len(self.done)

    def is_measured(self, metric: str) -> bool:
        """Tell whether a metric has looked at every planned image, whether it has a number or not.

        Else its mean would be of other images than those of the runs beside it.
        """
        measured = self.metrics[metric]
        return len(measured.values) + len(measured.reasons) == len(self.planned)

    @cached_property
    def table(self) -> pd.DataFrame:
        """Tabulate the planned images, a row each in sorted order, as `stats` takes them.

        An image that was not delivered or not judged has value 0.
        """
        rows = []
        for prompt_id, image in sorted(self.planned):
            prompt = self.prompts[prompt_id]
            category = self.planned[prompt_id, image]
            value = self._value((prompt_id, image))
            rows.append((prompt_id, image, category, prompt.weight, prompt.cluster, value))
        return pd.DataFrame(rows, columns=list(TABLE_COLUMNS))

    def _value(self, key: Key) -> float:
        if key not in self.done or key not in self.scores:
            return 0.0
        return self.scores[key].value or 0.0

    def _hash_prompts(self) -> str:
        """Hash the prompts of a run that was made before config.yaml had their hash."""
        rows = [
            [prompt.id, prompt.text, prompt.category, prompt.extra_fields]
            for _, prompt in sorted(self.prompts.items())
        ]
        return digest(dump(rows).encode(), 16)


@cache
def _shipped_titles() -> Mapping[str, str]:
    """Return the title of each method that the project has, by the name of its configuration."""
    titles = {}
    for file in (Path(__file__).parents[2] / "conf" / "method").glob("*.yaml"):
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        if "title" in settings:
            titles[file.stem] = str(settings["title"])
    return titles


def find_runs(results: Path) -> list[Path]:
    """List the run folders of a results folder: benchmark/model/method-fingerprint.

    Raises UserError if there is no such results folder.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such results folder")
    return sorted(path.parent for path in results.glob("[!.]*/*/*/config.yaml"))


class FoundRuns(NamedTuple):
    """The runs of a results folder, and why each other folder cannot be read."""

    runs: list[Run]
    problems: list[str]


def read_runs(results: Path) -> FoundRuns:
    """Read all run folders of a results folder; one that cannot be read stops no other.

    Raises UserError if there is no such results folder.
    """
    found = FoundRuns([], [])
    for folder in find_runs(results):
        try:
            found.runs.append(read_run(folder))
        except UserError as error:
            found.problems.append(str(error))
    return found


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError naming it, and the line where there is one."""
    config, about = _read_config(folder)
    prompts, planned, sources = _read_plan(folder, about["planned"])
    done, failed = _read_records(folder, planned)
    unanswered = {
        key: record.usage.unanswered
        for key, record in (*failed.items(), *done.items())
        if record.usage.unanswered
    }
    judge, scores = _read_scores(folder, str(about.get("judge") or ""))
    metrics = _list_metrics(scores, judge) | read_metrics(folder)
    scores = _add_metrics(scores, metrics)
    timings = read_journals(folder, "timings-*.jsonl", Timing.from_json)
    sets = _read_set_metrics(folder, judge, scores, prompts)
    metrics = metrics | _spread_set_metrics(sets, planned)
    return Run(
        path=folder,
        config=config,
        about=about,
        prompts=prompts,
        planned=planned,
        done=done,
        failed=frozenset(failed),
        scores=scores,
        judge=judge,
        timings=tuple(timings),
        sets=sets,
        metrics=metrics,
        sources=sources,
        unanswered=unanswered,
    )


# ------------------------------------------------------------------ files of a run folder


def _read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read config.yaml, and the mapping under `run` in it."""
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        about = config.get("run")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    if not isinstance(about, dict):
        raise UserError(f"{path}: no 'run' mapping, so {folder} is no run folder")
    _expect_type(path, "schema", about.get("schema"), int)
    if (schema := about.get("schema") or 1) > SCHEMA:
        raise UserError(
            f"{path}: written in schema {schema}, this version reads up to {SCHEMA}: update it"
        )
    if absent := [name for name in NEEDED if name not in about]:
        raise UserError(f"{path}: run.{absent[0]} is missing")
    for name, kind in {**NEEDED, **OPTIONAL}.items():
        _expect_type(path, name, about.get(name), kind)
    _expect_aggregates(path, about.get("aggregates") or {})
    for group in ("sampler", "method"):
        if not isinstance(config.get(group) or {}, dict):
            raise UserError(f"{path}: {group}={config[group]!r} is no mapping")
    return config, about


def _expect_type(path: Path, name: str, value: object, kind: type) -> None:
    """Raise UserError if a value under `run` is of another type; None is for optional ones."""
    if value is None and name in OPTIONAL:
        return
    is_bool_as_number = isinstance(value, bool) and kind is not bool
    allowed = (int, float) if kind is float else (kind,)
    if is_bool_as_number or not isinstance(value, allowed):
        raise UserError(f"{path}: run.{name}={value!r}: expected {kind.__name__}")


def _expect_aggregates(path: Path, aggregates: Mapping[str, Any]) -> None:
    """Raise UserError unless each aggregate gives finite weights to categories."""
    for name, weights in aggregates.items():
        numbers = weights.values() if isinstance(weights, dict) else [None]
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise UserError(
                f"{path}: run.aggregates.{name}={weights!r}: expected category: finite weight"
            )


def _read_plan(
    folder: Path, count: int
) -> tuple[dict[str, Prompt], dict[Key, str], dict[str, str]]:
    """Read the prompts by id, the category of each planned image, and the hashes of sources.

    There must be `count` images.
    """
    (journal,) = find_journals(folder, "jobs.jsonl")
    prompts: dict[str, Prompt] = {}
    planned: dict[Key, str] = {}
    sources: dict[str, str] = {}
    for prompt, images, source in read_lines(journal, _parse_planned):
        if prompt.id in prompts:
            raise UserError(f"{journal}: prompt {prompt.id!r} is planned twice")
        prompts[prompt.id] = prompt
        if source:
            sources[prompt.id] = source
        planned |= {(prompt.id, image): prompt.category for image in range(images)}
    if not planned:
        raise UserError(f"{journal}: no image is planned")
    if len(planned) != count:
        raise UserError(
            f"{folder}: config.yaml plans {count} images, jobs.jsonl lists {len(planned)}"
        )
    return prompts, planned, sources


@dataclass(frozen=True, slots=True)
class _PlanLine:
    """A line of jobs.jsonl: a prompt, and the number of its images."""

    __pydantic_config__: ClassVar = STRICT

    prompt_id: str
    category: str
    images: int
    text: str = ""
    weight: float = 1.0
    cluster: str = ""
    source: str = ""  # the hash of the image to be edited; the file is in the folder `sources`


def _parse_planned(line: str) -> tuple[Prompt, int, str]:
    """Parse a line of jobs.jsonl: a prompt, the number of its images, its source's hash or ""."""
    row = parse_row(_PlanLine, line)
    if row.images < 1:
        raise ValueError(f"images: {row.images} of {row.prompt_id!r}; each prompt has at least 1")
    try:
        prompt = Prompt(
            row.prompt_id, row.text, row.category, weight=row.weight, cluster=row.cluster
        )
    except UserError as error:
        raise ValueError(str(error)) from None
    return prompt, row.images, row.source


def _read_records(
    folder: Path, planned: Mapping[Key, str]
) -> tuple[dict[Key, SampleRecord], dict[Key, SampleRecord]]:
    """Read the delivered images, and the last attempts at others that have failed."""
    done: dict[Key, SampleRecord] = {}
    failed: dict[Key, SampleRecord] = {}
    for journal in find_journals(folder, "records-*.jsonl"):
        for record in read_lines(journal, SampleRecord.from_json) if journal.exists() else ():
            if record.key not in planned:
                raise UserError(
                    f"{journal}: image {record.image} of {record.prompt_id} is not among the "
                    "planned ones"
                )
            if record.category != planned[record.key]:
                raise UserError(
                    f"{journal}: image {record.image} of {record.prompt_id} is recorded under "
                    f"{record.category!r}, planned under {planned[record.key]!r}"
                )
            if record.status == "done":
                done[record.key] = record
            else:
                failed[record.key] = record
    return done, {key: record for key, record in failed.items() if key not in done}


def _list_metrics(scores: Mapping[Key, Score], judge: str) -> dict[str, Measured]:
    """List the metrics that the benchmark's judge itself wrote, as `detail.metrics` of scores."""
    values: dict[str, dict[Key, float]] = {}
    for key, score in scores.items():
        found = score.detail.get(IN_DETAIL)
        for name, value in found.items() if isinstance(found, dict) else ():
            if isinstance(value, int | float) and math.isfinite(value):
                values.setdefault(name, {})[key] = float(value)
    return {name: Measured(MetricAbout(judge), by_image) for name, by_image in values.items()}


def _spread_set_metrics(sets: SetMetrics | None, planned: Mapping[Key, str]) -> dict[str, Measured]:
    """List the metrics of a set as numbers of its images: the pseudo-value of an image's prompt.

    Their mean is the metric. A metric whose error is not known has none.
    """
    found = {}
    for name, metric in sets.metrics.items() if sets is not None else ():
        if metric.pseudo:
            about = MetricAbout(metric.id, unit=metric.unit, better=metric.better)
            found[name] = Measured(about, {key: metric.pseudo[key[0]] for key in planned})
    return found


def _add_metrics(scores: Mapping[Key, Score], metrics: Mapping[str, Measured]) -> dict[Key, Score]:
    """Return scores whose detail has what metrics say of the image, too."""
    shown = {}
    for key, score in scores.items():
        found = {name: one.values[key] for name, one in metrics.items() if key in one.values}
        shown[key] = replace(score, detail={**score.detail, IN_DETAIL: found}) if found else score
    return shown


def _read_scores(folder: Path, judge: str) -> tuple[str, dict[Key, Score]]:
    """Read the scores of `judge`, or of the only judge there is if that is ""; and who it is."""
    scores = list(read_journals(folder, "scores*.jsonl", Score.from_json))
    judges = {judge} if judge else {score.judge for score in scores}
    if len(judges) > 1:
        journal = find_journals(folder, "scores*.jsonl")[0]
        names = ", ".join(sorted(judges))
        raise UserError(
            f"{journal}: scores of several judges ({names}); "
            "one row needs one judge, named as run.judge"
        )
    by_image = {}
    for score in scores:
        if score.judge in judges:
            by_image[score.prompt_id, score.image] = score
    return "".join(judges), by_image


def _read_set_metrics(
    folder: Path, judge: str, scores: Mapping[Key, Score], prompts: Mapping[str, Prompt]
) -> SetMetrics | None:
    """Read the metrics of the images as a set; none where they are of another judge's scores.

    A set of which scores were lost since has no metric either. Raises UserError for a file that
    cannot be read, or is of other prompts.
    """
    path = folder / SET_METRICS
    if not path.exists():
        return None
    try:
        found = SetMetrics.from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}): delete it, and stages=[score] makes it"
        ) from None
    if found.judge != judge:
        return None
    for name, metric in found.metrics.items():
        if metric.pseudo and metric.pseudo.keys() != prompts.keys():
            raise UserError(
                f"{path}: {name} is of other prompts: delete it, and stages=[score] makes it"
            )
    scored = sum(score.value is not None for score in scores.values())
    if scored < found.scored:
        return replace(found, scored=scored, metrics={})
    return found
