"""Check the options of a run where they enter: each has the type that its reader declares.

A method, judge or benchmark declares its options by the annotations of its constructor; a plug-in
of a user's own is checked in the same way. The options of the command itself are declared here.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import UnionType
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from typing_extensions import is_protocol

from harness.records import STRICT, UserError, printable
from harness.runs.instantiate import METRICS, TITLE, find_object, is_title_of, resolve_config

MOST_SHOWN = 60
"""Characters of a bad value that a message shows."""
SAMPLING = "harness.engine.guidance.Sampling"
"""What reads the options under `model.sampling`."""
SPELLED = ("model", "method", "benchmark", "judge", "drafter", "detector", "colors")
"""The groups of configurations whose numbers name results."""
PLAIN = (type(None), bool, int, float, str, list, Mapping)
"""What a configuration holds."""
EXACT = 2.0**53
"""Below it every whole number is a float."""
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """The options of conf/config.yaml that say how a command is carried out.

    Raises ValueError for values out of range.
    """

    __pydantic_config__: ClassVar = STRICT

    device: str
    stages: list[Literal["estimate", "generate", "score", "report"]]
    results: str
    shard: str
    shards: int
    on_error: Literal["continue", "stop"]
    stuck_after_s: float | None

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise ValueError(f"shards={self.shards}: must be at least 1")
        if not self.stages:
            raise ValueError("stages=[]: name one at least")
        if self.stuck_after_s is not None and self.stuck_after_s <= 0:
            raise ValueError(
                f"stuck_after_s={self.stuck_after_s:g}: give seconds, or null to wait for ever"
            )


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """The options of conf/config.yaml that results depend on. Raises ValueError likewise."""

    __pydantic_config__: ClassVar = STRICT

    seed: int
    numerics: Literal["constant", "fast"]
    """What an image may depend on.

    `constant`: on the job alone (batch invariance). `fast`: through the shapes of forwards also on
    what else is in the batch. That follows from the jobs and their order, not from how long
    anything takes: a run that is drawn again whole is the same; what was interrupted, or shared
    out, need not be.
    """
    embedded: str | None

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed={self.seed}: choose from 0 to 2**63 - 1")


@dataclass(frozen=True, slots=True)
class SamplerOptions:
    """The options of conf/sampler. Raises ValueError for sizes that are not positive."""

    __pydantic_config__: ClassVar = STRICT

    slots: int | None
    prefill: tuple[int, int]
    render_batch: int
    concurrency: int | None
    memory_gb: float | None = None
    compact: bool = False
    warm_up: int | None = 0

    def __post_init__(self) -> None:
        sizes = {
            "slots": self.slots,
            "prefill": min(self.prefill),
            "render_batch": self.render_batch,
            "concurrency": self.concurrency,
            "memory_gb": self.memory_gb,
        }
        for name, size in sizes.items():
            if size is not None and size <= 0:
                raise ValueError(f"sampler.{name}={size}: must be positive")
        if self.warm_up is not None and self.warm_up < 0:
            raise ValueError(
                f"sampler.warm_up={self.warm_up}: give a number of images, 0 for none, or null"
            )


def expect_options(config: DictConfig) -> None:
    """Check all options of a composed configuration, before anything is built from it.

    Raises UserError that names the first bad option, its value and what was expected.
    """
    values = resolve_config(config)
    _expect_fields(CommandOptions, _pick(values, CommandOptions), "")
    _expect_types(values)


def expect_result_options(config: DictConfig) -> None:
    """Check the options that results depend on, as `expect_options` does."""
    _expect_types(resolve_config(config))


def expect_fields(kind: type, config: DictConfig) -> None:
    """Check the options of a configuration that a dataclass with the same names declares.

    Raises UserError that names the first bad one, its value and what was expected.
    """
    _expect_fields(kind, _pick(resolve_config(config), kind), "")


def spell_numbers(config: DictConfig, choices: Mapping[str, str]) -> DictConfig:
    """Return a checked configuration with each number in one spelling, so that 3 is 3.0.

    A number that equals what `choices`, the configuration files that were chosen, have there is
    spelled as they have it; another one without a fraction that is 0.
    """
    values = resolve_config(config)
    spelled = _spell_like(_expect_types(values), _compose_defaults(choices))
    return OmegaConf.create({**values, **spelled})


def _expect_types(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check what results depend on, and return the groups that objects are built from, typed."""
    _expect_fields(ResultOptions, _pick(values, ResultOptions), "")
    _expect_fields(SamplerOptions, values.get("sampler") or {}, "sampler.")
    model = dict(values.get("model") or {})
    sampling = {"_target_": SAMPLING, **model.pop("sampling", {})}
    typed_sampling = dict(type_options(sampling, "model.sampling"))
    del typed_sampling["_target_"]
    return {
        "model": {**type_options(model, "model"), "sampling": typed_sampling},
        "method": type_options(values.get("method"), "method"),
        "benchmark": _type_benchmark(values.get("benchmark") or {}),
        "metrics": type_options(values.get(METRICS) or {}, METRICS),
        "logger": type_options(values.get("logger"), "logger"),
    }


def _type_benchmark(benchmark: Mapping[str, Any]) -> Any:
    """Check a benchmark's options but those that stand for a folder, or for the model's."""
    has_folder = isinstance(benchmark.get("images"), str)
    skipped = ("classes", "images") if has_folder else ("classes",)
    return type_options(benchmark, "benchmark", skipped=skipped)


def _compose_defaults(choices: Mapping[str, str]) -> Mapping[str, Any]:
    """Compose the configuration files that were chosen, without any other option.

    Files that a command adds to groups of its own are not known here: {} then.
    """
    overrides = []
    for group, chosen in choices.items():
        if group.partition("@")[0] in SPELLED and chosen not in (None, "None"):
            overrides.append(f"{group}={chosen}")
    try:
        return resolve_config(hydra.compose("config", overrides=overrides))
    except HydraException:
        return {}


def _spell_like(value: Any, default: Any) -> Any:
    """Return equal values, each number that equals its default spelled as that is: 5 for 5.0."""
    if isinstance(value, Mapping):
        known = default if isinstance(default, Mapping) else {}
        return {key: _spell_like(inner, known.get(key)) for key, inner in value.items()}
    is_equal_number = isinstance(default, int | float) and value == default
    return default if is_equal_number and not isinstance(value, bool) else value


def type_options(node: Any, name: str, skipped: Collection[str] = ()) -> Any:
    """Return a `_target_`'s plain configuration with each option of its declared type.

    A whole number where a float is declared becomes an int, so that 3 and 3.0 are one value; all
    else must have its type already. Options without an annotation, of types that only objects can
    have, and those in `skipped` are left as they are. Raises UserError that names the option, its
    value and what was expected; an unknown option is named with those there are.
    """
    if isinstance(node, list):
        return [type_options(inner, f"{name}.{i}") for i, inner in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: type_options(inner, f"{name}.{key}") for key, inner in node.items()}
    signature = _read_signature(str(node["_target_"]))
    typed: dict[str, Any] = {}
    for key, value in node.items():
        option = f"{name}.{key}"
        if key == TITLE and is_title_of(node["_target_"]):
            typed[key] = _typed(value, str, option)
        elif isinstance(value, Mapping | list) and _holds_target(value):
            typed[key] = type_options(value, option)
        elif signature is None or key.startswith("_") or key in skipped:
            typed[key] = value
        elif key in signature.hints:
            typed[key] = _typed(value, signature.hints[key], option)
        elif key in signature.names or signature.takes_any:
            typed[key] = type_options(value, option)
        else:
            known = ", ".join(sorted(signature.names))
            raise UserError(f"unknown option {option!r}: there are {known or 'none'}")
    return typed


def _pick(values: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Pick the values of a dataclass's fields."""
    return {field.name: values.get(field.name) for field in dataclasses.fields(kind)}


def _holds_target(value: Any) -> bool:
    """True if an object is to be built somewhere inside a nested value."""
    return any("_target_" in mapping for mapping in _mappings(value))


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """List a nested value's mappings, itself included."""
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _mappings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _mappings(inner)


# ------------------------------------------------------------------ what a target declares


class Signature(NamedTuple):
    """The options that a class or function declares, and the types of those that have one."""

    names: frozenset[str]
    hints: Mapping[str, Any]
    takes_any: bool  # it has **options


@lru_cache(maxsize=256)
def _read_signature(target: str) -> Signature | None:
    """Read what a `_target_` declares; None where it cannot be found or tells nothing."""
    try:
        made = find_object(target)
        parameters = inspect.signature(made).parameters.values()
    except Exception:  # whoever builds it says what is wrong with it
        return None
    try:
        options = made.__init__ if inspect.isclass(made) else made
        hints = get_type_hints(options, include_extras=True)
    except Exception:  # annotations may name what only a type checker imports
        hints = {}
    kinds = {parameter.kind for parameter in parameters}
    hints.pop("return", None)
    return Signature(
        names=frozenset(parameter.name for parameter in parameters if parameter.name != "self"),
        hints=hints,
        takes_any=inspect.Parameter.VAR_KEYWORD in kinds,
    )


# ------------------------------------------------------------------ one value


def _typed(value: Any, hint: Any, name: str) -> Any:
    """Return a value as its annotation has it; a type that only objects have is not checked."""
    adapter = _make_adapter(hint)
    if adapter is None and is_protocol(hint) and isinstance(value, PLAIN):
        shown = printable(json.dumps(value, ensure_ascii=False))[:MOST_SHOWN]
        raise UserError(f"{name}={shown}: choose an object, by _target_ or from its group")
    if adapter is None:
        return value
    _validate(adapter, value, name)
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < EXACT
    return int(value) if is_whole else value


def _expect_fields(kind: type, values: Mapping[str, Any], prefix: str) -> None:
    adapter = _make_adapter(kind)
    assert adapter is not None
    _validate(adapter, values, prefix)


def _validate(adapter: Any, value: Any, name: str) -> None:
    """Raise UserError unless a plain value, as JSON, is of an adapter's type."""
    from pydantic import ValidationError

    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        return  # an object: its reader says what is wrong with it
    try:
        adapter.validate_json(text)
    except ValidationError as error:
        raise UserError(_explain(error.errors()[0], value, name)) from None


def _explain(error: Mapping[str, Any], value: Any, name: str) -> str:
    """Say which option has which value, and what was expected.

    `name` ends with a dot, or is empty, where `value` is a mapping of options.
    """
    if error["type"] == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    path, bad = _follow(value, error["loc"])
    option = ".".join([name.rstrip("."), *path]).removeprefix(".")
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown option {option!r}"
    text = bad if isinstance(bad, str) else json.dumps(bad, ensure_ascii=False)
    shown = printable(text)[:MOST_SHOWN]
    if option == "stages":
        return f"stages={shown}: choose from estimate, generate, score, report, in brackets"
    if error["type"] == "literal_error":
        known = str(error["ctx"]["expected"]).replace("'", "").replace(" or ", ", ")
        return f"{option}={shown}: choose from {known}"
    if isinstance(bad, str):
        shown = f"'{shown}'"  # else the text '4' reads like the number
    message = str(error["msg"])
    return f"{option}={shown}: {message[:1].lower()}{message[1:]}"


def _follow(value: Any, place: Sequence[str | int]) -> tuple[list[str], Any]:
    """Follow the place of an error into mappings, up to an option of its own.

    What comes after that are elements, or names that pydantic gives to the types of a union.
    """
    path: list[str] = []
    for part in place:
        if not isinstance(value, Mapping) or part not in value:
            break
        path.append(str(part))
        value = value[part]
    return path, value


@lru_cache(maxsize=512)
def _make_adapter(hint: Any) -> Any:
    """Return the strict reader of a type; None for a type that only objects have.

    A protocol is such a type, but nothing plain satisfies it: of a union with protocols the other
    members are read.
    """
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError

    if hasattr(hint, "__pydantic_config__"):
        return TypeAdapter(hint)
    members = [member for member in _list_members(hint) if not is_protocol(member)]
    if not members:
        return None
    readable: Any = Union[tuple(members)]  # noqa: UP007 the members are known here only
    try:
        return TypeAdapter(
            readable, config=ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
        )
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError):
        return None


def _list_members(hint: Any) -> tuple[Any, ...]:
    """List the members of a union; another type is its own only one."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
