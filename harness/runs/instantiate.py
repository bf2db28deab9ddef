"""Turn composed configurations into plain values, and into the objects that they name."""

from __future__ import annotations

from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from harness.records import UserError, one_line

COMMAND_OPTIONS = ("results", "stages", "device", "logger", "shard", "shards", "on_error")
"""Options that say how and where a run is carried out; all others say what it computes."""


def resolve_config(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain dicts, lists and values, with interpolations resolved."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def build_object(config: Any, **extra: Any) -> Any:
    """Instantiate a `_target_`, with `extra` arguments besides the configured ones.

    Raises UserError, in its own words, for what the constructor refuses (UserError, ValueError,
    OSError), and with the causes for what cannot be loaded or called. An allocation that failed is
    raised as it is.
    """
    try:
        return hydra.utils.instantiate(config, **extra)
    except hydra.errors.InstantiationException as error:
        from harness.engine.memory import short_of_memory

        cause = error.__cause__
        if cause is not None and short_of_memory(cause):
            raise cause from None
        if isinstance(cause, UserError | ValueError | OSError):
            raise UserError(one_line(cause)) from error
        raise UserError(_explain(error, cause)) from error


def _explain(error: Exception, cause: BaseException | None) -> str:
    """Say in a line what cannot be called, why, and where in its author's code."""
    from harness.engine.failures import describe_causes, locate_failure

    if cause is None:
        return one_line(error)
    what = str(error).split("\n")[0].split(", set env var")[0].rstrip(":")
    if isinstance(cause, ImportError) and cause.__cause__ is not None:  # Hydra's words for that one
        cause = cause.__cause__
        cause.__suppress_context__ = True  # it is Hydra's search for the module
    place = locate_failure(cause)
    return f"{what}: {describe_causes(cause)}" + (f" ({place})" if place else "")
