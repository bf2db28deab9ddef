"""Generate the images of a run: save each as it is drawn, and score them meanwhile."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

import torch
from tqdm import tqdm

from harness.engine.meter import Meter, describe
from harness.engine.scheduler import Delivery
from harness.models import HasPromptLimit, ImageModel
from harness.records import PROMPT_CUT, Job, SampleRecord, Timing, digest, one_line
from harness.runs.benchmark import BenchmarkSpec
from harness.runs.execute import Executor
from harness.runs.failures import is_new_failure
from harness.runs.folder import RunFolder, encode_png, hash_tokens, image_path
from harness.runs.plan import IncompleteRunError
from harness.runs.plugins import OWN_PACKAGES, PROJECT
from harness.runs.score import score_images

log = logging.getLogger("harness")

BATCH = 32
"""Images that are scored at a time while others are drawn."""
BAR = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} images "
    "[{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
)
"""What the bar of a run shows on a terminal."""
PROGRESS_S = 30
"""Seconds between two lines of progress where there is no terminal."""


class Generation:
    """Draw jobs into a run folder, and score delivered images in batches if `with_scores`.

    `track` is called after each batch of scores. With `stop_on_error` the first job that fails
    raises IncompleteRunError; otherwise it is recorded, and the others go on.
    """

    def __init__(
        self,
        executor: Executor,
        benchmark: BenchmarkSpec,
        folder: RunFolder,
        *,
        with_scores: bool,
        stop_on_error: bool,
        track: Callable[[], None],
    ) -> None:
        device = executor.spec.model.device
        self._executor = executor
        self._benchmark = benchmark
        self._folder = folder
        self._with_scores = with_scores
        self._stop_on_error = stop_on_error
        self._track = track
        self._stamp = {"commit": find_commit(), **describe(device), "torch": torch.__version__}
        self._meter = Meter(device)
        self._unscored: list[Job] = []

    def run(self, jobs: Sequence[Job]) -> None:
        """Draw the jobs, and write down what that took."""
        self._warn_of_other_code()
        self._warn_of_long_prompts(jobs)
        with _Progress(self._folder.path.name, len(jobs)) as progress:
            timing = self._executor.measure(jobs, partial(self._take, progress), self._meter)
        self._folder.save_timing(timing)
        self._log_speed(timing)

    def _warn_of_other_code(self) -> None:
        """Warn if images are there that another version of the project's code has drawn."""
        mine = self._stamp["commit"]
        others = {record.stamp.get("commit", "unknown") for record in self._folder.done.values()}
        if others := others - {mine}:
            log.warning(
                "%s: its images are of version %s, this is %s: the board marks the run",
                self._folder.path,
                ", ".join(sorted(others)),
                mine,
            )

    def _warn_of_long_prompts(self, jobs: Sequence[Job]) -> None:
        """Warn of prompts whose ends the model does not read."""
        model = self._executor.spec.model
        cut = {job.prompt.id for job in jobs if _count_cut(model, job)}
        if cut:
            log.warning(
                "%s: %s reads only the beginning of %d prompts, such as %s: the board marks it",
                self._folder.path,
                model.name,
                len(cut),
                min(cut),
            )

    def _take(self, progress: _Progress, delivery: Delivery) -> None:
        """Take an image, or an error, from the scheduler."""
        # 1. Save it: whatever comes next, a kill loses it no more.
        self._folder.save_record(self._make_record(delivery), delivery.image)

        # 2. Report a failure.
        if delivery.image is None:
            self._report_failure(delivery)

        # 3. Score a batch, on the judge's time.
        elif self._with_scores:
            self._unscored.append(delivery.job)
            if len(self._unscored) >= BATCH:
                with self._meter.pause():
                    self._score_batch(progress)

        # 4. Show how far the run is.
        progress.advance()

    def _make_record(self, delivery: Delivery) -> SampleRecord:
        job = delivery.job
        image = delivery.image
        return SampleRecord(
            prompt_id=job.prompt.id,
            image=job.image,
            category=job.prompt.category,
            status="failed" if image is None else "done",
            usage=delivery.usage,
            tokens_sha=hash_tokens(delivery.tokens),
            image_sha="" if image is None else digest(encode_png(image)),
            path="" if image is None else image_path(job.prompt, job.image),
            error=delivery.error,
            notes=complete_notes(self._executor.spec.model, delivery),
            stamp={**self._stamp, **self._executor.stamp},
        )

    def _report_failure(self, delivery: Delivery) -> None:
        job = delivery.job
        if is_new_failure(delivery.error):
            error = one_line(delivery.error)
            log.warning("%s image %d failed: %s", job.prompt.id, job.image, error)
        if self._stop_on_error:
            raise IncompleteRunError(
                f"{self._folder.path}: {job.prompt.id} image {job.image}: {delivery.error}"
            )

    def _score_batch(self, progress: _Progress) -> None:
        progress.add_scores(score_images(self._benchmark, self._folder, self._unscored))
        self._unscored.clear()
        self._track()

    def _log_speed(self, timing: Timing) -> None:
        path = self._folder.path
        images_per_s = timing.images / timing.seconds
        utilisation = timing.fed / max(1, timing.rounds * timing.slots)
        log.info(
            "%s: %.3g images/s, slot utilisation %.0f %%", path, images_per_s, 100 * utilisation
        )
        if timing.warm_up > 1 and not timing.warm:
            log.warning("%s: not warm after %d images: its seconds may drift", path, timing.warm_up)


def complete_notes(model: ImageModel, delivery: Delivery) -> dict[str, Any]:
    """Return the notes that are journalled: the method's, and how much of its prompt was cut."""
    notes: dict[str, Any] = dict(delivery.notes)
    cut = _count_cut(model, delivery.job)
    if cut > notes.get(PROMPT_CUT, 0):  # the note there is of a prompt that the method rewrote
        notes[PROMPT_CUT] = cut
    return notes


def _count_cut(model: ImageModel, job: Job) -> int:
    return model.count_cut(job.prompt.text) if isinstance(model, HasPromptLimit) else 0


@lru_cache(maxsize=1)
def find_commit() -> str:
    """Return the commit of the checkout that this code runs from, or the installed version.

    "-dirty" is added where the project's code differs from the commit.
    """
    commit = _ask_git("rev-parse", "--short", "HEAD")
    if commit:
        changed = _ask_git("status", "--porcelain", "--", *map(str, OWN_PACKAGES))
        return f"{commit}-dirty" if changed else commit
    try:
        return version("visual-ar-tts")
    except PackageNotFoundError:
        return "unknown"


def _ask_git(*arguments: str) -> str:
    """Return what git says of the checkout that this code runs from; "" where there is none."""
    if not (PROJECT / ".git").exists():
        return ""
    command = ["git", "-C", str(PROJECT), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


class _Progress:
    """Show a bar with ETA and running score on a terminal; elsewhere log a line now and then."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name  # a disabled bar does not keep it
        self._bar = tqdm(
            total=total,
            desc=name,
            unit=" images",
            disable=None,
            smoothing=0.05,
            bar_format=BAR,
        )
        self._began = time.monotonic()
        self._values: list[float] = []
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self) -> None:
        """Count one image."""
        self._bar.update()
        if not self._bar.disable:
            return
        self._bar.n += 1  # a disabled bar does not count
        if time.monotonic() - self._last_line > PROGRESS_S:
            self._last_line = time.monotonic()
            log.info(
                "%s: %d of %d images, %.3g images/s%s",
                self._name,
                self._bar.n,
                self._bar.total,
                self._bar.n / (time.monotonic() - self._began),
                self._running_score(),
            )

    def add_scores(self, values: Sequence[float | None]) -> None:
        """Count scores; an image that the judge could not score is wrong."""
        self._values += [value or 0.0 for value in values]
        self._bar.set_postfix_str(self._running_score().strip(", "))

    def _running_score(self) -> str:
        if not self._values:
            return ""
        return f", score {sum(self._values) / len(self._values):.3f}"
