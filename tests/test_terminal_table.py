"""The table on the terminal: the best first, within its width, and every run told apart."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from written_runs import write_run

from harness.results.leaderboard import build
from harness.results.reasons import put_in_words
from harness.results.remarks import P_TOO_LARGE, TOO_SMALL
from harness.results.rows import NOT_RESOLVED, RESOLVED
from harness.results.terminal_table import render_table
from harness.runs.metrics import MetricAbout

WIDTHS = (60, 80, 120, 200)
LONG = "a_method_of_somebody_with_quite_a_long_name"


def values(right: int) -> dict[str, list[float]]:
    """Scores of 40 prompts, of which the first `right` ones are right."""
    return {f"{'ab'[i % 2]}/{i}": [float(i < right)] for i in range(40)}


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    results = tmp_path_factory.mktemp("results")
    write_run(results, values(16))
    write_run(results, values(17), "zipar", fingerprint="00000002")
    for number, n in enumerate((2, 4, 8)):
        options = {"n": n, "keep": 1, "share": 0.25}
        usage = {"sampled": 100 * n}
        fingerprint = f"0000001{number}"
        write_run(
            results, values(20 + n), LONG, fingerprint=fingerprint, options=options, usage=usage
        )
    failed = {prompt: [None] for prompt in values(0)}
    write_run(results, failed, "sjd", fingerprint="00000003")
    return build(results).frame


@pytest.mark.parametrize("width", WIDTHS)
def test_lines_fit_and_no_label_is_cut(frame: pd.DataFrame, width: int) -> None:
    text = render_table(frame, width)
    assert max(map(len, text.splitlines())) <= width
    without_breaks = text.replace("\n", "").replace(" ", "")
    for label in frame["label"]:
        first_words = label.replace(" ", "")
        if len(label) <= 28:
            assert first_words in without_breaks
    for n in (2, 4, 8):
        assert f"N = {n}" in text
    assert ".." not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_best_run_comes_first_and_what_is_not_scored_last(
    frame: pd.DataFrame, width: int
) -> None:
    text = render_table(frame, width)
    places = [text.index(start) for start in ("0.700", "0.600", "0.550", "0.425", "0.400", "SJD")]
    assert places == sorted(places)
    assert "not scored" in text


def test_wide_terminals_have_categories_and_narrow_ones_the_difference(
    frame: pd.DataFrame,
) -> None:
    wide, narrow = render_table(frame, 200), render_table(frame, 60)
    for title in ("passes", "device_s", "[95% interval]"):
        assert title in wide
        assert title not in narrow
    for text in (wide, narrow):
        assert "vs plain" in text
        assert "unjudged" in text


def test_the_width_is_the_terminals(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert render_table(frame) == render_table(frame, 60)


def test_the_reason_stands_beside_a_difference_that_is_not_resolved(frame: pd.DataFrame) -> None:
    changed = frame.copy()
    rows = changed["vs_plain"].notna()
    after = "not significant after correction for 13 comparisons"
    verdicts = [RESOLVED, f"{NOT_RESOLVED}{after}", f"{NOT_RESOLVED}p 0.21"]
    small = f"{NOT_RESOLVED}found in less than 80 % of repeats, which takes 0.100"
    changed.loc[rows, "vs_plain_verdict"] = [*verdicts, small]
    text = " ".join(render_table(changed, 200).split())
    letters = {reason: text[text.index(f" {reason}") - 1] for reason in (after, P_TOO_LARGE)}
    letters[TOO_SMALL] = text[text.index(f" {TOO_SMALL}") - 1]
    assert sorted(letters.values()) == ["a", "b", "c"]
    for letter in letters.values():
        assert text.count(f" {letter})") == 1
    assert "In brackets" not in render_table(frame.assign(vs_plain=float("nan")), 200)


def test_reasons_of_the_reference_are_put_in_words() -> None:
    said = {
        "expected motorcycle>=1, found 0": "expected at least 1 motorcycle, found 0",
        "expected cup<1, found 2": "expected no cup, found 2",
        "expected cup<3, found 4": "expected at most 2 cup, found 4",
        "expected blue cup>=1, found 0 blue; and 1 green": (
            "expected at least 1 blue cup, found 0 blue, and 1 green"
        ),
        "no target for cup to be above": "no target for cup to be above",
        "": "",
    }
    for reason, words in said.items():
        assert put_in_words(reason) == words


def test_two_headings_that_read_alike_say_what_differs(tmp_path: Path) -> None:
    write_run(tmp_path, values(3))
    write_run(tmp_path, values(4), fingerprint="00000002", numerics="fast")
    assert render_table(build(tmp_path).frame, 60).count("protocol ") == 2


def test_runs_that_their_own_judge_chose_are_marked_below_the_table(frame: pd.DataFrame) -> None:
    assert "Chosen by" not in render_table(frame, 200)
    label = str(frame["label"].iloc[-1])
    marked = frame.assign(reward_is_judge=["", "family", *[""] * (len(frame) - 3), "same"])
    text = " ".join(render_table(marked, 200).split())
    assert f"part of the gain may be the judge's own error: {label}." in text
    assert "which may make the same mistakes" in text
    assert f"may be such mistakes: {frame['label'].iloc[1]}." in text


def test_runs_that_a_metric_chose_are_marked_below_the_table(frame: pd.DataFrame) -> None:
    about = {"liked": MetricAbout("liked-1", "cosine", "higher", 3)}
    label = str(frame["label"].iloc[-1])
    same = ["", *["other"] * (len(frame) - 2), "same"]
    measured = frame.assign(liked=0.5, liked_is_reward=same)
    text = " ".join(render_table(measured, 200, about).split())
    assert f"Chosen by liked itself, whose gain is partly its own error: {label}." in text
    assert "Chosen by liked" not in render_table(frame.assign(liked=0.5), 200, about)


def test_tie_groups_are_explained_and_why_they_may_cross(frame: pd.DataFrame) -> None:
    falling = frame.sort_values("score", ascending=False)
    nested = falling.assign(tie_group=range(1, len(frame) + 1))
    text = " ".join(render_table(nested, 200).split())
    assert "tie: runs of one number cannot be told apart" in text
    assert "Each pair is tested by itself" not in text
    crossed = falling.assign(tie_group=range(len(frame), 0, -1))
    assert "a lower score and the smaller number" in " ".join(render_table(crossed, 200).split())


def test_an_interval_without_width_is_no_certainty(frame: pd.DataFrame) -> None:
    assert "No width" not in render_table(frame, 200)
    label = str(frame["label"].iloc[0])
    score = frame["score"].iloc[0]
    ends = {"ci_low": [score, *frame["ci_low"][1:]], "ci_high": [score, *frame["ci_high"][1:]]}
    text = " ".join(render_table(frame.assign(**ends), 200).split())
    prompts = frame["prompts"].iloc[0]
    assert f"and {prompts} prompts are too few to show how far the true score may be off" in text
    assert f"may be off: {label}." in text
