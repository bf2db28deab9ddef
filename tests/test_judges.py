"""A judge's silence is not a choice: what endpoints answer, and what a run makes of it."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import Server, says
from runs import TESTS, TOY, deterministic, folders, harness
from test_tiif_judge import write_reply
from tiif_folder import write_folder
from toy import TEXTS, PixelSum, ToyBenchmark, draw, jobs

from harness import Answer, Canvas, Session
from harness.judges.replies import is_refusal, read_words, read_yes, yes_or_no
from harness.judges.vlm import Endpoint
from harness.records import Prompt, SampleRecord, Score, UserError, clean_text, dump
from harness.runs.fingerprint import fingerprint
from harness.runs.score import score_images
from methods.best_of_n import BestOfN

IMAGE = np.full((48, 48, 3), 90, np.uint8)


def completion(
    content: object, finish: str = "stop", logprobs: object = None, **message: object
) -> dict[str, Any]:
    """A completion whose message has this content."""
    choice = {"message": {"content": content, **message}, "finish_reason": finish}
    return {"choices": [choice if logprobs is None else {**choice, "logprobs": logprobs}]}


def entry(token: str, **top: float) -> dict[str, Any]:
    """The log-probabilities at a token; without `top` that of the token alone."""
    listed = [{"token": word, "logprob": math.log(p)} for word, p in top.items()]
    return {"token": token, "logprob": math.log(0.7), "top_logprobs": listed}


def logprobs(*entries: object) -> dict[str, Any]:
    return {"content": list(entries)}


# --- words ----------------------------------------------------------------------------------------

PARTS = [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "a "}, "cat"]

WORDS = {
    "a string": (completion("a cat"), "a cat"),
    "a list of parts": (completion(PARTS), "a cat"),
    "output parts": (completion([{"type": "output_text", "text": "no"}]), "no"),
    "reasoning beside it": (completion("a cat", reasoning_content="Hm, no."), "a cat"),
    "reasoning before it": (completion("<think>Hm, no.</think>\n\na cat"), "a cat"),
    "reasoning that a template began": (completion("Hm, no.\n</think>\na cat"), "a cat"),
    "half an emoji": (completion("a cat \ud83d"), "a cat \ufffd"),
    "a whole emoji": (json.loads(json.dumps(completion("\U0001f408"))), "\U0001f408"),
    "control characters": (completion("a\x1b c\x00\r\n\t\u202e"), "a\ufffd c\ufffd\n\t\ufffd"),
    "an empty refusal": (completion("a cat", refusal=None), "a cat"),
}  # fmt: skip

SILENT = {
    "refusal": (completion(None, refusal="I won't."), "refused", "the model refuses"),
    "refusal as a part": (completion([{"type": "refusal", "refusal": "N"}]), "refused", "refuses"),
    "content filter": (completion("a c", "content_filter"), "refused", "content_filter"),
    "no content": (completion(None), "unreadable", "the reply is empty"),
    "blanks": (completion(" \n"), "unreadable", "the reply is empty"),
    "an odd content": (completion({"a": 1}), "unreadable", "the reply is empty"),
    "eaten by reasoning": (completion("", "length", reasoning="Hm"), "unreadable", "cut off"),
    "reasoning without an end": (completion("<think>Hm", "length"), "unreadable", "cut off"),
    "cut off": (completion("a cat, at the top and", "length"), "unreadable", "cut off"),
}  # fmt: skip


@pytest.mark.parametrize("dialect", WORDS)
def test_words_are_read_in_every_dialect(dialect: str) -> None:
    reply, words = WORDS[dialect]
    answer = read_words(reply)
    assert (answer.kind, answer.value) == ("answered", words)
    answer.text.encode()


@pytest.mark.parametrize("dialect", SILENT)
def test_a_reply_without_an_answer_says_what_it_is(dialect: str) -> None:
    reply, kind, reason = SILENT[dialect]
    answer = read_words(reply)
    assert (answer.kind, answer.value) == (kind, None)
    assert reason in answer.reason


# --- yes and no -----------------------------------------------------------------------------------

SAYS_YES = (
    *("yes", "Yes.", "YES!", " yes\n", "**Yes**", '"Yes"', "`yes`", "Yes, the image shows a cat."),
    *("Answer: yes", "The answer is yes.", '{"answer": "yes"}', "- yes: a cat", "Okay, yes"),
    *("<think>No?</think>Yes", "yes - no dog is there", "Yes\u2014it does"),
)
SAYS_NO = ("no", "No.", "**no**, there is none", "NO", "Final answer: no", "no, yes would be wrong")
SAYS_NEITHER = (
    *("", "maybe", "yesterday", "not sure", "none", "Yes and no.", "yes/no", "Yes or no?"),
    *("No doubt it is a cat", "no problem", "It shows a cat", "?", "1", "-" * 50_000 + "x"),
)


@pytest.mark.parametrize(
    ("text", "value"),
    [(text, 1.0) for text in SAYS_YES]
    + [(text, 0.0) for text in SAYS_NO]
    + [(text, None) for text in SAYS_NEITHER],
)
def test_without_probabilities_the_first_word_decides(text: str, value: float | None) -> None:
    for gone in (None, logprobs(), {"content": None}, {}, logprobs("a token"), logprobs({})):
        answer = read_yes(completion(text, logprobs=gone))
        assert answer.value == value
        assert answer.answered == (value is not None)


LIKELY = {
    "the first token": (("Yes",), [entry("Yes", Yes=0.6, yes=0.2, No=0.1)], 0.8),
    "all capitals": (("YES",), [entry("YES", YES=0.9, NO=0.1)], 0.9),
    "drawn against the odds": (("No",), [entry("No", No=0.4, Yes=0.6)], 0.6),
    "yes is not listed": (("No",), [entry("No", No=0.9, Maybe=0.1)], 0.0),
    "another word, yes is listed": (("Maybe",), [entry("Maybe", Maybe=0.7, yes=0.3)], 0.3),
    "blank first": ((" ", "Yes"), [entry(" ", x=0.9), entry("Yes", Yes=0.7, No=0.3)], 0.7),
    "line break first": (("\n", "yes"), [entry("\n", x=1.0), entry("yes", yes=0.7)], 0.7),
    "bold": (("**", "Yes", "**"), [entry("**", x=0.9), entry("Yes", Yes=0.7, No=0.3)], 0.7),
    "quoted": (('"', "no"), [entry('"', x=0.9), entry("no", no=0.8, yes=0.2)], 0.2),
    "a sentence": (
        ("The", " answer is", " yes"),
        [entry("The", The=1.0), entry(" answer is"), entry(" yes", **{" yes": 0.7, " no": 0.3})],
        0.7,
    ),
    "only the drawn token": (("Yes",), [{"token": "Yes", "logprob": math.log(0.7)}], 0.7),
    "no list": (("Yes",), [{"token": "Yes", "logprob": 0.1, "top_logprobs": None}], 1.0),
    "log-probabilities that are none": (
        ("Yes",),
        [{"token": "Yes", "top_logprobs": [{"token": "Yes", "logprob": math.nan}]}],
        1.0,
    ),
    "of half of the reply": (("Yes", " it is"), [entry("Yes", Yes=0.7, No=0.3)], 0.7),
    "of another reply": (("Yes",), [entry("Okay", Okay=1.0)], 1.0),
    "in pieces": (("Y", "es"), [entry("Y", Y=1.0), entry("es", es=1.0)], 1.0),
}  # fmt: skip


@pytest.mark.parametrize("dialect", LIKELY)
def test_the_probability_is_read_where_the_answer_stands(dialect: str) -> None:
    tokens, entries, value = LIKELY[dialect]
    answer = read_yes(completion("".join(tokens), logprobs=logprobs(*entries)))
    assert answer.value == pytest.approx(value)

    # Reasoning before it has log-probabilities, too, and says yes and no.
    reasoned = [entry("<think>", x=1.0), entry("no", no=1.0), entry("yes", yes=1.0)]
    reasoned.append(entry("</think>", x=1.0))
    text = "<think>noyes</think>" + "".join(tokens)
    for content in (text, "".join(tokens)):
        answer = read_yes(completion(content, logprobs=logprobs(*reasoned, *entries)))
        assert answer.value == pytest.approx(value)


def test_a_refusal_in_words_is_one() -> None:
    refusals = ("I'm sorry, I can't help with that.", "Sorry, no.", "I cannot see", "As an AI, I")
    assert all(map(is_refusal, refusals))
    assert not any(map(is_refusal, ("yes", "a card that says sorry", "possible", "a cat, I think")))
    answer = read_yes(completion("I’m sorry, but I can’t assist with that."))
    assert answer.kind == "refused"
    assert yes_or_no("I can't say yes") is None


# --- endpoints ------------------------------------------------------------------------------------


def endpoint(server: Server, **options: object) -> Endpoint:
    quick = {"timeout_s": 5.0, "backoff_s": 0.001, "retries": 1, **options}
    return Endpoint(server.url, "m", **quick)  # type: ignore[arg-type]


def ask(chat: Endpoint, count: int = 1) -> list[Answer]:
    return chat.reply(["?"] * count, [IMAGE] * count)


def test_a_limit_of_another_name_is_learned_once(server: Server) -> None:
    def modern(body: dict) -> tuple[int, object]:
        if "max_tokens" in body:
            return 400, {"error": {"message": "Use 'max_completion_tokens' instead."}}
        return says("yes")

    server.behave = modern
    chat = endpoint(server, retries=0)
    assert ask(chat)[0].value == "yes"
    assert chat.yes(["?"], [IMAGE])[0].value == 1.0
    limits = [(body.get("max_tokens"), body.get("max_completion_tokens")) for body in server.asked]
    assert limits == [(200, None), (None, 200), (None, 4)]


def test_a_temperature_that_is_not_taken_is_said(server: Server) -> None:
    server.behave = lambda body: (400, {"error": {"message": "temperature: only 1 is supported"}})
    with pytest.raises(UserError, match=r"does not take temperature=0\.0 .* temperature=null"):
        ask(endpoint(server))
    assert len(server.asked) == 1


def test_no_probabilities_are_learned_once(server: Server) -> None:
    server.behave = lambda body: (400, b"no") if "logprobs" in body else says("no")
    chat = endpoint(server, retries=0)
    assert [chat.yes(["?"], [IMAGE])[0].value for _ in range(3)] == [0.0] * 3
    assert ["logprobs" in body for body in server.asked] == [True, False, False, False]


def test_reasoning_gets_the_tokens_that_it_needs(server: Server) -> None:
    def reason(body: dict) -> tuple[int, object]:
        if body["max_tokens"] < 100:
            return 200, completion(None, "length", reasoning_content="Let me see")
        return 200, completion("Yes.", reasoning_content="Let me see")

    server.behave = reason
    chat = endpoint(server, retries=0)
    assert [chat.yes(["?"], [IMAGE])[0].value for _ in range(2)] == [1.0, 1.0]
    assert [body["max_tokens"] for body in server.asked] == [4, 200, 200]

    (answer,) = endpoint(server, retries=3, max_tokens=50).yes(["?"], [IMAGE])
    assert (answer.kind, answer.reason) == (
        "unreadable",
        "cut off by the limit of its tokens (max_tokens)",
    )
    assert len(server.asked) == 5  # another attempt would be cut off, too


def test_a_filter_before_the_model_is_a_refusal(server: Server) -> None:
    server.behave = lambda body: (400, {"error": {"code": "content_filter", "message": "no"}})
    (answer,) = ask(endpoint(server, retries=3))
    assert answer.kind == "refused" and "content_filter" in answer.reason
    assert len(server.asked) == 1


def test_an_endpoint_that_is_gone_is_asked_no_more(server: Server) -> None:
    server.behave = lambda body: (429, b"slow down")
    chat = endpoint(server, retries=2, give_up_after=6, concurrency=2)
    for _ in range(2):
        (silence, _) = ask(chat, 2)
        assert silence.kind == "unreachable"
    with pytest.raises(
        UserError,
        match=r"6 questions in a row reached nobody \(the last: status 429, slow down\); "
        "it is asked no more, all images so far are kept",
    ):
        ask(chat, 100)
    assert len(server.asked) <= 3 * (6 + 1)

    # Any reply ends the row, also one that cannot be read.
    server.behave = lambda body: says("") if len(server.asked) % 5 == 0 else (500, b"")
    chat = endpoint(server, retries=0, give_up_after=6, concurrency=1)
    assert {answer.kind for answer in ask(chat, 40)} == {"unreachable", "unreadable"}
    with pytest.raises(UserError, match="give_up_after=0"):
        endpoint(server, give_up_after=0)


def blind(text: str) -> Callable[[dict], tuple[int, object]]:
    return lambda body: says(text)


UNFIT = {
    "mute": (lambda body: (429, b"slow down"), "does not answer.*unreachable: status 429"),
    "empty": (blind(""), "cannot be read.*the reply is empty"),
    "always yes": (blind("Yes, the image"), "says yes to every picture.*it said 'Yes, the image'"),
    "always no": (blind("no"), "says no to every picture"),
    "garbage": (blind("a cat \ud83d"), "cannot be read.*it said 'a cat \ufffd'"),
    "refusing": (lambda body: (200, completion(None, refusal="No.")), "refuses to answer"),
}


@pytest.mark.parametrize("form", ["reply", "yes"])
@pytest.mark.parametrize("how", UNFIT)
def test_the_self_test_finds_an_endpoint_that_is(how: str, form: Any, server: Server) -> None:
    server.behave_when_tested, message = UNFIT[how]
    with pytest.raises(UserError, match=message) as error:
        endpoint(server).ready(form)
    assert "\n" not in str(error.value) and "self_test=false" in str(error.value)
    endpoint(server, self_test=False).ready(form)


def test_the_self_test_costs_two_calls_once(server: Server) -> None:
    chat = endpoint(server)
    for _ in range(3):
        chat.ready()
    assert len(server.tested) == 2
    chat.ready("yes")
    assert len(server.tested) == 4 and not server.asked


# --- runs -----------------------------------------------------------------------------------------

BEST_OF_N = ("method=best_of_n", "method.n=2", "judge@method.reward=vlm_reward")
GRIDAR = ("method=gridar", "method.line=0", "judge@method.verifier=vlm_verifier")
CHATS = {"best_of_n": "method.reward.chat", "gridar": "method.verifier.chat"}
CHATS["tiif"] = "benchmark.judge.chat"


def options_of(who: str, tmp_path: Path) -> list[str]:
    """The command of a run in which `who` asks an endpoint, which is asked quickly."""
    quick = [f"{CHATS[who]}.{name}" for name in ("retries=0", "backoff_s=0.0", "timeout_s=5.0")]
    if who == "tiif":
        folder = tmp_path / "data"
        metadata = folder if folder.exists() else write_folder(folder)
        toy = ("--config-dir", str(TESTS / "toy_conf"), "model=toy", "sampler.slots=24")
        tiif = ("benchmark=tiif_testmini", "benchmark.prompts=12", "benchmark.ocr=false")
        place = (f"benchmark.metadata={metadata}", "benchmark.allow_other_version=true")
        # Its address is its own: others' comes from the environment.
        return [*toy, *tiif, *place, *quick, f"{CHATS[who]}.base_url=null"]
    embedded = "judge@method.reward=vlm_reward" if who == "gridar" else ""
    reward = [embedded, "method.reward.chat.retries=0", "method.reward.chat.self_test=false"]
    method = BEST_OF_N if who == "best_of_n" else (*GRIDAR, *reward)
    return [*TOY, *method, *quick, "benchmark.prompts=6", "benchmark.images=1"]


def reply_as_asked(body: dict) -> tuple[int, object]:
    """Answer each kind of question as it asks, by the picture."""
    text = body["messages"][-1]["content"][0]["text"]
    luck = sum(body["messages"][-1]["content"][1]["image_url"]["url"].encode()) % 7
    if "represent the prompt" in text:
        return says("Yes" if luck > 3 else "No", {"Yes": (luck + 1) / 8, "No": (7 - luck) / 8})
    if "strips" in text:
        strips = 4 if "four" in text else 2
        return says(", ".join(["possible", "impossible"][(luck + i) % 2] for i in range(strips)))
    if "Rewrite the prompt" in text:
        return says(text.split('"')[1] + ", at the top")
    return says(write_reply(body))


def without_logprobs(body: dict) -> tuple[int, object]:
    status, answer = reply_as_asked(body)
    for choice in answer["choices"]:  # type: ignore[index]
        choice.pop("logprobs", None)
    return status, answer


def with_more(before: str = "", behind: str = "") -> Callable[[dict], tuple[int, object]]:
    """Answer as asked, with more text around it."""

    def reply(body: dict) -> tuple[int, object]:
        status, answer = without_logprobs(body)
        message = answer["choices"][0]["message"]  # type: ignore[index]
        message["content"] = f"{before}{message['content']}{behind}"
        return status, answer

    return reply


ENDPOINTS: dict[str, Callable[[dict], tuple[int, object]]] = {
    "429 for ever": lambda body: (429, b"slow down"),
    "dead port": lambda body: (0, b""),
    "refusal": lambda body: (200, completion(None, refusal="I will not judge that.")),
    "garbage": lambda body: says("qwerty uiop"),
    "no completion": lambda body: (200, b"<html>sign in</html>"),
    "chatty": with_more(behind=", as one sees"),
    "no logprobs": without_logprobs,
    "surrogate": with_more(behind=" \ud83d"),
    "reasoning": with_more(before="<think>Yes? No. possible</think>\n"),
}
UNREACHABLE = ("429 for ever", "dead port", "no completion")
SPOILS_VERDICTS = {"gridar": ("chatty",)}
"""What some replies cannot be read in: a verdict for each strip has no explanation."""


def expected(how: str, who: str) -> str:
    """What a run gets from an endpoint: "answered", "failed" images or a "stopped" run."""
    if how in UNREACHABLE:
        return "stopped"
    if how in ("refusal", "garbage") or how in SPOILS_VERDICTS.get(who, ()):
        return "unjudged" if who == "tiif" else "failed"
    return "answered"


QUICK = {
    "429 for ever": ("gridar",),
    "dead port": ("best_of_n",),
    "no completion": ("tiif",),
    "refusal": ("best_of_n",),
    "garbage": ("tiif",),
    "chatty": ("gridar", "best_of_n"),
    "no logprobs": ("gridar",),
    "surrogate": ("tiif",),
    "reasoning": ("best_of_n",),
}
"""Who meets each endpoint in the quick tests: each gets each of its outcomes once, at least."""


def list_meetings() -> list[Any]:
    """Every endpoint and everyone who asks; long, if not quick."""
    meetings = []
    for how in ENDPOINTS:
        for who in CHATS:
            marks = [] if who in QUICK[how] else [pytest.mark.long]
            meetings.append(pytest.param(how, who, marks=marks, id=f"{how}-{who}"))
    return meetings


def test_the_quick_meetings_leave_no_outcome_out() -> None:
    assert QUICK.keys() == ENDPOINTS.keys()
    quick = {(who, expected(how, who)) for how, asking in QUICK.items() for who in asking}
    assert quick == {(who, expected(how, who)) for how in ENDPOINTS for who in CHATS}


def use(server: Server, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run's endpoint behave in a way."""
    monkeypatch.setenv("VLM_BASE_URL", free_address() if how == "dead port" else server.url)
    monkeypatch.setenv("VLM_MODEL", "m")
    monkeypatch.setenv("VLM_API_KEY", "sesame-1234")
    server.behave = ENDPOINTS.get(how, reply_as_asked)


def free_address() -> str:
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def last_records(folder: Path) -> list[SampleRecord]:
    """The last line of each image in a run's journal."""
    lines = (folder / "records-0.jsonl").read_text().splitlines()
    records = [SampleRecord.from_json(line) for line in lines]
    return list({record.key: record for record in records}.values())


def board(tmp_path: Path) -> dict[str, str]:
    (row,) = csv.DictReader((tmp_path / "results/leaderboard.csv").open())
    return row


@pytest.mark.parametrize(("how", "who"), list_meetings())
def test_what_a_run_gets_from_an_endpoint(
    how: str, who: str, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self-test is off: what is tested here is the run itself."""
    options = [*options_of(who, tmp_path), f"{CHATS[who]}.give_up_after=5"]
    options.append(f"{CHATS[who]}.self_test=false")
    use(server, how, monkeypatch)
    code, output = harness(tmp_path, *options)
    (folder,) = folders(tmp_path)
    wanted = expected(how, who)

    # 1. An answer is used; silence fails each image with its reason, or stops the run.
    if wanted == "answered":
        assert code == 0, output
    elif wanted == "stopped":
        assert code == 2 and output.count("questions in a row reached nobody") == 1, output
    elif wanted == "failed":
        assert code == 1, output
        for record in last_records(folder):
            assert record.status == "failed" and "UnansweredError: judge vlm-m" in record.error
            assert record.usage.unanswered > 0
        asked = sum(record.usage.unanswered for record in last_records(folder))
        assert int(board(tmp_path)["unanswered"]) == asked
    else:
        assert code == 0 and board(tmp_path)["unjudged"] == "12", output
    assert "Traceback" not in output and "\ud83d" not in output
    (folder / "records-0.jsonl").read_bytes().decode()

    # 2. With a mended endpoint the same command draws, or judges, what is missing.
    if wanted in ("failed", "stopped"):
        use(server, "well", monkeypatch)
        code, output = harness(tmp_path, *options)
        assert code == 0, output
        assert all(record.status == "done" for record in last_records(folder))
        assert board(tmp_path)["unanswered"] == "0"


@pytest.mark.parametrize("who", list(CHATS))
def test_an_unfit_endpoint_stops_a_run_before_anything_is_drawn(
    who: str, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(server, "well", monkeypatch)
    server.behave_when_tested = lambda body: says("Yes, the image")
    code, output = harness(tmp_path, *options_of(who, tmp_path))
    assert code == 2 and "says yes to every picture" in output, output
    assert not folders(tmp_path) and not server.asked and len(server.tested) == 2


def test_failed_images_are_drawn_again_and_equal_an_undisturbed_run(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(server, "well", monkeypatch)
    options = [*options_of("gridar", tmp_path), "method.verifier.chat.give_up_after=null"]
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    assert harness(undisturbed, *options)[0] == 0

    # 1. Some questions are refused: their images fail, the others are delivered.
    def refuse_some(body: dict) -> tuple[int, object]:
        text = body["messages"][-1]["content"][0]["text"]
        refused = any(word in text for word in TEXTS[0:6:2])
        return ENDPOINTS["refusal"](body) if refused else reply_as_asked(body)

    disturbed = tmp_path / "disturbed"
    disturbed.mkdir()
    server.behave = refuse_some
    code, output = harness(disturbed, *options)
    (folder,) = folders(disturbed)
    failed = {record.key for record in last_records(folder) if record.status == "failed"}
    assert code == 1 and 0 < len(failed) < 6, output

    # 2. Running again draws exactly these, and ends in the same images, notes and scores.
    server.behave = reply_as_asked
    lines = len((folder / "records-0.jsonl").read_text().splitlines())
    code, output = harness(disturbed, *options)
    assert code == 0, output
    added = (folder / "records-0.jsonl").read_text().splitlines()[lines:]
    assert {SampleRecord.from_json(line).key for line in added} == failed
    assert _last_lines(disturbed) == _last_lines(undisturbed)


def _last_lines(cwd: Path) -> dict[str, object]:
    """Everything that must not depend on failures: attempts that failed are left out."""
    content = deterministic(cwd)
    for name, lines in content.items():
        if name.endswith("/records"):
            content[name] = [line for line in lines if '"done"' in line]  # type: ignore[union-attr]
    return content


def test_on_error_stop_ends_at_the_first_silence(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(server, "refusal", monkeypatch)
    code, output = harness(tmp_path, *options_of("best_of_n", tmp_path), "on_error=stop")
    assert code == 1 and "UnansweredError: judge vlm-m" in output, output
    (folder,) = folders(tmp_path)
    assert len(last_records(folder)) == 1


# --- what a method may decide ---------------------------------------------------------------------


class Answering(PixelSum):
    """A reward that answers so about every image."""

    def __init__(self, said: object) -> None:
        self.said = said

    def __call__(self, texts: Any, images: Any) -> list[Any]:  # type: ignore[override]
        return [self.said] * len(images)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (None, "unreadable: the judge cannot tell"),
        (float("nan"), "unreadable: nan is no score"),
        (float("inf"), "unreadable: inf is no score"),
        (np.float32("nan"), "unreadable: nan is no score"),
        (Answer("answered", float("nan")), "unreadable: nan is no score"),
        (Answer("refused", text="No.\x1b", reason="it says"), "refused: it says, it said 'No."),
        (Answer("unreachable", reason="status 500"), "unreachable: status 500"),
    ],
)  # fmt: skip
def test_no_image_is_chosen_without_a_score(said: object, problem: str) -> None:
    for delivery in draw(BestOfN(2, Answering(said)), jobs(TEXTS)).values():
        assert delivery.image is None and delivery.usage.unanswered == 2
        assert delivery.error.startswith("UnansweredError: judge pixel-sum left 2 of 2 questions")
        assert problem in delivery.error


def test_a_score_of_numpy_is_a_number() -> None:
    for delivery in draw(BestOfN(2, Answering(np.float32(0.5))), jobs(TEXTS)).values():
        assert delivery.image is not None and delivery.notes["scores"] == [0.5, 0.5]


# --- text and numbers from outside ----------------------------------------------------------------


def test_text_from_outside_is_cleaned_and_can_be_written() -> None:
    assert clean_text("a\ud83d\x07b\r\nc\td\x9b\u202e") == "a\ufffd\ufffdb\nc\td\ufffd\ufffd"
    assert clean_text("\U0001f408 é 猫") == "\U0001f408 é 猫"
    assert dump({"a\udc00": ["\ud83d"]}) == '{"a\ufffd":["\ufffd"]}'
    with pytest.raises(UserError, match="half of a character"):
        Prompt("p/0", "a cat \ud83d", "one")


class Noting:
    """A method that notes something, or raises it, and changes it later."""

    rows = 1
    branches = 2
    tokens_per_step = 1

    def __init__(self, fact: Any, *, later: bool = False) -> None:
        self.fact = fact
        self.later = later

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        facts: list[Any] = [0]
        if prompt == TEXTS[1]:
            if isinstance(self.fact, Exception):
                raise self.fact
            s.note(facts=facts if self.later else [self.fact])
            facts[0] = self.fact
        await s.run([canvas])
        return canvas


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("fact", [float("nan"), float("inf"), np.int64(3), {1, 2}, object()])
def test_a_note_that_cannot_be_written_fails_its_image(fact: object, *, later: bool) -> None:
    for key, delivery in draw(Noting(fact, later=later), jobs(TEXTS)).items():
        record = SampleRecord(
            *key, "one", "done", delivery.usage, error=delivery.error, notes=delivery.notes
        )
        record.to_json().encode()
        is_bad = delivery.job.prompt.text == TEXTS[1]
        assert ("the note 'facts' cannot be written" in delivery.error) == is_bad


@pytest.mark.parametrize("fact", ["half \ud83d", ValueError("half \ud83d")])
def test_half_a_character_ends_no_run(fact: object) -> None:
    for key, delivery in draw(Noting(fact), jobs(TEXTS)).items():
        record = SampleRecord(
            *key, "one", "done", delivery.usage, error=delivery.error, notes=delivery.notes
        )
        line = record.to_json().encode().decode()
        is_said = "half \ufffd" in line or r"half \\ud83d" in line
        assert is_said == (delivery.job.prompt.text == TEXTS[1])


@pytest.mark.parametrize(
    ("value", "detail"), [(math.nan, {}), (1.0, {"gap": math.inf}), (0.5, {"mask": {1, 2}})]
)
def test_a_score_that_cannot_be_written_is_none(value: float, detail: dict) -> None:
    class Kept:
        def __init__(self) -> None:
            self.saved: list[Score] = []

        def image_file(self, job: object) -> Path:
            return Path("0.png")

        def save_score(self, score: Score) -> None:
            score.to_json()
            self.saved.append(score)

    class Scoring:
        is_judged = True

        def score(self, items: object) -> list[Score]:
            return [Score("toy/0", 0, "j", value, detail), Score("toy/1", 0, "j", 1.0)]

    kept = Kept()
    assert score_images(Scoring(), kept, jobs(TEXTS)[:2]) == [None, 1.0]  # type: ignore[arg-type]
    assert "its score cannot be written" in kept.saved[0].detail["unjudged"]


class PercentBenchmark(ToyBenchmark):
    """Scores in percent, which no score is."""

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        for score in super().score(items):
            yield dataclasses.replace(score, value=33.9)


def test_a_benchmark_whose_scores_are_refused_is_told_once_and_ends_with_an_error(
    tmp_path: Path,
) -> None:
    percent = ("benchmark._target_=test_judges.PercentBenchmark", "benchmark.prompts=4")
    for _ in range(2):  # the second command finds the same in the journals
        code, output = harness(tmp_path, *TOY, "method=plain", *percent)
        assert code == 1
        (line,) = [each for each in output.splitlines() if "8 images have no score" in each]
        assert line.count("toy/0000") == 1 and "33.9: a score is a number from 0 to 1" in line
        assert output.count("33.9") <= 2  # at most a warning while it draws, and the end


# --- names of results -----------------------------------------------------------------------------


def test_how_an_endpoint_is_reached_is_in_no_fingerprint() -> None:
    def identify(**options: object) -> str:
        chat = {"_target_": "harness.judges.vlm.Endpoint", "model": "m", **options}
        return fingerprint({"method": ["best_of_n", {"reward": {"_target_": "x", "chat": chat}}]})

    assert identify() == identify(self_test=False) == identify(give_up_after=None, self_test=True)
    assert identify() != identify(max_tokens=9)


def test_an_added_option_names_a_result_once_it_is_used() -> None:
    def identify(**options: object) -> str:
        return fingerprint({"method": {"_target_": "methods.gridar.GridAR", "n": 4, **options}})

    assert identify() == identify(released_fallback=False) != identify(released_fallback=True)


def test_a_judge_that_sees_goes_on_after_half_an_emoji(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self-test is on: an endpoint that says the same to every picture is stopped by it."""
    use(server, "good", monkeypatch)
    spoilt: list[dict] = []

    def spoil_one(body: dict) -> tuple[int, object]:
        if spoilt:
            return reply_as_asked(body)
        spoilt.append(body)
        return ENDPOINTS["surrogate"](body)

    server.behave = spoil_one
    code, output = harness(tmp_path, *options_of("gridar", tmp_path))
    assert code == 0, output
    assert spoilt and server.tested
    (folder,) = folders(tmp_path)
    assert all(record.status == "done" for record in last_records(folder))
    assert "\ud83d" not in (folder / "records-0.jsonl").read_bytes().decode()
