"""`python -m harness`: compose a run from configuration, then generate, score and report.

python -m harness method=best_of_n                      one run, one folder, resumable
python -m harness -m method=plain,best_of_n             a sweep
python -m harness -m experiment=demo                    a listed sweep
python -m harness stages=[report]                       leaderboard.csv from the journals, no computing
python -m harness benchmark=tiif stages=[estimate]      calls and tokens that a judge would be asked for, no computing
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.records import Job, SampleRecord, Score, UserError, digest, one_line

if TYPE_CHECKING:
    from harness.point import Point
    from harness.store import RunFolder
    from harness.tracking import Tracker

log = logging.getLogger("harness")

STAGES = ("estimate", "generate", "score", "report")
CHUNK = 32
"""Images scored at a time while others are drawn."""

_outcome: dict[str, Any] = {}
"""What the runs of this process (one multirun) left for its end: results folder, run folders, failures."""


def main() -> None:
    """Entry point: exit code 0 if every run ended well, 1 if images failed, 2 for a mistake in the command."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us, and we print them in one line
    _expect_one_home()
    enable_plugins()
    logging.getLogger("hydra").setLevel(logging.WARNING)  # the line of each run says which point it is
    _outcome.update(results=None, folders=[], failures=[])
    sys.argv[1:] = _with_their_points(sys.argv[1:])
    try:
        _app()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(say(remedy(one_line(error))))
    except KeyboardInterrupt:
        sys.exit(say("interrupted; run the same command again to continue", code=130))
    try:
        if _outcome["results"] is not None and (_outcome["folders"] or not _outcome["failures"]):
            _report(_outcome["results"], _outcome["folders"], _outcome["tracker"])
    except UserError as error:
        sys.exit(say(error))
    sys.exit(max((say(message, code) for message, code in _outcome["failures"]), default=0))


def _with_their_points(arguments: list[str]) -> list[str]:
    """The arguments of a sweep, where options of a swept part go with each point.

    Hydra composes a sweep once without its swept values, and refuses `method.gamma=8` there if the default method has
    no gamma. As a sweep of one value it is left to the points.
    """
    if not {"-m", "--multirun"} & set(arguments):
        return arguments
    parser, parsed = OverridesParser.create(), {}
    for argument in arguments:
        with suppress(HydraException):
            (parsed[argument],) = parser.parse_overrides([argument])
    swept = {one.key_or_group for one in parsed.values() if one.is_sweep_override() or one.key_or_group == "experiment"}

    def with_points(argument: str) -> str:
        one = parsed.get(argument)
        if one is None or one.is_sweep_override() or "." not in one.key_or_group or one.is_delete():
            return argument
        if not swept & {one.key_or_group.split(".")[0], "experiment"}:
            return argument
        return f"{argument.partition('=')[0]}=choice({one.get_value_element_as_str()})"

    return [with_points(argument) for argument in arguments]


def enable_plugins() -> None:
    """Let Hydra find our sweeper: it looks for plugins in the namespace package `hydra_plugins` only."""
    folder = str(Path(__file__).parent / "plugins")
    if folder not in sys.path:
        sys.path.append(folder)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _app(config: DictConfig) -> None:
    """One point of a sweep, or the only run. A failing one is kept for the end: it does not stop the others."""
    hydra_config = HydraConfig.get()
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    name = f"{hydra_config.job.override_dirname}: " if sweeping else ""
    try:
        if not sweeping and hydra_config.sweeper.get("points"):
            raise UserError(f"experiment={hydra_config.runtime.choices['experiment']} is a sweep: add -m")
        run(config, {group: str(choice) for group, choice in hydra_config.runtime.choices.items()})
    except IncompleteRunError as error:
        _outcome["failures"].append((f"{name}{error}", 1))
    except (UserError, OSError) as error:
        _outcome["failures"].append((f"{name}{error}", 2))
    except Exception as error:
        log.exception("%s failed", name or "the run")
        _outcome["failures"].append((f"{name}{type(error).__name__}: {error}", 1))


class IncompleteRunError(Exception):
    """Some images of a run could not be made; the others are there."""


def run(config: DictConfig, choices: dict[str, str]) -> None:
    """Carry out the chosen stages of one run."""
    unknown = set(config.stages) - set(STAGES)
    if unknown or not config.stages:
        raise UserError(f"stages={list(config.stages)}: choose from {', '.join(STAGES)}")
    results = Path(config.results)
    tracker = _outcome["tracker"] = _tracker(config)
    if set(config.stages) == {"report"}:
        _outcome["results"] = results
        return

    from harness.elsewhere import Elsewhere
    from harness.point import Point
    from harness.store import RunFolder

    point = (Elsewhere if isinstance(config.benchmark.get("images"), str) else Point)(config, choices)
    if "estimate" in config.stages:
        if len(config.stages) > 1 or not hasattr(point.benchmark, "estimate"):
            raise UserError(
                f"stages={list(config.stages)} with benchmark={choices['benchmark']}: an estimate is asked "
                "for alone, of a benchmark whose judge answers calls, such as tiif"
            )
        print(point.benchmark.estimate([job.prompt for job in point.jobs]))
        return
    if "report" in config.stages:
        _outcome["results"] = results
    begun = point.folder(results).exists()
    if not begun:  # what cannot be judged leaves no folder
        _expect_judge(point, point.jobs)
    with (
        RunFolder(point.folder(results), point.record(), point.jobs) as folder,
        tracker.follow(folder.path, results) as track,
    ):
        if isinstance(point, Elsewhere):
            point.adopt(folder)
        missing = folder.missing()
        _outcome["folders"].append(folder.path)
        log.info(
            "%s: %d prompts x %d images planned, %d done, %d %s",
            *(folder.path, len(point.prompts), point.benchmark.images, len(folder.done), len(missing)),
            "missing" if isinstance(point, Elsewhere) else "to draw",
        )
        if begun:
            _expect_judge(point, [*missing, *folder.unscored(point.judge)])
        if "generate" in config.stages and missing:
            _generate(point, folder, missing, track)
        if "score" in config.stages:
            _score(point, folder, folder.unscored(point.judge))
            track()
            _summarise(point, folder)
        failed = len(folder.missing())
        assert len(folder.done) + failed == len(point.jobs)
        if failed and "generate" in config.stages:
            raise IncompleteRunError(
                f"{folder.path}: {failed} of {len(point.jobs)} images failed; run again to retry them"
            )
        if "score" in config.stages and (unanswered := len(folder.unscored(point.judge))):
            raise IncompleteRunError(
                f"{folder.path}: the judge left {unanswered} images without an answer; run again to ask it about them"
            )


def _tracker(config: DictConfig) -> Tracker:
    """The run's logger (conf/logger)."""
    try:
        tracker: Tracker = hydra.utils.instantiate(config.logger)
    except InstantiationException as error:
        raise UserError(one_line(error.__cause__ or error)) from error
    return tracker


# ------------------------------------------------------------------ one run


def _expect_judge(point: Point, jobs: list[Job]) -> None:
    """Let the benchmark refuse images that its judge could not be asked about, and say what the others will take."""
    if "score" not in point.config.stages or not jobs:
        return
    if hasattr(point.benchmark, "ready"):
        point.benchmark.ready()
    if hasattr(point.benchmark, "estimate"):
        log.info("%s", point.benchmark.estimate([job.prompt for job in jobs]))


def _generate(point: Point, folder: RunFolder, missing: list[Job], track: Callable[[], None]) -> None:
    from harness.scheduler import Delivery
    from harness.store import encode_png, image_path, tokens_sha

    stamp = _stamp(point.model.device)
    fresh: list[Job] = []
    scoring = "score" in point.config.stages

    with _Progress(folder.path.name, len(missing)) as progress:

        def deliver(delivery: Delivery) -> None:
            job, image = delivery.job, delivery.image
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
                stamp=stamp,
            )
            folder.save(record, image)
            if image is None:
                log.warning("%s image %d failed: %s", job.prompt.id, job.image, delivery.error)
            elif scoring:
                fresh.append(job)
                if len(fresh) >= CHUNK:
                    progress.scores(_score(point, folder, fresh))
                    fresh.clear()
                    track()
            progress.step()

        utilisation = point.draw(missing, deliver)
    log.info("%s: slot utilisation %.0f %%", folder.path, 100 * utilisation)


def _score(point: Point, folder: RunFolder, jobs: Iterable[Job]) -> list[float | None]:
    """Score delivered images; every score is in the journal before the next batch is judged."""
    jobs = list(jobs)
    values = []
    for score in point.benchmark.score((job.prompt, folder.file(job)) for job in jobs):
        folder.save_score(score)
        values.append(score.value)
    return values


def _summarise(point: Point, folder: RunFolder) -> None:
    """What the benchmark has to say about all scores of the run so far: the log and summary.txt, and its own files."""
    from harness.store import read_lines, write_atomic

    scores = [s for s in read_lines(folder.path / "scores.jsonl", Score.from_json) if s.judge == point.judge]
    if hasattr(point.benchmark, "summarise"):
        lines = list(point.benchmark.summarise(scores))
        write_atomic(folder.path / "summary.txt", "".join(f"{line}\n" for line in lines).encode())
        for line in lines:
            log.info("%s", line)
    if hasattr(point.benchmark, "files"):
        for name, text in point.benchmark.files(scores, folder.path).items():
            write_atomic(folder.path / name, text.encode())


def _report(results: Path, folders: list[Path], tracker: Tracker) -> None:
    from harness.exports import write_exports
    from harness.leaderboard import build, excluded_line
    from harness.printed import render_table
    from harness.report import write_report
    from harness.sheet import write_sheet

    board = build(results)
    write_exports(board, results / "export")
    print(render_table(board.frame))
    print(f"\n{results / 'leaderboard.csv'}: {len(board.runs)} runs")
    if board.excluded:
        print(excluded_line(board))
    if folders:
        print(f"{write_sheet(folders, results / 'sheet.png')}: prompts x methods")
    page = write_report(results, board, figures=not folders)  # they take seconds: only where the report is all
    print(f"{page}: figures and gallery")
    if said := tracker.publish(board, results):
        print(said)


def _stamp(device: Any) -> dict[str, str]:
    """Which code, library and device made an image."""
    import platform

    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"
    return {"commit": _commit(), "device": name, "torch": torch.__version__}


@lru_cache(maxsize=1)
def _commit() -> str:
    """Commit of the checkout that this code runs from, or the installed version."""
    import subprocess
    from importlib.metadata import PackageNotFoundError, version

    root = Path(__file__).parent.parent
    if (root / ".git").exists():
        asked = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
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
                log.info("%s: %d of %d%s", self._name, self._bar.n, self._bar.total, self._running())

    def scores(self, values: list[float | None]) -> None:
        self._values += [value or 0.0 for value in values]
        self._bar.set_postfix_str(self._running().strip(", "))

    def _running(self) -> str:
        return f", score {sum(self._values) / len(self._values):.3f}" if self._values else ""


# ------------------------------------------------------------------ the edges


def _expect_one_home() -> None:
    """`methods`, `benchmarks` and `conf` are common names: stop if another package's are found first."""
    home = Path(__file__).resolve().parent.parent
    for name in ("methods", "benchmarks", "conf"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if found != home:
            sys.exit(
                say(f"package {name!r} is found in {found}, not beside harness in {home}: run from another folder")
            )


def remedy(message: str) -> str:
    """Hydra advises to append an option it does not know; nothing would read it."""
    unknown = re.match(r"Could not override '(?P<key>[^']+)'", message)
    if not unknown:
        return message
    return f"unknown option {unknown['key']!r}: add `--cfg job` to the command without it to see the options there are"


def say(message: BaseException | str, code: int = 2) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code
