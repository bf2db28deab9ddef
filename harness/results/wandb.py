"""Show runs and boards as wandb dashboards.

Each run of a results folder is a wandb run whose id is its fingerprint, grouped with the runs that
it may be compared with; each such group has one more, with the leaderboard and the scaling curves
(`dashboards` says what they show). A dashboard is one more projection of the journals: it may be
deleted and is made again, and publishing twice changes nothing. Files lie in RESULTS/wandb. wandb
itself takes a key from the environment or from the user's netrc; it is written nowhere.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from harness.records import Natural, SampleRecord, Score, Usage, UserError, digest, dump, one_line
from harness.results.dashboards import (
    STEPS,
    Page,
    Progress,
    Step,
    describe_board,
    describe_planned,
)
from harness.results.leaderboard import Board
from harness.runs.journal import write_atomic
from harness.runs.read import Run, read_run

log = logging.getLogger("harness")

MODES = ("auto", "online", "offline")


class Tracker(Protocol):
    """A logger (conf/logger): follows runs while they are drawn, and publishes finished boards."""

    def follow(self, folder: Path, results: Path) -> AbstractContextManager[Callable[[], None]]:
        """Open a context whose value sends what was appended to a run folder's journals.

        It is to be called after each append.
        """
        ...

    def publish(self, board: Board, results: Path) -> str:
        """Bring the dashboards of a results folder up to its journals; returns a line for people.

        Returns "" if there is nothing to tell.
        """
        ...


class NoTracking:
    """No dashboard: there are journals, tables and the report."""

    def follow(self, folder: Path, results: Path) -> AbstractContextManager[Callable[[], None]]:
        """Do nothing."""
        return nullcontext(lambda: None)

    def publish(self, board: Board, results: Path) -> str:
        """Do nothing."""
        return ""


class Wandb:
    """Runs and boards as wandb runs; `mode: auto` is online where wandb finds a key, else offline.

    A run shows `pictures` of its images in a contact sheet. Raises UserError for an unknown mode,
    and if wandb is not installed.
    """

    def __init__(
        self, project: str, entity: str | None = None, mode: str = "auto", pictures: Natural = 16
    ) -> None:
        if mode not in MODES:
            raise UserError(f"logger.mode={mode}: choose from {', '.join(MODES)}")
        _expect_wandb()
        self.project = project
        self.entity = entity
        self._mode = mode
        self.pictures = pictures

    @cached_property
    def mode(self) -> str:
        """Return "online" or "offline"."""
        if self._mode != "auto":
            return self._mode
        return "online" if _has_key() else "offline"

    @contextmanager
    def follow(self, folder: Path, results: Path) -> Iterator[Callable[[], None]]:
        """See `Tracker`. Opens the dashboard when there is something to send.

        A dashboard that fails is left with a warning; the run goes on.
        """
        run = read_run(folder)
        page = describe_planned(run)
        with ExitStack() as stack:

            def open_dashboard() -> Any:
                return stack.enter_context(self.open_page(page, results))

            yield LiveProgress(run, open_dashboard).send

    def publish(self, board: Board, results: Path) -> str:
        """See `Tracker`. Leaves alone what was published before, equal and to the same place."""
        record = results / "wandb" / "published.json"
        known = _read_published(record)
        current: dict[str, str] = {}
        written = 0

        # 1. Write the pages that are new or have changed.
        for page in describe_board(board, self.pictures):
            current[page.id] = self._fingerprint(page)
            is_lost = self.mode == "offline" and not _offline_folders(page.id, results)
            if is_lost or known.get(page.id) != current[page.id]:
                self._write(page, results)
                written += 1

        # 2. Remove those of runs that are gone.
        for id_ in known.keys() - current.keys():
            _remove_offline(id_, results)

        if current != known:
            write_atomic(record, dump(current).encode())
        return f"{results / 'wandb'}: {written} of {len(current)} dashboards written ({self.mode})"

    def _fingerprint(self, page: Page) -> str:
        """Return a hash of a page and of where it is published."""
        content = [self.project, self.entity or "", self.mode, page.content]
        return digest(dump(content).encode(), 16)

    def _write(self, page: Page, results: Path) -> None:
        """Log all of a page."""
        import wandb

        with self.open_page(page, results) as dashboard:
            _log_steps(dashboard, page.progress)
            for line in page.points:
                dashboard.log(dict(line))

            shown: dict[str, Any] = {}
            for name, (columns, rows) in page.tables.items():
                shown[name] = wandb.Table(columns=list(columns), data=list(rows))
            if page.picture is not None:
                shown["images"] = wandb.Image(Image.open(io.BytesIO(page.picture)))
            dashboard.log(shown)
            dashboard.summary.update(dict(page.summary))

    @contextmanager
    def open_page(self, page: Page, results: Path) -> Iterator[Any]:
        """Open the wandb run of a page's id, with nothing logged by this process yet.

        Offline it is a new one in place of the former, online the same one again. Raises UserError
        if wandb refuses.
        """
        import wandb

        # where tables wait to be sent
        os.environ["WANDB_DATA_DIR"] = str((results / "wandb").resolve())
        if self.mode == "offline":
            _remove_offline(page.id, results)
        try:
            dashboard = wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,  # type: ignore[arg-type]
                id=page.id,
                name=page.name,
                group=page.group,
                job_type=page.kind,
                tags=list(page.tags),
                config=dict(page.config),
                resume="allow" if self.mode == "online" else None,
                reinit="create_new",
                settings=_settings(results),
            )
        except wandb.Error as error:
            remedy = "set logger.mode=offline, or logger=none"
            raise UserError(f"wandb: {one_line(error)}; {remedy}") from error

        try:
            for name, step in STEPS.items():
                dashboard.define_metric(name, step_metric=step)
            yield dashboard
        finally:
            dashboard.finish()


def _read_published(record: Path) -> dict[str, str]:
    """Read which pages were published, and their fingerprints.

    A damaged record is taken for none, so that everything is published again.
    """
    try:
        known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    except ValueError:
        known = None
    if isinstance(known, dict) and all(isinstance(value, str) for value in known.values()):
        return known
    log.warning("%s is damaged: all dashboards are published again", record)
    return {}


# --- following a run ------------------------------------------------------------------------------


class LiveProgress:
    """Sends a run's progress to its dashboard, which is opened with the first line to send.

    Images scored by an earlier process are sent with the first new ones.
    """

    def __init__(self, run: Run, open_dashboard: Callable[[], Any]) -> None:
        self._open_dashboard = open_dashboard
        self._dashboard: Any = None
        self._has_failed = False
        self._journals = ScoredImages(run.path, run.judge)
        self._progress = Progress(len(run.planned))
        self._unsent = self._progress.add(self._journals.read_new())

    def send(self) -> None:
        """Send what the journals gained since the last call; logs a warning if that fails."""
        if self._has_failed:
            return
        scored = self._journals.read_new()
        if not scored:
            return
        self._unsent += self._progress.add(scored)
        try:
            if self._dashboard is None:
                self._dashboard = self._open_dashboard()
            _log_steps(self._dashboard, self._unsent)
            self._unsent.clear()
        except Exception as error:
            self._has_failed = True
            log.warning("wandb: %s; the run goes on without it", one_line(error))


class ScoredImages:
    """Reads newly scored images from a run folder's journals."""

    def __init__(self, folder: Path, judge: str) -> None:
        self._records = GrowingFiles(folder, "records-*.jsonl")
        self._scores = GrowingFiles(folder, "scores*.jsonl")
        self._judge = judge
        self._usage: dict[tuple[str, int], Usage] = {}

    def read_new(self) -> list[tuple[Usage, Score]]:
        """Return images scored since the last call, with their costs, in the order of scores."""
        # scores first: the record of a scored image has been written before its score
        scores = [Score.from_json(line) for line in self._scores.read_new()]
        for line in self._records.read_new():
            record = SampleRecord.from_json(line)
            if record.status == "done":
                self._usage[record.key] = record.usage

        found = []
        for score in scores:
            usage = self._usage.get((score.prompt_id, score.image))
            if usage is not None and score.judge == self._judge:
                found.append((usage, score))
        return found


class GrowingFiles:
    """Reads new lines from all files of a folder that match a pattern; more may appear."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self._folder = folder
        self._pattern = pattern
        self._files: dict[Path, GrowingFile] = {}

    def read_new(self) -> list[str]:
        """Return the whole lines that were added since the last call, file by file."""
        for path in sorted(self._folder.glob(self._pattern)):
            if path not in self._files:
                self._files[path] = GrowingFile(path)
        lines = []
        for file in self._files.values():
            lines += file.read_new()
        return lines


class GrowingFile:
    """Reads new lines from a file to which another process appends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0  # bytes

    def read_new(self) -> list[str]:
        """Return the whole lines that were added since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            text, newline, _ = file.read().rpartition(b"\n")
        self._position += len(text) + len(newline)
        return text.decode().split("\n") if newline else []


# --- wandb ----------------------------------------------------------------------------------------


def _expect_wandb() -> None:
    """Raise UserError if wandb is not installed."""
    try:
        import wandb  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            "logger=wandb needs the package wandb, which is not installed: "
            "pip install 'visual-ar-tts[wandb]'"
        ) from error


def _settings(results: Path) -> Any:
    """Return settings that keep wandb to what is logged: no console, machine, code or packages."""
    import wandb

    return wandb.Settings(
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


def _has_key() -> bool:
    """Tell whether wandb will find a key, in the environment or in the user's netrc.

    Asks neither the user nor a server.
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
    host = str(urlsplit(wandb.Settings().base_url).hostname)
    return known.authenticators(host) is not None


def _log_steps(dashboard: Any, lines: Iterable[Step]) -> None:
    """Log lines at their steps, without those that the dashboard has already."""
    for step, line in lines:
        if step >= dashboard.step:
            dashboard.log(dict(line), step=step)


def _offline_folders(id_: str, results: Path) -> Sequence[Path]:
    """List the folders of offline runs with that id."""
    return sorted((results / "wandb").glob(f"offline-run-*-{id_}"))


def _remove_offline(id_: str, results: Path) -> None:
    for folder in _offline_folders(id_, results):
        shutil.rmtree(folder)
