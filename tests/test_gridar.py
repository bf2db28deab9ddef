"""GridAR's laws: without stages it is Best-of-N, copies share a past and no future, and every call
is counted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from test_batch_invariance import costs
from toy import DEVICES, TEXTS, PixelSum, ToyModel, draw, jobs

from harness.check import main as check
from harness.engine.guidance import Sampling, cfg
from harness.engine.rendering import Image
from harness.records import UserError
from methods.best_of_n import BestOfN
from methods.gridar import (
    GridAR,
    choose,
    composite,
    masked,
    orthogonal,
    padding,
    rewriting,
    selection,
    three_way,
)

VECTORS = Path(__file__).parents[2] / "shared" / "data" / "methods" / "gridar.jsonl"
Tokens = dict[tuple[str, int], tuple[int, ...]]
TWO_STEPS = {"quarter": {"share": 0.25, "strips": 4}, "half": {"share": 0.5, "strips": 2}}


class Mock:
    """A deterministic verifier: a strip is possible when its brightness is even, a prompt gets a
    clause by brightness.

    It keeps what it was shown.
    """

    id = "mock"

    def __init__(self, verdict: str | None = None, clause: str | None = None) -> None:
        self.verdict = verdict
        self.clause = clause
        self.shown: list[tuple[str, int, Image]] = []

    def select(self, strips: int) -> Mock._Select:
        return Mock._Select(self, strips)

    def rewrite(self, texts: Sequence[str], images: Sequence[Image]) -> list[str]:
        self.shown += [(text, 0, image) for text, image in zip(texts, images, strict=True)]
        clauses = [
            f", {int(image.sum()) % 5} words" if self.clause is None else self.clause
            for image in images
        ]
        return [text + clause for text, clause in zip(texts, clauses, strict=True)]

    class _Select:
        def __init__(self, mock: Mock, strips: int) -> None:
            self.id = f"mock-{strips}"
            self.mock = mock
            self.strips = strips

        def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[str]:
            self.mock.shown += [
                (text, self.strips, image) for text, image in zip(texts, images, strict=True)
            ]
            return [self.judge(image) for image in images]

        def judge(self, image: Image) -> str:
            sums = [int(part.sum()) // 3 % 2 for part in np.split(image, self.strips)]
            words = [self.mock.verdict or ("possible", "impossible")[odd] for odd in sums]
            return ", ".join(words)


def gridar(verifier: Mock, n: int = 4, **options: object) -> GridAR:
    options = {"stages": TWO_STEPS, "line": 0, **options}
    return GridAR(n, verifier=verifier, reward=PixelSum(), **options)  # type: ignore[arg-type]


def tokens(method: object, **options: object) -> Tokens:
    deliveries = draw(method, jobs(TEXTS), slots=48, **options)  # type: ignore[arg-type]
    assert not any(delivery.error for delivery in deliveries.values())
    return {key: delivery.tokens for key, delivery in deliveries.items()}


@pytest.fixture(scope="module")
def best() -> Tokens:
    return tokens(BestOfN(4, PixelSum()))


# --- reductions -----------------------------------------------------------------------------------


def test_without_stages_it_is_best_of_n(best: Tokens) -> None:
    assert tokens(gridar(Mock(), stages={})) == best
    assert tokens(gridar(Mock(), stages={"quarter": None, "half": None})) == best
    assert tokens(gridar(Mock(), stages=TWO_STEPS, select=False, rewrite=False)) == best
    assert tokens(gridar(Mock(), n=1, stages={})) == tokens(BestOfN(1))


def test_nothing_rejected_and_nothing_rewritten_is_best_of_n(best: Tokens) -> None:
    """With the prompt rewritten to itself the third branch changes no law: three-way equals two-way
    guidance.
    """
    for verdict in ("possible", "impossible"):  # all impossible: the group stays as it is
        for three in (True, False):
            assert tokens(gridar(Mock(verdict, clause=""), three_way=three)) == best
    assert tokens(gridar(Mock("possible"))) != best


def test_guidance_needs_the_rewritten_prompt_only_where_it_differs() -> None:
    rng = torch.Generator().manual_seed(0)
    null, text, rewritten = torch.randn(3, 5, 2, 64, generator=rng)
    scale = torch.full((5,), 3.0, dtype=torch.float64)
    two = cfg(torch.stack((null, text), 1), scale)
    assert torch.equal(three_way(torch.stack((null, text, text), 1), scale), two)
    apart = rewritten - null
    assert torch.allclose(
        three_way(torch.stack((null, null, rewritten), 1), scale), null + 2.0 * apart, atol=1e-5
    )
    d_perp = orthogonal(apart, text - null)
    d_o = text - null
    assert ((d_perp * d_o).sum(-1).abs() <= 1e-4 * d_perp.norm(dim=-1) * d_o.norm(dim=-1)).all()


def test_worked_values() -> None:
    branches = torch.tensor([[0.0, 0, 0], [1, 0, -1], [1, 1, 0]])[None, :, None]
    assert three_way(branches, torch.tensor([6.0])).flatten().tolist() == [8.5, 5.0, -3.5]
    assert three_way(branches, torch.tensor([6.0]), 0.0).flatten().tolist() == [6.0, 0.0, -6.0]


# --- lineage --------------------------------------------------------------------------------------


def test_copies_share_their_prefix_and_then_go_their_own_way() -> None:
    class Spy(PixelSum):
        def __init__(self) -> None:
            self.finished: dict[str, list[Image]] = {}

        def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[float]:
            for text, image in zip(texts, images, strict=True):
                self.finished.setdefault(text, []).append(image)
            return super().__call__(texts, images)

    spy = Spy()
    stages = {"half": {"share": 0.5, "strips": 2}}
    method = GridAR(8, stages, Mock(), spy, rewrite=False, line=0)
    deliveries = draw(method, jobs(TEXTS), slots=24)
    copies = 0
    for delivery in deliveries.values():
        (stop,) = delivery.notes["stages"]  # type: ignore[misc, union-attr]
        assert len(stop["pictures"]) == 4  # type: ignore[index, call-overload, arg-type]
        images = spy.finished[delivery.job.prompt.text]
        for i, source in enumerate(stop["source"]):  # type: ignore[index, call-overload, arg-type]
            if source != i:
                copies += 1
                assert np.array_equal(images[i][:2], images[source][:2])
                assert not np.array_equal(images[i][2:], images[source][2:])
        assert len({image.tobytes() for image in images}) == 8
    assert copies > 5


def test_flags_and_sources() -> None:
    def sources(flags: str, **options: object) -> list[int]:
        words = ["possible" if flag == "T" else "impossible" for flag in flags]
        replies = [", ".join(words[i : i + 4]) for i in range(0, len(words), 4)]
        return selection(replies, 4, **options).source  # type: ignore[arg-type]

    assert sources("TFTF") == [0, 0, 2, 2]
    assert sources("FFTF") == [2, 2, 2, 2]
    assert sources("FFFF") == [0, 1, 2, 3]
    assert sources("TFFF") == [0, 0, 0, 0]
    assert sources("FFFFTFFT", grouped_by_4=False) == [4, 7, 4, 7, 4, 4, 7, 7]
    drawn = sources("TFFFFFFT", grouped_by_4=False, rng=np.random.default_rng(0))
    assert set(drawn[1:7]) == {0, 7}


def test_malformed_answers_are_impossible_and_counted() -> None:
    found = selection(["possible, perhaps", None, "possible", "possible, possible, possible"], 2)
    assert found.possible == [True, False, True, True, True, False, True, True]
    assert (found.failed, found.malformed) == (1, 3)
    assert rewriting('He said: "two cats, one above"', "two cats") == "two cats, one above"
    assert rewriting(None, "two cats") == rewriting(' "" ', "two cats") == "two cats"
    assert choose([None, 0.2, float("nan"), 0.1]) == 1
    assert choose([None, None]) == 0


def test_a_reward_that_does_not_answer_never_wins_and_is_counted() -> None:
    class Mute(PixelSum):
        def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[float | None]:  # type: ignore[override]
            return [None if int(image.sum()) % 2 else float(image.mean()) for image in images]

    method = GridAR(4, TWO_STEPS, Mock(), Mute(), line=0)
    notes = [delivery.notes for delivery in draw(method, jobs(TEXTS, images=2), slots=24).values()]
    assert sum(note["unscored"] for note in notes) > 0  # type: ignore[misc]
    for note in notes:
        scores = note["scores"]
        assert note["unscored"] == scores.count(None)  # type: ignore[union-attr]
        assert scores[note["chosen"]] is not None or not any(scores)  # type: ignore[index, call-overload, arg-type]


# --- pictures and prompts -------------------------------------------------------------------------


def test_composites_and_masks() -> None:
    views = [np.full((384, 4, 3), 50 * (i + 1), np.uint8) for i in range(4)]
    stacked = composite(views, 0.25, 3)
    assert stacked.shape == views[0].shape
    black = [row for row in range(384) if not stacked[row].any()]
    assert black == [95, 96, 97, 191, 192, 193, 287, 288, 289]
    assert [stacked[row, 0, 0] for row in (0, 94, 98, 190, 383)] == [50, 50, 100, 100, 200]
    shown = masked(views[1], 0.5, 3)
    assert shown[190].all() and not shown[191:].any() and views[1].all()
    assert not masked(views[1], 0.0, 3).any()


def test_padding() -> None:
    assert padding([1, 2, 6], 8, "repeat") == [1, 2, 6, 1, 2]
    assert padding([1, 2, 6], 6, "zero") == [0, 0, 0]
    assert padding([1, 2, 5], 5, "mean") == [2, 2]
    assert padding([1, 2, 6], 8, "model") == padding([], 8, "repeat") == []


def test_the_verifier_sees_repeated_tops_of_the_original_prompt_only() -> None:
    mock = Mock("possible")
    draw(gridar(mock), jobs(TEXTS[:1]), slots=24)
    assert {text for text, _, _ in mock.shown} == {
        TEXTS[0]
    }  # rewriting starts from the original each time
    assert [strips for _, strips, _ in mock.shown] == [4, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0]
    quarter = mock.shown[1][2]
    half = mock.shown[7][2]
    assert quarter[0].all() and not quarter[1:].any()
    assert half[:2].all() and not half[2:].any()


def test_a_replaced_candidate_is_shown_and_rewritten_as_its_source() -> None:
    for delivery in draw(
        gridar(Mock(), stages={"half": {"share": 0.5, "strips": 2}}), jobs(TEXTS), slots=24
    ).values():
        (stop,) = delivery.notes["stages"]  # type: ignore[misc, union-attr]
        texts = stop["texts"]  # type: ignore[index, call-overload]
        assert all(texts[i] == texts[source] for i, source in enumerate(stop["source"]))  # type: ignore


def test_initial_reformulation_is_a_stage_before_the_first_row(best: Tokens) -> None:
    mock = Mock(clause=" again")
    stages = {"plan": {"share": 0, "select": False, "three_way": False}}
    planned = tokens(gridar(mock, stages=stages))
    assert not any(image.any() for _, _, image in mock.shown)
    assert planned != best


def test_rewritten_prompts_may_be_refused(best: Tokens) -> None:
    class Strays(Mock):
        def rewrite(self, texts: Sequence[str], images: Sequence[Image]) -> list[str]:
            return ["something else" for _ in texts]

    assert tokens(gridar(Strays("possible"), keep_original=True)) == best
    assert tokens(gridar(Mock("possible", clause=" very" * 90))) == best
    for delivery in draw(gridar(Strays("possible")), jobs(TEXTS), slots=24).values():
        assert all(
            (stop["strayed"], stop["refused"]) == (4, 0) for stop in delivery.notes["stages"]
        )  # type: ignore


# --- cost and company -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 8])
def test_calls_and_tokens_as_the_paper_counts_them(n: int) -> None:
    for delivery in draw(gridar(Mock(), n=n), jobs(TEXTS), slots=24).values():
        usage = delivery.usage
        assert (
            usage.judge_calls == n // 4 + n // 2 + 2 * n + n
        )  # N=4: 11 of the verifier and 4 of the reward
        assert usage.visual_tokens == n * 16  # as many as Best-of-N: copies are not drawn again
        assert usage.renders <= 3 * n


def test_unchanged_streams_keep_their_cache() -> None:
    """A rewritten prompt is read once per stop; null and original prompt once in all; copies read
    nothing anew.
    """
    method = gridar(Mock("possible", clause=" x y"), n=4)
    for delivery in draw(method, jobs(TEXTS), slots=24).values():
        words = 1 + len(delivery.job.prompt.text.split())
        rewritten = min(9, words + 2)
        assert delivery.usage.text_positions == 4 * (
            2 * words + rewritten
        )  # the second rewriting is the same text
        drawn = (
            2 * 15 + 15
        )  # every branch is fed 15 tokens: the third catches up on the prefix once
        assert delivery.usage.target_positions == 4 * drawn


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_company_changes_nothing(dtype: torch.dtype, device: str) -> None:
    model = ToyModel(dtype=dtype, device=device)
    some = jobs(TEXTS, images=2)
    together = draw(gridar(Mock()), some, model=model, slots=36)
    shuffled = random.Random(3).sample(some, len(some))
    for other in (
        draw(gridar(Mock()), shuffled, model=model, slots=36),
        draw(gridar(Mock()), shuffled[:2], model=model, slots=36),
    ):
        for key, delivery in other.items():
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
    assert [d.tokens for d in honest.values()] == [d.tokens for d in misled.values()]


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
    with pytest.raises(
        UserError, match=r"stages\.quarter: the top 0\.25 of 6 rows of tokens is 1\.5 rows"
    ):
        draw(gridar(Mock()), jobs(TEXTS), model=model, slots=24)
    with pytest.raises(UserError, match="switches guidance off"):
        draw(gridar(Mock()), jobs(TEXTS), model=model, sampling=Sampling(scale=1.0), slots=24)
    assert model.forwards == 0
    assert tokens(
        gridar(Mock(), n=2, stages={"half": TWO_STEPS["half"]}, grouped_by_4=False), model=model
    )


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
