"""TIIF-Bench's arithmetic: replies, groups and rendered text, held against the reference."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from runs import harness

from benchmarks.tiif.answers import is_refusal, read_fairly, read_strictly
from benchmarks.tiif.scores import LENGTHS, OFFICIAL, weighted_mean
from benchmarks.tiif.text import RapidOcr, distance, gned, read_words, recall

SHARED = Path(__file__).parents[2] / "shared" / "data" / "tiif_bench"
with_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="TIIF-Bench's data files are not beside the repository"
)

# --- against the reference ------------------------------------------------------------------------


@with_data
@pytest.mark.parametrize(
    ("file", "cases"), [("conformance.jsonl", 76), ("released_testmini_counts.jsonl", 40)]
)
def test_the_reference_scripts_agree(file: str, cases: int, tmp_path: Path) -> None:
    code, output = harness(tmp_path, "tiif", str(SHARED / file), module="harness.check")
    assert (code, output.splitlines()[-1]) == (0, f"{cases} passed, 0 failed"), output


@with_data
def test_a_wrong_expectation_of_each_kind_is_found(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (SHARED / "conformance.jsonl").read_text().splitlines()]
    kinds = {
        row["kind"]: row
        for row in rows
        if row["kind"] != "parse_answers" or row["expected"]["answers"]
    }
    kinds["parse_answers"]["expected"]["answers"][0] = "maybe"
    kinds["aggregate"]["expected"]["groups"]["m"]["overall"]["short"] += 0.001
    kinds["text_metrics"]["expected"]["gned"] += 0.001
    kinds["text_file"]["expected"]["Recall_score_long"] += 0.001
    released = json.loads((SHARED / "released_testmini_counts.jsonl").read_text().splitlines()[0])
    released["groups"]["basic_relation"]["long"] += 0.001
    file = tmp_path / "wrong.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*kinds.values(), released]))
    code, output = harness(tmp_path, "tiif", str(file), module="harness.check")
    assert (code, output.splitlines()[-1]) == (1, "0 passed, 5 failed"), output
    file.write_text('{"kind": "guess"}\n')
    code, output = harness(tmp_path, "tiif", str(file), module="harness.check")
    assert code == 2 and "line 1: not a conformance case: unknown kind 'guess'" in output


# Percentages recomputed with the reference scripts from the released answers: short and long.
INFINITY_BY_GPT_4O = {
    "overall": (62.24, 62.49),
    "basic": (73.21, 75.63),
    "basic_attribute": (74.50, 77.00),
    "basic_relation": (73.00, 77.86),
    "basic_reasoning": (72.13, 72.04),
    "advanced": (63.57, 59.34),
    "advanced_attribute_relation": (74.27, 64.87),
    "advanced_attribute_reasoning": (60.52, 55.76),
    "advanced_relation_reasoning": (60.45, 59.98),
    "style": (80.00, 73.33),
    "text": (10.86, 24.43),
    "real_world": (54.48, 57.09),
}
JANUS_PRO_BY_QWEN = {
    "overall": (65.38, 61.10),
    "basic": (74.99, 73.19),
    "basic_attribute": (74.50, 78.00),
    "basic_relation": (73.69, 70.51),
    "basic_reasoning": (76.77, 71.04),
    "advanced": (61.77, 56.03),
    "advanced_attribute_relation": (65.71, 66.48),
    "advanced_attribute_reasoning": (62.01, 55.62),
    "advanced_relation_reasoning": (61.16, 49.34),
    "style": (56.67, 43.33),
    "text": (38.46, 42.08),
    "real_world": (79.48, 73.51),
}


@with_data
@pytest.mark.parametrize(
    ("judge", "model", "published"),
    [
        ("gpt-4o", "Infinity", INFINITY_BY_GPT_4O),
        ("qwen2.5-vl-72b", "Janus-Pro", JANUS_PRO_BY_QWEN),
    ],
)
def test_released_counts_give_the_published_scores(
    judge: str, model: str, published: dict[str, tuple[float, float]]
) -> None:
    lines = (SHARED / "released_testmini_counts.jsonl").read_text().splitlines()
    rows = map(json.loads, lines)
    counts = next(row["counts"] for row in rows if (row["judge"], row["model"]) == (judge, model))
    accuracy = {}
    for dimension, by_length in counts.items():
        for length, (correct, total, *_) in by_length.items():
            accuracy[f"{length}/{dimension}"] = correct / total

    means = {}
    for name, weights in OFFICIAL.aggregates(accuracy).items():
        means[name] = weighted_mean(weights, accuracy)
    values = {**accuracy, **means}
    for name, by_length in published.items():
        for length, value in zip(LENGTHS, by_length, strict=True):
            found = values[f"{length}/{name}"]
            assert 100 * found == pytest.approx(value, abs=0.016), (name, length)
    assert means["score"] == pytest.approx((means["short/overall"] + means["long/overall"]) / 2)
    assert means["short/designer"] == accuracy["short/real_world"]


# --- groups ---------------------------------------------------------------------------------------


def test_dimensions_and_groups_are_as_many_as_published() -> None:
    assert len(OFFICIAL.dimensions) == len(set(OFFICIAL.dimensions)) == 39
    means = OFFICIAL.means(OFFICIAL.dimensions)
    sizes = {"basic": 12, "advanced": 26, "designer": 1, "overall": 39}
    assert {name: len(means[name]) for name in sizes} == sizes
    assert all(sum(share.values()) == pytest.approx(1) for share in means.values())
    assert means["overall"]["text"] == pytest.approx(1 / 9)  # one ninth, though one dimension of 39


CATEGORIES = [f"{length}/{name}" for length in LENGTHS for name in OFFICIAL.dimensions]


@given(st.sets(st.sampled_from(CATEGORIES), min_size=1))
def test_means_are_over_the_categories_that_are_present(categories: set[str]) -> None:
    named = OFFICIAL.aggregates(categories)
    for weights in named.values():
        assert set(weights) <= categories
        assert sum(weights.values()) == pytest.approx(1)
        assert all(weight > 0 for weight in weights.values())
    assert set(named["score"]) == categories


# --- replies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "questions", "answers"),
    [
        ("1. Yes, there is\n2. No, it is not", 2, "yes no"),
        ("1) **Yes** - there is\n2) **No** - it is not", 2, "yes no"),
        ("- yes\n- no", 2, "yes no"),
        ("**Yes**, it is.\n\n**No**, it is not.", 2, "yes no"),
        ('"yes", it is\n`no`', 2, "yes no"),
        ("Q1: yes\nQ2: no", 2, "yes no"),
        ("Answer 1: Yes.\nAnswer 2: No.", 2, "yes no"),
        ("Answer: yes", 1, "yes"),
        ("Here you are:\n1. Yes, one\nNo other thing is there.\n2. No", 2, "yes no"),
        ("1. Yes\n2. No\nNo further remark.", 2, "yes no"),
        ("yes\nno\nyes", 2, None),  # which of them?
        ("1. yes\n3. no", 2, None),
        ("1. yes\n2. perhaps", 2, None),
        ("1. Yes\nNo further remark.", 1, None),  # the reference would read the remark
        ("yes, no, yes", 3, None),
        ("Is there a cat? yes", 1, None),
        ("I'm sorry, I can't assist with that.", 1, None),
        ("3 cats\nyes", 1, "yes"),
        ("Yes.\r\nNo.\r\n", 2, "yes no"),
    ],
)
def test_decoration_is_forgiven_and_doubt_is_not(
    reply: str, questions: int, answers: str | None
) -> None:
    assert read_fairly(reply, questions) == (None if answers is None else tuple(answers.split()))


LINES = ("yes", "No.", "**yes**", "1. yes", "2. No", "3) yes", "- no", "nothing", "")
LINES += (" Yes, 2 cats", "None", "a. no", "No one")


@given(st.lists(st.sampled_from(LINES), max_size=6).map("\n".join), st.integers(0, 4))
def test_the_fair_reading_is_the_references_or_none(reply: str, questions: int) -> None:
    strict = read_strictly(reply, questions)
    fair = read_fairly(reply, questions)
    assert fair is None or (len(fair) == questions and set(fair) <= {"yes", "no"})
    if strict is not None:
        assert fair in (strict, None)
        if not any(line[:1].isdigit() for line in reply.splitlines()):
            assert fair == strict


@pytest.mark.parametrize(
    "reply", ["", " \n", "I'm sorry, but I can't help with that.", "I am unable to view images."]
)
def test_refusals_are_told_from_gibberish(reply: str) -> None:
    assert is_refusal(reply) and not is_refusal("the picture shows two cats")


# --- rendered text --------------------------------------------------------------------------------

WORD = st.text("abcd", max_size=5)


@given(WORD, WORD, WORD)
def test_distance_is_a_normalised_edit_distance(a: str, b: str, c: str) -> None:
    assert 0 <= distance(a, b) == distance(b, a) <= 1
    assert (distance(a, b) == 0) == (a == b)
    assert edits(a, c) <= edits(a, b) + edits(b, c) + 1e-9


def edits(a: str, b: str) -> float:
    return distance(a, b) * max(len(a), len(b))


@given(st.lists(WORD, max_size=4), st.lists(WORD, max_size=4), st.randoms())
def test_gned_ignores_the_order_and_recall_ignores_surplus_words(
    expected: list[str], read: list[str], rng: random.Random
) -> None:
    shuffled = rng.sample(read, len(read))
    found = gned(expected, read)
    assert 0 <= found <= 1
    assert found == pytest.approx(gned(expected, shuffled))
    assert found == pytest.approx(gned(read, expected))
    assert gned(read, shuffled) == 0
    if expected:
        assert recall(expected, [*expected, *read]) == 1
    else:
        assert recall(expected, read) is None


@pytest.fixture(scope="module")
def reader() -> RapidOcr:
    return RapidOcr()


def draw_text(*lines: str) -> np.ndarray:
    """Draw lines of text on a plain ground, uint8 [H, W, 3]."""
    image = Pillow.new("RGB", (512, 320), (236, 232, 220))
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(44)
    for i, line in enumerate(lines):
        pen.text((40, 30 + 90 * i), line, fill=(20, 20, 60 * i), font=font)
    return np.asarray(image)


def test_ocr_reads_what_was_draw_text(reader: RapidOcr) -> None:
    words = read_words(reader.read(draw_text("OPEN DAILY", "coffee shop", "Relax")))
    wanted = ["open", "daily", "coffee", "shop", "relax"]
    assert sorted(words) == sorted(wanted)
    assert (gned(wanted, words), recall(wanted, words)) == (0.0, 1.0)
    assert gned([*wanted, "tea"], words) == pytest.approx(1 / 6)
    assert recall([*wanted, "tea"], words) == pytest.approx(5 / 6)
    assert gned(["garden"], words) > 0.7
    assert recall(["garden"], words) == 0


def test_a_picture_without_text_is_one_empty_word(reader: RapidOcr) -> None:
    assert reader.read(draw_text()) == []
    assert read_words([]) == [""]
    assert gned(["tea", "cake"], read_words([])) == 1.0
    assert recall(["tea", "cake"], read_words([])) == 0.0
    assert reader.id.startswith("rapidocr-")
