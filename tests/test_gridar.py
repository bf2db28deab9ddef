"""GridAR's laws: without stages it is Best-of-N, copies share a prefix, every call is counted."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from test_batch_invariance import costs
from toy import DEVICES, TEXTS, PixelSum, ToyModel, draw, jobs

from harness.check import main as check
from harness.drafters.jacobi import Jacobi
from harness.engine.acceptance import coupled
from harness.engine.draft_trees import Proactive
from harness.engine.guidance import Sampling, cfg
from harness.engine.rendering import Image
from harness.engine.scheduler import Delivery
from harness.records import UserError
from methods.best_of_n import BestOfN
from methods.gridar import (
    GridAR,
    choose_candidate,
    extract_prompt,
    hide_undrawn,
    orthogonal_part,
    padding_tokens,
    read_verdicts,
    select_sources,
    stack_tops,
    three_way_guidance,
)
from methods.speculative import Speculative

VECTORS = Path(__file__).parents[2] / "shared" / "data" / "methods" / "gridar.jsonl"
Tokens = dict[tuple[str, int], tuple[int, ...]]
TWO_STEPS = {"quarter": {"share": 0.25, "strips": 4}, "half": {"share": 0.5, "strips": 2}}


class Mock:
    """A deterministic verifier that keeps what it was shown: (text, strips or 0, image).

    A strip is possible when its brightness is even, and a prompt gets a clause by brightness;
    `verdict` and `clause` take the place of these.
    """

    id = "mock"

    def __init__(self, verdict: str | None = None, clause: str | None = None) -> None:
        self.verdict = verdict
        self.clause = clause
        self.shown: list[tuple[str, int, Image]] = []

    def select(self, strips: int) -> MockSelect:
        return MockSelect(self, strips)

    def rewrite(self, texts: Sequence[str], images: Sequence[Image]) -> list[str]:
        rewritten = []
        for text, image in zip(texts, images, strict=True):
            self.shown.append((text, 0, image))
            by_brightness = f", {int(image.sum()) % 5} words"
            rewritten.append(text + (by_brightness if self.clause is None else self.clause))
        return rewritten


class MockSelect:
    """The judge of a mock's composites of so many strips."""

    def __init__(self, mock: Mock, strips: int) -> None:
        self.id = f"mock-{strips}"
        self.mock = mock
        self.strips = strips

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[str]:
        for text, image in zip(texts, images, strict=True):
            self.mock.shown.append((text, self.strips, image))
        return [self.judge(image) for image in images]

    def judge(self, image: Image) -> str:
        words = []
        for strip in np.split(image, self.strips):
            is_odd = int(strip.sum()) // 3 % 2
            words.append(self.mock.verdict or ("possible", "impossible")[is_odd])
        return ", ".join(words)


def gridar(verifier: Mock, n: int = 4, **options: object) -> GridAR:
    options = {"stages": TWO_STEPS, "line": 0, **options}
    return GridAR(n, verifier=verifier, reward=PixelSum(), **options)  # type: ignore[arg-type]


def drawn_tokens(method: object, **options: object) -> Tokens:
    deliveries = draw(method, jobs(TEXTS), slots=48, **options)  # type: ignore[arg-type]
    assert not any(delivery.error for delivery in deliveries.values())
    return {key: delivery.tokens for key, delivery in deliveries.items()}


def stops_of(delivery: Delivery) -> list[dict[str, Any]]:
    """What the method noted at each of its stops."""
    return cast(list[dict[str, Any]], delivery.notes["stages"])


@pytest.fixture(scope="module")
def best_of_4() -> Tokens:
    return drawn_tokens(BestOfN(4, PixelSum()))


def test_a_decoding_finishes_the_candidates_that_stops_left() -> None:
    """With coupled noise the images are those without a decoding, for fewer target passes."""
    alone = draw(gridar(Mock()), jobs(TEXTS), slots=48)
    decoding = Speculative(Jacobi("uniform", "gumbel"), Proactive(2, 2, 6), coupled)
    for key, delivery in draw(gridar(Mock(), decoding=decoding), jobs(TEXTS), slots=48).items():
        assert not delivery.error
        assert delivery.tokens == alone[key].tokens
        assert delivery.usage.target_passes <= alone[key].usage.target_passes


# --- reductions -----------------------------------------------------------------------------------


def test_without_stages_it_is_best_of_n(best_of_4: Tokens) -> None:
    assert drawn_tokens(gridar(Mock(), stages={})) == best_of_4
    assert drawn_tokens(gridar(Mock(), stages={"quarter": None, "half": None})) == best_of_4
    assert drawn_tokens(gridar(Mock(), select=False, rewrite=False)) == best_of_4
    assert drawn_tokens(gridar(Mock(), n=1, stages={})) == drawn_tokens(BestOfN(1))


@pytest.mark.parametrize("three_way", [True, False])
@pytest.mark.parametrize("verdict", ["possible", "impossible"])
def test_nothing_replaced_and_nothing_rewritten_is_best_of_n(
    verdict: str, three_way: bool, best_of_4: Tokens
) -> None:
    """A group that is impossible throughout stays as it is.

    With the prompt rewritten to itself, three-way guidance equals two-way guidance.
    """
    method = gridar(Mock(verdict, clause=""), three_way=three_way)
    assert drawn_tokens(method) == best_of_4


def test_a_rewritten_prompt_changes_the_images(best_of_4: Tokens) -> None:
    assert drawn_tokens(gridar(Mock("possible"))) != best_of_4


def test_guidance_needs_the_rewritten_prompt_only_where_it_differs() -> None:
    rng = torch.Generator().manual_seed(0)
    null, text, rewritten = torch.randn(3, 5, 2, 64, generator=rng)
    scale = torch.full((5,), 3.0, dtype=torch.float64)

    two_way = cfg(torch.stack((null, text), 1), scale)
    same_prompt = three_way_guidance(torch.stack((null, text, text), 1), scale)
    assert torch.equal(same_prompt, two_way)

    d_r = rewritten - null
    no_prompt = three_way_guidance(torch.stack((null, null, rewritten), 1), scale)
    assert torch.allclose(no_prompt, null + 2.0 * d_r, atol=1e-5)

    d_o = text - null
    d_perp = orthogonal_part(d_r, d_o)
    largest = d_perp.norm(dim=-1) * d_o.norm(dim=-1)
    assert ((d_perp * d_o).sum(-1).abs() <= 1e-4 * largest).all()


def test_worked_values() -> None:
    branches = torch.tensor([[0.0, 0, 0], [1, 0, -1], [1, 1, 0]])[None, :, None]
    scale = torch.tensor([6.0])
    assert three_way_guidance(branches, scale).flatten().tolist() == [8.5, 5.0, -3.5]
    assert three_way_guidance(branches, scale, 0.0).flatten().tolist() == [6.0, 0.0, -6.0]


# --- copies ---------------------------------------------------------------------------------------


class Spy(PixelSum):
    """A reward that keeps the finished images of every prompt."""

    def __init__(self) -> None:
        self.finished: dict[str, list[Image]] = {}

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[float]:
        for text, image in zip(texts, images, strict=True):
            self.finished.setdefault(text, []).append(image)
        return super().__call__(texts, images)


def test_copies_share_their_prefix_and_then_differ() -> None:
    spy = Spy()
    stages = {"half": {"share": 0.5, "strips": 2}}
    method = GridAR(8, stages, Mock(), spy, rewrite=False, line=0)
    copies = 0
    for delivery in draw(method, jobs(TEXTS), slots=24).values():
        (stop,) = stops_of(delivery)
        assert len(stop["pictures"]) == 4
        images = spy.finished[delivery.job.prompt.text]
        for i, source in enumerate(stop["source"]):
            if source != i:
                copies += 1
                assert np.array_equal(images[i][:2], images[source][:2])
                assert not np.array_equal(images[i][2:], images[source][2:])
        assert len({image.tobytes() for image in images}) == 8
    assert copies > 5


def sources(flags: str, **options: Any) -> list[int]:
    """Sources of candidates that are possible (T) or not (F), four to a reply."""
    words = ["possible" if flag == "T" else "impossible" for flag in flags]
    replies = [", ".join(words[i : i + 4]) for i in range(0, len(words), 4)]
    return select_sources(replies, 4, **options).source


def test_possible_candidates_take_turns_in_replacing_the_others_of_their_group() -> None:
    assert sources("TFTF") == [0, 0, 2, 2]
    assert sources("FFTF") == [2, 2, 2, 2]
    assert sources("FFFF") == [0, 1, 2, 3]
    assert sources("TFFF") == [0, 0, 0, 0]
    assert sources("FFFFTFFT", grouped_by_4=False) == [4, 7, 4, 7, 4, 4, 7, 7]


def test_sources_may_be_drawn_at_random() -> None:
    drawn = sources("TFFFFFFT", grouped_by_4=False, rng=np.random.default_rng(0))
    assert set(drawn[1:7]) == {0, 7}


# --- replies --------------------------------------------------------------------------------------


def test_malformed_answers_are_impossible_and_counted() -> None:
    replies = ["possible, perhaps", None, "possible", "possible, possible, possible"]
    found = select_sources(replies, 2)
    assert found.possible == [True, False, True, True, True, False, True, True]
    assert (found.failed, found.malformed) == (1, 3)


def test_a_rewriting_is_what_stands_in_quotes_or_else_the_original() -> None:
    assert extract_prompt('He said: "two cats, one above"', "two cats") == "two cats, one above"
    assert extract_prompt(None, "two cats") == "two cats"
    assert extract_prompt(' "" ', "two cats") == "two cats"


def test_a_missing_score_wins_only_where_all_are_missing() -> None:
    assert choose_candidate([None, 0.2, float("nan"), 0.1]) == 1
    assert choose_candidate([None, None]) == 0


class Mute(PixelSum):
    """A reward that gives no score to images of odd brightness."""

    def __call__(  # type: ignore[override]
        self, texts: Sequence[str], images: Sequence[Image]
    ) -> list[float | None]:
        return [None if int(image.sum()) % 2 else float(image.mean()) for image in images]


def test_a_candidate_without_a_score_fails_the_image() -> None:
    method = GridAR(4, TWO_STEPS, Mock(), Mute(), line=0)
    failed = 0
    for delivery in draw(method, jobs(TEXTS, images=2), slots=24).values():
        failed += delivery.image is None
        assert (delivery.image is None) == (delivery.usage.unanswered > 0)
        said = "questions without an answer (unreadable: the judge cannot tell)"
        assert (said in delivery.error) == (delivery.image is None)
    assert failed > 0


def test_the_fallback_of_the_reward_stands_in_and_is_counted() -> None:
    method = GridAR(4, TWO_STEPS, Mock(), Mute(), line=0, orm_fallback=-1.0)
    unscored = 0
    for delivery in draw(method, jobs(TEXTS, images=2), slots=24).values():
        notes = cast(dict[str, Any], delivery.notes)
        scores = notes["scores"]
        assert notes["unscored"] == scores.count(None) == delivery.usage.unanswered
        assert scores[notes["chosen"]] is not None or not any(scores)
        unscored += notes["unscored"]
    assert unscored > 0


@pytest.mark.parametrize(
    "reply",
    [
        "possible, impossible",
        " **Possible**, *impossible*.",
        "1. possible\n2. impossible",
        "Strip 1: possible; strip 2: impossible",
        "POSSIBLE,\nIMPOSSIBLE,",
    ],
)
def test_verdicts_are_read_in_decoration(reply: str) -> None:
    assert read_verdicts(reply, 2) == "possible, impossible"


@pytest.mark.parametrize(
    "reply",
    [
        "possible",
        "possible, not possible",
        "possible, impossible, possible",
        "possible, perhaps",
        "Both are possible, the second impossible",
        "\u2026",
        "-" * 100_000 + "x",
    ],
)
def test_words_that_are_no_verdicts_are_no_answer(reply: str) -> None:
    with pytest.raises(ValueError, match=r"verdicts for 2 strips|neither possible nor impossible"):
        read_verdicts(reply, 2)


# --- pictures and prompts -------------------------------------------------------------------------

VIEWS = [np.full((384, 4, 3), 50 * (i + 1), np.uint8) for i in range(4)]
"""Four candidates, each of one level of grey."""


def test_a_composite_stacks_the_tops_between_black_lines() -> None:
    stacked = stack_tops(VIEWS, 0.25, 3)
    assert stacked.shape == VIEWS[0].shape
    black = [row for row in range(384) if not stacked[row].any()]
    assert black == [95, 96, 97, 191, 192, 193, 287, 288, 289]
    assert [stacked[row, 0, 0] for row in (0, 94, 98, 190, 383)] == [50, 50, 100, 100, 200]


def test_the_undrawn_part_is_shown_black() -> None:
    shown = hide_undrawn(VIEWS[1], 0.5, 3)
    assert shown[190].all()
    assert not shown[191:].any()
    assert VIEWS[1].all()
    assert not hide_undrawn(VIEWS[1], 0.0, 3).any()


def test_padding_stands_in_for_undrawn_tokens() -> None:
    assert padding_tokens([1, 2, 6], 8, "repeat") == [1, 2, 6, 1, 2]
    assert padding_tokens([1, 2, 6], 6, "zero") == [0, 0, 0]
    assert padding_tokens([1, 2, 5], 5, "mean") == [2, 2]
    assert padding_tokens([1, 2, 6], 8, "model") == []
    assert padding_tokens([], 8, "repeat") == []


def test_the_verifier_sees_repeated_tops_of_the_original_prompt_only() -> None:
    mock = Mock("possible")
    draw(gridar(mock), jobs(TEXTS[:1]), slots=24)
    # Rewriting starts from the original each time.
    assert {text for text, _, _ in mock.shown} == {TEXTS[0]}
    assert [strips for _, strips, _ in mock.shown] == [4, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0]
    quarter = mock.shown[1][2]
    half = mock.shown[7][2]
    assert quarter[0].all()
    assert not quarter[1:].any()
    assert half[:2].all()
    assert not half[2:].any()


def test_a_replaced_candidate_is_shown_and_rewritten_as_its_source() -> None:
    method = gridar(Mock(), stages={"half": {"share": 0.5, "strips": 2}})
    for delivery in draw(method, jobs(TEXTS), slots=24).values():
        (stop,) = stops_of(delivery)
        texts = stop["texts"]
        assert texts == [texts[source] for source in stop["source"]]


def test_a_stage_of_share_0_rewrites_the_prompt_before_the_first_row(best_of_4: Tokens) -> None:
    mock = Mock(clause=" again")
    stages = {"plan": {"share": 0, "select": False, "three_way": False}}
    planned = drawn_tokens(gridar(mock, stages=stages))
    assert not any(image.any() for _, _, image in mock.shown)
    assert planned != best_of_4


class Strays(Mock):
    """A verifier whose rewritten prompts do not begin with the original."""

    def rewrite(self, texts: Sequence[str], images: Sequence[Image]) -> list[str]:
        return ["something else" for _ in texts]


def test_rewritten_prompts_may_be_refused(best_of_4: Tokens) -> None:
    assert drawn_tokens(gridar(Strays("possible"), keep_original=True)) == best_of_4
    assert drawn_tokens(gridar(Mock("possible", clause=" very" * 90))) == best_of_4
    for delivery in draw(gridar(Strays("possible")), jobs(TEXTS), slots=24).values():
        for stop in stops_of(delivery):
            assert (stop["strayed"], stop["refused"]) == (4, 0)


# --- cost, and what else is in the batch ----------------------------------------------------------


@pytest.mark.parametrize("n", [4, 8])
def test_calls_and_tokens_as_the_paper_counts_them(n: int) -> None:
    selections = n // 4 + n // 2
    rewritings = 2 * n
    for delivery in draw(gridar(Mock(), n=n), jobs(TEXTS), slots=24).values():
        usage = delivery.usage
        assert usage.judge_calls == selections + rewritings + n  # N=4: 11, and 4 of the reward
        assert usage.visual_tokens == n * 16  # as many as Best-of-N: copies are not drawn again
        assert usage.renders <= 3 * n


def test_unchanged_branches_keep_their_cache() -> None:
    """Each text of a canvas is read once; copies read nothing anew.

    The second rewriting is the same text as the first. Every branch is fed 15 tokens: the third
    one catches up on the prefix once.
    """
    method = gridar(Mock("possible", clause=" x y"), n=4)
    for delivery in draw(method, jobs(TEXTS), slots=24).values():
        words = 1 + len(delivery.job.prompt.text.split())
        rewritten = min(9, words + 2)
        assert delivery.usage.text_positions == 4 * (2 * words + rewritten)
        assert delivery.usage.target_positions == 4 * (2 * 15 + 15)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_else_is_in_the_batch_changes_nothing(dtype: torch.dtype, device: str) -> None:
    model = ToyModel(dtype=dtype, device=device)
    some = jobs(TEXTS, images=2)
    together = draw(gridar(Mock()), some, model=model, slots=36)
    shuffled = random.Random(3).sample(some, len(some))
    for others in (shuffled, shuffled[:2]):
        for key, delivery in draw(gridar(Mock()), others, model=model, slots=36).items():
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


def test_a_falsified_answer_key_changes_nothing() -> None:
    true = jobs(TEXTS)
    false = jobs(TEXTS)
    for job in false:
        job.prompt.spec["answer"] = "falsified"  # type: ignore[index]
    honest = draw(gridar(Mock()), true, slots=24)
    misled = draw(gridar(Mock()), false, slots=24)
    for one, other in zip(honest.values(), misled.values(), strict=True):
        assert one.tokens == other.tokens


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, r"method\.n=0"),
        ({"n": 6}, r"method\.n=6 .* groups of 4"),
        ({"n": 6, "grouped_by_4": False}, r"method\.n=6: stage quarter shows 4"),
        ({"stages": {"third": {"share": 1 / 3, "strips": 3}}}, "3 candidates per picture"),
        ({"stages": {"none": {"share": 0.0, "strips": 4}}}, "nothing to judge"),
        ({"stages": {"half": {"shares": 0.5}}}, r"method\.stages\.half"),
        ({"pad": "ones"}, r"method\.pad=ones"),
        ({"replacement": "best"}, r"method\.replacement=best"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        gridar(Mock(), **options)


def test_grids_and_models_that_do_not_fit_are_refused_before_any_compute() -> None:
    model = ToyModel(grid=(6, 4))
    complaint = r"stages\.quarter: the top 0\.25 of 6 rows of tokens is 1\.5 rows"
    with pytest.raises(UserError, match=complaint):
        draw(gridar(Mock()), jobs(TEXTS), model=model, slots=24)
    with pytest.raises(UserError, match="switches guidance off"):
        draw(gridar(Mock()), jobs(TEXTS), model=model, sampling=Sampling(scale=1.0), slots=24)
    assert model.forwards == 0
    fitting = gridar(Mock(), n=2, stages={"half": TWO_STEPS["half"]}, grouped_by_4=False)
    assert drawn_tokens(fitting, model=model)


# --- conformance ----------------------------------------------------------------------------------


def test_conformance_vectors(capsys: pytest.CaptureFixture[str]) -> None:
    if not VECTORS.is_file():
        pytest.skip(f"the conformance vectors are not here: {VECTORS.name}")
    assert check(["gridar", str(VECTORS)]) == 0
    assert capsys.readouterr().out.endswith("199 passed, 0 failed\n")


def test_a_wrong_expectation_fails_and_a_broken_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = {
        "id": "x",
        "kind": "choose",
        "name": "",
        "input": {"scores": [0.1, 0.2], "orm_fallback": None},
    }
    file = tmp_path / "cases.jsonl"
    file.write_text(json.dumps({**case, "expected": {"index": 0}}) + "\n")
    assert check(["gridar", str(file)]) == 1
    assert capsys.readouterr().out == "x (): index: expected 0, got 1\n0 passed, 1 failed\n"
    file.write_text("{}\n")
    assert check(["gridar", str(file)]) == 2
    assert "line 1: not a conformance case" in capsys.readouterr().err
