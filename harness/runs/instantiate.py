"""Composed configurations: as plain values, and as the objects that they name."""

from __future__ import annotations

from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from harness.records import UserError, one_line

OF_THE_COMMAND = ("results", "stages", "device", "logger", "shard", "shards", "on_error")
"""Options that say how and where a run is carried out; all others are what it is."""


def container(config: DictConfig) -> dict[str, Any]:
    """A resolved configuration as plain values."""
    made = OmegaConf.to_container(config, resolve=True)
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}


def build(config: Any, **extra: Any) -> Any:
    """Instantiate a `_target_`; what its constructor refuses is the user's mistake, said in its own
    words.
    """
    try:
        return hydra.utils.instantiate(config, **extra)
    except hydra.errors.InstantiationException as error:
        from harness.engine.memory import short_of_memory

        cause = error.__cause__
        if cause is not None and short_of_memory(cause):
            raise cause from None
        known = isinstance(cause, UserError | ValueError | OSError)
        raise UserError(one_line(cause if known and cause else error)) from error
