"""Two rankings of the same methods agree, or contradict each other, as planted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy.stats import kendalltau
from written_runs import write_run

from harness import compare
from harness.records import UserError
from harness.results.agreement import compare_rankings
from harness.runs.read import read_runs

PROMPTS = 40
"""Of two categories."""


def values_of(right: int) -> dict[str, list[float]]:
    """Two images of each prompt; the first is right for so many prompts of a category."""
    values = {}
    for category in "ab":
        for i in range(PROMPTS // 2):
            values[f"{category}/{i}"] = [float(i < right), 0.0]
    return values


def write_ranking(results: Path, right: Sequence[int], seed: int = 0) -> None:
    """Write a run of each method, with so many right images in a category."""
    for number, count in enumerate(right):
        fingerprint = f"{seed:04x}{number:04x}"
        write_run(results, values_of(count), f"m{number}", fingerprint=fingerprint, seed=seed)


def test_equal_rankings_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        write_ranking(tmp_path, [2, 8, 14, 20], seed)
    assert compare.main([str(tmp_path), "--seeds", "0", "1"]) == 0
    said = capsys.readouterr().out
    assert "4 methods" in said
    assert "Kendall's tau 1.000; nothing is asked of so few methods" in said
    assert "the other way round: 0; none is asked: pass" in said
    assert "Pairs resolved in both alike: 6; in one of them only: 0" in said


def test_a_pair_that_is_resolved_both_ways_contradicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two best change places, by far: one of six pairs, tau 4/6."""
    write_ranking(tmp_path / "a", [2, 8, 14, 20])
    write_ranking(tmp_path / "b", [2, 8, 20, 14])
    (found,) = compare_rankings(read_runs(tmp_path / "a").runs, read_runs(tmp_path / "b").runs)
    assert found.tau == pytest.approx(4 / 6)
    (pair,) = found.contradicting
    assert (pair.first, pair.second) == ("m3", "m2")
    assert pair.difference_a == pytest.approx(0.15)
    assert pair.difference_b == pytest.approx(-0.15)
    assert (found.alike, found.once, found.exchanged) == (5, 0, ())

    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    said = capsys.readouterr().out
    assert "Kendall's tau 0.667; nothing is asked of so few methods" in said
    assert "the other way round: 1; none is asked: missed by 1" in said
    assert "m3 - m2: +0.150 in A, -0.150 in B" in said


def test_an_exchange_within_the_noise_contradicts_nothing(tmp_path: Path) -> None:
    """One prompt more or less is not resolved: tau is below 1, and no pair contradicts."""
    write_ranking(tmp_path / "a", [2, 10, 11, 20])
    write_ranking(tmp_path / "b", [2, 11, 10, 20])
    (found,) = compare_rankings(read_runs(tmp_path / "a").runs, read_runs(tmp_path / "b").runs)
    assert found.tau == pytest.approx(4 / 6)
    assert found.contradicting == ()
    assert [(pair.first, pair.second) for pair in found.exchanged] == [("m2", "m1")]
    assert (found.alike, found.once) == (5, 0)
    assert found.holds


@pytest.mark.parametrize(("exchanges", "code"), [(0, 0), (1, 0), (2, 1)])
def test_the_bar_of_tau_bears_one_exchange(
    exchanges: int, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked of ten methods or more; two of their 45 pairs in the other order are too many."""
    right = list(range(2, 22, 2))
    write_ranking(tmp_path / "a", right)
    for first in range(0, 2 * exchanges, 2):
        right[first : first + 2] = right[first + 1], right[first]
    write_ranking(tmp_path / "b", right)
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b")]) == code
    tau = 1 - 2 * exchanges / 45
    verdict = "missed by 0.039" if code else "pass"
    assert f"at least 0.95 is asked: {verdict}" in capsys.readouterr().out
    assert (tau >= 0.95) == (code == 0)


def test_tau_is_scipys_with_ties(tmp_path: Path) -> None:
    a = [2, 8, 8, 14, 20]
    b = [2, 8, 9, 14, 13]
    write_ranking(tmp_path / "a", a)
    write_ranking(tmp_path / "b", b)
    (found,) = compare_rankings(read_runs(tmp_path / "a").runs, read_runs(tmp_path / "b").runs)
    expected = kendalltau(a, b)
    assert found.tau == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)


def test_methods_of_one_side_only_are_left_out(tmp_path: Path) -> None:
    write_ranking(tmp_path, [2, 8, 20], 0)
    write_ranking(tmp_path, [2, 8], 1)
    runs = read_runs(tmp_path).runs
    seeds = [[run for run in runs if run.about["seed"] == seed] for seed in (0, 1)]
    (found,) = compare_rankings(*seeds)
    assert found.methods == ("m0", "m1")


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    write_ranking(tmp_path / "a", [2, 8], 0)
    write_ranking(tmp_path / "a", [2, 8], 1)
    write_ranking(tmp_path / "one", [2], 0)
    both = read_runs(tmp_path / "a").runs
    one = read_runs(tmp_path / "one").runs
    with pytest.raises(UserError, match="of seeds 0 and 1: choose two seeds by --seeds"):
        compare_rankings(both, both)
    with pytest.raises(UserError, match="no two methods are in both"):
        compare_rankings(one, one)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{a}"], "name a second results folder, or two seeds"),
        (["{a}", "--seeds", "0", "7"], "--seeds 7: no run of it in .*; there are 0"),
        (["m0-00000000", "--results", "{a}"], "name a second run"),
    ],
)
def test_a_command_that_is_not_whole_is_refused(
    arguments: Sequence[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ranking(tmp_path, [2, 8])
    assert compare.main([one.format(a=tmp_path) for one in arguments]) == 2
    assert re.search(problem, capsys.readouterr().err)
