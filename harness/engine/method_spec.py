"""What a method declares about itself: read and checked once, before anything is computed.

`Method` in session.py says what the members mean. Here they are read from an object that somebody
wrote, and each mistake is answered with the member's name and the remedy.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from harness.engine.draft_trees import Tree, is_tree
from harness.engine.guidance import Sampling
from harness.engine.option_names import options_at
from harness.models import EditsImages, ImageModel
from harness.records import UserError


@dataclass(frozen=True, slots=True)
class _Count:
    """A whole number that a method declares."""

    name: str
    meaning: str  # what a method without it is told to declare
    minimum: int = 1
    default: int | None = None  # None: every method declares it
    earlier_name: str | None = None  # read alike where the name itself is not declared


_ROWS = _Count("rows", "the canvases that it opens for one prompt")
_BRANCHES = _Count("branches", "the branches of a canvas, 2 under guidance", earlier_name="streams")
_TOKENS_PER_STEP = _Count(
    "tokens_per_step",
    "the tokens that a branch is fed in one decode step: 1, or 1 + draft length",
    earlier_name="width",
)
_TREE_CAPACITY = _Count(
    "tree_capacity",
    "the nodes of its largest draft tree",
    minimum=0,
    default=0,
    earlier_name="room",
)
_DECODING_CAPACITY = _Count(
    "tree_capacity",
    "0 if its drafts are chains, or the nodes of its largest draft tree",
    minimum=0,
    earlier_name="room",
)


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """The declarations of one method, checked.

    `parts` are the objects that the method is made of (judges, drafters, rules, ...) by the names
    of its attributes. The parts of its decoding are listed as "decoding.name".
    """

    rows: int  # canvases that one job opens
    branches: int  # of one canvas
    tokens_per_step: int  # of one branch
    tree_capacity: int  # nodes of a draft tree
    needs_guidance: bool
    needs_hidden: bool  # a drafter continues the target's hidden states
    rewrites_prompts: bool  # texts come up while images are drawn
    parts: tuple[tuple[str, object], ...]
    expect_grid: Callable[[tuple[int, int]], None] | None

    @classmethod
    def of(cls, method: object) -> MethodSpec:
        """Read a method's declarations. Raises UserError that names a missing or impossible one."""
        if not callable(getattr(method, "generate", None)):
            raise UserError(
                f"method {_name(method)} has no `async def generate(self, prompt, s)`: write it"
            )
        _expect_arguments(method)
        parts = tuple(_list_parts(method))
        return cls(
            rows=_read_count(method, _ROWS),
            branches=_read_count(method, _BRANCHES),
            tokens_per_step=_read_count(method, _TOKENS_PER_STEP),
            tree_capacity=_read_count(method, _TREE_CAPACITY),
            needs_guidance=bool(getattr(method, "needs_guidance", False)),
            needs_hidden=any(getattr(part, "hidden", False) for _, part in parts),
            rewrites_prompts=bool(getattr(method, "rewrites_prompts", False)),
            parts=parts,
            expect_grid=getattr(method, "expect_grid", None),
        )

    def under(self, sampling: Sampling) -> MethodSpec:
        """Return the declarations for runs with such a sampling.

        Guided by a source image, a canvas has one branch more than the method knows of.
        """
        if not sampling.guides_by_image:
            return self
        return replace(self, branches=self.branches + 1)

    @property
    def slots(self) -> int:
        """Count the slots that one job reserves."""
        return self.rows * self.branches

    @property
    def part_ids(self) -> dict[str, object]:
        """Return the `id` of each part that has one: what the method's answers come from."""
        ids = {name: getattr(part, "id", None) for name, part in self.parts}
        return {name: part_id for name, part_id in ids.items() if part_id is not None}

    @property
    def trees(self) -> tuple[Tree, ...]:
        """Return the shapes of draft trees that the method holds."""
        found = [part for _, part in self.parts if is_tree(part)]
        return tuple(cast(list[Tree], found))

    def prepare_parts(self) -> None:
        """Let each part that has something to prepare do so, such as a judge that is tested first.

        Raises UserError for a part that cannot do its work.
        """
        for name, part in self.parts:
            ready = getattr(part, "ready", None)
            if callable(ready):
                with options_at(f"method.{name.lstrip('_')}", part):
                    ready()

    def sampler_sizes(self) -> dict[str, Any]:
        """List the arguments, besides slots, that a sampler for this method is made with.

        What is not needed is left out, since the sizes are part of a run's fingerprint.
        """
        sizes: dict[str, Any] = {"tokens_per_step": self.tokens_per_step}
        if self.tree_capacity:
            sizes["tree_capacity"] = self.tree_capacity
        if self.needs_hidden:
            sizes["hidden"] = True
        return sizes

    def expect_fit(
        self,
        model: ImageModel,
        sampling: Sampling,
        *,
        slots: int,
        tokens_per_step: int,
        tree_capacity: int = 0,
        hidden: bool = False,
    ) -> None:
        """Raise UserError, with the remedy, if the method cannot run on such a model and sampler.

        `slots` and what follows are the sampler's. Parts that depend on the model (drafters,
        neighbour tables) check it in their `expect_target`.
        """
        self._expect_sight(model, sampling)
        self._expect_branches(sampling)
        self._expect_slots(slots)
        self._expect_sizes(tokens_per_step, tree_capacity)
        if self.needs_hidden and not hidden:
            raise UserError(
                "sampler.hidden=false: the method's drafter continues hidden states, set it to true"
            )
        if self.needs_guidance and sampling.scale == 1:
            raise UserError(
                "model.sampling.scale=1 switches guidance off, and the method needs it: "
                "set a scale above 1"
            )
        self.expect_target(model)
        if self.expect_grid is not None:
            self.expect_grid(model.grid)

    def expect_target(self, model: ImageModel) -> None:
        """Let the parts that depend on the model load what they need, or raise UserError."""
        for name, part in self.parts:
            expect_target = getattr(part, "expect_target", None)
            if expect_target is not None:
                with options_at(f"method.{name.lstrip('_')}", part):
                    expect_target(model)

    def release_parts(self) -> None:
        """Let the drafters go of what they hold for a sampler."""
        for _, part in self.parts:
            release = getattr(part, "release", None)
            if release is not None:
                release()

    def _expect_branches(self, sampling: Sampling) -> None:
        is_guided = sampling.scale != 1 or sampling.guides_by_image
        if is_guided and self.branches < 2 + sampling.guides_by_image:
            raise UserError(
                f"branches={self.branches} is too few under guidance "
                f"(model.sampling.scale={sampling.scale:g}): every canvas has two, the null prompt "
                "and the prompt; set `branches = 2` in the method, or model.sampling.scale=1"
            )

    def _expect_sight(self, model: ImageModel, sampling: Sampling) -> None:
        """Raise UserError where source images are there and not seen, or looked for in vain."""
        if not isinstance(model, EditsImages):
            if sampling.guides_by_image:
                raise UserError(
                    f"model.sampling.image_scale={sampling.image_scale:g} guides by a source "
                    f"image, and {model.name} edits none: leave it at 1"
                )
            for name, part in self.parts:
                if _is_judge(part) and getattr(part, "sees_source", False):
                    judge = getattr(part, "id", _name(part))
                    raise UserError(
                        f"method.{name.lstrip('_')}: judge {judge} compares an image with its "
                        f"source image, and {model.name} edits none: choose a judge of texts"
                    )
            return
        for name, part in self.parts:
            if _is_judge(part) and not getattr(part, "sees_source", False):
                judge = getattr(part, "id", _name(part))
                raise UserError(
                    f"method.{name.lstrip('_')}: judge {judge} compares an image with a text and "
                    f"sees no source image, as edits by {model.name} have: choose a judge of "
                    "edits, or a method without one, such as method=best_of_n_likelihood"
                )

    def _expect_slots(self, slots: int) -> None:
        if self.slots > slots:
            raise UserError(
                f"sampler.slots={slots} is too few: the method needs {self.slots} "
                f"({self.rows} canvases x {self.branches} branches); "
                f"set sampler.slots={4 * self.slots}"
            )

    def _expect_sizes(self, tokens_per_step: int, tree_capacity: int) -> None:
        if self.tokens_per_step > tokens_per_step:
            raise UserError(
                f"sampler.tokens_per_step={tokens_per_step} is too small: "
                f"the method needs {self.tokens_per_step}"
            )
        if self.tree_capacity > tree_capacity:
            raise UserError(
                f"sampler.tree_capacity={tree_capacity} is too small: "
                f"the method's draft trees need {self.tree_capacity}"
            )


@dataclass(frozen=True, slots=True)
class DecodingSizes:
    """What a decoding declares, for the method that finishes its canvases with it."""

    tokens_per_step: int = 1
    tree_capacity: int = 0

    @classmethod
    def of(cls, decoding: object | None) -> DecodingSizes:
        """Read a decoding's declarations; None draws token by token.

        Raises UserError that names a missing or impossible one.
        """
        if decoding is None:
            return cls()
        if not callable(getattr(decoding, "finish", None)):
            raise UserError(
                f"decoding {_name(decoding)} has no `async def finish(self, rows, s)`: write it"
            )
        return cls(
            tokens_per_step=_read_count(decoding, _TOKENS_PER_STEP, "decoding"),
            tree_capacity=_read_count(decoding, _DECODING_CAPACITY, "decoding"),
        )


def _is_judge(part: object) -> bool:
    """Tell whether a part is asked about texts and images, as `Judge` says."""
    if not callable(part) or inspect.isclass(part):
        return False
    try:
        names = list(inspect.signature(part).parameters)
    except (TypeError, ValueError):
        return False
    return names[:2] == ["texts", "images"]


def _name(method: object) -> str:
    return type(method).__name__


def _read_count(method: object, count: _Count, part: str = "method") -> int:
    """Read a number that a method or decoding declares, also under its earlier name."""
    declared_as = count.name
    value = getattr(method, count.name, None)
    if value is None and count.earlier_name is not None:
        declared_as = count.earlier_name
        value = getattr(method, count.earlier_name, None)

    if value is None and count.default is not None:
        return count.default
    if value is None:
        raise UserError(
            f"{part} {_name(method)} does not declare `{count.name}`: set it to {count.meaning}"
        )
    number = _whole_number(value)
    if number is None or number < count.minimum:
        raise UserError(
            f"{part} {_name(method)} declares {declared_as}={value!r}: "
            f"give a whole number from {count.minimum} up"
        )
    return number


def _expect_arguments(method: Any) -> None:
    """Raise UserError if `generate` does not take a prompt and a session."""
    try:
        signature = inspect.signature(method.generate)
    except (TypeError, ValueError):
        return  # of what Python cannot read, such as a compiled function
    try:
        signature.bind("", None)
    except TypeError:
        raise UserError(
            f"method {_name(method)} has generate{signature}: "
            "write `async def generate(self, prompt, s)`"
        ) from None


def _whole_number(value: object) -> int | None:
    """Return the integer that a value is (numpy's count, too); None for all else, and booleans."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _list_parts(owner: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Name the attributes of a method, and those of its decoding."""
    for name, part in _attributes(owner).items():
        yield prefix + name, part
        if hasattr(part, "finish"):
            yield from _list_parts(part, f"{prefix}{name}.")


def _attributes(owner: object) -> dict[str, object]:
    """List an object's own attributes, whether it has a `__dict__`, `__slots__` or both."""
    found = dict(getattr(owner, "__dict__", {}))
    for kind in type(owner).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(owner, name) and not name.startswith("__"):
                found[name] = getattr(owner, name)
    return found
