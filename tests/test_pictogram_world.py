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


def touching(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_layouts_are_obeyed() -> None:
    rng = random.Random(1)
    for _ in range(300):
        spec = sample_spec(rng.choice(TASKS), CLASSES, rng)
        layout = rng.choice(layouts(spec))
        _, placed = world.draw_scene(spec, rng, layout)
        for place, one in zip(layout, placed, strict=True):
            x = (one.box[0] + one.box[2]) / 2
            y = (one.box[1] + one.box[3]) / 2
            half = world.SIDE / 2
            assert {
                "left": x < half + 4,
                "right": x > half - 4,
                "top": y < half + 4,
                "bottom": y > half - 4,
            }[place]


def test_relations_hold_by_genevals_rule() -> None:
    rng = random.Random(2)
    for _ in range(200):
        spec = sample_spec("position", CLASSES, rng)
        _, (target, one) = world.draw_scene(spec, rng)
        offset = [
            (one.box[i] + one.box[i + 2] - target.box[i] - target.box[i + 2]) / 2 for i in (0, 1)
        ]
        size = [one.box[i + 2] - one.box[i] + target.box[i + 2] - target.box[i] for i in (0, 1)]
        shrunk = [np.sign(o) * max(abs(o) - 0.1 * s, 0) for o, s in zip(offset, size, strict=True)]
        x, y = np.array(shrunk) / np.hypot(offset[0], offset[1])
        relation = spec["include"][1]["position"][0]
        assert {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}[
            str(relation)
        ]


def test_colours_read_back() -> None:
    for classes, sizes in ((CLASSES, (20, 24, 28)), (EIGHTY, (20,))):
        right = {
            name: [reads_back(name, color, size) for color in COLORS for size in sizes]
            for name in classes
        }
        assert np.mean(list(right.values())) >= 0.98
        assert min(map(sum, right.values())) >= 0.6 * len(COLORS) * len(sizes), min(
            right, key=lambda n: sum(right[n])
        )


def test_every_class_is_drawn_with_three_to_eight_shapes() -> None:
    folder = Path(world.__file__).parent / "sprites"
    assert {path.stem for path in folder.glob("*.svg")} == {
        name.replace(" ", "_") for name in EIGHTY
    }
    for path in folder.glob("*.svg"):
        assert 3 <= len(re.findall(r"<(?:path|rect|circle|ellipse)", path.read_text())) <= 8, (
            path.stem
        )


def test_no_two_classes_look_alike() -> None:
    """In one tint only shape tells them apart: luminance of small sprites differs in many of its
    pixels.
    """
    gray = np.stack([world.patch_of(name, "red", 16, 0)[0] @ world.LUMINANCE for name in EIGHTY])
    differs = (np.abs(gray[:, None] - gray) > 24).mean((-1, -2))
    alike = differs + np.eye(len(gray))
    first, second = np.unravel_index(alike.argmin(), alike.shape)
    assert alike.min() > 0.15, (EIGHTY[first], EIGHTY[second])


def reads_back(name: str, color: str, size: int, background: int = 1) -> bool:
    picture = np.empty((world.SIDE, world.SIDE, 3), np.uint8)
    picture[:] = world.BACKGROUNDS[background]
    picture[:size, :size], box = world.patch_of(name, color, size, background)
    lab = to_lab(picture.astype(float))
    return COLORS[int(color_shares(lab, box, background_lab(lab, [box])).argmax())] == color


def test_a_scene_is_a_function_of_its_seed() -> None:
    one, same, other = (
        world.draw_sample(random.Random(seed), CLASSES, tasks=TASKS, style="long", layout_share=0.5)
        for seed in (5, 5, 6)
    )
    assert one.text == same.text
    assert (one.pixels == same.pixels).all()
    assert one.text != other.text


def test_clutter_keeps_objects_apart() -> None:
    for seed in range(200):
        _, placed = world.draw_clutter(random.Random(seed), CLASSES)
        for i, one in enumerate(placed):
            assert not any(touching(one.box, other.box) for other in placed[:i])
