"""Turn composed configurations into plain values, and into the objects that they name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from harness.engine.option_names import list_options, spell_options
from harness.records import UserError, explain_error, is_raised_by_plug_in, one_line
from harness.runs.plugins import list_targets

COMMAND_OPTIONS = (
    "results", "stages", "device", "logger", "shard", "shards", "on_error", "stuck_after_s",
)  # fmt: skip
"""Options that say how and where a run is carried out; all others say what it computes."""

METRICS = "metrics"
"""Option that names what measures a run's images, besides: no image and no score depends on it."""

TITLE = "title"
"""Option of a method for tables and figures: it names the method, and no result depends on it."""


def resolve_config(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain dicts, lists and values, with interpolations resolved."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def read_title(settings: dict[str, Any]) -> str:
    """Return a method's title from its plain settings; "" if it has none."""
    has_title = TITLE in settings and is_title_of(settings.get("_target_"))
    return str(settings[TITLE]) if has_title else ""


def drop_titles(settings: Any) -> Any:
    """Return plain settings without titles, at any depth: what is left is what results depend on.

    A title stands beside a `_target_` whose class declares no option `title` of its own.
    """
    if isinstance(settings, list):
        return [drop_titles(inner) for inner in settings]
    if not isinstance(settings, dict):
        return settings
    has_title = TITLE in settings and is_title_of(settings.get("_target_"))
    kept = {}
    for name, value in settings.items():
        if not (has_title and name == TITLE):
            kept[name] = drop_titles(value)
    return kept


def find_object(target: str) -> Any:
    """Import the class or function of a dotted name, as Hydra does, but without its log lines.

    Raises whatever its import raises.
    """
    return pkgutil.resolve_name(target)


def is_title_of(target: object) -> bool:
    """Tell whether `title` beside a `_target_` is for tables, as the class declares no such option.

    A class that cannot be found declares none: whoever builds it says what is wrong.
    """
    if target is None:
        return False
    try:
        declared = inspect.signature(find_object(str(target))).parameters
    except Exception:  # an import of a user's module may raise anything
        return True
    return TITLE not in declared


def build_object(config: Any, *, place: str = "", **extra: Any) -> Any:
    """Instantiate a `_target_`, with `extra` arguments besides the configured ones.

    Titles are left out: see `drop_titles`. `place` is the option that the configuration stands
    under, such as "method": messages spell the options of its parts from there on.
    Raises UserError, in its own words, for what the constructor refuses: UserError, and of the
    project's own classes ValueError and OSError. Of all else it tells the line, and for a class
    that cannot be found the reason. An allocation that failed is raised as it is.
    """
    plain = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
    for target in list_targets(plain):
        _expect_importable(target)
    if drop_titles(plain) != plain:
        is_composed = OmegaConf.is_config(config)
        config = drop_titles(resolve_config(config) if is_composed else config)
    try:
        return hydra.utils.instantiate(config, **extra)
    except hydra.errors.InstantiationException as error:
        from harness.engine.memory import short_of_memory

        cause = error.__cause__
        if cause is not None and short_of_memory(cause):
            raise cause from None
        if _is_worded_for_users(cause):
            message = one_line(str(cause))
            raise UserError(_spell_from(place, plain, str(error), message)) from error
        raise UserError(_explain_failure(error, cause)) from error


def _spell_from(place: str, plain: Any, raised: str, message: str) -> str:
    """Spell the options in a message from `place` on; what Hydra has `raised` names the part."""
    if not place:
        return message
    named = re.search(r"full_key: (\S+)", raised)
    key = named[1].removeprefix(place).lstrip(".") if named else ""
    part = OmegaConf.select(OmegaConf.create(plain), key) if key else plain
    if not isinstance(part, Mapping) or "_target_" not in part:
        return message
    where = f"{place}.{key}" if key else place
    return spell_options(message, where, list_options(find_object(str(part["_target_"]))))


def _is_worded_for_users(cause: BaseException | None) -> bool:
    """Tell whether an error's message is enough: what Python raises in a plug-in needs its line."""
    if isinstance(cause, UserError):
        return True
    return isinstance(cause, ValueError | OSError) and not is_raised_by_plug_in(cause)


def _explain_failure(error: BaseException, cause: BaseException | None) -> str:
    """Say what a constructor raised, and where; without a cause, what Hydra says."""
    if cause is None:
        return one_line(error)
    target = re.search(r"[\w.]+\.[\w.]+", str(error))
    named = f"{target.group()}: " if target else ""
    return f"{named}{explain_error(cause)}"


def _expect_importable(target: str) -> None:
    """Raise UserError with the true reason if the class or function of a name cannot be had."""
    module = None
    parts = target.split(".")
    for i in range(1, len(parts)):
        name = ".".join(parts[:i])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                break  # the rest of the name may be attributes
            raise UserError(f"_target_={target}: {explain_error(error)}") from error
        except SyntaxError as error:
            place = f"{error.filename}, line {error.lineno}"
            raise UserError(f"_target_={target}: {place}: SyntaxError: {error.msg}") from error
        except Exception as error:
            raise UserError(f"_target_={target}: {explain_error(error)}") from error
    if module is None:
        raise UserError(
            f"_target_={target}: there is no module {parts[0]!r}: put it beside the folder of "
            "--config-dir, or its folder on PYTHONPATH"
        )
    found: Any = module
    for part in parts[module.__name__.count(".") + 1 :]:
        if not hasattr(found, part):
            raise UserError(f"_target_={target}: {_missing_attribute(found, part)}")
        found = getattr(found, part)


def _missing_attribute(owner: Any, name: str) -> str:
    """Say that a module or class has no such attribute, and which it may have been."""
    names = [known for known in vars(owner) if not known.startswith("_")]
    close = difflib.get_close_matches(name, names, n=3)
    advice = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{owner.__name__} has no {name!r}{advice}"
