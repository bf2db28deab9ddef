"""A wandb dashboard: one more projection of the journals, which may be thrown away and made again.

Each run of a results folder is a wandb run whose id is its fingerprint, grouped with the runs that
it may be compared with; each such group has one more, with the leaderboard and the scaling curves.
What is logged is a pure function of journals and leaderboard, so publishing twice changes nothing.
Files lie in `results`/wandb; a key is taken from the environment by wandb itself, and written
nowhere.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd

from harness.records import SampleRecord, Score, Usage, UserError, digest, dump, one_line
from harness.results.contact_sheet import contact_sheet
from harness.results.leaderboard import Board, heading, protocols
from harness.results.ranking import CURRENCIES, RankedGroup
from harness.runs.journal import write_atomic
from harness.runs.read import Run, read_run

log = logging.getLogger("harness")

MODES = ("auto", "online", "offline")
POINTS = 50
"""Points of a run's progress, about."""
STEPS = {"progress/*": "progress/images", "scaling/*": "budget", "scaling_seconds/*": "budget_s"}
"""What a metric is plotted over."""

Line = Mapping[str, float]
Step = tuple[int, Line]
"""When a line is logged, and the line."""
Table = tuple[list[str], list[list[Any]]]
"""Column names and rows."""


class Tracker(Protocol):
    """A logger (conf/logger): follows runs while they are drawn, and publishes finished boards."""

    def follow(self, folder: Path, results: Path) -> AbstractContextManager[Callable[[], None]]:
        """A context whose value is to be called after lines were appended to the run folder's
        journals.
        """
        ...

    def publish(self, board: Board, results: Path) -> str:
        """Make the dashboards of a results folder what its journals say; returns what was done, ""
        for nothing.
        """
        ...


class NoTracking:
    """No dashboard: journals, tables and report are all."""

    def follow(self, folder: Path, results: Path) -> AbstractContextManager[Callable[[], None]]:
        return nullcontext(lambda: None)

    def publish(self, board: Board, results: Path) -> str:
        return ""


class Wandb:
    """Runs and boards as wandb runs; `mode: auto` is online where wandb finds a key, else offline.

    A run shows `pictures` of its images in a contact sheet. Raises UserError for a mode that there
    is not.
    """

    def __init__(
        self, project: str, entity: str | None = None, mode: str = "auto", pictures: int = 16
    ) -> None:
        if mode not in MODES:
            raise UserError(f"logger.mode={mode}: choose from {', '.join(MODES)}")
        self.project = project
        self.entity = entity
        self._mode = mode
        self.pictures = pictures

    @contextmanager
    def follow(self, folder: Path, results: Path) -> Iterator[Callable[[], None]]:
        """See `Tracker`. The dashboard is opened with the first news; one that fails does not stop
        the run.
        """
        run = read_run(folder)
        progress = Progress(len(run.planned))
        journals = Journals(folder, run.judge)
        waiting = progress.lines(journals.news())  # of an earlier process
        dashboard = None
        failed = False
        with ExitStack() as stack:

            def update() -> None:
                nonlocal dashboard, failed
                if failed or not (news := journals.news()):
                    return
                waiting.extend(progress.lines(news))
                try:
                    dashboard = dashboard or stack.enter_context(self._open(_shell(run), results))
                    _log_steps(dashboard, waiting)
                    waiting.clear()
                except Exception as error:
                    failed = True
                    log.warning("wandb: %s; the run goes on without it", one_line(error))

            yield update

    def publish(self, board: Board, results: Path) -> str:
        """Also see `Tracker`. What was published before, from equal journals to the same place, is
        left alone.
        """
        state = results / "wandb" / "published.json"
        known = json.loads(state.read_text()) if state.exists() else {}
        fresh: dict[str, str] = {}
        written = 0
        for page in pages(board, self.pictures):
            fresh[page.id] = digest(
                dump([self.project, self.entity or "", self.mode, page.content]).encode(), 16
            )
            if known.get(page.id) != fresh[page.id] or (
                self.mode == "offline" and not _offline(page.id, results)
            ):
                self._write(page, results)
                written += 1
        for former in (
            folder for id_ in known.keys() - fresh.keys() for folder in _offline(id_, results)
        ):
            shutil.rmtree(former)
        if fresh != known:
            write_atomic(state, dump(fresh).encode())
        return f"{results / 'wandb'}: {written} of {len(fresh)} dashboards written ({self.mode})"

    @cached_property
    def mode(self) -> str:
        if self._mode != "auto":
            return self._mode
        return "online" if _has_key() else "offline"

    def _write(self, page: Page, results: Path) -> None:
        import wandb

        with self._open(page, results) as dashboard:
            _log_steps(dashboard, page.progress)
            for line in page.points:
                dashboard.log(dict(line))
            shown: dict[str, Any] = {
                name: wandb.Table(columns=list(columns), data=list(rows))
                for name, (columns, rows) in page.tables.items()
            }
            if page.picture is not None:
                shown["images"] = wandb.Image(_open_image(page.picture))
            dashboard.log(shown)
            dashboard.summary.update(dict(page.summary))

    @contextmanager
    def _open(self, page: Page, results: Path) -> Iterator[Any]:
        """A wandb run of the page's id: offline a new one in place of the former, online the same
        one again.
        """
        import wandb

        os.environ["WANDB_DATA_DIR"] = str(
            (results / "wandb").resolve()
        )  # where tables wait to be sent
        mode = self.mode
        if mode == "offline":
            for former in _offline(page.id, results):
                shutil.rmtree(former)
        settings = wandb.Settings(
            root_dir=str(results),
            console="off",
            silent=True,
            host="-",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        try:
            dashboard = wandb.init(
                project=self.project,
                entity=self.entity,
                mode=mode,  # type: ignore[arg-type]
                id=page.id,
                name=page.name,
                group=page.group,
                job_type=page.kind,
                tags=list(page.tags),
                config=dict(page.config),
                resume="allow" if mode == "online" else None,
                reinit="create_new",
                settings=settings,
            )
        except wandb.Error as error:
            raise UserError(
                f"wandb: {one_line(error)}; set logger.mode=offline, or logger=none"
            ) from error
        try:
            for name, step in STEPS.items():
                dashboard.define_metric(name, step_metric=step)
            yield dashboard
        finally:
            dashboard.finish()


# --- what is shown, as plain values ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """A wandb run before wandb: what it is called and all that is logged."""

    id: str
    name: str
    group: str
    kind: str
    tags: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    progress: Sequence[Step] = ()
    points: Sequence[Line] = ()  # of curves, each with its budget
    summary: Mapping[str, float | str] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    picture: bytes | None = None

    @property
    def content(self) -> dict[str, Any]:
        """All of it as values that can be compared."""
        return {
            "about": [
                self.id,
                self.name,
                self.group,
                self.kind,
                list(self.tags),
                json.loads(json.dumps(self.config)),
            ],
            "progress": [list(step) for step in self.progress],
            "points": list(self.points),
            "summary": dict(self.summary),
            "tables": {name: list(table) for name, table in self.tables.items()},
            "picture": None if self.picture is None else digest(self.picture),
        }


def pages(board: Board, pictures: int) -> Iterator[Page]:
    """The dashboards of a board: one for each run, one for each protocol."""
    runs = {run.path: run for run in board.runs}
    rows = {run.path: row for run, (_, row) in zip(board.runs, board.frame.iterrows(), strict=True)}
    for path, run in runs.items():
        known = board.metrics[board.metrics["fingerprint"] == run.fingerprint]
        yield _run_page(run, rows[path], known, pictures)
    for frame in protocols(board.frame):
        members = [run for run in board.runs if run.protocol.id == frame["protocol"].iloc[0]]
        yield _board_page(members, frame)


def _shell(run: Run) -> Page:
    """A run's dashboard as far as it is known before anything is drawn."""
    about = run.about
    kin = run.protocol
    tags = [
        str(about["method"]),
        kin.benchmark,
        kin.model,
        *(["latency"] if run.concurrency == 1 else []),
    ]
    return Page(
        run.fingerprint, f"{run.name}, seed {about['seed']}", _group(run), "run", tags, run.config
    )


def _group(run: Run) -> str:
    return f"{run.protocol.benchmark}-{run.protocol.model}-{run.protocol.id}"


def _run_page(run: Run, row: pd.Series, metrics: pd.DataFrame, pictures: int) -> Page:
    shell = _shell(run)
    progress = Progress(len(run.planned))
    lines = progress.lines(
        (run.done[key].usage, score) for key, score in run.scores.items() if key in run.done
    )
    summary: dict[str, float | str] = {}
    for metric in metrics.itertuples():
        ends = {"_low": cast(float, metric.ci_low), "_high": cast(float, metric.ci_high)}
        summary[str(metric.metric)] = float(metric.value)  # type: ignore[arg-type]
        summary |= {
            f"{metric.metric}{end}": float(at) for end, at in ends.items() if not math.isnan(at)
        }
    summary |= {
        f"images/{name}": int(row[name]) for name in ("images", "failed", "missing", "unjudged")
    }
    if isinstance(tie := row["tie_group"], int | float) and not math.isnan(tie):
        summary["quality/tie_group"] = int(tie)
    at = {"budget": "scaling/score", "budget_s": "scaling_seconds/score"}
    points = [
        {name: float(row[name]), curve: float(row["score"])}
        for name, curve in at.items()
        if row[name] > 0
    ]
    return Page(
        *(shell.id, shell.name, shell.group, shell.kind, shell.tags, shell.config),
        progress=lines,
        points=points,
        summary=summary,
        tables={"prompts": _prompts(run)},
        picture=contact_sheet(run, pictures),
    )


def _prompts(run: Run) -> Table:
    """Each prompt with the mean value of its images, and what the judge said of the first that is
    wrong.
    """
    rows = []
    for prompt in run.prompts.values():
        scores = [
            run.scores.get((prompt.id, image)) for image in range(run.protocol.images_per_prompt)
        ]
        values = [0.0 if score is None or score.value is None else score.value for score in scores]
        reasons = [
            score.detail.get("reasons")
            for score in scores
            if score is not None and (score.value or 0) < 1
        ]
        said = next((reason for reason in reasons if reason), "")
        text = said if isinstance(said, str) else "; ".join(map(str, said))
        rows.append([prompt.id, prompt.category, prompt.text, sum(values) / len(values), text])
    return ["prompt_id", "category", "prompt", "value", "reason"], rows


def _board_page(runs: Sequence[Run], frame: pd.DataFrame) -> Page:
    group = RankedGroup(runs)
    points: list[Line] = []
    for currency in CURRENCIES:
        over, name = (
            ("budget", "scaling")
            if currency == "visual_tokens"
            else ("budget_s", "scaling_seconds")
        )
        for curve in group.curves(currency):
            family = "/".join(
                [name, ", ".join(filter(None, (curve.method, curve.params, f"seed {curve.seed}")))]
            )
            ends = (
                np.quantile(curve.quality_D, [0.025, 0.975], axis=1) if curve.quality_D.size else ()
            )
            for i, budget in enumerate(curve.budgets):
                band = {
                    f"{family} {end}": float(at[i])
                    for end, at in zip(("low", "high"), ends, strict=False)
                }
                points.append({over: float(budget), family: float(curve.quality[i]), **band})
    known = frame.dropna(axis=1, how="all")
    rows = [[_plain(value) for value in row] for row in known.itertuples(index=False)]
    protocol = runs[0].protocol
    return Page(
        *(
            protocol.id,
            heading(frame),
            _group(runs[0]),
            "leaderboard",
            [protocol.benchmark, protocol.model],
        ),
        config={"protocol": protocol._asdict()},
        points=points,
        summary={"runs": len(runs), "best/score": float(frame["score"].max())},
        tables={"leaderboard": ([str(name) for name in known], rows)},
    )


def _plain(value: Any) -> Any:
    """A cell as JSON knows it; what is not known is None."""
    value = value.item() if isinstance(value, np.generic) else value
    return (
        None if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value
    )


class Progress:
    """Means over the images scored so far, in the order of the journal: a line at about POINTS
    numbers of images.
    """

    def __init__(self, planned: int) -> None:
        self.images = 0
        self._every = max(1, planned // POINTS)
        self._sums = dict.fromkeys(
            ("value", "visual_tokens", "target_passes", "device_s", "judge_s"), 0.0
        )

    def lines(self, news: Iterable[tuple[Usage, Score]]) -> list[Step]:
        """Count images; returns the lines that are due, at the number of images so far."""
        due: list[Step] = []
        for usage, score in news:
            self.images += 1
            for name in self._sums:
                self._sums[name] += (
                    (score.value or 0.0) if name == "value" else getattr(usage, name)
                )
            if self.images % self._every == 0:
                means = {
                    f"progress/{name}": total / self.images for name, total in self._sums.items()
                }
                due.append((self.images, {"progress/images": self.images, **means}))
        return due


class Journals:
    """What was appended to a run folder's journals since the last look."""

    def __init__(self, folder: Path, judge: str) -> None:
        self._records = Tails(folder, "records-*.jsonl")
        self._scores = Tails(folder, "scores*.jsonl")
        self._judge = judge
        self._usage = dict[tuple[str, int], Usage]()

    def news(self) -> list[tuple[Usage, Score]]:
        """Newly scored images with what they cost, in the order of their scores."""
        scores = [Score.from_json(line) for line in self._scores.lines()]
        self._usage |= {
            r.key: r.usage
            for r in map(SampleRecord.from_json, self._records.lines())
            if r.status == "done"
        }
        found = [
            (self._usage.get((s.prompt_id, s.image)), s) for s in scores if s.judge == self._judge
        ]
        return [(usage, score) for usage, score in found if usage is not None]


class Tails:
    """The same of all files of a folder that have such a name: one for each share of a run."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._tails: dict[Path, Tail] = {}

    def lines(self) -> list[str]:
        paths = sorted(self._folder.glob(self._name))
        self._tails |= {path: Tail(path) for path in paths if path not in self._tails}
        return [line for tail in self._tails.values() for line in tail.lines()]


class Tail:
    """The whole lines that a growing file gained since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def lines(self) -> list[str]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")
        self._read += len(whole[0]) + len(whole[1])
        return whole[0].decode().split("\n") if whole[1] else []


def _has_key() -> bool:
    """Whether wandb would find a key: in the environment, or in the user's netrc. Nobody is asked,
    and no server.
    """
    import netrc
    from urllib.parse import urlsplit

    import wandb

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return known.authenticators(str(urlsplit(wandb.Settings().base_url).hostname)) is not None


def _log_steps(dashboard: Any, lines: Sequence[Step]) -> None:
    """Log lines at their steps, without those that the dashboard has already."""
    for step, line in lines:
        if step >= dashboard.step:
            dashboard.log(dict(line), step=step)


def _offline(id_: str, results: Path) -> list[Path]:
    """Folders of offline runs with that id."""
    return sorted((results / "wandb").glob(f"offline-run-*-{id_}"))


def _open_image(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data))
