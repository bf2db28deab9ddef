"""TwiG: sentences before layers, a critic behind them, and redraws with noise of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from test_batch_invariance import costs
from toy import TEXTS, ToyModel, draw, jobs

from harness.engine.guidance import Sampling
from harness.engine.rendering import Image
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.judges.narrator import ChatNarrator
from harness.judges.pictogram_narrator import PictogramNarrator
from harness.judges.verifier import HELPFUL
from harness.models.pictogram.generator import Pictogram
from harness.records import Answer, Job, Prompt, UserError
from methods.plain import Plain
from methods.twig import Review, TwiG, parse_review

T = 16
SET = "pictogram_16"


@dataclass
class _Said:
    id: str
    say: Callable[[dict[str, str], Image], str | None]

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[str | None]:
        return [
            self.say(json.loads(text), image) for text, image in zip(texts, images, strict=True)
        ]


class Muse:
    """A narrator that says short sentences, and a score for every picture: its first pixel's."""

    id = "muse"

    def __init__(self, score: int | None = None, same: bool = False) -> None:
        self.score = score
        self.same = same

    def thought(self, layer: int, layers: int) -> _Said:
        return _Said(f"muse-thought-{layer}", lambda told, _: f"one {told['prompt'].split()[-1]}")

    def critic(self, layer: int, layers: int) -> _Said:
        return _Said(f"muse-critic-{layer}", self._judge)

    def _judge(self, told: dict[str, str], image: Image) -> str:
        score = int(image.astype(int).sum()) % 101 if self.score is None else self.score
        sentence = told["thought"] if self.same else "three cups"
        return f"SCORE: {score}\nIMPROVED_DESCRIPTION: {sentence}"


def test_without_thoughts_and_critic_it_is_plain() -> None:
    plain = draw(Plain(), jobs(TEXTS))
    for key, delivery in draw(TwiG(Muse(), 2, think=False, redraws=0), jobs(TEXTS)).items():
        assert delivery.tokens == plain[key].tokens
        assert delivery.usage.judge_calls == 0


def test_a_critic_that_passes_costs_thoughts_alone() -> None:
    for delivery in draw(TwiG(Muse(100), 4), jobs(TEXTS)).values():
        usage = delivery.usage
        assert not delivery.error
        assert (usage.sampled, usage.discarded) == (T, 0)
        assert usage.judge_calls == 4 + 4
        assert usage.renders == 4


def test_a_critic_that_fails_draws_every_layer_twice_and_changes_no_other() -> None:
    seen: list[np.ndarray] = []

    class Watching(Muse):
        def _judge(self, told: dict[str, str], image: Image) -> str:
            seen.append(image[..., 0])
            return super()._judge(told, image)

    (delivery,) = draw(TwiG(Watching(0), 2), jobs(["a cat"])).values()
    usage = delivery.usage
    assert usage.sampled == 2 * T
    assert usage.judge_calls == 4
    final = np.array(delivery.tokens).reshape(4, 4)
    assert not np.array_equal(seen[0][:2] - 1, final[:2])  # the first layer was drawn again
    assert np.array_equal(seen[1][:2] - 1, final[:2])  # and stayed when the second one was
    assert not np.array_equal(seen[1][2:] - 1, final[2:])


def test_a_redraw_with_the_same_sentence_gives_other_tokens() -> None:
    never = draw(TwiG(Muse(100), 2), jobs(TEXTS))
    always = draw(TwiG(Muse(0, same=True), 2), jobs(TEXTS))
    assert all(always[key].tokens[:8] != never[key].tokens[:8] for key in never)
    for key, delivery in always.items():
        texts = [layer["text"] for layer in delivery.notes["layers"]]  # type: ignore[index, union-attr, call-overload]
        assert texts == [layer["text"] for layer in never[key].notes["layers"]]  # type: ignore[index, union-attr, call-overload]


def test_theta_decides_and_redraws_are_limited() -> None:
    def scores(**options: Any) -> list[list[int]]:
        (delivery,) = draw(TwiG(Muse(50), 2, **options), jobs(["a cat"])).values()
        return [layer["scores"] for layer in delivery.notes["layers"]]  # type: ignore[index, union-attr, call-overload]

    assert scores(theta=50, redraws=3) == [[50], [50]]
    assert scores(theta=51, redraws=1) == [[50], [50]]
    assert scores(theta=51, redraws=3) == [[50] * 3] * 2
    assert scores(theta=51, redraws=0) == [[], []]


def test_sentences_become_the_prompt() -> None:
    def texts(**options: Any) -> list[str]:
        (delivery,) = draw(TwiG(Muse(100), 2, **options), jobs(["a cat"])).values()
        return [layer["text"] for layer in delivery.notes["layers"]]  # type: ignore[index, union-attr, call-overload]

    assert texts() == ["one cat", "one cat one cat"]
    assert texts(keep_prompt=True) == ["a cat one cat", "a cat one cat one cat"]
    assert texts(join=False) == ["one cat", "one cat"]
    assert texts(think=False) == ["a cat", "a cat"]


def test_the_canvas_is_that_of_its_last_prompt() -> None:
    """The lower half of an image whose sentences are all the prompt is plain sampling's."""

    class Echo(Muse):
        def thought(self, layer: int, layers: int) -> _Said:
            return _Said(f"echo-{layer}", lambda told, _: told["prompt"])

    plain = draw(Plain(), jobs(TEXTS))
    for key, delivery in draw(TwiG(Echo(100), 2, join=False), jobs(TEXTS)).items():
        assert delivery.tokens == plain[key].tokens


@pytest.mark.parametrize("score", [None, 0])
def test_what_else_is_in_the_batch_changes_nothing(score: int | None) -> None:
    some = jobs(TEXTS, images=2)
    together = draw(TwiG(Muse(score), 2), some)
    for others in (some[::-1], some[3:4]):
        for key, delivery in draw(TwiG(Muse(score), 2), others).items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


@pytest.mark.parametrize(
    ("reply", "review"),
    [
        ("SCORE: 83\nIMPROVED_DESCRIPTION: a b", Review(83, "a b")),
        ("score: about 7\nimproved_description:\n a\n b ", Review(7, "a b")),
        ("IMPROVED_DESCRIPTION: a b", Review(100, "a b")),
        ("SCORE: 3", Review(100, "")),
        ("SCORE: 130\nIMPROVED_DESCRIPTION: a", Review(130, "a")),
        ("nothing", Review(100, "")),
    ],
)
def test_reviews_are_read_as_released(reply: str, review: Review) -> None:
    assert parse_review(reply) == review


class Mumbling(Muse):
    """A narrator whose critic cannot be read."""

    def _judge(self, told: dict[str, str], image: Image) -> str:
        return "well"


class Mute(Muse):
    """A narrator that cannot tell."""

    def thought(self, layer: int, layers: int) -> _Said:
        return _Said("mute", lambda _told, _image: None)


@pytest.mark.parametrize("narrator", [Mumbling(), Mute(100)])
def test_silence_fails_the_image_unless_the_released_way_is_chosen(narrator: Muse) -> None:
    for delivery in draw(TwiG(narrator, 2), jobs(TEXTS)).values():
        assert delivery.error
    for delivery in draw(TwiG(narrator, 2, released_fallback=True), jobs(TEXTS)).values():
        assert not delivery.error
        assert delivery.usage.sampled == T


# --- narrators ------------------------------------------------------------------------------------


class Chatty:
    """A chat that repeats the question."""

    id = "chatty"
    tokens: Sequence[int] = ()

    def ready(self, form: str = "reply") -> None:
        pass

    def reply(
        self, questions: Sequence[str], images: Sequence[Image], system: str = HELPFUL
    ) -> list[Answer]:
        self.tokens = [len(question) for question in questions]
        return [Answer("answered", question) for question in questions]

    def yes(self, questions: Sequence[str], images: Sequence[Image]) -> list[Answer]:
        raise AssertionError("no narrator asks for yes")


def test_a_chat_is_told_what_it_needs() -> None:
    narrator = ChatNarrator(Chatty())
    told = json.dumps({"prompt": "a cat", "previous": "a sky", "thought": "a roof"})
    for layer in (1, 2, 3):
        (thought,) = narrator.thought(layer, 3)([told], [np.zeros((4, 4, 3), np.uint8)])
        (critic,) = narrator.critic(layer, 3)([told], [np.zeros((4, 4, 3), np.uint8)])
        part = ("top", "middle", "bottom")[layer - 1]
        assert part in thought.value
        assert part in critic.value
        assert '"a cat"' in thought.value
        assert ('"a sky"' in thought.value) == (layer > 1)
        assert '"a roof"' in critic.value
        assert ("placeholder" in critic.value) == (layer < 3)
    assert "part 2 of 4" in narrator.critic(2, 4)([told], [np.zeros((4, 4, 3), np.uint8)])[0].value
    ids = {narrator.thought(1, 3).id, narrator.thought(2, 3).id, narrator.critic(1, 3).id}
    assert len(ids) == 3


def test_twig_on_the_embedded_model() -> None:
    """Its critic rejects some layers and passes others; its sentences are prompts of the world."""
    from harness.models.pictogram import grammar

    texts = ["a photo of three cats", "a photo of a dog above a cat", "a photo of a red circle"]
    some = [Job(Prompt(f"p/{i}", text, "any"), 0) for i, text in enumerate(texts)]
    method = TwiG(PictogramNarrator(SET), join=False)
    sampler = Sampler(Pictogram(SET), Sampling(scale=2.0), slots=12, prefill=(8, 32))
    done: list[Delivery] = []
    Scheduler(method, sampler, seed=0).run(some, done.append)
    for delivery in done:
        if "circle" in texts[int(delivery.job.prompt.id[-1])]:
            continue
        assert not delivery.error
        layers: Any = delivery.notes["layers"]
        assert all(set(layer["scores"]) <= {0, 50, 100} for layer in layers)
        assert all(grammar.parse_layout(layer["text"]) for layer in layers)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": 0}, r"method\.layers=0"),
        ({"redraws": -1}, r"method\.redraws=-1"),
        ({"placeholder": "grey"}, r"method\.placeholder=grey: choose from zero, model"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TwiG(Muse(), **options)


def test_layers_that_do_not_divide_the_grid_are_refused_before_any_compute() -> None:
    model = ToyModel()
    with pytest.raises(UserError, match=r"method\.layers=3: the image has 4 rows"):
        draw(TwiG(Muse()), jobs(TEXTS), model=model)
    assert model.forwards == 0
