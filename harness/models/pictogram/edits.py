"""The world of edits: pairs of pictograms, and the instruction that leads from one to the other.

Both scenes share background, lattice and every untouched object, so that source, target and mask
are known exactly. All are pure functions of a seed. Nothing here needs torch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from harness.models.pictogram import grammar, world
from harness.models.pictogram.grammar import CLASSES, COLORS, RELATIONS, article
from harness.models.pictogram.world import SIDE, Box, Pixels, Placed

KINDS = ("color", "replace", "add", "remove")
WORDS = ("add", "finish", "make", "remove", "replace")
"""Words of instructions that no caption has; they follow the vocabulary of captions."""
MARGIN = 4
"""Pixels by which a mask is wider than what changes."""
PLAIN_COLOR = 0.5
"""Share above which a sprite in its own colours reads as one of the ten."""

ColorReader = Callable[[Pixels, Box], Sequence[float]]
"""(picture, box) -> how well each of the ten colours fits, summing to 1."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object of a scene: a sprite, and the square that it is drawn in."""

    name: str
    color: str | None  # None: the sprite's own colours
    x: int
    y: int
    size: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A flat background, by its number, and the things on it."""

    background: int
    things: tuple[Thing, ...]

    def draw(self) -> tuple[Pixels, tuple[Placed, ...]]:
        """Draw the scene, uint8 [48, 48, 3]; returns its things, too, with their tight boxes."""
        pixels = np.empty((SIDE, SIDE, 3), np.uint8)
        pixels[:] = world.BACKGROUNDS[self.background]
        placed = []
        for thing in self.things:
            x, y, size = thing.x, thing.y, thing.size
            patch, (left, top, right, bottom) = world.patch_of(
                thing.name, thing.color, size, self.background
            )
            pixels[y : y + size, x : x + size] = patch
            box = (x + left, y + top, x + right, y + bottom)
            placed.append(Placed(thing.name, thing.color, box))
        return pixels, tuple(placed)


@dataclass(frozen=True, slots=True)
class Edit:
    """An instruction, the scene that it is about, and the scene that it asks for.

    `changed` is the thing that is edited, in the target; of a removal it is the one in the source.
    """

    kind: str
    text: str
    source: Scene
    target: Scene
    changed: Thing


# --- samples --------------------------------------------------------------------------------------


def draw_edit(
    rng: random.Random, classes: Sequence[str], kind: str, read_colors: ColorReader
) -> Edit:
    """Draw an edit of a kind.

    A change of colour always shows: the thing does not read as the asked colour before.
    """
    background = rng.randrange(len(world.BACKGROUNDS))
    if kind == "color":
        return _draw_recoloring(rng, classes, background, read_colors)
    if kind == "replace":
        return _draw_replacement(rng, classes, background)
    if kind == "add":
        return _draw_addition(rng, classes, background)
    if kind == "remove":
        return _draw_removal(rng, classes, background)
    raise ValueError(f"no kind of edit {kind!r}")


def draw_identity(rng: random.Random, classes: Sequence[str]) -> Edit:
    """Draw a change of colour to the colour that the thing has: the picture is to be copied."""
    background = rng.randrange(len(world.BACKGROUNDS))
    things = _draw_things(rng, classes, rng.choice((1, 2)))
    color = things[0].color or rng.choice(COLORS)
    first = _with(things[0], color=color)
    scene = Scene(background, (first, *things[1:]))
    return Edit("color", f"make the {first.name} {color}", scene, scene, first)


def write_finish(edit: Edit) -> str:
    """Write the instruction that asks to go on with what an edit draws: the rewritten one."""
    return f"finish the {edit.changed.name}"


def _draw_recoloring(
    rng: random.Random, classes: Sequence[str], background: int, read_colors: ColorReader
) -> Edit:
    things = _draw_things(rng, classes, rng.choice((1, 2)))
    old = things[0]
    source = Scene(background, things)
    pixels, placed = source.draw()
    shares = read_colors(pixels, placed[0].box)
    fitting = [
        color
        for color, share in zip(COLORS, shares, strict=True)
        if color != old.color and share <= PLAIN_COLOR
    ]
    new = _with(old, color=rng.choice(fitting))
    text = f"make the {_name(old)} {new.color}"
    return Edit("color", text, source, Scene(background, (new, *things[1:])), new)


def _draw_replacement(rng: random.Random, classes: Sequence[str], background: int) -> Edit:
    things = _draw_things(rng, classes, rng.choice((1, 2)))
    old = things[0]
    present = {thing.name for thing in things}
    name = rng.choice([one for one in classes if one not in present])
    new = _with(old, name=name)
    text = f"replace the {old.name} with {article(name)} {name}"
    source = Scene(background, things)
    return Edit("replace", text, source, Scene(background, (new, *things[1:])), new)


def _draw_addition(rng: random.Random, classes: Sequence[str], background: int) -> Edit:
    relation = rng.choice(tuple(RELATIONS))
    new_name, anchor_name = rng.sample(classes, 2)
    spec = grammar.make_spec([new_name, anchor_name], relation=relation)
    layout = rng.choice(grammar.layouts(spec))
    anchor_square, new_square = world.place_objects(spec, layout, rng)
    anchor = Thing(anchor_name, _draw_color(rng), *anchor_square)
    new = Thing(new_name, rng.choice(COLORS), *new_square)
    text = f"add {article(str(new.color))} {new.color} {new.name} {relation} the {anchor.name}"
    source = Scene(background, (anchor,))
    return Edit("add", text, source, Scene(background, (anchor, new)), new)


def _draw_removal(rng: random.Random, classes: Sequence[str], background: int) -> Edit:
    gone, kept = _draw_things(rng, classes, 2)
    text = f"remove the {gone.name}"
    return Edit("remove", text, Scene(background, (gone, kept)), Scene(background, (kept,)), gone)


def _draw_things(rng: random.Random, classes: Sequence[str], count: int) -> tuple[Thing, ...]:
    """Draw one thing anywhere, or two beside each other; in random order, colours free."""
    names = rng.sample(classes, count)
    spec = grammar.make_spec(names)
    layout = rng.choice(grammar.layouts(spec)) if count > 1 else ()
    squares = world.place_objects(spec, layout, rng)
    things = [
        Thing(name, _draw_color(rng), *square) for name, square in zip(names, squares, strict=True)
    ]
    rng.shuffle(things)
    return tuple(things)


def _draw_color(rng: random.Random) -> str | None:
    return rng.choice((None, *COLORS))


def _with(thing: Thing, *, name: str | None = None, color: str | None = None) -> Thing:
    """Return a thing with another name or another colour, in the same square."""
    return Thing(name or thing.name, color or thing.color, thing.x, thing.y, thing.size)


def _name(thing: Thing) -> str:
    return f"{thing.color} {thing.name}" if thing.color else thing.name


# --- masks ----------------------------------------------------------------------------------------


def list_mask_runs(edit: Edit) -> list[int]:
    """List (start, length) over the pixels in row order of what an edit may change."""
    boxes = []
    for scene in (edit.source, edit.target):
        _, placed = scene.draw()
        boxes += [
            one.box
            for one, thing in zip(placed, scene.things, strict=True)
            if (thing.x, thing.y) == (edit.changed.x, edit.changed.y)
        ]
    runs = []
    for left, top, right, bottom in boxes:
        first = max(0, left - MARGIN)
        last = min(SIDE, right + MARGIN)
        for y in range(max(0, top - MARGIN), min(SIDE, bottom + MARGIN)):
            runs += [y * SIDE + first, last - first]
    return runs


# --- instructions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """What an instruction asks for. Of an addition `name` is what is added."""

    kind: str  # one of KINDS, or "finish"
    name: str
    color: str | None = None
    new_name: str | None = None
    relation: str | None = None
    anchor: str | None = None


def parse(text: str) -> Request | None:
    """Read an instruction; None for one that is not of this world."""
    plain = " ".join(grammar.words(text))
    for kind, pattern in _patterns().items():
        match = pattern.fullmatch(plain)
        if match:
            return Request(kind, **match.groupdict())
    return None


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    names = "|".join(sorted(CLASSES, key=len, reverse=True))
    colors = "|".join(COLORS)
    relations = "|".join(RELATIONS)
    sources = {
        "color": rf"make the (?:(?:{colors}) )?(?P<name>{names}) (?P<color>{colors})",
        "replace": rf"replace the (?P<name>{names}) with an? (?P<new_name>{names})",
        "add": rf"add an? (?:(?P<color>{colors}) )?(?P<name>{names}) (?P<relation>{relations}) "
        rf"the (?P<anchor>{names})",
        "remove": rf"remove the (?P<name>{names})",
        "finish": rf"finish the (?P<name>{names})",
    }
    return {kind: re.compile(source) for kind, source in sources.items()}


@cache
def vocabulary() -> dict[str, int]:
    """Number the words of captions as the generator does, and then those of instructions."""
    known = dict(grammar.vocabulary())
    for word in WORDS:
        known.setdefault(word, len(known))
    return known


def encode(text: str | None) -> list[int]:
    """Convert an instruction to word ids, exactly as many as a caption has; None is all <pad>."""
    return grammar.encode_words(text, vocabulary())


# --- prompt lists ---------------------------------------------------------------------------------


def generate_edits(
    classes: Sequence[str], total: int, seed: int, read_colors: ColorReader
) -> list[Edit]:
    """Generate `total` edits, as many of each kind; a training draws others."""
    edits = []
    for number in range(total):
        rng = random.Random(f"{seed}/edit_pictogram/{number}")
        edits.append(draw_edit(rng, classes, KINDS[number % len(KINDS)], read_colors))
    return edits


def describe(edit: Edit) -> dict[str, Any]:
    """Describe an edit as an answer key: what is judged by, in plain values."""
    _, before = edit.source.draw()
    _, after = edit.target.draw()
    changed_before = [one for one in before if one not in after]
    others = [one for one in before if one in after]
    new = [one for one in after if one not in before]
    gone = changed_before[0] if changed_before else None
    made = new[0] if new else None
    return {
        "kind": edit.kind,
        "gone": None if gone is None else _describe_placed(gone),
        "made": None if made is None else _describe_placed(made),
        "others": [_describe_placed(one) for one in others],
        "relation": getattr(parse(edit.text), "relation", None),
        "most": len(after),
        "mask": list_mask_runs(edit),
    }


def _describe_placed(placed: Placed) -> dict[str, Any]:
    return {"name": placed.name, "color": placed.color, "box": list(placed.box)}
