"""The stages of one run: estimate, generate, score."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig

from harness.records import Job, SampleRecord, UserError, digest, one_line

if TYPE_CHECKING:
    from harness.runs.folder import RunFolder
    from harness.runs.spec import Point

log = logging.getLogger("harness")

STAGES = ("estimate", "generate", "score", "report")
ON_ERROR = ("continue", "stop")
CHUNK = 32
"""Images scored at a time while others are drawn."""


class Dashboard(Protocol):
    """Follows a run while it is made."""

    def follow(self, folder: Path, results: Path) -> AbstractContextManager[Callable[[], None]]:
        """Open a dashboard of a run folder; the function it gives sends what is new."""
        ...


class IncompleteRunError(Exception):
    """Some images of a run could not be made; the others are there."""


def expect_stages(config: DictConfig) -> None:
    """Raise UserError for stages, or a way to take errors, that there is not."""
    if not config.stages or set(config.stages) - set(STAGES):
        raise UserError(f"stages={list(config.stages)}: choose from {', '.join(STAGES)}")
    if config.on_error not in ON_ERROR:
        raise UserError(f"on_error={config.on_error}: choose from {', '.join(ON_ERROR)}")


def run(
    config: DictConfig, choices: dict[str, str], tracker: Dashboard, begin: Callable[[Path], None]
) -> None:
    """Carry out the stages of a run, or of a share of it; `begin` is told its folder, once it is
    claimed.

    Raises IncompleteRunError if images of the share are missing in the end, or left without an
    answer by the judge.
    """
    from harness.runs.folder import RunFolder
    from harness.runs.imported import Elsewhere
    from harness.runs.lock import Shard
    from harness.runs.spec import Point

    shard = Shard.parse(config.shard)
    elsewhere = isinstance(config.benchmark.get("images"), str)
    point = (Elsewhere if elsewhere else Point)(config, choices)
    if "estimate" in config.stages:
        _estimate(point)
        return
    path = point.folder(Path(config.results))
    begun = path.exists()
    if not begun:  # what cannot be judged leaves no folder
        _expect_judge(point, point.jobs)
    with (
        RunFolder(path, point.record(), point.jobs, shard) as folder,
        _followed(tracker, folder, config) as track,
    ):
        begin(path)
        if isinstance(point, Elsewhere):
            point.adopt(folder)
        missing = folder.missing()
        _announce(point, folder, "missing" if elsewhere else "to draw")
        if begun:
            _expect_judge(point, [*missing, *folder.unscored(point.judge)])
        if "generate" in config.stages and missing:
            _generate(point, folder, missing, track)
        if "score" in config.stages:
            _score(point, folder, folder.unscored(point.judge))
            track()
            _summarise(point, folder)
        _expect_complete(point, folder)


def _estimate(point: Point) -> None:
    if len(point.config.stages) > 1 or not hasattr(point.benchmark, "estimate"):
        raise UserError(
            f"stages={list(point.config.stages)} with benchmark={point.choices['benchmark']}: an estimate is asked "
            "for alone, of a benchmark whose judge answers calls, such as tiif"
        )
    print(point.benchmark.estimate([job.prompt for job in point.jobs]))


def _followed(tracker: Dashboard, folder: RunFolder, config: DictConfig) -> Any:
    """The live dashboard, which the first share keeps for all."""
    return (
        nullcontext(lambda: None)
        if folder.shard.index
        else tracker.follow(folder.path, Path(config.results))
    )


def _announce(point: Point, folder: RunFolder, still: str) -> None:
    left = len(folder.missing())
    done = len(folder.done)
    share = ""
    if folder.shard.count > 1:
        share = f"; share {folder.shard}: {folder.planned} planned, {folder.made} done"
    prompts = len(point.prompts)
    images = point.benchmark.images
    log.info(
        "%s: %d prompts x %d images planned, %d done%s, %d %s",
        folder.path,
        prompts,
        images,
        done,
        share,
        left,
        still,
    )


def _expect_complete(point: Point, folder: RunFolder) -> None:
    """planned = done + failed, and what that means for the exit code."""
    failed = len(folder.missing())
    assert folder.made + failed == folder.planned
    if failed and "generate" in point.config.stages:
        raise IncompleteRunError(
            f"{folder.path}: {failed} of {folder.planned} images failed; run again to retry them"
        )
    if "score" in point.config.stages and (unanswered := len(folder.unscored(point.judge))):
        raise IncompleteRunError(
            f"{folder.path}: the judge left {unanswered} images without an answer; run again to ask it about them"
        )


def _expect_judge(point: Point, jobs: list[Job]) -> None:
    """Let the benchmark refuse images that its judge could not be asked about, and say what the
    others will take.
    """
    if "score" not in point.config.stages or not jobs:
        return
    if hasattr(point.benchmark, "ready"):
        point.benchmark.ready()
    if hasattr(point.benchmark, "estimate"):
        log.info("%s", point.benchmark.estimate([job.prompt for job in jobs]))


def _generate(
    point: Point, folder: RunFolder, missing: list[Job], track: Callable[[], None]
) -> None:
    from harness.engine.meter import Meter
    from harness.engine.scheduler import Delivery
    from harness.runs.folder import encode_png, image_path, tokens_sha

    stamp = _stamp(point.model.device)
    meter = Meter(point.model.device)
    fresh: list[Job] = []
    scoring = "score" in point.config.stages

    with _Progress(folder.path.name, len(missing)) as progress:

        def deliver(delivery: Delivery) -> None:
            job = delivery.job
            image = delivery.image
            record = SampleRecord(
                prompt_id=job.prompt.id,
                image=job.image,
                category=job.prompt.category,
                status="failed" if image is None else "done",
                usage=delivery.usage,
                tokens_sha=tokens_sha(delivery.tokens),
                image_sha="" if image is None else digest(encode_png(image)),
                path="" if image is None else image_path(job.prompt, job.image),
                error=delivery.error,
                notes=delivery.notes,
                stamp={**stamp, **point.stamp},
            )
            folder.save(record, image)
            if image is None:
                log.warning(
                    "%s image %d failed: %s", job.prompt.id, job.image, one_line(delivery.error)
                )
                if point.config.on_error == "stop":
                    raise IncompleteRunError(
                        f"{folder.path}: {job.prompt.id} image {job.image}: {delivery.error}"
                    )
            elif scoring:
                fresh.append(job)
                if len(fresh) >= CHUNK:
                    with meter.pause():
                        progress.scores(_score(point, folder, fresh))
                        fresh.clear()
                        track()
            progress.step()

        timing = point.measure(missing, deliver, meter)
    folder.save_timing(timing)
    rate = timing.images / timing.seconds
    used = timing.fed / max(1, timing.rounds * timing.slots)
    log.info("%s: %.3g images/s, slot utilisation %.0f %%", folder.path, rate, 100 * used)
    if timing.warm_up > 1 and not timing.warm:
        log.warning(
            "%s: not warm after %d images: its seconds may drift", folder.path, timing.warm_up
        )


def _score(point: Point, folder: RunFolder, jobs: Iterable[Job]) -> list[float | None]:
    """Score delivered images; every score is in the journal before the next batch is judged."""
    jobs = list(jobs)
    values = []
    for score in point.benchmark.score((job.prompt, folder.file(job)) for job in jobs):
        folder.save_score(score)
        values.append(score.value)
    return values


def _summarise(point: Point, folder: RunFolder) -> None:
    """What the benchmark has to say about all scores of the run so far: the log and summary.txt,
    and its own files.
    """
    from harness.runs.journal import write_atomic
    from harness.runs.lock import alone

    with alone(folder.path / ".lock"):  # the last share to end sees, and writes, all
        scores = folder.scores(point.judge)
        if hasattr(point.benchmark, "summarise"):
            lines = list(point.benchmark.summarise(scores))
            write_atomic(
                folder.path / "summary.txt", "".join(f"{line}\n" for line in lines).encode()
            )
            for line in lines:
                log.info("%s", line)
        if hasattr(point.benchmark, "files"):
            for name, text in point.benchmark.files(scores, folder.path).items():
                write_atomic(folder.path / name, text.encode())


def _stamp(device: Any) -> dict[str, str]:
    """Which code, library and device made an image."""
    import torch

    from harness.engine.meter import describe

    return {"commit": _commit(), **describe(device), "torch": torch.__version__}


@lru_cache(maxsize=1)
def _commit() -> str:
    """Commit of the checkout that this code runs from, or the installed version."""
    import subprocess
    from importlib.metadata import PackageNotFoundError, version

    root = Path(__file__).parent.parent.parent
    if (root / ".git").exists():
        asked = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        if asked.returncode == 0:
            return asked.stdout.strip()
    try:
        return version("visual-ar-tts")
    except PackageNotFoundError:
        return "unknown"


# ------------------------------------------------------------------ progress


class _Progress:
    """A bar with ETA and running score on a terminal; a line every 30 s elsewhere."""

    def __init__(self, name: str, total: int) -> None:
        from tqdm import tqdm

        self._name = name  # a disabled bar does not keep it
        self._bar = tqdm(total=total, desc=name, unit="img", disable=None, smoothing=0.05)
        self._values: list[float] = []
        self._last = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self) -> None:
        self._bar.update()
        if self._bar.disable:
            self._bar.n += 1  # a disabled bar does not count
            if time.monotonic() - self._last > 30:
                self._last = time.monotonic()
                log.info(
                    "%s: %d of %d%s", self._name, self._bar.n, self._bar.total, self._running()
                )

    def scores(self, values: list[float | None]) -> None:
        self._values += [value or 0.0 for value in values]
        self._bar.set_postfix_str(self._running().strip(", "))

    def _running(self) -> str:
        return f", score {sum(self._values) / len(self._values):.3f}" if self._values else ""
