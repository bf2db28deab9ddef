"""What a method declares about itself: read and checked once, when a run or a scheduler is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from harness.engine.guidance import Sampling
from harness.models import ImageModel
from harness.records import UserError

REQUIRED = {
    "rows": "the canvases that it keeps open at once",
    "branches": "the branches of a canvas, 2 under guidance",
    "tokens_per_step": "the tokens that a branch is fed in one decode step: 1, or 1 + draft length",
}
"""Members that every method declares, and what each one counts."""

EARLIER_NAMES = {"branches": "streams", "tokens_per_step": "width", "tree_capacity": "room"}
"""Members that had another name before; a method that still declares that one is read alike."""


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """The declarations of one method.

    `parts` are the objects that the method is made of (judges, drafters, rules, ...) by the names
    of its attributes. The parts of its decoding are listed as "decoding.name".
    """

    rows: int
    branches: int
    tokens_per_step: int
    tree_capacity: int
    needs_guidance: bool
    needs_hidden: bool
    parts: tuple[tuple[str, object], ...]
    expect_grid: Callable[[tuple[int, int]], None] | None

    @classmethod
    def of(cls, method: object) -> MethodSpec:
        """Read a method's declarations. Raises UserError that names a missing or impossible one."""
        name = type(method).__name__
        if not callable(getattr(method, "generate", None)):
            raise UserError(f"method {name} has no `async def generate(self, prompt, s)`: write it")
        counts = {member: _count(method, member) for member in REQUIRED}
        parts = tuple(_parts(method))
        return cls(
            **counts,
            tree_capacity=int(_declared(method, "tree_capacity") or 0),
            needs_guidance=bool(getattr(method, "needs_guidance", False)),
            needs_hidden=any(getattr(part, "hidden", False) for _, part in parts),
            parts=parts,
            expect_grid=getattr(method, "expect_grid", None),
        )

    @property
    def slots(self) -> int:
        """Slots that one job reserves."""
        return self.rows * self.branches

    @property
    def part_ids(self) -> dict[str, str]:
        """The `id` of each part that has one: what a method's answers come from."""
        ids = ((name, getattr(part, "id", None)) for name, part in self.parts)
        return {name: found for name, found in ids if found is not None}

    def sampler_sizes(self) -> dict[str, Any]:
        """Arguments that a sampler must be made with for this method, besides slots."""
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

        Parts that depend on the model (drafters, neighbour tables) check it in `expect_target`.
        """
        if self.slots > slots:
            raise UserError(
                f"sampler.slots={slots} is too few: the method needs {self.slots} "
                f"({self.rows} canvases x {self.branches} branches); "
                f"set sampler.slots={4 * self.slots}"
            )
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
        if self.needs_hidden and not hidden:
            raise UserError(
                "sampler.hidden=false: the method's drafter continues hidden states, set it to true"
            )
        if self.needs_guidance and sampling.scale == 1:
            raise UserError(
                "model.sampling.scale=1 switches guidance off, and the method needs it: "
                "set a scale above 1"
            )
        for _, part in self.parts:
            expect_target = getattr(part, "expect_target", None)
            if expect_target is not None:
                expect_target(model)
        if self.expect_grid is not None:
            self.expect_grid(model.grid)


def _declared(method: object, member: str) -> Any:
    """A member of a method, also under its earlier name; None if it declares neither."""
    value = getattr(method, member, None)
    if value is None and member in EARLIER_NAMES:
        value = getattr(method, EARLIER_NAMES[member], None)
    return value


def _count(method: object, member: str) -> int:
    """A required member: a whole number of at least 1."""
    name = type(method).__name__
    value = _declared(method, member)
    if value is None:
        raise UserError(f"method {name} does not declare `{member}`: set it to {REQUIRED[member]}")
    if not isinstance(value, int) or value < 1:
        raise UserError(f"method {name} declares {member}={value!r}: give a whole number from 1 up")
    return value


def _parts(owner: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Name the attributes of a method, and those of its decoding."""
    for name, part in vars(owner).items():
        yield prefix + name, part
        if hasattr(part, "finish"):
            yield from _parts(part, f"{prefix}{name}.")
