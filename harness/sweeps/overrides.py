"""Prepare the command line of a sweep for Hydra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from harness.runs.unknown_names import take_first_value

MULTIRUN = {"-m", "--multirun"}
SHOW = {"--cfg", "-c"}
WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"}
WITH_VALUE |= {"--config-dir", "-cd", "--info", "-i", "--experimental-rerun"}
"""Flags of Hydra whose value may be the next argument."""
EXPERIMENT = "experiment"
"""The group whose choice may sweep anything."""


def defer_swept_options(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a sweep, with options of a swept part left to each point.

    Hydra composes a sweep once without its swept values, and would refuse `method.gamma=8` there if
    the default method has no gamma. Written as a sweep of one value it belongs to the points.
    """
    if not MULTIRUN & set(arguments):
        return list(arguments)
    parsed = _parse(arguments)
    swept = {
        override.key_or_group
        for override in parsed.values()
        if override.is_sweep_override() or override.key_or_group == EXPERIMENT
    }
    return [_defer(argument, parsed.get(argument), swept) for argument in arguments]


def put_flags_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with flags before overrides, as Hydra's parser wants them.

    Others are kept in their order: "method=plain -m seed=1" is "-m method=plain seed=1".
    """
    flags = []
    overrides = []
    is_value = False
    for argument in arguments:
        if argument.startswith("-") or is_value:
            flags.append(argument)
        else:
            overrides.append(argument)
        is_value = argument in WITH_VALUE and not is_value
    return [*flags, *overrides]


def take_first_point(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a sweep's first point if they ask to show a configuration.

    Hydra shows the configuration of a single run only. Other arguments are returned as they are.
    """
    shows = any(argument.partition("=")[0] in SHOW for argument in arguments)
    if not shows or not MULTIRUN & set(arguments):
        return list(arguments)
    parsed = _parse(arguments)
    first = []
    for argument in arguments:
        override = parsed.get(argument)
        if override is not None and override.is_sweep_override():
            first.append(f"{argument.partition('=')[0]}={take_first_value(override)}")
        elif argument not in MULTIRUN:
            first.append(argument)
    return first


def _parse(arguments: Sequence[str]) -> Mapping[str, Override]:
    """Parse the arguments that are overrides."""
    parser = OverridesParser.create()
    parsed = {}
    for argument in arguments:
        with suppress(HydraException):
            (parsed[argument],) = parser.parse_overrides([argument])
    return parsed


def _defer(argument: str, override: Override | None, swept: set[str]) -> str:
    """Return an argument as a sweep of one value if it is an option of a swept part."""
    if override is None or override.is_sweep_override() or override.is_delete():
        return argument
    part, dot, _ = override.key_or_group.partition(".")
    if not dot or part == "hydra" or not swept & {part, EXPERIMENT}:
        return argument  # Hydra's own options are the sweep's, never a point's
    key = argument.partition("=")[0]
    if override.value() is None:  # choice() takes no null; points that are equal are run once
        return f"{key}=null,null"
    return f"{key}=choice({override.get_value_element_as_str()})"
