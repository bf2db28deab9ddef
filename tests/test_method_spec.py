"""A method's declarations are read once; a missing or impossible one is named with its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from toy import PixelSum, ToyModel

from harness.engine.guidance import Sampling
from harness.engine.method_spec import MethodSpec
from harness.records import UserError


class Declared:
    """A method that declares what it is made with, and draws nothing."""

    def __init__(self, **members: object) -> None:
        for name, value in members.items():
            setattr(self, name, value)

    async def generate(self, prompt: str, s: object) -> None: ...


MINIMAL = {"rows": 3, "branches": 2, "tokens_per_step": 1}
"""The members that every method declares."""


def declared(**changes: object) -> Declared:
    """A method with the minimal declarations, some of them changed; None leaves a member out."""
    members = {**MINIMAL, **changes}
    return Declared(**{name: value for name, value in members.items() if value is not None})


def refusal(method: object) -> str:
    with pytest.raises(UserError) as caught:
        MethodSpec.of(method)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------ what is read


def test_minimal_declarations_are_enough() -> None:
    spec = MethodSpec.of(declared())
    assert (spec.rows, spec.branches, spec.tokens_per_step) == (3, 2, 1)
    assert (spec.tree_capacity, spec.needs_guidance, spec.needs_hidden) == (0, False, False)
    assert spec.slots == 6
    assert spec.sampler_sizes() == {"tokens_per_step": 1}


def test_members_may_belong_to_the_class() -> None:
    class OfTheClass(Declared):
        rows = 1
        branches = 2
        tokens_per_step = 5
        tree_capacity = 4
        needs_guidance = True

    spec = MethodSpec.of(OfTheClass())
    assert (spec.slots, spec.tokens_per_step, spec.tree_capacity) == (2, 5, 4)
    assert spec.needs_guidance


def test_earlier_names_are_read_alike() -> None:
    today = declared(tokens_per_step=7, tree_capacity=6)
    earlier = Declared(rows=3, streams=2, width=7, room=6)
    assert sizes(MethodSpec.of(earlier)) == sizes(MethodSpec.of(today))


def test_the_present_name_wins_over_the_earlier_one() -> None:
    spec = MethodSpec.of(declared(streams=9, width=9, tree_capacity=0, room=9))
    assert sizes(spec) == (3, 2, 1, 0)


def sizes(spec: MethodSpec) -> tuple[int, int, int, int]:
    return spec.rows, spec.branches, spec.tokens_per_step, spec.tree_capacity


def test_numbers_of_numpy_are_whole_numbers() -> None:
    spec = MethodSpec.of(declared(rows=np.int64(4)))
    assert spec.rows == 4
    assert type(spec.rows) is int


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("member", "remedy"),
    [
        ("rows", "set it to the canvases that it opens for one prompt"),
        ("branches", "set it to the branches of a canvas, 2 under guidance"),
        ("tokens_per_step", "set it to the tokens that a branch is fed in one decode step"),
    ],
)
def test_a_missing_member_is_named_with_its_remedy(member: str, remedy: str) -> None:
    message = refusal(declared(**{member: None}))
    assert message.startswith(f"method Declared does not declare `{member}`: {remedy}")


@pytest.mark.parametrize("value", [0, -1, 1.0, "2", True, [1]])
@pytest.mark.parametrize("member", list(MINIMAL))
def test_an_impossible_member_is_named_with_its_value_and_remedy(member: str, value: Any) -> None:
    message = refusal(declared(**{member: value}))
    expected = f"method Declared declares {member}={value!r}: give a whole number from 1 up"
    assert message == expected


@pytest.mark.parametrize("value", [-1, 0.5, "6", False])
def test_an_impossible_tree_capacity_is_refused(value: Any) -> None:
    message = refusal(declared(tree_capacity=value))
    expected = f"method Declared declares tree_capacity={value!r}: give a whole number from 0 up"
    assert message == expected


def test_an_impossible_member_is_named_as_it_was_declared() -> None:
    message = refusal(declared(tokens_per_step=None, width=0))
    assert "declares width=0" in message


@pytest.mark.parametrize("generate", ["absent", 3])
def test_a_class_without_generate_is_refused(generate: object) -> None:
    class Silent:
        rows = branches = tokens_per_step = 1

    if generate != "absent":
        Silent.generate = generate  # type: ignore[attr-defined]
    expected = "method Silent has no `async def generate(self, prompt, s)`: write it"
    assert refusal(Silent()) == expected


# ------------------------------------------------------------------ parts


class Following:
    """A drafter that follows the target's hidden states, and fits no model."""

    id = "following-1"
    hidden = True

    def expect_target(self, model: ToyModel) -> None:
        raise UserError(f"drafter {self.id} does not fit {model.name}")


class Finishing:
    """A decoding that is made of a drafter."""

    def __init__(self, drafter: object) -> None:
        self.drafter = drafter

    async def finish(self, rows: object, s: object) -> None: ...


def test_parts_are_named_and_those_of_a_decoding_too() -> None:
    method = declared(reward=PixelSum(), decoding=Finishing(Following()), n=4)
    spec = MethodSpec.of(method)
    names = {name for name, _ in spec.parts}
    assert names == {*MINIMAL, "reward", "decoding", "decoding.drafter", "n"}
    assert spec.part_ids == {"reward": "pixel-sum", "decoding.drafter": "following-1"}


def test_a_drafter_that_follows_hidden_states_asks_for_them() -> None:
    spec = MethodSpec.of(declared(decoding=Finishing(Following())))
    assert spec.needs_hidden
    assert spec.sampler_sizes() == {"tokens_per_step": 1, "hidden": True}


def test_a_method_with_slots_has_parts_too() -> None:
    @dataclass(slots=True)
    class Slotted:
        reward: PixelSum
        rows: int = 1
        branches: int = 2
        tokens_per_step: int = 1

        async def generate(self, prompt: str, s: object) -> None: ...

    assert MethodSpec.of(Slotted(PixelSum())).part_ids == {"reward": "pixel-sum"}


# ------------------------------------------------------------------ fit


SAMPLER: dict[str, Any] = {
    "slots": 6,
    "tokens_per_step": 2,
    "tree_capacity": 0,
    "hidden": False,
}
"""Sizes of a sampler on which the minimal method fits."""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rows": 4},
            "sampler.slots=6 is too few: the method needs 8 (4 canvases x 2 branches); "
            "set sampler.slots=32",
        ),
        (
            {"tokens_per_step": 3},
            "sampler.tokens_per_step=2 is too small: the method needs 3",
        ),
        (
            {"tree_capacity": 5},
            "sampler.tree_capacity=0 is too small: the method's draft trees need 5",
        ),
        (
            {"drafter": Following()},
            "sampler.hidden=false: the method's drafter continues hidden states, set it to true",
        ),
        (
            {"needs_guidance": True},
            "model.sampling.scale=1 switches guidance off, and the method needs it: "
            "set a scale above 1",
        ),
    ],
    ids=["slots", "tokens_per_step", "tree_capacity", "hidden", "guidance"],
)
def test_a_sampler_that_does_not_fit_is_named_with_its_remedy(
    changes: dict[str, object], message: str
) -> None:
    model: Any = ToyModel()
    unguided = Sampling(scale=1.0)
    MethodSpec.of(declared()).expect_fit(model, unguided, **SAMPLER)
    with pytest.raises(UserError) as caught:
        MethodSpec.of(declared(**changes)).expect_fit(model, unguided, **SAMPLER)
    assert str(caught.value) == message


def test_parts_and_method_check_the_model_themselves() -> None:
    model: Any = ToyModel(grid=(4, 4))
    fitting = {**SAMPLER, "hidden": True}
    spec = MethodSpec.of(declared(decoding=Finishing(Following())))
    with pytest.raises(UserError, match="drafter following-1 does not fit toy"):
        spec.expect_fit(model, Sampling(), **fitting)

    class Wide(Declared):
        def expect_grid(self, grid: tuple[int, int]) -> None:
            raise UserError(f"a grid of {grid} is too narrow")

    with pytest.raises(UserError, match=r"a grid of \(4, 4\) is too narrow"):
        MethodSpec.of(Wide(**MINIMAL)).expect_fit(model, Sampling(), **fitting)
