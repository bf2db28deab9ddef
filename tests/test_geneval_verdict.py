"""GenEval's decision rules, on hand-made detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from benchmarks.geneval.verdict import (
    Options,
    Verdict,
    keep_detections,
    overlap,
    relations,
    verdict,
)


@dataclass
class Seen:
    name: str
    box: tuple[float, float, float, float] = (0, 0, 10, 10)
    score: float = 0.95
    color: str = "red"


def judge(
    detections: list[Seen], *include: dict, exclude: tuple[dict, ...] = (), tag: str = "two_object"
) -> Verdict:
    spec = {"tag": tag, "include": list(include), "exclude": list(exclude)}

    def color_of(_: str, indices: Sequence[int]) -> list[str]:
        return [detections[i].color for i in indices]

    return verdict(detections, spec, color_of)


def clause(name: str, count: int = 1, **more: object) -> dict:
    return {"class": name, "count": count, **more}


def test_scores_are_compared_strictly_and_as_32_bit_floats() -> None:
    seen = [Seen("cat", score=score) for score in (0.3, 0.3 + 1e-9, 0.301)]
    assert keep_detections(seen, "single_object") == {"cat": [2]}


def test_counting_has_its_own_threshold() -> None:
    assert keep_detections([Seen("cat", score=0.9), Seen("cat", score=0.91)], "counting") == {
        "cat": [1]
    }


def test_the_cap_keeps_the_most_confident() -> None:
    seen = [Seen("cat", score=0.5 + i / 100) for i in range(20)]
    assert keep_detections(seen, "colors") == {"cat": list(range(19, 3, -1))}


def test_suppression_is_off_by_default_and_spares_what_a_dropped_box_overlapped() -> None:
    chain = [
        Seen("cat", (0, 0, 9, 9), 0.9),
        Seen("cat", (4, 0, 13, 9), 0.8),
        Seen("cat", (8, 0, 17, 9), 0.7),
    ]
    assert keep_detections(chain, "colors") == {"cat": [0, 1, 2]}
    assert keep_detections(chain, "colors", Options(max_overlap=0.4)) == {"cat": [0, 2]}


def test_overlap_counts_inclusive_pixels_and_suppresses_at_equality() -> None:
    pair = [Seen("cat", (0, 0, 9, 9), 0.9), Seen("cat", (0, 0, 9, 4), 0.8)]
    assert overlap(pair[0].box, pair[1].box) == 0.5
    assert keep_detections(pair, "colors", Options(max_overlap=0.5)) == {"cat": [0]}
    assert overlap((0, 0, -1, -1), (0, 0, -1, -1)) == 0


def test_missing_objects_are_named_and_every_clause_is_evaluated() -> None:
    decision = judge([Seen("cat")], clause("dog"), clause("cat", 2))
    assert not decision.correct
    assert decision.reasons == ("expected dog>=1, found 0", "expected cat>=2, found 1")


def test_counting_is_exact_through_include_and_exclude() -> None:
    exactly_two = {"exclude": (clause("cat", 3),), "tag": "counting"}
    one, two, three = (judge([Seen("cat")] * n, clause("cat", 2), **exactly_two) for n in (1, 2, 3))
    assert one.reasons == ("expected cat>=2, found 1",)
    assert two.correct
    assert three.reasons == ("expected cat<3, found 3",)


def test_color_is_asked_of_the_most_confident_only() -> None:
    seen = [Seen("cup", score=0.5, color="blue"), Seen("cup", score=0.8, color="green")]
    decision = judge(seen, clause("cup", color="blue"))
    assert decision.reasons == ("expected blue cup>=1, found 0 blue; and 1 green",)
    assert decision.color_checked == (("cup", (1,)),)
    assert judge(seen, clause("cup", color="green")).correct


def test_color_is_not_asked_where_objects_are_missing() -> None:
    assert judge([], clause("cup", color="blue")).color_checked == ()


def test_two_colors_of_one_class_can_never_both_pass() -> None:
    seen = [Seen("cup", color="blue"), Seen("cup", color="green")]
    assert not judge(seen, clause("cup", color="blue"), clause("cup", color="green")).correct


LEFT = (0, 50, 10, 60)
RIGHT = (50, 50, 60, 60)
ABOVE_RIGHT = (50, 0, 60, 10)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (LEFT, RIGHT, ["left of"]),
        (RIGHT, LEFT, ["right of"]),
        (ABOVE_RIGHT, RIGHT, ["above"]),
        (RIGHT, ABOVE_RIGHT, ["below"]),
        (ABOVE_RIGHT, LEFT, ["above", "right of"]),
        (LEFT, LEFT, []),
        # An offset of a tenth of both widths shrinks to nothing.
        ((2, 0, 12, 10), (0, 0, 10, 10), []),
        # (4 - 2) / 4 is not more than a half.
        ((4, 0, 14, 10), (0, 0, 10, 10), []),
        ((4.1, 0, 14.1, 10), (0, 0, 10, 10), ["right of"]),
    ],
)
def test_relations_need_half_of_the_offset_along_their_axis(
    a: tuple, b: tuple, expected: list[str]
) -> None:
    assert relations(a, b) == expected


def test_position_holds_against_every_target() -> None:
    seen = [Seen("dog", RIGHT, 0.9), Seen("dog", LEFT, 0.8), Seen("cat", (20, 50, 30, 60))]
    assert judge(seen, clause("dog"), clause("cat", position=["left of", 0])).correct
    both = judge(seen, clause("dog", 2), clause("cat", position=["left of", 0]))
    assert both.reasons == ("expected cat left of target, found right of target",)


def test_no_relation_leaves_two_blanks() -> None:
    decision = judge(
        [Seen("dog"), Seen("cat")], clause("dog"), clause("cat", position=["above", 0])
    )
    assert decision.reasons == ("expected cat above target, found  target",)


def test_a_clause_that_failed_on_color_is_no_target() -> None:
    decision = judge(
        [Seen("dog", RIGHT), Seen("cat", LEFT)],
        clause("dog", color="blue"),
        clause("cat", position=["left of", 0]),
    )
    assert decision.reasons[1] == "no target for cat to be left of"
