"""R9: every option of every configuration refuses values of a wrong kind before anything is drawn.

An option's kind is read off the value that its configuration has; what a number's range leaves out
is told by `MAY_BE_ZERO` and `MAY_BE_NEGATIVE`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from harness.records import UserError
from harness.runs.instantiate import resolve_config
from harness.runs.options import expect_options

CONF = Path(__file__).parent.parent / "conf"

MOUNTED = {
    "judge": {
        "verifier": ("method=gridar", "judge@method.verifier="),
        "reward": ("method=best_of_n", "judge@method.reward="),
        "": ("benchmark=tiif_pictogram", "judge@benchmark.judge="),
    },
    "drafter": {"": ("method=speculative", "drafter@method.drafter=")},
    "detector": {"": ("benchmark=geneval", "detector@benchmark.detector=")},
    "colors": {"": ("benchmark=geneval", "colors@benchmark.colors=")},
}
"""Where an option of a group that lies inside another one goes, by what its name contains."""
GROUPS = ("method", "model", "benchmark", "metrics", "sampler", "logger", *MOUNTED)

EXAMPLES: dict[str, object] = {
    "prompts": 1, "batch": 1, "short_side": 1, "max_tokens": 1, "rewrite_scale": 1.0,
    "orm_fallback": 1.0, "slots": 1, "memory_gb": 1.0, "concurrency": 1, "warm_up": 1,
    "reward": {}, "squeeze": 1, "classes": [], "stuck_after_s": 30.0,
    "prompts_list": [], "categories": [], "types": [], "antialias": False,
    "method.block": 1, "length": 1, "constant": 1.0, "low_percentile": 5.0, "high_percentile": 95.0,
}  # fmt: skip
"""Values of options that have null, or a whole number for any, there; other nulls are texts."""
MAY_BE_ZERO = {
    # what is off, all or none at 0
    "seed", "reference_seed", "temperature", "top_k", "top_p", "interval", "warm_up", "retries",
    "backoff_s",
    "longest_pause_s", "pictures", "line", "k", "threshold", "decay", "phase", "gain", "theta",
    "redraws", "rounds", "nu", "floor", "slope", "offset",
    # shares, weights and gaps
    "counting_threshold", "max_overlap", "position_threshold", "law_gap", "code_gap", "delta",
    "share", "rewrite_scale", "orm_fallback", "entropy_weight", "margin_weight", "token_smoothing",
    "token_weight", "block_weight", "worst_share", "intrinsic_smoothing", "intrinsic_weight",
    "cond_weight", "low_percentile", "quantile", "smoothing", "warmup_share", "window_steps",
    "rebound", "drift", "volatility", "lowest_scale",
}  # fmt: skip
MAY_BE_NEGATIVE = {
    "interval",  # -1 guides all tokens
    "orm_fallback",  # a reward's own unit
    "schedule.threshold",  # a cosine
}
FREE = {
    "method.rule.mu",  # a word or a number
    "benchmark.classes",  # a name, a list, or `model`: the benchmark's own reader
}
WRONG: dict[type, tuple[object, ...]] = {
    bool: ("abc", 2.5, 1, math.nan, [True]),
    int: ("abc", 2.5, True, math.nan, math.inf, -math.inf, [1], {"a": 1}),
    float: ("abc", True, math.nan, math.inf, -math.inf, [1.0], {"a": 1}),
    str: (3, 2.5, math.nan, True, ["abc"]),
    list: ("abc", 3, math.nan, {"a": 1}),
    dict: ("abc", 3, math.nan, True, [1]),
}
"""Values that an option refuses, by the kind of its own one."""


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_module("conf", version_base="1.3"):
        yield


def list_configurations() -> list[tuple[str, ...]]:
    """List what chooses each configuration file once, and nothing for that of the command."""
    chosen: list[tuple[str, ...]] = [()]
    for group in GROUPS:
        for path in sorted((CONF / group).glob("*.yaml")):
            chosen.append(choose(group, path.stem))
    return chosen


def choose(group: str, name: str) -> tuple[str, ...]:
    """Say how a configuration file is chosen, inside another one if need be."""
    for part, (around, mount) in MOUNTED.get(group, {}).items():
        if part in name:
            return around, f"{mount}{name}"
    return (f"{group}={name}",)


def list_options(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List the dotted names and the values of all options, but what Hydra builds by."""
    for key, value in values.items():
        if key in ("_target_", "_partial_") or values.get("_target_") == "hydra.utils.get_object":
            continue
        if isinstance(value, dict) and value:
            yield from list_options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def list_wrong_values(name: str, value: object) -> list[object]:
    """List values that an option must refuse."""
    key = name.rpartition(".")[2]
    example = EXAMPLES.get(name, EXAMPLES.get(key, "abc" if value is None else value))
    wrong = list(WRONG[type(example)])
    is_number = isinstance(example, int | float) and not isinstance(example, bool)
    if is_number and key not in MAY_BE_ZERO:
        wrong.append(0)
    if is_number and not any(name.endswith(f".{may}") for may in MAY_BE_NEGATIVE):
        wrong.append(-1)
    if name == "benchmark.images":
        wrong.remove("abc")  # a folder
    return wrong


def refuse(config: DictConfig, name: str, bad: object) -> str:
    """Set one option for a while, and return what the check of all says; "" for nothing."""
    before = OmegaConf.select(config, name)
    OmegaConf.update(config, name, bad, merge=False)
    try:
        expect_options(config)
    except UserError as error:
        return str(error)
    finally:
        OmegaConf.update(config, name, before, merge=False)
    return ""


def is_chosen_here(option: str, chosen: tuple[str, ...]) -> bool:
    """True for an option of the file that was chosen last; without one, of the command itself."""
    if not chosen:
        return option.partition(".")[0] not in GROUPS
    place = chosen[-1].partition("=")[0].rpartition("@")[2]
    return option.startswith(f"{place}.")


_known: set[tuple[object, ...]] = set()


def is_new(name: str, value: object, values: dict[str, Any]) -> bool:
    """True if no file before had this option of the same class and kind: presets repeat them."""
    owners = []
    for part in name.split(".")[:-1]:
        values = values[part]
        owners.append(values.get("_target_"))
    known = (name, type(value), *owners)
    is_first = known not in _known
    _known.add(known)
    return is_first


@pytest.mark.parametrize("chosen", list_configurations(), ids=" ".join)
def test_every_option_refuses_values_of_a_wrong_kind(chosen: tuple[str, ...]) -> None:
    values = resolve_config(compose("config", list(chosen)))
    expect_options(OmegaConf.create(values))
    group = chosen[-1].partition("=")[0].rpartition("@")[2].partition(".")[0] if chosen else ""
    for other in {"method", "model", "benchmark", "logger"} - {group}:
        values[other] = {}  # the check would read them again for each value
    config = OmegaConf.create(values)
    silent = []
    for name, value in list_options(values):
        if name in FREE or not is_chosen_here(name, chosen):
            continue
        if not is_new(name, value, values):
            continue
        for bad in list_wrong_values(name, value):
            message = refuse(config, name, bad)
            if name not in message or "\n" in message:
                silent.append(f"{name}={bad!r}: {message or 'accepted'}")
    assert not silent, "\n".join(silent)
