"""Say what a command named that does not exist, what it may have meant, and what there is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.records import one_line

GROUPS = Path(__file__).resolve().parents[2] / "conf"
"""The project's groups of configurations: its folders."""
_SEARCH_PATH = re.compile(r"\s*Config search path:.*", re.DOTALL)
_UNKNOWN_OPTION = re.compile(r"Could not override '(?P<key>[^']+)'")


def is_unknown_option(error: BaseException) -> bool:
    """Tell whether a configuration did not compose because an option does not exist."""
    return isinstance(error, ConfigCompositionException) and bool(_find_unknown(error))


def explain_compose_error(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """Say in a line why a configuration did not compose.

    An unknown choice is named with those of its group, an unknown option with those of its part, as
    the other `arguments` choose it. Other errors keep their message, without the folders that Hydra
    has searched.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.lstrip("/").rpartition("/")
        options = error.options or _list_choices(group, arguments)  # Hydra knows none for a list
        if options:
            return f"{group}={name}: there is no such choice{suggest(name, options)}"
    if key := _find_unknown(error):
        return _explain_option(key, arguments)
    return one_line(_SEARCH_PATH.sub("", str(error)))


def suggest(name: str, known: Iterable[str]) -> str:
    """Name the near misses of a wrong name, and all that there is."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3)
    meant = f"; did you mean {' or '.join(close)}?" if close else ";"
    return f"{meant} there are {', '.join(names)}" if names else "; there are none"


def _find_unknown(error: BaseException) -> str:
    found = _UNKNOWN_OPTION.match(one_line(error))
    return found["key"] if found else ""


def _list_choices(group: str, arguments: Sequence[str]) -> list[str]:
    """List the files of a group of configurations, those of `--config-dir` among them."""
    folders = [GROUPS, find_config_dir(arguments)]
    found: set[str] = set()
    for folder in folders:
        if folder is not None:
            found |= {path.stem for path in (folder / group).glob("*.yaml")}
    return sorted(found)


def _explain_option(key: str, arguments: Sequence[str]) -> str:
    """Name the options that stand where an unknown one was looked for."""
    problem = f"unknown option {key!r}"
    remedy = "`--cfg job` shows all options with their values"
    config = _compose_without_options(arguments)
    if config is None:
        return f"{problem}: {remedy}"
    part, _, name = key.rpartition(".")
    while part and OmegaConf.select(config, part) is None:
        part, _, name = part.rpartition(".")
    found: Any = OmegaConf.select(config, part) if part else config
    known = [str(known) for known in found] if isinstance(found, DictConfig) else []
    if not part:
        known = sorted({*known, *(folder.name for folder in GROUPS.iterdir() if folder.is_dir())})
    shown = [name for name in known if not name.startswith("_")]
    where = f" of {part}" if part else ""
    return f"{problem}: no {name!r}{where}{suggest(name, shown)} ({remedy})"


def _compose_without_options(arguments: Sequence[str]) -> DictConfig | None:
    """Compose what the arguments choose in each group, without their options; None if it fails."""
    overrides = []
    for argument in arguments:
        override = parse_override(argument)
        if override is not None and "." not in override.key_or_group.partition("@")[0]:
            with suppress(HydraException, StopIteration):
                value = take_first_value(override)
                if (GROUPS / override.key_or_group.partition("@")[0]).is_dir():
                    overrides.append(f"{argument.partition('=')[0]}={value}")
    with suppress(HydraException, OmegaConfBaseException):
        if GlobalHydra.instance().is_initialized():  # in the middle of a sweep
            return hydra.compose("config", overrides=overrides)
        folder = find_config_dir(arguments)
        if folder is not None:
            overrides.append(f"hydra.searchpath=[file://{folder}]")
        with hydra.initialize_config_module("conf", version_base="1.3"):
            return hydra.compose("config", overrides=overrides)
    return None


def parse_override(argument: str) -> Override | None:
    """Parse an argument; None for one that is no override."""
    try:
        (override,) = OverridesParser.create().parse_overrides([argument])
    except HydraException:
        return None
    return override


def take_first_value(override: Override) -> str:
    """Return the value of an override, of a sweep the first one, as a command line has it."""
    if override.is_sweep_override():
        return str(next(override.sweep_string_iterator()))
    return override.get_value_element_as_str()


def find_config_dir(arguments: Sequence[str]) -> Path | None:
    """Return the folder that `--config-dir` adds."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            following = value if equals else "".join(arguments[place + 1 : place + 2])
            return Path(following).absolute()
    return None
