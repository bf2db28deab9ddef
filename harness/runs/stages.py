"""Carry out the stages of one run: estimate, generate, score.

The heavy modules that they need are imported when a run begins, so that a mistake in the command
is answered at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from omegaconf import DictConfig

from harness.records import UserError
from harness.runs.plan import IncompleteRunError, wants_scores

if TYPE_CHECKING:
    from harness.runs.folder import RunFolder
    from harness.runs.measure import MetricJournal
    from harness.runs.plan import Plan
    from harness.runs.source import RunSource

log = logging.getLogger("harness")


class Dashboard(Protocol):
    """Follows a run while it is made."""

    def follow(self, folder: Path, results: Path) -> AbstractContextManager[Callable[[], None]]:
        """Open a dashboard of a run folder; the function it gives sends what is new."""
        ...


def run_stages(
    config: DictConfig,
    choices: Mapping[str, str],
    dashboard: Dashboard,
    on_claimed: Callable[[Path], None],
) -> None:
    """Carry out the stages of a run, or of a share of it.

    `on_claimed` gets the run's folder once it belongs to this process. Raises IncompleteRunError if
    images of the share are missing in the end, or if the judge left some without an answer.
    """
    from harness.runs.folder import RunFolder
    from harness.runs.lock import Shard
    from harness.runs.measure import MetricJournal, build_metrics, prepare_metrics
    from harness.runs.score import prepare_judge
    from harness.runs.source import build_source

    # 1. Build the run: all that can be refused is refused here.
    shard = Shard.parse(config.shard)
    source = build_source(config, choices)
    plan = source.plan
    metrics = build_metrics(config, plan) if "score" in config.stages else ()
    if not metrics:
        _expect_judge(plan, config, choices["benchmark"])
    if "estimate" in config.stages:
        _print_estimate(plan, config, choices["benchmark"])
        return

    # 2. Prepare the judges of a new run first: what cannot be judged leaves no folder.
    path = source.folder(Path(config.results))
    is_new = not path.exists()
    if is_new:
        _expect_images(source, path, config)
        if wants_scores(plan, config):
            prepare_judge(plan.benchmark, plan.jobs)
        prepare_metrics(metrics)
        if "generate" in config.stages:
            source.prepare()

    # 3. Claim the folder, and fill it.
    with (
        RunFolder(path, source.describe(), plan.jobs, shard) as folder,
        _follow(dashboard, folder, config) as track,
    ):
        journal = MetricJournal(folder, metrics)
        on_claimed(path)
        _fill_folder(source, journal, config, track, is_new=is_new)
        _expect_complete(plan, journal, config)


def _fill_folder(
    source: RunSource,
    journal: MetricJournal,
    config: DictConfig,
    track: Callable[[], None],
    *,
    is_new: bool,
) -> None:
    """Draw, score and measure the images of the share that are missing."""
    from harness.runs.measure import measure_images, prepare_metrics
    from harness.runs.score import prepare_judge, score_images, write_summary

    folder = journal.folder
    benchmark = source.plan.benchmark
    with_scores = wants_scores(source.plan, config)

    # 1. See what is there, and what is not.
    source.import_images(folder)
    missing = folder.missing()
    _log_progress(source.plan, folder, source.missing_word)
    if not is_new and with_scores:
        prepare_judge(benchmark, [*missing, *folder.unscored(benchmark.judge)])
    if not is_new:  # those that have nothing left to measure need no weights
        prepare_metrics([one for one in journal.metrics if missing or journal.unmeasured(one)])

    # 2. Draw what is missing, and score it meanwhile.
    if "generate" in config.stages and missing:
        if not is_new:
            source.prepare()
        source.generate(missing, folder, track)

    # 3. Score the rest, and sum up.
    if with_scores:
        score_images(benchmark, folder, folder.unscored(benchmark.judge))
        track()
        write_summary(benchmark, folder)

    # 4. Measure by what is no judge of the benchmark.
    measure_images(journal)


def _expect_judge(plan: Plan, config: DictConfig, benchmark: str) -> None:
    """Raise UserError where nothing but scores is asked for, and nobody would give them."""
    is_for_scores = "score" in config.stages and "generate" not in config.stages
    if is_for_scores and not plan.benchmark.is_judged:
        raise UserError(
            f"stages={list(config.stages)}: benchmark={benchmark} has no judge that could score: "
            "choose one, such as judge@benchmark.judge=pictogram_reward, or give metrics=[...]"
        )


def _expect_images(source: RunSource, path: Path, config: DictConfig) -> None:
    """Raise UserError where a run that was never drawn is to be scored or measured."""
    if "score" in config.stages and "generate" not in config.stages and source.draws:
        raise UserError(
            f"stages={list(config.stages)}: nothing was drawn by these options yet ({path} is not "
            "there): give those that the run was drawn by, or draw it by "
            "stages=[generate,score,report]"
        )


def _print_estimate(plan: Plan, config: DictConfig, benchmark: str) -> None:
    """Print what judging the run would cost. Raises UserError where nobody can tell."""
    estimate = plan.benchmark.estimate
    if len(config.stages) > 1 or estimate is None:
        raise UserError(
            f"stages={list(config.stages)} with benchmark={benchmark}: an estimate is asked for "
            "alone, of a benchmark whose judge answers calls, such as tiif"
        )
    print(estimate([job.prompt for job in plan.jobs]))


def _follow(
    dashboard: Dashboard, folder: RunFolder, config: DictConfig
) -> AbstractContextManager[Callable[[], None]]:
    """Open the live dashboard, which the first share keeps for all."""
    if folder.shard.index:
        return nullcontext(lambda: None)
    return dashboard.follow(folder.path, Path(config.results))


def _log_progress(plan: Plan, folder: RunFolder, missing_word: str) -> None:
    share = ""
    if folder.shard.count > 1:
        share = f"; share {folder.shard}: {folder.planned} planned, {folder.delivered} done"
    log.info(
        "%s: %d prompts x %d images planned, %d done%s, %d %s",
        folder.path,
        len(plan.benchmark.prompts),
        plan.benchmark.images,
        len(folder.done),
        share,
        len(folder.missing()),
        missing_word,
    )


def _expect_complete(plan: Plan, journal: MetricJournal, config: DictConfig) -> None:
    """Raise IncompleteRunError unless every image of the share is there, scored and measured.

    Scores and metrics count if they are asked for. Every planned image is either done or failed.
    """
    folder = journal.folder
    failed = len(folder.missing())
    assert folder.delivered + failed == folder.planned
    if failed and "generate" in config.stages:
        raise IncompleteRunError(
            f"{folder.path}: {failed} of {folder.planned} images failed: mend what is named above, "
            "or wait for what was out of reach, and run the same command again"
        )
    if wants_scores(plan, config):
        _expect_scored(plan, folder)
    for metric in journal.metrics:
        if left := len(journal.unmeasured(metric)):
            raise IncompleteRunError(
                f"{folder.path}: {metric.name} left {left} images without a number; "
                "run again to measure them"
            )


def _expect_scored(plan: Plan, folder: RunFolder) -> None:
    """Raise IncompleteRunError unless every delivered image of the share has a score."""
    from harness.runs.score import list_refused

    if refused := list_refused(plan.benchmark, folder):
        first = refused[0]
        raise IncompleteRunError(
            f"{folder.path}: {len(refused)} images have no score because theirs could not be "
            f"written, such as {first.prompt_id} image {first.image} "
            f"({first.detail['unjudged']}): mend the benchmark's score"
        )
    if unanswered := len(folder.unscored(plan.benchmark.judge)):
        raise IncompleteRunError(
            f"{folder.path}: the judge left {unanswered} images without an answer; "
            "run again to ask it about them"
        )
