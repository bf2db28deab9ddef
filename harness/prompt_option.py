"""`python -m harness prompt='a photo of a cat' method=best_of_n`: draw images, and write PNGs.

The value is the prompt as it stands, with commas, quotes and equals signs; quotes around all of it
are left out. In brackets it is a list, in Hydra's words: prompt=[a cat,"a dog, asleep"].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from harness.records import Job, Prompt, UserError, digest, dump, printable
from harness.runs.instantiate import COMMAND_OPTIONS, resolve_config
from harness.runs.journal import explain_write_errors, write_atomic
from harness.runs.options import spell_numbers

OPTION = "prompt="
FOLDER = "drawn"
"""Where images are written, below the results folder."""
OF_RUNS = ("benchmark", "experiment", "logger", "stages", "shard", "shards", "on_error")
"""Options of runs, and groups, which mean nothing where there is no benchmark."""
INSTEAD = (
    "to make a run of your prompts, with journals and a report, write "
    "benchmark=prompts benchmark.file=FILE instead of prompt="
)


@dataclass(frozen=True, slots=True)
class PromptCommand:
    """The prompts of a command line, and its other arguments."""

    prompts: tuple[str, ...]
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> PromptCommand:
        """Take the prompts out of the arguments; most commands have none.

        Raises UserError for a list that cannot be read, and for options that do not go with it.
        """
        given = [argument for argument in arguments if argument.startswith(OPTION)]
        others = tuple(argument for argument in arguments if not argument.startswith(OPTION))
        if not given:
            return cls((), others)
        if len(given) > 1:
            raise UserError("prompt= is given twice: write prompt=[FIRST,SECOND]")
        for argument in others:
            _expect_no_run(argument)
        return cls(_read_value(given[0].removeprefix(OPTION)), (*others, "benchmark=prompts"))


def draw_into_files(
    config: DictConfig, choices: Mapping[str, str], prompts: Sequence[str]
) -> list[Path]:
    """Draw an image of each prompt; write it, and print where it is and what it cost.

    Raises UserError and FailedImageError as `harness.draw` does; images that were drawn are
    written before.
    """
    from harness.drawing import Drawing, FailedImageError, describe_usage, draw_jobs

    jobs = [Job(Prompt.of_text(text), 0) for text in prompts]
    results = Path(config.results)
    config = spell_numbers(config, choices)
    name = f"{choices['method']}-{_name_options(config)}"
    paths = []

    def write(drawings: Sequence[Drawing]) -> None:
        for drawing in drawings:
            path = results / FOLDER / drawing.prompt.id.rpartition("/")[2] / f"{name}.png"
            with explain_write_errors(path):
                write_atomic(path, drawing.png)
            print(f"{path}: {describe_usage(drawing.usage)}", flush=True)
            paths.append(path)

    try:
        write(draw_jobs(config, choices["method"], jobs))
    except FailedImageError as error:
        write(error.drawn)
        raise
    return paths


def _expect_no_run(argument: str) -> None:
    """Raise UserError for an argument that is of a run, or of a sweep."""
    if argument in ("-m", "--multirun"):
        raise UserError(f"{argument} sweeps over runs, and prompt= makes none: {INSTEAD}")
    option = argument.lstrip("+~").partition("=")[0]
    group, _, place = option.partition("@")
    if option.split(".")[0] in OF_RUNS or place.split(".")[0] in OF_RUNS or group in OF_RUNS:
        raise UserError(f"{printable(argument)} is of a run, and prompt= makes none: {INSTEAD}")


def _read_value(value: str) -> tuple[str, ...]:
    """Read one prompt, or a list in brackets."""
    if value.startswith("["):
        return _read_list(value)
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if is_quoted and value[0] not in value[1:-1]:
        value = value[1:-1]
    if not value.strip():
        raise UserError("prompt=: write what is to be drawn: prompt='a photo of a cat'")
    return (value,)


def _read_list(value: str) -> tuple[str, ...]:
    """Read a list as Hydra does. Raises UserError that says how to quote."""
    try:
        (override,) = OverridesParser.create().parse_overrides([f"{OPTION}{value}"])
    except HydraException:
        raise _unreadable_list(value) from None
    items: Any = override.value()
    if not isinstance(items, list) or not items:
        raise _unreadable_list(value)
    if any(isinstance(item, list | dict) or not str(item).strip() for item in items):
        raise _unreadable_list(value)
    return tuple(str(item) for item in items)


def _unreadable_list(value: str) -> UserError:
    return UserError(
        f"prompt={printable(value)}: in brackets stands a list, whose prompts need quotes if they "
        "have commas, colons, brackets, equals signs or quotes: "
        """prompt='["a cat, asleep","two dogs"]'"""
    )


def _name_options(config: DictConfig) -> str:
    """Name all options that an image depends on, beside its prompt, by eight digits."""
    left_out = {*COMMAND_OPTIONS, "benchmark"}
    options = {key: value for key, value in resolve_config(config).items() if key not in left_out}
    return digest(dump(options).encode(), 8)
