"""The pictogram world: pictures show what their specs say, and depend on nothing but the seed."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest

from harness.models.pictogram import world
from harness.models.pictogram.detector import background_lab, color_shares, to_lab
from harness.models.pictogram.grammar import (
    CLASS_SETS,
    COLORS,
    TASKS,
    layouts,
    objects,
    sample_spec,
)

CLASSES = CLASS_SETS["pictogram_16"]
EIGHTY = CLASS_SETS["pictogram_80"]


@pytest.mark.parametrize("task", TASKS)
def test_scenes_show_their_spec(task: str) -> None:
    rng = random.Random(task)
    for _ in range(60):
        spec = sample_spec(task, CLASSES, rng)
        pixels, placed = world.draw_scene(spec, rng)
        assert pixels.shape == (world.SIDE, world.SIDE, 3)
        assert [(one.name, one.color) for one in placed] == objects(spec)
        for i, one in enumerate(placed):
            assert 0 <= one.box[0] < one.box[2] <= world.SIDE
            assert 0 <= one.box[1] < one.box[3] <= world.SIDE
            assert not any(touching(one.box, other.box) for other in placed[:i])


def touching(a: world.Box, b: world.Box) -> bool:
    """Whether two boxes share a pixel."""
    a_left, a_top, a_right, a_bottom = a
    b_left, b_top, b_right, b_bottom = b
    across = a_left < b_right and b_left < a_right
    down = a_top < b_bottom and b_top < a_bottom
    return across and down


def test_layouts_are_obeyed() -> None:
    rng = random.Random(1)
    for _ in range(300):
        spec = sample_spec(rng.choice(TASKS), CLASSES, rng)
        layout = rng.choice(layouts(spec))
        _, placed = world.draw_scene(spec, rng, layout)
        for place, one in zip(layout, placed, strict=True):
            left, top, right, bottom = one.box
            x = (left + right) / 2
            y = (top + bottom) / 2
            half = world.SIDE / 2
            lies_there = {
                "left": x < half + 4,
                "right": x > half - 4,
                "top": y < half + 4,
                "bottom": y > half - 4,
            }
            assert lies_there[place]


def test_relations_hold_by_genevals_rule() -> None:
    rng = random.Random(2)
    for _ in range(200):
        spec = sample_spec("position", CLASSES, rng)
        _, (target, one) = world.draw_scene(spec, rng)
        box = np.array(one.box).reshape(2, 2)  # corners of (x, y)
        target_box = np.array(target.box).reshape(2, 2)
        offset = box.mean(0) - target_box.mean(0)
        sizes = np.diff(box, axis=0)[0] + np.diff(target_box, axis=0)[0]
        shrunk = np.sign(offset) * np.maximum(np.abs(offset) - 0.1 * sizes, 0)
        x, y = shrunk / np.hypot(*offset)
        holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
        assert holds[str(spec["include"][1]["position"][0])]


def test_colours_read_back() -> None:
    for classes, sizes in ((CLASSES, (20, 24, 28)), (EIGHTY, (20,))):
        share = {name: share_read_back(name, sizes) for name in classes}
        worst = min(share, key=share.__getitem__)
        assert np.mean(list(share.values())) >= 0.98
        assert share[worst] >= 0.6, worst


def share_read_back(name: str, sizes: tuple[int, ...]) -> float:
    """How many of all colours and sizes of a sprite are read as the colour it has."""
    return float(np.mean([reads_back(name, color, size) for color in COLORS for size in sizes]))


def reads_back(name: str, color: str, size: int, background: int = 1) -> bool:
    picture = np.empty((world.SIDE, world.SIDE, 3), np.uint8)
    picture[:] = world.BACKGROUNDS[background]
    picture[:size, :size], box = world.patch_of(name, color, size, background)
    lab = to_lab(picture.astype(float))
    shares = color_shares(lab, box, background_lab(lab, [box]))
    return COLORS[int(shares.argmax())] == color


def test_every_class_is_drawn_with_three_to_eight_shapes() -> None:
    sprites = sorted((Path(world.__file__).parent / "sprites").glob("*.svg"))
    assert {path.stem for path in sprites} == {name.replace(" ", "_") for name in EIGHTY}
    for path in sprites:
        shapes = re.findall(r"<(?:path|rect|circle|ellipse)", path.read_text())
        assert 3 <= len(shapes) <= 8, path.stem


def test_no_two_classes_look_alike() -> None:
    """In one tint only shape tells small sprites apart: luminance differs in many pixels."""
    patches = [world.patch_of(name, "red", 16, 0)[0] for name in EIGHTY]
    gray = np.stack([patch @ world.LUMINANCE for patch in patches])
    differs = (np.abs(gray[:, None] - gray) > 24).mean((-1, -2))
    alike = differs + np.eye(len(gray))
    first, second = np.unravel_index(alike.argmin(), alike.shape)
    assert alike.min() > 0.15, (EIGHTY[first], EIGHTY[second])


def test_a_scene_is_a_function_of_its_seed() -> None:
    def drawn(seed: int) -> world.Sample:
        rng = random.Random(seed)
        return world.draw_sample(rng, CLASSES, tasks=TASKS, style="long", layout_share=0.5)

    one = drawn(5)
    same = drawn(5)
    other = drawn(6)
    assert one.text == same.text
    assert (one.pixels == same.pixels).all()
    assert one.text != other.text


def test_clutter_keeps_objects_apart() -> None:
    for seed in range(200):
        _, placed = world.draw_clutter(random.Random(seed), CLASSES)
        for i, one in enumerate(placed):
            assert not any(touching(one.box, other.box) for other in placed[:i])
