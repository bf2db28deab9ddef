"""`python -m harness`: compose a run from configuration, then generate, score and report.

python -m harness method=best_of_n                      one run, one folder, resumable
python -m harness -m method=plain,best_of_n             a sweep
python -m harness -m experiment=demo                    a listed sweep
python -m harness -m experiment=demo hydra/launcher=submitit_local shards=2     the same by several workers
python -m harness stages=[report]                       leaderboard.csv from the journals, no computing
python -m harness benchmark=tiif stages=[estimate]      calls and tokens that a judge would be asked for, no computing
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.records import UserError, one_line
from harness.runs.instantiate import OF_THE_COMMAND, build, container
from harness.runs.preemption import PREEMPTED, Preempted, leave, preemptible
from harness.runs.stages import IncompleteRunError, expect_stages, run

if TYPE_CHECKING:
    from harness.sweeps.ledger import Event, Happening, Ledger

log = logging.getLogger("harness")


@dataclass
class _Outcome:
    """What the runs of this process left for its end."""

    results: Path | None = None  # where to report; None = nowhere
    logger: Any = None
    folders: list[Path] = field(default_factory=list)
    failures: list[tuple[str, int]] = field(default_factory=list)  # message and exit code
    sweep: Ledger | None = None  # that this process leads
    fresh: bool = True  # whether anything may have changed since the last report
    job: _Job | None = None


_outcome = _Outcome()


def main() -> None:
    """Entry point.

    Exit code 0 if every run ended well, 1 if images failed, 2 for a mistake in the command, 130
    after Ctrl-C, 143 and the like (128 + signal) when asked to leave.
    """
    code = command(sys.argv[1:])
    if code in PREEMPTED:
        leave(code)
    sys.exit(code)


def command(arguments: Sequence[str]) -> int:
    """Carry out a command; returns its exit code."""
    global _outcome
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us, and we print them in one line
    _expect_one_home()
    enable_plugins()
    logging.getLogger("hydra").setLevel(
        logging.WARNING
    )  # the line of each run says which point it is
    _outcome = _Outcome()
    argv = sys.argv
    sys.argv = [sys.argv[0], *_with_their_points(list(arguments))]
    try:
        with preemptible(_last_words):
            _app()
            _end()
    except (UserError, OSError, HydraException, OmegaConfBaseException) as error:
        return say(remedy(one_line(error)))
    except KeyboardInterrupt:
        return say("interrupted; run the same command again to continue", code=130)
    except Preempted as error:
        return say(error, error.code)
    finally:
        sys.argv = argv
    return max((code for _, code in _outcome.failures), default=0)


def lead(ledger: Ledger, config: DictConfig, fresh: bool) -> None:
    """The sweeper's word: this process leads a sweep, whose runs may be computed elsewhere."""
    _outcome.sweep = ledger
    _outcome.logger = config.logger
    _outcome.fresh = fresh
    _outcome.results = Path(config.results) if "report" in config.stages else None


def _end() -> None:
    """What comes after the last run: the report, and the table of what failed."""
    rows: list[tuple[str, Event]] = []
    if _outcome.sweep:
        from harness.sweeps.ledger import names, outcomes

        events = _outcome.sweep.events()
        results = _outcome.sweep.path.parent.parent
        _outcome.folders = list(
            dict.fromkeys(results / event.folder for event in events if event.folder)
        )
        ends = outcomes(events)
        rows = [
            (name, end)
            for name, end in zip(names(ends), ends, strict=True)
            if end.event != "finished"
        ]
        _outcome.failures = [(end.error, end.code or 1) for _, end in rows]
    try:
        if _outcome.results is not None and (_outcome.folders or not _outcome.failures):
            from harness.results.publish import publish

            tracker = build(_outcome.logger)
            publish(_outcome.results, _outcome.folders, tracker, fresh=_outcome.fresh)
    finally:
        if _outcome.sweep:
            _say_failed(rows)
        else:
            for message, code in _outcome.failures:
                say(message, code)


def _say_failed(rows: Sequence[tuple[str, Event]]) -> None:
    """A table of the points, or shares of them, that did not end well."""
    for name, end in rows:
        say(
            f"{name}{f' (share {end.shard})' if end.shard != '0/1' else ''}: {end.error or end.event}"
        )
    if rows:
        print(
            f"{len(rows)} of the sweep's runs did not end well; the same command tries them again",
            file=sys.stderr,
        )


def _last_words() -> None:
    """What is still said if leaving takes too long."""
    if _outcome.job:
        _outcome.job.write("preempted", code=1, error="preempted")


def _with_their_points(arguments: list[str]) -> list[str]:
    """The arguments of a sweep, where options of a swept part go with each point.

    Hydra composes a sweep once without its swept values, and refuses `method.gamma=8` there if the
    default method has no gamma. As a sweep of one value it is left to the points.
    """
    if not {"-m", "--multirun"} & set(arguments):
        return arguments
    parser = OverridesParser.create()
    parsed = {}
    for argument in arguments:
        with suppress(HydraException):
            (parsed[argument],) = parser.parse_overrides([argument])
    swept = {
        one.key_or_group
        for one in parsed.values()
        if one.is_sweep_override() or one.key_or_group == "experiment"
    }

    def with_points(argument: str) -> str:
        one = parsed.get(argument)
        if one is None or one.is_sweep_override() or "." not in one.key_or_group or one.is_delete():
            return argument
        if not swept & {one.key_or_group.split(".")[0], "experiment"}:
            return argument
        return f"{argument.partition('=')[0]}=choice({one.get_value_element_as_str()})"

    return [with_points(argument) for argument in arguments]


@dataclass(frozen=True)
class _Job:
    """A run, and where its fate is written if it is a sweep's."""

    name: str = ""
    ledger: Ledger | None = None
    point: str = ""
    shard: str = ""

    @classmethod
    def of(cls, config: DictConfig, hydra_config: HydraConf) -> _Job:
        part_of = hydra_config.sweeper.get("part_of")
        if part_of is None:
            return cls(
                f"{hydra_config.job.override_dirname}: "
                if hydra_config.mode == RunMode.MULTIRUN
                else ""
            )
        from harness.sweeps.ledger import Ledger

        ledger, point = Ledger.of(Path(config.results), part_of)
        return cls(f"{hydra_config.job.override_dirname}: ", ledger, point, str(config.shard))

    def write(self, event: Happening, **about: Any) -> None:
        if self.ledger:
            self.ledger.write(event, point=self.point, shard=self.shard, **about)

    def fail(self, message: str, code: int) -> None:
        self.write("failed", error=one_line(message), code=code)
        _outcome.failures.append((f"{self.name}{message}", code))


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def _app(config: DictConfig) -> None:
    """One run: all there is, or a job of a sweep. A failing one is kept for the end: it does not
    stop the others.
    """
    job = _outcome.job = _Job.of(config, HydraConfig.get())
    try:
        _carry_out(config, job)
    except IncompleteRunError as error:
        job.fail(str(error), 1)
    except (UserError, OSError) as error:
        job.fail(str(error), 2)
    except (Preempted, KeyboardInterrupt):
        _last_words()
        raise
    except Exception as error:
        from harness.engine.memory import LESS_MEMORY, short_of_memory

        if short_of_memory(error):
            job.fail(
                f"the device's memory is too small ({one_line(error)[:120]}): {LESS_MEMORY}", 2
            )
            return
        log.exception("%s failed", job.name or "the run")
        job.fail(f"{type(error).__name__}: {error}", 1)
    finally:
        _outcome.job = None


def _carry_out(config: DictConfig, job: _Job) -> None:
    hydra_config = HydraConfig.get()
    expect_stages(config)
    if hydra_config.mode != RunMode.MULTIRUN and not job.ledger:
        if hydra_config.sweeper.get("points"):
            raise UserError(
                f"experiment={hydra_config.runtime.choices['experiment']} is a sweep: add -m"
            )
        if config.shards != 1:
            raise UserError(
                f"shards={config.shards} is for sweeps: add -m, or set shard=0/{config.shards} and so on"
            )
    tracker = build(config.logger)
    if not job.ledger and "report" in config.stages:
        _outcome.results = Path(config.results)
        _outcome.logger = config.logger
    if set(config.stages) == {"report"}:
        return
    if job.ledger and config.on_error == "stop" and job.ledger.failed():
        job.write("not run", code=1, error="not run, because another point failed (on_error=stop)")
        return

    def begin(folder: Path) -> None:
        _outcome.folders.append(folder)
        if job.ledger:
            from harness.sweeps.ledger import files_of

            options = {
                name: value
                for name, value in container(config).items()
                if name not in OF_THE_COMMAND
            }
            job.write(
                "started", folder=str(folder.relative_to(config.results)), files=files_of(options)
            )

    run(
        config,
        {group: str(choice) for group, choice in hydra_config.runtime.choices.items()},
        tracker,
        begin,
    )
    job.write("finished")


# ------------------------------------------------------------------ the edges


def enable_plugins() -> None:
    """Let Hydra find our sweeper and launchers: it looks in the namespace package `hydra_plugins`
    only.
    """
    folder = str(Path(__file__).parent / "plugins")
    if folder not in sys.path:
        sys.path.append(folder)


def _expect_one_home() -> None:
    """`methods`, `benchmarks` and `conf` are common names: stop if another package's are found
    first.
    """
    home = Path(__file__).resolve().parent.parent
    for name in ("methods", "benchmarks", "conf"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if found != home:
            sys.exit(
                say(
                    f"package {name!r} is found in {found}, not beside harness in {home}: run from another folder"
                )
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
