"""`python -m harness`: compose a run from configuration, then generate, score and report.

python -m harness method=best_of_n                      one run, one folder, resumable
python -m harness -m method=plain,best_of_n             a sweep
python -m harness -m experiment=demo                    a listed sweep
python -m harness -m experiment=demo hydra/launcher=submitit_local shards=2     by several workers
python -m harness prompt='a photo of a cat' method=best_of_n     one image, without a run
python -m harness stages=[report]                       leaderboard.csv from the journals alone
python -m harness benchmark=tiif stages=[estimate]      calls and tokens that its judge would take
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.arguments import print_error
from harness.packages import add_author_folder, expect_own_packages
from harness.prompt_option import PromptCommand, draw_into_files
from harness.records import UserError, explain_error, one_line
from harness.runs.failures import forget_failures, is_new_failure
from harness.runs.instantiate import COMMAND_OPTIONS, build_object, resolve_config
from harness.runs.options import expect_options
from harness.runs.plan import IncompleteRunError
from harness.runs.preemption import PREEMPTED, Preempted, end_process, preemptible
from harness.runs.stages import run_stages
from harness.runs.unknown_names import explain_compose_error
from harness.sweeps.overrides import defer_swept_options, put_flags_first, take_first_point

if TYPE_CHECKING:
    from harness.sweeps.ledger import Event, Ledger, Status, SweepPart
    from harness.sweeps.progress import SweepProgress

log = logging.getLogger("harness")


def main() -> None:
    """Carry out the command line.

    Exit code 0 if every run ended well, 1 if images failed, 2 for a mistake in the command, 130
    after Ctrl-C, 143 and the like (128 + signal) when asked to leave.
    """
    code = run_command(sys.argv[1:])
    if code in PREEMPTED:
        end_process(code)
    sys.exit(code)


def run_command(arguments: Sequence[str]) -> int:
    """Carry out a command, and return its exit code."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us, who print them in one line
    enable_plugins()
    forget_failures()
    logging.getLogger("hydra").setLevel(logging.WARNING)  # each run logs its own line
    try:
        asked = PromptCommand.of(arguments)
    except UserError as error:
        return print_error(error)
    command = Command(prompts=asked.prompts)
    current = _CURRENT.set(command)
    argv = sys.argv
    given = put_flags_first(asked.arguments)
    sys.argv = [sys.argv[0], *defer_swept_options(take_first_point(given))]
    try:
        expect_own_packages()
        with preemptible(command.record_preemption):
            command.run_jobs()
            command.finish()
    except (UserError, OSError, HydraException, OmegaConfBaseException) as error:
        return print_error(explain_compose_error(error, arguments))
    except KeyboardInterrupt:
        return print_error("interrupted; run the same command again to continue", code=130)
    except Preempted as error:
        return print_error(error, error.code)
    finally:
        sys.argv = argv
        _CURRENT.reset(current)
    return max((failure.code for failure in command.failures), default=0)


class Failure(NamedTuple):
    """What is printed at the end for a run that did not end well, and its exit code."""

    message: str
    code: int


@dataclass(frozen=True)
class Attempt:
    """One run of a command: how messages name it, and which part of a sweep it is."""

    name: str
    part: SweepPart | None

    @classmethod
    def of(cls, config: DictConfig, hydra_config: HydraConf) -> Attempt:
        """Describe the run that Hydra has just composed."""
        prefix = f"{hydra_config.job.override_dirname}: "
        part_of = hydra_config.sweeper.get("part_of")
        if part_of is None:
            return cls(prefix if hydra_config.mode == RunMode.MULTIRUN else "", None)
        from harness.sweeps.ledger import SweepPart

        return cls(prefix, SweepPart.parse(Path(config.results), part_of, str(config.shard)))

    def write(self, status: Status, **about: Any) -> None:
        """Write what became of it into the sweep's ledger, if it belongs to one."""
        if self.part is not None:
            self.part.write(status, **about)


@dataclass
class Command:
    """One command: it carries out its runs, and keeps what they leave for its end."""

    results: Path | None = None  # where to report; None: nowhere
    logger: Any = None  # configuration of the dashboards
    folders: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    sweep: Ledger | None = None  # the one that this process leads
    progress: SweepProgress | None = None  # of that sweep
    point_names: Mapping[str, str] = field(default_factory=dict)  # by their keys
    is_fresh: bool = True  # whether anything may have changed since the last report
    attempt: Attempt | None = None  # the run that is carried out now
    prompts: Sequence[str] = ()  # what to draw without a run

    def run_jobs(self) -> None:
        """Compose the configuration, and carry out each run that it asks for."""
        compose = hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
        compose(self.run_job)()

    def run_job(self, config: DictConfig) -> None:
        """Carry out one run: all there is, or a job of a sweep.

        A failing one is kept for the end: it does not stop the others.
        """
        self.attempt = Attempt.of(config, HydraConfig.get())
        self._show_progress(self.attempt)
        try:
            self._carry_out(config, self.attempt)
        except IncompleteRunError as error:
            self._fail(str(error), 1)
        except (UserError, OSError) as error:
            self._fail(str(error), 2)
        except (Preempted, KeyboardInterrupt):
            self.record_preemption()
            raise
        except Exception as error:
            self._fail_unexpectedly(error)
        finally:
            self.attempt = None
            if self.progress is not None:
                self.progress.end()

    def lead_sweep(self, ledger: Ledger, config: DictConfig, *, is_fresh: bool) -> None:
        """Make this process the leader of a sweep, whose runs other processes may compute."""
        self.sweep = ledger
        self.logger = config.logger
        self.is_fresh = is_fresh
        self.results = Path(config.results) if "report" in config.stages else None
        self._plan_progress(ledger)

    def record_preemption(self) -> None:
        """Write into the ledger that the run of this moment was preempted."""
        if self.attempt is not None:
            self.attempt.write("preempted", code=1, error="preempted")

    def finish(self) -> None:
        """Report on the results folder, and print what did not end well."""
        unfinished = self._read_sweep(self.sweep) if self.sweep is not None else []
        try:
            if self.results is not None and (self.folders or not self.failures):
                from harness.results.publish import publish

                tracker = build_object(self.logger)
                publish(self.results, self.folders, tracker, fresh=self.is_fresh)
        finally:
            if self.sweep is not None:
                _print_unfinished(unfinished)
            else:
                for failure in self.failures:
                    print_error(failure.message, failure.code)

    # ------------------------------------------------------------------ one run

    def _carry_out(self, config: DictConfig, attempt: Attempt) -> None:
        hydra_config = HydraConfig.get()
        add_author_folders(hydra_config)
        expect_options(config)
        _expect_metric_names(config)
        if hydra_config.mode != RunMode.MULTIRUN and attempt.part is None:
            _expect_single_run(config, hydra_config)

        choices = {group: str(chosen) for group, chosen in hydra_config.runtime.choices.items()}
        if self.prompts:
            draw_into_files(config, choices, self.prompts)
            return

        # 1. Whether there will be a report; the leader of a sweep knows without its jobs.
        dashboard = build_object(config.logger)
        if attempt.part is None and "report" in config.stages:
            self.results = Path(config.results)
            self.logger = config.logger
        if set(config.stages) == {"report"}:
            return

        # 2. Whether the sweep goes on.
        if config.on_error == "stop" and _has_failed_sweep(attempt):
            error = "not run, because another point failed (on_error=stop)"
            attempt.write("not run", code=1, error=error)
            return

        # 3. The run itself.
        run_stages(config, choices, dashboard, partial(self._note_folder, config, attempt))
        attempt.write("finished")

    def _note_folder(self, config: DictConfig, attempt: Attempt, folder: Path) -> None:
        """Note the folder of a run that has begun, for the report and for the sweep's ledger."""
        self.folders.append(folder)
        if attempt.part is None:
            return
        from harness.sweeps.finished import find_outside_files

        options = {
            name: value
            for name, value in resolve_config(config).items()
            if name not in COMMAND_OPTIONS
        }
        below = str(folder.relative_to(config.results))
        attempt.write("started", folder=below, files=find_outside_files(options))

    def _fail(self, message: str, code: int) -> None:
        assert self.attempt is not None
        self.attempt.write("failed", error=one_line(message), code=code)
        self.failures.append(Failure(f"{self.attempt.name}{message}", code))

    def _fail_unexpectedly(self, error: Exception) -> None:
        """Tell a shortage of memory, which the user can mend, from a fault of the program."""
        from harness.engine.memory import LESS_MEMORY, short_of_memory

        assert self.attempt is not None
        if short_of_memory(error):
            reason = one_line(error)[:120]
            self._fail(f"the device's memory is too small ({reason}): {LESS_MEMORY}", 2)
            return
        problem = explain_error(error)
        if is_new_failure(problem):
            log.exception("%s failed", self.attempt.name or "the run")
        self._fail(problem, 1)

    # ------------------------------------------------------------------ a sweep

    def _plan_progress(self, ledger: Ledger) -> None:
        """Count the jobs of the sweep that begins, and name its points."""
        from harness.sweeps.ledger import name_points
        from harness.sweeps.progress import SweepProgress

        events = ledger.events()
        points = [event for event in events if event.event in ("planned", "skipped")]
        jobs = sum(point.shards for point in points if point.event == "planned")
        finished = sum(point.event == "skipped" for point in points)
        unit = "point" if jobs + finished == len(points) else "job"
        self.progress = SweepProgress(jobs + finished, finished, unit=unit)
        names = name_points(points)
        self.point_names = {point.point: name for point, name in zip(points, names, strict=True)}

    def _show_progress(self, attempt: Attempt) -> None:
        """Print how far the sweep is that this process leads and carries out."""
        if self.progress is None or attempt.part is None:
            return
        from harness.sweeps.ledger import WHOLE

        name = self.point_names[attempt.part.point]
        self.progress.begin(
            name if attempt.part.shard == WHOLE else f"{name} (share {attempt.part.shard})"
        )

    def _read_sweep(self, ledger: Ledger) -> list[tuple[str, Event]]:
        """Take folders and failures from a sweep's ledger, whoever computed its runs.

        Returns what did not end well: points, or shares of them, with their names.
        """
        from harness.sweeps.ledger import WHOLE, list_outcomes, name_points

        events = ledger.events()
        results = ledger.path.parent.parent
        folders = [results / event.folder for event in events if event.folder]
        self.folders = list(dict.fromkeys(folders))

        outcomes = list_outcomes(events)
        unfinished = []
        for name, outcome in zip(name_points(outcomes), outcomes, strict=True):
            if outcome.event != "finished":
                share = f" (share {outcome.shard})" if outcome.shard != WHOLE else ""
                unfinished.append((f"{name}{share}", outcome))
        self.failures = [Failure(end.error, end.code or 1) for _, end in unfinished]
        return unfinished


_CURRENT: ContextVar[Command] = ContextVar("command")
"""The command that is carried out now, for `lead_sweep` alone.

Hydra makes the sweeper by itself, from its configuration, so that nothing else can hand it on.
"""


def lead_sweep(ledger: Ledger, config: DictConfig, *, is_fresh: bool) -> None:
    """Tell the current command that it leads a sweep; for the sweeper.

    `is_fresh` says whether anything is computed, so that the last report may be outdated.
    """
    _CURRENT.get().lead_sweep(ledger, config, is_fresh=is_fresh)


def _expect_metric_names(config: DictConfig) -> None:
    """Raise UserError for a metric of images that is called as a column of the leaderboard."""
    names = list(config.get("metrics") or {})
    if not names:
        return
    from harness.results.columns import LEADERBOARD, metric_columns

    for name in names:
        columns = {column.name for column in metric_columns(name, "score", "higher", 4)}
        if clash := sorted(columns & {*LEADERBOARD.names}):
            raise UserError(
                f"metrics.{name}: the leaderboard has a column {clash[0]!r} already: name the "
                "metric otherwise"
            )


def _expect_single_run(config: DictConfig, hydra_config: HydraConf) -> None:
    """Raise UserError for what only a sweep can be."""
    if hydra_config.sweeper.get("points"):
        experiment = hydra_config.runtime.choices["experiment"]
        raise UserError(f"experiment={experiment} is a sweep: add -m")
    if config.shards != 1:
        raise UserError(
            f"shards={config.shards} is for sweeps: "
            f"add -m, or set shard=0/{config.shards} and so on"
        )


def _has_failed_sweep(attempt: Attempt) -> bool:
    """Whether another part of the same sweep has failed."""
    return attempt.part is not None and attempt.part.ledger.has_failure()


def _print_unfinished(unfinished: Sequence[tuple[str, Event]]) -> None:
    """Print the points, or shares of them, that did not end well: those with one error together."""
    names: dict[str, list[str]] = {}
    for name, end in unfinished:
        names.setdefault(end.error or end.event, []).append(name)
    for problem, points in names.items():
        print_error(f"{'; '.join(points)}: {problem}")
    if unfinished:
        print(
            f"{len(unfinished)} of the sweep's runs did not end well; "
            "the same command tries them again",
            file=sys.stderr,
        )


# ------------------------------------------------------------------ what all commands need


def enable_plugins() -> None:
    """Let Hydra find our sweeper and launchers.

    It looks for plugins in the namespace package `hydra_plugins` only.
    """
    folder = str(Path(__file__).parent / "plugins")
    if folder not in sys.path:
        sys.path.append(folder)


def add_author_folders(hydra_config: HydraConf) -> None:
    """Put the folder beside each added folder of configuration (`--config-dir`) on the path."""
    for source in hydra_config.runtime.config_sources:
        if source.schema == "file":
            add_author_folder(Path(source.path).parent)
