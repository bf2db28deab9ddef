"""Importance sampling, beam search, FR-TTS: what they choose, what they copy, and what it costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from test_batch_invariance import costs
from toy import TEXTS, PixelSum, draw, jobs

from harness.engine.rendering import Image
from harness.engine.session import Method
from harness.records import UserError
from methods.best_of_n import BestOfN
from methods.plain import Plain
from methods.search import (
    Beam,
    CellColors,
    Climb,
    FillingReward,
    ImportanceSampling,
    descend,
    distances_from_earlier,
    importance_weights,
    stretch_top,
    survivors,
    weigh,
    weights_at,
)

T = 16
"""Tokens of the toy's image, in rows of four."""


def importance(n: int = 4) -> ImportanceSampling:
    return ImportanceSampling(n, PixelSum(), gain=0.5)


def beam(beams: int = 2, branch: int = 2, pad: str = "repeat") -> Beam:
    return Beam(PixelSum(), beams, branch, (0.25, 0.5), pad)


def filling(n: int = 4, features: CellColors | None = None) -> FillingReward:
    return FillingReward(n, PixelSum(), features, (0.5, 0.75))


SEARCHES: dict[str, Callable[[], Method]] = {
    "importance": importance,
    "beam": beam,
    "beam crop": lambda: beam(pad="crop"),
    "fr_tts": filling,
    "fr_tts diverse": lambda: filling(features=CellColors(2)),
}


@pytest.mark.parametrize("build", [lambda: importance(1), lambda: beam(1, 1), lambda: filling(1)])
def test_one_candidate_is_plain_and_is_not_scored(build: Callable[[], Method]) -> None:
    plain = draw(Plain(), jobs(TEXTS))
    for key, delivery in draw(build(), jobs(TEXTS)).items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens
        assert delivery.usage.judge_calls == 0
        assert costs(delivery.usage) == costs(plain[key].usage)


# --- importance sampling --------------------------------------------------------------------------


def test_chances_are_those_of_the_rewards() -> None:
    assert importance_weights([0.0, 0.1], 10) == pytest.approx([0.268941, 0.731059], abs=1e-6)
    assert importance_weights([None, 1.0, math.nan], 10) == [0.0, 1.0, 0.0]
    assert importance_weights([None, None], 10) == [1.0, 0.0]
    assert importance_weights([1e6, 0.0], 10) == [1.0, 0.0]
    assert importance_weights([3.0, 5.0], 0) == [0.5, 0.5]


def test_candidates_are_those_of_best_of_n_and_drawn_as_often_as_their_chances() -> None:
    some = jobs(["a cat"], images=60)
    best = draw(BestOfN(2, PixelSum()), some, slots=48)
    drawn = draw(ImportanceSampling(2, PixelSum(), gain=0.3), some, slots=48)
    surprise = 0.0
    expected = 0.0
    for key, delivery in drawn.items():
        notes = delivery.notes
        assert notes["scores"] == best[key].notes["scores"]
        chances = np.array(notes["chances"])
        top = notes["scores"].index(max(notes["scores"]))  # type: ignore[union-attr, arg-type]
        surprise += (notes["chosen"] == top) - chances[top]
        expected += chances[top] * (1 - chances[top])
    assert abs(surprise) < 4 * math.sqrt(expected)


def test_a_great_gain_is_best_of_n() -> None:
    best = draw(BestOfN(4, PixelSum()), jobs(TEXTS))
    for key, delivery in draw(ImportanceSampling(4, PixelSum(), 1e9), jobs(TEXTS)).items():
        assert delivery.tokens == best[key].tokens
        assert costs(delivery.usage) == costs(best[key].usage)


# --- beam search ----------------------------------------------------------------------------------


def test_the_best_stay_and_the_others_become_their_copies() -> None:
    assert descend([1.0, 4.0, 3.0, 2.0], 2, 2) == [1, 1, 2, 2]
    assert descend([1.0, 1.0, 1.0, 1.0], 1, 4) == [0, 0, 0, 0]
    assert descend([None, 1.0, 2.0, None], 2, 2) == [2, 1, 2, 1]
    assert descend([5.0, 1.0, 9.0], 3, 1) == [0, 1, 2]


def test_a_branch_of_one_is_best_of_n() -> None:
    best = draw(BestOfN(3, PixelSum()), jobs(TEXTS))
    for key, delivery in draw(beam(3, 1), jobs(TEXTS)).items():
        assert delivery.tokens == best[key].tokens


class FirstRow:
    """A reward that reads the first row of tokens only."""

    id = "first-row"

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[float]:
        return [float(image[0].mean()) for image in images]


def test_all_finished_candidates_descend_from_the_best_first_row() -> None:
    best = draw(BestOfN(4, FirstRow()), jobs(TEXTS))
    for key, delivery in draw(Beam(FirstRow(), 1, 4, (0.25,)), jobs(TEXTS)).items():
        assert delivery.tokens[:4] == best[key].tokens[:4]
        assert len(set(delivery.notes["scores"])) == 1  # type: ignore[arg-type]


def test_the_ledger_counts_drawn_overwritten_and_rendered() -> None:
    """Two stops, two of four overwritten at each: copies cost no token, what they replace does."""
    for delivery in draw(beam(), jobs(TEXTS)).values():
        usage = delivery.usage
        assert usage.sampled == 4 * T
        assert usage.discarded == count_discarded(delivery.notes)
        assert usage.renders == 4 * 3
        assert usage.judge_calls == 4 * 3


def count_discarded(notes: dict[str, Any]) -> int:
    """Tokens that candidates had drawn themselves when they were overwritten or not delivered."""
    own = [0] * 4
    discarded = 0
    for stop in notes["stops"]:
        own = [count + 4 for count in own]
        for place, source in enumerate(stop["source"]):
            if source != place:
                discarded += own[place]
                own[place] = 0
    left = [count + 8 for i, count in enumerate(own) if i != notes["chosen"]]
    return discarded + sum(left)


def test_a_cropped_view_repeats_rows_of_pixels() -> None:
    view = np.arange(8).reshape(8, 1)
    assert stretch_top(view, 0.25)[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert stretch_top(view, 1.0)[:, 0].tolist() == list(range(8))


# --- FR-TTS ---------------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    assert weights_at(0.5, 0.03) == pytest.approx((0.5, 0.5))
    assert weights_at(0.75, 0.03) == pytest.approx((1.0, 0.0))
    assert weights_at(0.5, 0.1) == pytest.approx((0.6009, 0.3991), abs=1e-4)
    assert weights_at(0.5, 0.0)[1] == pytest.approx(0.5 + 0.0447, abs=1e-4)
    assert weights_at(0.1, 0.0) == (0.0, 1.0)


def test_diversity_punishes_the_later_of_twins() -> None:
    a = [1.0, 0.0]
    b = [0.0, 1.0]
    far = math.sqrt(2)
    assert distances_from_earlier(np.array([a, a, b])) == pytest.approx([far, 0.0, far])
    assert weigh([1.0, 1.0, 1.0], [far, 0.0, far], 0.5)[1] == min(
        weigh([1.0, 1.0, 1.0], [far, 0.0, far], 0.5)
    )


def test_fewer_candidates_survive_later_stops() -> None:
    assert [survivors(8, stop) for stop in (0.25, 0.5, 0.75)] == [8, 4, 2]
    assert survivors(2, 0.75) == 1


@pytest.mark.parametrize("features", [None, CellColors(2)])
def test_every_filling_that_was_looked_at_is_in_the_ledger(features: CellColors | None) -> None:
    n = 4
    for delivery in draw(filling(n, features), jobs(TEXTS)).values():
        assert not delivery.error
        usage = delivery.usage
        looks = 0
        for stop in delivery.notes["stops"]:  # type: ignore[union-attr]
            assert 9 * n <= stop["looks"] <= 15 * n  # type: ignore[index, call-overload]
            looks += stop["looks"]  # type: ignore[index, call-overload]
            kept = Counter(stop["source"])  # type: ignore[index, call-overload]
            most = survivors(n, stop["stop"])  # type: ignore[index, call-overload]
            assert len(kept) <= most
        extra = 0 if features is None else 2 * n
        assert usage.judge_calls == looks + n + extra
        assert n < usage.renders <= looks + n  # equal fillings are decoded once
        assert usage.sampled == n * T


class Recorder:
    """The reward of dark pictures, which keeps what it was shown."""

    id = "recorder"

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[float]:
        self.seen += images
        return [-float(np.mean(image)) for image in images]


def test_only_drawn_blocks_fill_the_undrawn_part() -> None:
    reward = Recorder()
    draw(FillingReward(2, reward, None, (0.5,), block=2), jobs(["a cat"]))
    partial = [image[..., 0] for image in reward.seen[:-2]]
    for picture in partial:
        blocks = picture.reshape(-1, 2).tolist()
        drawn = blocks[:4]
        assert all(block in drawn for block in blocks[4:])


def test_a_unique_filling_ends_the_search_after_two_misses() -> None:
    """One drawn block: every filling is the same, and 5 + 4 pictures are looked at."""
    method = FillingReward(2, PixelSum(), None, (0.5,), block=8)
    for delivery in draw(method, jobs(TEXTS)).values():
        (stop,) = delivery.notes["stops"]  # type: ignore[misc]
        assert stop["looks"] == 2 * 9  # type: ignore[index, call-overload]


def test_climbing_never_ends_below_the_first_fillings() -> None:
    """More climbing finds fillings that the reward likes at least as well."""

    def rewards(rounds: int) -> list[float]:
        method = FillingReward(2, PixelSum(), None, (0.5,), block=2, climb=Climb(5, rounds, 2))
        found: list[float] = []
        for delivery in draw(method, jobs(TEXTS)).values():
            (stop,) = delivery.notes["stops"]  # type: ignore[misc]
            found += stop["rewards"]  # type: ignore[index, call-overload]
        return found

    pairs = list(zip(rewards(0), rewards(5), strict=True))
    assert all(before <= after for before, after in pairs)
    assert any(before < after for before, after in pairs)


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEARCHES)
def test_what_else_is_in_the_batch_changes_nothing(name: str) -> None:
    some = jobs(TEXTS, images=2)
    together = draw(SEARCHES[name](), some, slots=24)
    for others, slots in ((some[::-1], 24), (some[3:4], 8)):
        for key, delivery in draw(SEARCHES[name](), others, slots=slots).items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


class Silent:
    """A reward that cannot tell."""

    id = "silent"

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[None]:
        return [None for _ in images]


@pytest.mark.parametrize(
    "method",
    [
        ImportanceSampling(2, Silent()),
        Beam(Silent(), 1, 2, (0.5,)),
        FillingReward(2, Silent()),
    ],
)
def test_without_an_answer_nothing_is_chosen(method: Method) -> None:
    for delivery in draw(method, jobs(TEXTS)).values():
        assert "silent" in delivery.error


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ImportanceSampling(0, PixelSum()), r"method\.n=0"),
        (lambda: ImportanceSampling(2, PixelSum(), -1), r"method\.gain=-1"),
        (lambda: beam(0, 2), r"method\.beams=0"),
        (lambda: beam(2, 0), r"method\.branch=0"),
        (lambda: beam(pad="blur"), r"method\.pad=blur: choose from repeat"),
        (lambda: Beam(PixelSum(), stops=(0.5, 0.25)), r"method\.stops=\[0\.5, 0\.25\]"),
        (lambda: Beam(PixelSum(), stops=(0.5, 1.0)), r"method\.stops"),
        (lambda: FillingReward(0, PixelSum()), r"method\.n=0"),
        (lambda: FillingReward(2, PixelSum(), block=0), r"method\.block=0"),
        (lambda: FillingReward(2, PixelSum(), temperature=0), r"method\.temperature=0"),
        (lambda: CellColors(0), r"features\.cells=0"),
    ],
)
def test_values_out_of_range_are_refused(build: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Beam(PixelSum(), 1, 2, stops=(0.3,)), r"the top 0\.3 of 4 rows of tokens is 1\.2 rows"),
        (FillingReward(2, PixelSum(), stops=(0.25,), block=3), r"method\.block=3: 4 of 16 tokens"),
    ],
)
def test_grids_that_do_not_fit_are_refused_before_any_compute(method: Method, words: str) -> None:
    with pytest.raises(UserError, match=words):
        draw(method, jobs(TEXTS))
