"""Language models as verifiers: a real HTTP server that misbehaves, and a tiny real model."""

from __future__ import annotations

import base64
import io
import json
import logging
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import Server, says
from PIL import Image as Pillow
from toy import TEXTS, draw, jobs

from benchmarks.tiif.vqa_model import SYSTEM, ImageQuestions, VQAJudge, write_message
from harness.judges.edit_verifier import ChatEditReward, ChatEditVerifier, read_flags
from harness.judges.local_vlm import LocalVLM, yes_probability
from harness.judges.verifier import (
    ChatReward,
    ChatVerifier,
    Questioner,
    orm_question,
    rewrite_question,
    select_question,
)
from harness.judges.vlm import Endpoint
from harness.models.checkpoint import content_of
from harness.records import Answer, UserError
from methods.gridar import GridAR, select_sources

IMAGE = np.full((48, 48, 3), 90, np.uint8)
USAGE = {"usage": {"total_tokens": 17}}
TWO_STEPS = {"quarter": {"share": 0.25, "strips": 4}, "half": {"share": 0.5, "strips": 2}}


def endpoint(server: Server, **options: object) -> Endpoint:
    """An endpoint at the test's server that gives up quickly."""
    quick = {"timeout_s": 0.3, "backoff_s": 0.01, **options}
    return Endpoint(server.url, "some-model", **quick)  # type: ignore[arg-type]


def question(body: dict) -> str:
    """The question of a request's body."""
    return body["messages"][-1]["content"][0]["text"]


def values(answers: Sequence[Answer]) -> list[Any]:
    """The values of typed answers; None where there is none."""
    return [answer.value for answer in answers]


# --- what is sent ---------------------------------------------------------------------------------


def test_a_question_is_text_then_jpeg_and_the_key_stays_in_the_header(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VLM_API_KEY", "sesame-1234")
    caplog.set_level(logging.DEBUG)
    chat = endpoint(server)
    verifier = ChatVerifier(chat)
    server.behave = lambda body: says("possible, possible")
    assert values(verifier.select(2)(["a cat"], [IMAGE])) == ["possible, possible"]

    (body,) = server.asked
    text, picture = body["messages"][-1]["content"]
    assert text == {"type": "text", "text": select_question("a cat", 2)}
    kind, data = picture["image_url"]["url"].split(",")
    assert kind == "data:image/jpeg;base64"
    assert Pillow.open(io.BytesIO(base64.b64decode(data))).size == (48, 48)
    assert (body["model"], body["temperature"]) == ("some-model", 0.0)
    assert server.headers[0]["Authorization"] == "Bearer sesame-1234"

    server.behave = lambda body: (500, b"sesame?")
    (silence,) = verifier.rewrite(["a cat"], [IMAGE])
    assert silence.kind == "unreachable"
    written = (caplog.text, repr(vars(chat)), chat.id, verifier.id, json.dumps(server.asked))
    assert "sesame-1234" not in "".join(written)


def test_address_and_model_come_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="VLM_BASE_URL and VLM_MODEL"):
        Endpoint()
    monkeypatch.setenv("VLM_BASE_URL", server.url + "/")
    monkeypatch.setenv("VLM_MODEL", "from-outside")
    assert values(Endpoint().reply(["?"], [IMAGE])) == ["yes"]
    assert server.asked[0]["model"] == "from-outside"
    assert "Authorization" not in server.headers[0]


def test_questions_name_what_the_method_needs() -> None:
    quarters = select_question("a red cat", 4)
    assert all(word in quarters for word in ("a red cat", "quarter", "four", "certain"))
    halves = select_question("a red cat", 2)
    assert all(word in halves for word in ("half", "bottom half", "two lower-case words"))
    rewrite = rewrite_question("a red cat")
    assert all(word in rewrite for word in ("a red cat", "at the beginning", "original prompt"))
    assert "yes or no" in orm_question("a red cat")


class SilentChat:
    """A chat that never answers."""

    id = "silent"
    tokens = ()

    def ready(self, form: str = "reply") -> None: ...

    def reply(
        self, questions: Sequence[str], images: Sequence[np.ndarray], system: str = ""
    ) -> list[Answer]:
        return [Answer("unreachable", reason="silent")] * len(questions)

    yes = reply


def test_each_question_has_an_id_of_its_own() -> None:
    verifier = ChatVerifier(SilentChat())
    reward = ChatReward(SilentChat())
    ids = {reward.id, verifier.id, verifier.select(2).id, verifier.select(4).id}
    assert len(ids) == 4


def test_a_judge_answers_in_words_or_with_the_probability_of_yes(server: Server) -> None:
    chat = endpoint(server)
    assert values(Questioner(chat, orm_question)(["a cat"], [IMAGE])) == ["yes"]
    assert values(Questioner(chat, orm_question, answer="yes")(["a cat"], [IMAGE])) == [1.0]
    with pytest.raises(UserError, match="answer=shout: choose reply or yes"):
        Questioner(chat, orm_question, answer="shout")


def test_questions_of_a_batch_are_in_flight_together_and_answered_in_order(server: Server) -> None:
    def slow(body: dict) -> tuple[int, object]:
        time.sleep(0.02 * random.random())
        return says(question(body)[-3:])

    server.behave = slow
    chat = endpoint(server, timeout_s=5.0, concurrency=4)
    texts = [f"number {i:03d}" for i in range(24)]
    assert values(chat.reply(texts, [IMAGE] * 24)) == [text[-3:] for text in texts]
    assert list(chat.tokens) == [17] * 24
    assert 1 < server.most_at_once <= 4


# --- what comes back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "kind", "reason"),
    [
        ((500, b"oops"), "unreachable", "status 500, oops"),
        ((429, b"slow down"), "unreachable", "status 429, slow down"),
        ((400, b"no such picture"), "unreachable", "status 400, no such picture"),
        ((200, b"<html>not json</html>"), "unreachable", "no JSON: '<html>not json</html>'"),
        ((200, {"choices": []}), "unreachable", 'no completion: {"choices": []}'),
        ((200, {"error": {"message": "overloaded"}}), "unreachable", "overloaded"),
        ((200, {"choices": [{"message": "yes"}]}), "unreachable", "no completion"),
        ((200, ["a list"]), "unreachable", "no completion"),
        ((200, {"choices": [{"message": {"content": None}}]}), "unreadable", "reply is empty"),
        ((200, {"choices": [{"message": {"content": " "}}]}), "unreadable", "reply is empty"),
    ],
)
def test_failures_are_tried_again_and_then_said(
    server: Server, bad: tuple[int, object], kind: str, reason: str
) -> None:
    server.behave = lambda body: bad
    (silence,) = endpoint(server).reply(["?"], [IMAGE])
    assert silence.kind == kind and silence.value is None
    assert reason in silence.reason
    assert len(server.asked) == 3

    replies = iter([bad, bad, says("yes")])
    server.behave = lambda body: next(replies)
    assert values(endpoint(server).yes(["?"], [IMAGE])) == [1.0]


def test_a_server_is_left_alone_for_as_long_as_it_asks(server: Server) -> None:
    busy = iter(
        [
            (429, b"slow down", {"Retry-After": "0.3"}),
            (503, b"", {"Retry-After": "Fri, 01 Jan"}),
            says("yes"),
        ]
    )
    server.behave = lambda body: next(busy)
    began = time.monotonic()
    assert values(endpoint(server).reply(["?"], [IMAGE])) == ["yes"]
    assert 0.3 <= time.monotonic() - began < 2

    server.behave = lambda body: (429, b"slow down", {"Retry-After": "86400"})
    began = time.monotonic()
    assert values(endpoint(server, longest_pause_s=0.05).reply(["?"], [IMAGE])) == [None]
    assert time.monotonic() - began < 2


def test_the_key_does_not_follow_a_redirection_and_does_not_come_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_API_KEY", "sesame-1234")
    other = Server()
    other.behave = lambda body: says("yes")
    server.behave = lambda body: (302, b"", {"Location": other.url})
    endpoint(server, retries=0).reply(["?"], [IMAGE])
    other.close()
    assert server.headers[0]["Authorization"] == "Bearer sesame-1234"
    assert len(other.headers) == 1 and "sesame" not in str(other.headers)

    server.behave = lambda body: says("you sent sesame-1234")
    assert values(endpoint(server).reply(["?"], [IMAGE])) == ["you sent [key]"]

    for address in ("http://me:sesame-1234@127.0.0.1/v1", "http://127.0.0.1/v1?key=sesame-1234"):
        with pytest.raises(UserError, match="keep the key out of the address") as error:
            Endpoint(address, "some-model")
        assert "sesame" not in str(error.value)


def test_a_needed_key_is_missed_beforehand(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = endpoint(server, needs_key=True)
    with pytest.raises(UserError, match="needs a key: set VLM_API_KEY"):
        chat.ready()
    monkeypatch.setenv("VLM_API_KEY", "sesame-1234")
    chat.ready()
    assert not server.asked


def test_a_time_out_is_a_failure(server: Server) -> None:
    def sleeps(body: dict) -> tuple[int, object]:
        time.sleep(0.2)
        return says("yes")

    server.behave = sleeps
    (silence,) = endpoint(server, timeout_s=0.05, retries=1).reply(["?"], [IMAGE])
    assert silence.kind == "unreachable" and "timed out" in silence.reason


def test_a_server_that_is_gone_is_a_failure(server: Server) -> None:
    chat = endpoint(server, retries=1)
    server.close()
    (silence,) = chat.reply(["?"], [IMAGE])
    assert silence.kind == "unreachable" and "refused" in silence.reason


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_ends_the_run(server: Server, status: int) -> None:
    server.behave = lambda body: (status, b"no")
    with pytest.raises(UserError, match=f"refuses model 'some-model' \\({status}"):
        endpoint(server).reply(["?"], [IMAGE])
    assert len(server.asked) == 1


def test_yes_probability_comes_from_the_first_token(server: Server) -> None:
    chat = endpoint(server)
    server.behave = lambda body: says("Yes", {"Yes": 0.6, "yes": 0.2, "No": 0.15, " YES": 0.01})
    assert values(chat.yes(["?"], [IMAGE])) == [pytest.approx(0.81)]
    assert server.asked[0]["top_logprobs"] == 20
    server.behave = lambda body: says("No", {"No": 0.9, "Maybe": 0.1})
    assert values(chat.yes(["?"], [IMAGE])) == [0.0]
    server.behave = lambda body: says("Perhaps", {"Perhaps": 0.9, "It": 0.1})
    (silence,) = chat.yes(["?"], [IMAGE])
    assert (silence.kind, silence.text) == ("unreadable", "Perhaps")


def test_a_server_without_probabilities_is_asked_without(server: Server) -> None:
    server.behave = lambda body: (400, b"logprobs?") if "logprobs" in body else says("no")
    assert values(endpoint(server).yes(["?"], [IMAGE])) == [0.0]
    assert ["logprobs" in body for body in server.asked] == [True, False]


# --- a local model --------------------------------------------------------------------------------

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = ("[UNK]", "yes", "Yes", "no", "No", "possible", "impossible", ",", *SPECIAL)
NUMBER = {word: i for i, word in enumerate(WORDS)}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} "
    "{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }} {% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Qwen2.5-VL of one layer, random weights and a vocabulary of fifteen words."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    Qwen2_5_VLForConditionalGeneration(tiny_config()).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def tiny_config() -> Any:
    from transformers import Qwen2_5_VLConfig

    size = {"hidden_size": 16, "intermediate_size": 32}
    text = {
        **size,
        "vocab_size": len(WORDS),
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [1, 1, 2],
            "rope_theta": 1e4,
        },
        "eos_token_id": NUMBER["<|im_end|>"],
        "pad_token_id": NUMBER["<|endoftext|>"],
    }
    vision = {
        **size,
        "depth": 1,
        "num_heads": 2,
        "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
        "window_size": 56,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=NUMBER["<|image_pad|>"],
        video_token_id=NUMBER["<|video_pad|>"],
        vision_start_token_id=NUMBER["<|vision_start|>"],
        vision_end_token_id=NUMBER["<|vision_end|>"],
    )


def tiny_processor() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = Tokenizer(models.WordLevel(NUMBER, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[*SPECIAL],
    )
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56),
        tokenizer=fast,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )


def test_a_local_model_answers_greedily_and_alone(tiny: Path) -> None:
    chat = LocalVLM(str(tiny), device="cpu", dtype="float32", max_new_tokens=4)
    images = [np.random.default_rng(i).integers(0, 256, (48, 48, 3), np.uint8) for i in range(3)]
    questions = ["possible", "yes , no", "No"]
    asked = list(zip(questions, images, strict=True))

    replies = chat.reply(questions, images)
    tokens = chat.tokens
    assert all(isinstance(reply.text, str) for reply in replies)
    assert replies == [chat.reply([text], [image])[0] for text, image in asked]
    assert len(tokens) == 3 and min(tokens) > 4

    scores = values(chat.yes(questions, images))
    assert scores == [chat.yes([text], [image])[0].value for text, image in asked]
    assert len(set(scores)) == 3
    assert all(0 < score < 1 for score in scores)
    assert values(chat.yes(questions[:1], images[1:2])) != scores[:1]  # it looks at the picture


def test_a_local_model_is_reward_and_verifier_by_the_same_weights(tiny: Path) -> None:
    chat = LocalVLM(str(tiny), device="cpu", dtype="float32", max_new_tokens=4)
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    reward = ChatReward(chat)
    verifier = ChatVerifier(chat)
    assert reward(["a cat"], [image])[0] == chat.yes([orm_question("a cat")], [image])[0]
    assert verifier.rewrite(["a cat"], [image])[0].answered
    assert verifier.rewrite.tokens == chat.tokens
    shared = LocalVLM(str(tiny), device="cpu", dtype="float32")
    assert shared.network is chat.network


def test_a_local_model_judges_like_any_other(tiny: Path) -> None:
    chat = LocalVLM(str(tiny), revision="main", device="cpu", dtype="float32", max_new_tokens=6)
    judge = VQAJudge(chat, attempts=2)
    asked = [
        ImageQuestions(f"p/{i}", ["Is there a cat?"], np.full((48, 48, 3), 80 * i, np.uint8))
        for i in range(3)
    ]
    heard = judge.ask(asked)
    assert heard == [judge.ask([one])[0] for one in asked]
    assert judge.id.startswith(f"vlm-{tiny.name}-{content_of(tiny)}-")
    for one, said in zip(asked, heard, strict=True):
        first = chat.reply([write_message(one.key, one.questions)], [one.image], SYSTEM)[0]
        assert said.replies[0] == first.text and 1 <= len(said.replies) <= 2
        assert said.served == chat.id and said.tokens > 0


def test_the_yes_probability_is_over_the_whole_vocabulary() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0, 3.0])
    expected = (np.exp(2) + np.exp(1)) / np.exp(logits.double().numpy()).sum()
    assert yes_probability(logits, [1, 2]) == pytest.approx(expected)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        LocalVLM(str(tmp_path), device="cpu")


# --- GridAR over the endpoint ---------------------------------------------------------------------


def gridar(server: Server, **options: object) -> GridAR:
    chat = endpoint(server, **options)
    return GridAR(4, TWO_STEPS, ChatVerifier(chat), ChatReward(chat), line=0)


MALFORMED = [
    says("possible"),
    says("impossible, possible, possible, possible, possible"),
    says("It could be."),
]
REFUSAL = (200, {"choices": [{"message": {"content": None, "refusal": "No."}}], **USAGE})
RELEASED = {"released_fallback": True, "orm_fallback": 0.3}
"""Options by which GridAR goes on without an answer, as the released code does."""


def misbehave(body: dict) -> tuple[int, object]:
    """Answer by the question: with a refusal, extra words, missing words, other words."""
    text = question(body)
    luck = random.Random(str(body["messages"])).randrange(4)
    if luck == 0:
        return REFUSAL
    if "represent the prompt" in text:
        return says("Yes", {"Yes": luck / 4, "No": 1 - luck / 4})
    if "strips" in text:
        return MALFORMED[luck - 1]
    return says('"something else"')


def over(server: Server, **options: object) -> GridAR:
    """GridAR whose verifier and reward ask a server once."""
    chat = endpoint(server, retries=0, timeout_s=5.0)
    reward = ChatReward(chat)
    return GridAR(4, TWO_STEPS, ChatVerifier(chat), reward, line=0, **options)  # type: ignore[arg-type]


def test_the_released_fallback_goes_on_and_says_what_happened(server: Server) -> None:
    server.behave = misbehave
    deliveries = draw(over(server, **RELEASED), jobs(TEXTS), slots=24)
    assert not any(delivery.error for delivery in deliveries.values())
    notes: list[Any] = [delivery.notes for delivery in deliveries.values()]

    # 1. Every selection is told, and follows from the replies that are told with it.
    stops = [stop for note in notes for stop in note["stages"]]
    failed = sum(stop["failed"] for stop in stops)
    malformed = sum(stop["malformed"] for stop in stops)
    assert failed > 0 and malformed > 0 and failed + malformed == 3 * len(TEXTS)
    for stop in stops:
        replies = stop["replies"]
        assert replies.count(None) == stop["failed"]
        assert stop["possible"] == select_sources(replies, 4 // len(replies)).possible

    # 2. The best candidate is chosen, with the fallback for a missing score.
    for note in notes:
        scores = [0.3 if score is None else score for score in note["scores"]]
        assert note["unscored"] == note["scores"].count(None)
        assert scores[note["chosen"]] == max(scores)

    # 3. Every question is paid for, and those without an answer are counted.
    for delivery, note in zip(deliveries.values(), notes, strict=True):
        unanswered = sum(stop["failed"] + stop["unanswered"] for stop in note["stages"])
        assert delivery.usage.unanswered == unanswered + note["unscored"]
        assert delivery.usage.judge_tokens == 17 * delivery.usage.judge_calls

    # 4. Another order of jobs and another batch change nothing.
    again = draw(over(server, **RELEASED), jobs(TEXTS)[::-1], slots=12)
    assert again.keys() == deliveries.keys()
    for key, delivery in again.items():
        assert delivery.tokens == deliveries[key].tokens
        assert delivery.notes == deliveries[key].notes


def test_without_the_fallback_a_silent_verifier_decides_nothing(server: Server) -> None:
    server.behave = misbehave
    for delivery in draw(over(server), jobs(TEXTS), slots=24).values():
        assert delivery.image is None
        assert delivery.error.startswith("UnansweredError: judge vlm-some-model-")
        assert delivery.usage.unanswered > 0


def test_an_unreachable_verifier_is_never_a_choice(server: Server) -> None:
    server.behave = lambda body: (503, b"busy")
    chat = endpoint(server, retries=0, give_up_after=None)
    method = GridAR(4, TWO_STEPS, ChatVerifier(chat), ChatReward(chat), line=0, **RELEASED)  # type: ignore[arg-type]
    for delivery in draw(method, jobs(TEXTS), slots=24).values():
        assert delivery.image is None
        assert "(unreachable: status 503, busy)" in delivery.error


def test_a_wrong_key_ends_the_run_and_not_one_image(server: Server) -> None:
    server.behave = lambda body: (401, b"no")
    with pytest.raises(UserError, match="VLM_API_KEY"):
        draw(gridar(server), jobs(TEXTS), slots=24)


# --- edits: source and result -------------------------------------------------------------------

FLAGS = '{"instruction_following": "pass, fail, pass", "source_preservation": "pass, pass, fail"}'


def pictures_of(body: dict) -> list[np.ndarray]:
    """The pictures of a request's body, in order."""
    shown = []
    for item in body["messages"][-1]["content"][1:]:
        data = item["image_url"]["url"].partition(",")[2]
        shown.append(np.asarray(Pillow.open(io.BytesIO(base64.b64decode(data)))))
    return shown


def test_an_edit_is_judged_from_its_source_and_its_result(server: Server) -> None:
    server.behave = lambda body: says(FLAGS)
    verifier = ChatEditVerifier(endpoint(server, self_test=False))
    dark = np.full((48, 48, 3), 10, np.uint8)
    answers = verifier.select(3)(["remove the dog"], [IMAGE], [dark])
    assert values(answers) == ["possible, impossible, impossible"]
    (body,) = server.asked
    assert '"remove the dog"' in question(body)
    assert [round(float(picture.mean())) for picture in pictures_of(body)] == [10, 90]


def test_a_reply_about_strips_is_read_as_flags_or_not_at_all() -> None:
    assert read_flags(FLAGS, 3) == "possible, impossible, impossible"
    assert read_flags(f"Sure:\n```json\n{FLAGS.upper()}\n```", 3) == read_flags(FLAGS, 3)
    assert read_flags(FLAGS, 2) == "possible, impossible"
    assert read_flags(FLAGS, 4).endswith("impossible, impossible")
    for reply in ("pass, fail", '{"instruction_following": "pass"}', "{broken}", '{"a": 1}'):
        with pytest.raises(ValueError):
            read_flags(reply, 1)


def test_an_edit_without_a_source_or_a_readable_reply_has_no_answer(server: Server) -> None:
    server.behave = lambda body: says("two passes")
    chat = endpoint(server, self_test=False)
    selector = ChatEditVerifier(chat).select(2)
    answers = selector(["remove the dog"] * 2, [IMAGE] * 2, [IMAGE, None])
    assert [answer.kind for answer in answers] == ["unreadable", "unreadable"]
    assert [answer.reason for answer in answers] == [
        "it holds no JSON object",
        "there is no source",
    ]
    assert selector.tokens == [17, 0]
    assert len(server.asked) == 1
    server.behave = lambda body: says("yes", {"yes": 0.75, "no": 0.25})
    (score,) = ChatEditReward(chat)(["remove the dog"], [IMAGE], [IMAGE])
    assert score.value == pytest.approx(0.75)
    ids = {selector.id, ChatEditVerifier(chat).select(4).id, ChatEditReward(chat).id, chat.id}
    assert len(ids) == 4


def test_a_local_model_looks_at_two_pictures(tiny: Path) -> None:
    chat = LocalVLM(str(tiny), device="cpu", dtype="float32", max_new_tokens=4)
    random_pictures = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), np.uint8)
    one, two, three = random_pictures
    reward = ChatEditReward(chat)
    (score,) = values(reward(["remove the dog"], [two], [one]))
    assert 0 < score < 1
    assert values(reward(["remove the dog"], [two], [three])) != [score]  # it sees the source
    assert values(reward(["remove the dog"], [three], [one])) != [score]  # and the result
    (single,) = values(chat.yes(["remove the dog"], [two]))
    assert single != score
