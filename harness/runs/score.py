"""Score delivered images with a benchmark's judge, and sum up what it said."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from harness.records import FeaturedScore, Job, Score, one_line
from harness.runs.benchmark import BenchmarkSpec
from harness.runs.failures import is_new_failure
from harness.runs.folder import RunFolder
from harness.runs.journal import write_atomic
from harness.runs.lock import hold_lock

log = logging.getLogger("harness")

REFUSED = "its score cannot be written"
"""How the reason begins that stands for a score that no journal can hold."""


def prepare_judge(benchmark: BenchmarkSpec, jobs: Sequence[Job]) -> None:
    """Prepare the judge, if there is anything to judge, and log what judging the jobs will cost.

    Raises UserError where the judge cannot be had.
    """
    if not jobs or not benchmark.is_judged:
        return
    benchmark.ready()
    if benchmark.estimate is not None:
        log.info("%s", benchmark.estimate([job.prompt for job in jobs]))


def score_images(
    benchmark: BenchmarkSpec, folder: RunFolder, jobs: Iterable[Job]
) -> list[float | None]:
    """Score delivered images; each score is in the journal before the next one is asked for.

    A score that no journal can hold leaves its image unjudged, and says why; the first one is
    told at once, all are counted by `list_refused`.
    """
    if not benchmark.is_judged:
        return []
    values = []
    for given in benchmark.score([(job.prompt, folder.image_file(job)) for job in jobs]):
        if isinstance(given, FeaturedScore):
            given = folder.save_features(given)
        score = _expect_writable(given)
        folder.save_score(score)
        values.append(score.value)
    return values


def _expect_writable(score: Score) -> Score:
    """Return a score that can be written: the same, or one without a value that says why."""
    try:
        score.to_json()
    except (TypeError, ValueError) as error:
        reason = f"{REFUSED}: {one_line(error)}"
        if is_new_failure(f"{REFUSED} of {score.judge}"):
            log.warning("%s image %d: %s", score.prompt_id, score.image, reason)
        return Score(score.prompt_id, score.image, score.judge, None, {"unjudged": reason})
    return score


def list_refused(benchmark: BenchmarkSpec, folder: RunFolder) -> list[Score]:
    """List what stands in the journals of all shares for scores that could not be written."""
    scores = folder.read_scores(benchmark.judge)
    return [score for score in scores if str(score.detail.get("unjudged")).startswith(REFUSED)]


def write_summary(benchmark: BenchmarkSpec, folder: RunFolder) -> None:
    """Write what the benchmark says about all scores of the run so far.

    It goes to the log and summary.txt, and into files of the benchmark's own. Of several shares
    the last one to end sees, and writes, all scores.
    """
    with hold_lock(folder.path / ".lock"):
        scores = folder.read_scores(benchmark.judge)
        if benchmark.summarise is not None:
            lines = list(benchmark.summarise(scores))
            text = "".join(f"{line}\n" for line in lines)
            write_atomic(folder.path / "summary.txt", text.encode())
            for line in lines:
                log.info("%s", line)
        for name, content in benchmark.files(scores, folder.path).items():
            write_atomic(folder.path / name, content.encode())
