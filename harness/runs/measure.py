"""Measure the delivered images of any run by named metrics: `metrics=[clip,imagereward]`.

A metric is a reward (`harness.engine.session.Judge`) under a name. What is written is in `metrics`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from omegaconf import DictConfig

from harness.engine.option_names import options_at
from harness.models.pictures import judge_each, read_images
from harness.records import Answer, Job, UserError, dump, one_line
from harness.runs.folder import RunFolder
from harness.runs.instantiate import METRICS, build_object
from harness.runs.journal import append_line, cut_torn_line, read_journals, write_atomic
from harness.runs.lock import hold_lock
from harness.runs.metrics import (
    DESCRIPTION,
    JOURNALS,
    NOT_FINITE,
    Measurement,
    MetricAbout,
    read_descriptions,
)
from harness.runs.plan import Plan

log = logging.getLogger("harness")

BATCH = 16
"""Images that are read and given to a scorer at a time."""
PROGRESS_S = 30
"""Seconds between two lines of progress."""
MOST_NOT_FINITE = 0.01
"""Share of a run's images whose values may be no finite numbers; with more, measuring stops."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A scorer under the name that its values have in every table."""

    name: str
    about: MetricAbout
    scorer: Any

    def ready(self) -> None:
        """Prepare the scorer. Raises UserError if it cannot measure."""
        ready = getattr(self.scorer, "ready", None)
        if callable(ready):
            ready()

    def release(self) -> None:
        """Let the scorer's network go: the next metric has one of its own."""
        release = getattr(self.scorer, "release", None)
        if callable(release):
            release()

    def count_cut(self, text: str) -> int:
        """Count the tokens at the end of a text that the scorer does not read."""
        count_cut = getattr(self.scorer, "count_cut", None)
        return int(count_cut(text)) if callable(count_cut) else 0


def build_metrics(config: DictConfig, plan: Plan) -> tuple[Metric, ...]:
    """Build the metrics that a composed configuration names, for the images of a plan.

    Raises UserError for one that has no id or cannot be called, and for a name that no table takes.
    """
    taken = {*plan.aggregates, *(job.prompt.category for job in plan.jobs)}
    metrics = []
    for name, part in (config.get(METRICS) or {}).items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
            raise UserError(f"metrics.{name}: name it by small letters, digits and underscores")
        if name in taken:
            raise UserError(f"metrics.{name}: the benchmark has a category of that name")
        scorer = build_object(part, place=f"{METRICS}.{name}")
        scorer_id = getattr(scorer, "id", None)
        if not scorer_id or not callable(scorer):
            raise UserError(
                f"metrics.{name}: {type(scorer).__name__} is no reward: it needs an `id`, and has "
                "to be called with texts and images"
            )
        about = MetricAbout(
            str(scorer_id),
            unit=str(getattr(scorer, "unit", "score")),
            better=getattr(scorer, "better", "higher"),
            digits=int(getattr(scorer, "digits", 4)),
            excluded=str(getattr(scorer, "excluded", "")),
        )
        metrics.append(Metric(str(name), about, scorer))
    return tuple(metrics)


class MetricJournal:
    """The measurements of a run folder that is open for writing a share of its jobs.

    A context manager: the share's lock is held by the folder.
    """

    def __init__(self, folder: RunFolder, metrics: Sequence[Metric]) -> None:
        self.folder = folder
        self.metrics = tuple(metrics)
        self._path = folder.path / folder.shard.metrics
        cut_torn_line(self._path)
        found = read_journals(folder.path, JOURNALS, Measurement.from_json)
        self._known = {one.key for one in found if one.is_final}
        self._describe(metrics)

    def unmeasured(self, metric: Metric) -> list[Job]:
        """List the delivered jobs of this share without a measurement by a metric's scorer."""
        jobs = self.folder.delivered_jobs()
        return [job for job in jobs if (*job.key, metric.name, metric.about.id) not in self._known]

    def save(self, measurements: Sequence[Measurement]) -> None:
        """Append measurements to the journal, in their order."""
        with self._path.open("ab") as file:
            for measurement in measurements:
                append_line(file, measurement.to_json())
                if measurement.is_final:
                    self._known.add(measurement.key)

    def _describe(self, metrics: Sequence[Metric]) -> None:
        """Write what the metrics are, and keep what the folder says of others.

        It comes before the first measurement: a reader knows by it which metrics are asked for.
        """
        with hold_lock(self.folder.path / ".lock"):
            known = read_descriptions(self.folder.path)
            asked = known | {metric.name: metric.about for metric in metrics}
            if asked != known:
                rows = {name: dataclasses.asdict(about) for name, about in asked.items()}
                write_atomic(self.folder.path / DESCRIPTION, f"{dump(rows)}\n".encode())


# ------------------------------------------------------------------ measuring


def prepare_metrics(metrics: Sequence[Metric]) -> None:
    """Prepare each metric before anything is drawn.

    Raises UserError for one that cannot measure, with its name and the command without it.
    """
    for metric in metrics:
        try:
            with options_at(f"{METRICS}.{metric.name}", metric.scorer):
                metric.ready()
        except UserError as error:
            others = ",".join(other.name for other in metrics if other is not metric)
            raise UserError(
                f"metrics={metric.name}: {error}; without it: metrics=[{others}]"
            ) from None


def measure_images(journal: MetricJournal) -> None:
    """Measure what has no measurement yet, metric by metric: one network is in memory at a time.

    Measurements are saved batch by batch. Raises UserError where too many values are no numbers.
    """
    for metric in journal.metrics:
        jobs = journal.unmeasured(metric)
        if not jobs:
            continue
        try:
            _measure(metric, jobs, journal)
        finally:
            metric.release()


def _measure(metric: Metric, jobs: Sequence[Job], journal: MetricJournal) -> None:
    """Measure jobs by one metric; see `measure_images`."""
    remaining = iter(jobs)
    cut = 0
    not_finite = 0
    progress = _Progress(f"{journal.folder.path}: {metric.name}", len(jobs))
    while some := list(islice(remaining, BATCH)):
        measured = measure_batch(metric, some, journal.folder)
        journal.save(measured)
        progress.advance(len(some))
        cut += sum(measurement.cut > 0 for measurement in measured)
        not_finite += sum(not measurement.is_final for measurement in measured)
        if not_finite >= max(1.0, MOST_NOT_FINITE * journal.folder.planned):
            bad = next(one for one in measured if not one.is_final)
            raise UserError(
                f"metrics={metric.name}: {not_finite} values of {metric.about.id} are no finite "
                f"numbers, such as that of {bad.prompt_id} image {bad.image}: "
                f"{_explain_device(metric)}"
            )
    progress.end()
    if cut:
        log.warning(
            "%s: %s reads only the beginning of %d texts", journal.folder.path, metric.name, cut
        )


class _Progress:
    """Log now and then how far a metric is, and in the end what it took."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._last_line = self._began

    def advance(self, images: int) -> None:
        """Count measured images."""
        self._done += images
        if time.monotonic() - self._last_line > PROGRESS_S:
            self._last_line = time.monotonic()
            log.info("%s: %d of %d images measured", self._name, self._done, self._total)

    def end(self) -> None:
        """Log what an image took, with loading the network."""
        seconds = (time.monotonic() - self._began) / max(1, self._done)
        log.info("%s: %d images measured, %.3g s each", self._name, self._done, seconds)


def measure_batch(metric: Metric, jobs: Sequence[Job], folder: RunFolder) -> list[Measurement]:
    """Measure the images of some jobs; one that cannot be read or measured spoils no other."""
    pictures = read_images(folder.image_file(job) for job in jobs)
    asked = []
    for job, picture in zip(jobs, pictures, strict=True):
        if not isinstance(picture, str):
            asked.append((job.prompt.text, picture))
    said = iter(judge_each(lambda some: _ask(metric, some), asked))

    measurements = []
    for job, picture in zip(jobs, pictures, strict=True):
        answer: Any = picture if isinstance(picture, str) else next(said)
        value, reason = _read_answer(answer)
        measurements.append(
            Measurement(
                job.prompt.id,
                job.image,
                metric.name,
                metric.about.id,
                value,
                reason,
                cut=metric.count_cut(job.prompt.text),
            )
        )
    return measurements


def _ask(metric: Metric, asked: Sequence[tuple[str, Any]]) -> list[Any]:
    return list(metric.scorer([text for text, _ in asked], [image for _, image in asked]))


def _read_answer(said: Any) -> tuple[float | None, str]:
    """Return the number that a scorer gave, or None and the reason."""
    if isinstance(said, str):
        return None, said
    if isinstance(said, float) and not math.isfinite(said):
        return None, f"{NOT_FINITE}: {said}"
    answer = Answer.of(said)
    if not answer.answered or not isinstance(answer.value, int | float):
        return None, one_line(answer.reason) or "the scorer gives no number"
    return float(answer.value), ""


def _explain_device(metric: Metric) -> str:
    device = getattr(metric.scorer, "device", None)
    where = f"on {device}" if device else "where it runs"
    return f"its weights or its arithmetic {where} are at fault; they are measured again next time"
