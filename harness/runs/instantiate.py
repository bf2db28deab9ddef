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
    OSError), and with Hydra's words for what cannot be called at all. An allocation that failed is
    raised as it is.
    """
    try:
        return hydra.utils.instantiate(config, **extra)
    except hydra.errors.InstantiationException as error:
        from harness.engine.memory import short_of_memory

        cause = error.__cause__
        if cause is not None and short_of_memory(cause):
            raise cause from None
        is_refusal = isinstance(cause, UserError | ValueError | OSError)
        raise UserError(one_line(cause if is_refusal and cause else error)) from error
