"""The prompt grammar: what it says, it can read again."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.models.pictogram import grammar
from harness.models.pictogram.grammar import (
    CLASS_SETS,
    CLASSES,
    TASKS,
    caption,
    layouts,
    parse,
    parse_layout,
)

METADATA = Path(__file__).parents[2] / "shared" / "data" / "geneval" / "evaluation_metadata.jsonl"
SIXTEEN = CLASS_SETS["pictogram_16"]
OFFICIAL = {
    "a photo of a bench": grammar.make_spec(["bench"]),
    "a photo of an orange": grammar.make_spec(["orange"]),
    "a photo of a toothbrush and a snowboard": grammar.make_spec(["toothbrush", "snowboard"]),
    "a photo of two buses": grammar.make_spec(["bus"], count=2),
    "a photo of three knifes": grammar.make_spec(["knife"], count=3),
    "a photo of a blue fire hydrant": grammar.make_spec(["fire hydrant"], colors=["blue"]),
    "a photo of a skis right of a zebra": grammar.make_spec(["skis", "zebra"], relation="right of"),
    "a photo of an orange cow and a purple sandwich": grammar.make_spec(
        ["cow", "sandwich"], colors=["orange", "purple"]
    ),
}


@pytest.mark.parametrize("text", OFFICIAL)
def test_official_prompts_read_and_written(text: str) -> None:
    assert parse(text) == OFFICIAL[text]
    assert caption(OFFICIAL[text]) == text


@pytest.mark.skipif(
    not METADATA.is_file(), reason="GenEval's data files are not beside the repository"
)
def test_every_official_prompt_is_of_the_grammar() -> None:
    rows = [json.loads(line) for line in METADATA.read_text().splitlines()]
    assert len(rows) == 553
    for row in rows:
        text = row.pop("prompt")
        assert parse(text) == row
        assert 1 not in grammar.encode(text), "an unknown word"


def test_position_names_the_target_first() -> None:
    spec = parse("a photo of a dog left of a cat")
    assert spec is not None
    assert spec["include"] == [
        {"class": "cat", "count": 1},
        {"class": "dog", "count": 1, "position": ["left of", 0]},
    ]


def test_counting_excludes_one_more() -> None:
    spec = parse("a photo of three cats")
    assert spec is not None
    assert spec["exclude"] == [{"class": "cat", "count": 4}]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(TASKS),
    st.sampled_from(("geneval", "short", "long")),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_every_caption_reads_back(task: str, style: grammar.Style, tinted: bool, seed: int) -> None:
    rng = random.Random(seed)
    spec = grammar.sample_spec(task, CLASSES, rng, tinted=tinted)
    layout = rng.choice([(), *layouts(spec)]) if style != "long" else ()
    text = caption(spec, style=style, layout=layout, rng=rng)
    assert parse_layout(text) == (spec, layout)
    assert len(grammar.words(text)) <= grammar.PROMPT_POSITIONS
    assert 1 not in grammar.encode(text), "an unknown word"


@pytest.mark.parametrize("task", TASKS)
def test_every_layout_of_every_task_reads_back(task: str) -> None:
    rng = random.Random(task)
    for _ in range(20):
        spec = grammar.sample_spec(task, SIXTEEN, rng)
        for layout in layouts(spec):
            assert parse_layout(caption(spec, layout=layout)) == (spec, layout)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of a unicorn",
        "two cats and a dog",
        "a photo of a cat, on the moon",
        "a photo of five cats",
    ],
)
def test_other_texts_are_not_read(text: str) -> None:
    assert parse(text) is None


def test_punctuation_and_capitals_do_not_matter() -> None:
    assert parse("The scene includes three cats.") == parse("a photo of three cats")


def test_encoding_has_one_length() -> None:
    for text in (None, "a", "a photo of a cat, on the left", "word " * 60):
        assert len(grammar.encode(text)) == grammar.PROMPT_POSITIONS
    assert set(grammar.encode(None)) == {0}


@pytest.mark.parametrize("total", [6, 60, 61, 553])
def test_prompts_are_spread_different_and_repeatable(total: int) -> None:
    rows = grammar.generate_prompts(SIXTEEN, total, seed=3)
    assert len(rows) == len({row["prompt"] for row in rows}) == total
    assert rows == grammar.generate_prompts(SIXTEEN, total, seed=3)
    assert rows != grammar.generate_prompts(SIXTEEN, total, seed=4)
    for row in rows:
        spec = {key: value for key, value in row.items() if key != "prompt"}
        assert parse(row["prompt"]) == spec
    counts = Counter(row["tag"] for row in rows)
    large = [counts[task] for task in ("two_object", "colors", "position", "color_attr")]
    assert max(large) - min(large) <= 1
    assert abs(counts["single_object"] - min(16, max(large))) <= 1


def test_prompts_are_those_of_the_last_release() -> None:
    """Recorded results name these prompts by their number."""
    for classes, sha in ((SIXTEEN, "5a2538478517"), (CLASSES, "581eb71c9a4a")):
        rows = grammar.generate_prompts(classes, 553, 0)
        assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12] == sha


def test_every_number_of_a_task_is_another_spec() -> None:
    for task in TASKS:
        size, spec_of = grammar.number_specs(task, SIXTEEN[:5])
        assert len({caption(spec_of(i)) for i in range(size)}) == size
        assert {spec_of(i)["tag"] for i in range(size)} == {task}


def test_too_many_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="different prompts"):
        grammar.generate_prompts(["cat"], 10**6, seed=0)
