"""TIIF-Bench's arithmetic: replies, groups and rendered text, held against the reference's own
numbers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from runs import harness

from benchmarks.tiif.answers import read_fairly, read_strictly, refused
from benchmarks.tiif.scores import LENGTHS, OFFICIAL, weighted
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
def test_conformance(file: str, cases: int, tmp_path: Path) -> None:
    code, said = harness(tmp_path, "tiif", str(SHARED / file), module="harness.check")
    assert (code, said.splitlines()[-1]) == (0, f"{cases} passed, 0 failed"), said


@with_data
def test_conformance_can_fail(tmp_path: Path) -> None:
    """One wrong expectation of each kind, and each is found."""
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
    code, said = harness(tmp_path, "tiif", str(file), module="harness.check")
    assert (code, said.splitlines()[-1]) == (1, "0 passed, 5 failed"), said
    file.write_text('{"kind": "guess"}\n')
    code, said = harness(tmp_path, "tiif", str(file), module="harness.check")
    assert code == 2 and "line 1: not a conformance case: unknown kind 'guess'" in said


# Percentages recomputed with the reference scripts from the released answers: overall, basic, its
# three groups, advanced, its three groups, style, text, real world; short and long.
PUBLISHED = {
    ("gpt-4o", "Infinity"): (
        *(
            (62.24, 62.49),
            (73.21, 75.63),
            (74.50, 77.00),
            (73.00, 77.86),
            (72.13, 72.04),
            (63.57, 59.34),
        ),
        *(
            (74.27, 64.87),
            (60.52, 55.76),
            (60.45, 59.98),
            (80.00, 73.33),
            (10.86, 24.43),
            (54.48, 57.09),
        ),
    ),
    ("qwen2.5-vl-72b", "Janus-Pro"): (
        *(
            (65.38, 61.10),
            (74.99, 73.19),
            (74.50, 78.00),
            (73.69, 70.51),
            (76.77, 71.04),
            (61.77, 56.03),
        ),
        *(
            (65.71, 66.48),
            (62.01, 55.62),
            (61.16, 49.34),
            (56.67, 43.33),
            (38.46, 42.08),
            (79.48, 73.51),
        ),
    ),
}
NAMES = (
    *("overall", "basic", "basic_attribute", "basic_relation", "basic_reasoning", "advanced"),
    *("advanced_attribute_relation", "advanced_attribute_reasoning", "advanced_relation_reasoning"),
    *("style", "text", "real_world"),
)


@with_data
@pytest.mark.parametrize(("judge", "model"), PUBLISHED)
def test_released_counts_give_the_published_scores(judge: str, model: str) -> None:
    rows = [
        json.loads(line)
        for line in (SHARED / "released_testmini_counts.jsonl").read_text().splitlines()
    ]
    counts = next(row["counts"] for row in rows if (row["judge"], row["model"]) == (judge, model))
    accuracy = {f"{n}/{d}": cell[n][0] / cell[n][1] for d, cell in counts.items() for n in LENGTHS}
    means = {
        name: weighted(share, accuracy) for name, share in OFFICIAL.aggregates(accuracy).items()
    }
    for name, published in zip(NAMES, PUBLISHED[judge, model], strict=True):
        for length, value in zip(LENGTHS, published, strict=True):
            found = means.get(f"{length}/{name}", accuracy.get(f"{length}/{name}"))
            assert found is not None and 100 * found == pytest.approx(value, abs=0.016), (
                name,
                length,
            )
    assert means["score"] == pytest.approx((means["short/overall"] + means["long/overall"]) / 2)
    assert means["short/designer"] == accuracy["short/real_world"]


# --- groups ---------------------------------------------------------------------------------------


def test_dimensions_and_groups_are_as_many_as_published() -> None:
    assert len(OFFICIAL.dimensions) == len(set(OFFICIAL.dimensions)) == 39
    means = OFFICIAL.means(OFFICIAL.dimensions)
    assert {name: len(means[name]) for name in ("basic", "advanced", "designer", "overall")} == {
        "basic": 12,
        "advanced": 26,
        "designer": 1,
        "overall": 39,
    }
    assert all(sum(share.values()) == pytest.approx(1) for share in means.values())
    assert means["overall"]["text"] == pytest.approx(1 / 9)  # one ninth, though one dimension of 39


@given(
    st.sets(st.sampled_from([f"{n}/{d}" for n in LENGTHS for d in OFFICIAL.dimensions]), min_size=1)
)
def test_means_are_of_what_is_there(categories: set[str]) -> None:
    named = OFFICIAL.aggregates(categories)
    assert all(
        set(share) <= categories and sum(share.values()) == pytest.approx(1)
        for share in named.values()
    )
    assert all(weight > 0 for share in named.values() for weight in share.values())
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


LINE = st.sampled_from(
    [
        "yes",
        "No.",
        "**yes**",
        "1. yes",
        "2. No",
        "3) yes",
        "- no",
        "nothing",
        "",
        " Yes, 2 cats",
        "None",
        "a. no",
        "No one",
    ]
)


@given(st.lists(LINE, max_size=6).map("\n".join), st.integers(0, 4))
def test_the_fair_reading_keeps_what_the_reference_reads_or_says_nothing(
    reply: str, questions: int
) -> None:
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
    assert refused(reply) and not refused("the picture shows two cats")


# --- rendered text --------------------------------------------------------------------------------

WORD = st.text("abcd", max_size=5)


@given(WORD, WORD, WORD)
def test_distance_is_one(a: str, b: str, c: str) -> None:
    assert 0 <= distance(a, b) == distance(b, a) <= 1
    assert (distance(a, b) == 0) == (a == b)
    edits = [distance(x, y) * max(len(x), len(y)) for x, y in ((a, b), (b, c), (a, c))]
    assert edits[2] <= edits[0] + edits[1] + 1e-9


@given(st.lists(WORD, max_size=4), st.lists(WORD, max_size=4), st.randoms())
def test_gned_knows_no_order_and_recall_no_surplus(
    expected: list[str], read: list[str], rng
) -> None:
    shuffled = rng.sample(read, len(read))
    assert 0 <= gned(expected, read) <= 1
    assert (
        gned(expected, read)
        == pytest.approx(gned(expected, shuffled))
        == pytest.approx(gned(read, expected))
    )
    assert gned(read, shuffled) == 0
    if expected:
        assert recall(expected, [*expected, *read]) == 1
    else:
        assert recall(expected, read) is None


@pytest.fixture(scope="module")
def reader() -> RapidOcr:
    return RapidOcr()


def drawn(*lines: str) -> np.ndarray:
    image = Pillow.new("RGB", (512, 320), (236, 232, 220))
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(44)
    for i, line in enumerate(lines):
        pen.text((40, 30 + 90 * i), line, fill=(20, 20, 60 * i), font=font)
    return np.asarray(image)


def test_ocr_reads_what_was_drawn(reader: RapidOcr) -> None:
    words = read_words(reader.read(drawn("OPEN DAILY", "coffee shop", "Relax")))
    wanted = ["open", "daily", "coffee", "shop", "relax"]
    assert sorted(words) == sorted(wanted)
    assert (gned(wanted, words), recall(wanted, words)) == (0.0, 1.0)
    assert gned([*wanted, "tea"], words) == pytest.approx(1 / 6) and recall(
        [*wanted, "tea"], words
    ) == pytest.approx(5 / 6)
    assert gned(["garden"], words) > 0.7 and recall(["garden"], words) == 0


def test_a_picture_without_text_is_one_empty_word(reader: RapidOcr) -> None:
    assert reader.read(drawn()) == []
    assert read_words([]) == [""]
    assert (gned(["tea", "cake"], read_words([])), recall(["tea", "cake"], read_words([]))) == (
        1.0,
        0.0,
    )
    assert reader.id.startswith("rapidocr-")
