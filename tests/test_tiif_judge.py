"""TIIF-Bench with a judge behind HTTP that is slow, wrong, chatty, rate-limiting and dead; whole
runs on the toy.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.tiif.questionnaire import MUTE, Questionnaire
from chat_server import Server, says
from PIL import Image as Pillow
from runs import TESTS, deterministic, folders, harness
from tiif_folder import write_folder

from benchmarks.tiif.files import read_split
from benchmarks.tiif.interview import SYSTEM, TEMPLATES, Asked, Heard, Interview, message
from benchmarks.tiif.scores import OFFICIAL
from harness.judges.vlm import Endpoint
from harness.records import Prompt, Score, UserError, digest

QUESTIONS = re.compile(r"Is (?:it|the text) '?.*\?")


def asked_in(body: dict) -> list[str]:
    return QUESTIONS.findall(body["messages"][1]["content"][0]["text"])


def answer(body: dict) -> list[str]:
    """A judge's opinion, a function of template-free content: right four times in five."""
    picture = body["messages"][1]["content"][1]["image_url"]["url"]
    luck = random.Random(picture + str(asked_in(body)))
    return [luck.choice(("yes", "yes", "yes", "yes", "no")) for _ in asked_in(body)]


def replies(body: dict) -> tuple[int, object]:
    return says("\n".join(f"{word}, because" for word in answer(body)))


# --- one interview --------------------------------------------------------------------------------

ASKED = [
    Asked(f"tiif/x/{i}", [" Is it 0?  ", "Is it 1?"], np.full((8, 9, 3), 10 * i, np.uint8))
    for i in range(24)
]


def interview(server: Server, **options: object) -> Interview:
    quick = {"timeout_s": 5.0, "backoff_s": 0.01, "max_tokens": None, "picture": "png", **options}
    attempts = int(quick.pop("attempts", 3))  # type: ignore[call-overload]
    return Interview(Endpoint(server.url, "some-model", **quick), attempts)  # type: ignore[arg-type]


def test_a_call_has_one_image_and_all_questions_and_no_luck_in_it(server: Server) -> None:
    server.behave = replies
    judge = interview(server)
    judge.ask(ASKED)
    assert len(server.asked) == len(ASKED)
    keys = {message(one.key, one.questions): one for one in ASKED}
    used = set()
    for body in server.asked:
        system, user = body["messages"]
        text, picture = user["content"]
        assert system == {"role": "system", "content": SYSTEM}
        assert "\nIs it 0?\nIs it 1?\n" in text["text"]
        kind, data = picture["image_url"]["url"].split(",")
        assert kind == "data:image/png;base64"
        pixels = np.asarray(Pillow.open(io.BytesIO(base64.b64decode(data))))
        assert any(np.array_equal(pixels, one.image) for one in ASKED)  # PNG loses nothing
        assert body["temperature"] == 0 and "max_tokens" not in body and "logprobs" not in body
        used |= {
            i
            for i, one in enumerate(TEMPLATES)
            if text["text"] == one.format(questions="Is it 0?\nIs it 1?")
        }
    assert used == {0, 1, 2} and len(keys) == 3
    other = Endpoint(server.url, "some-model", temperature=1.0)
    assert len({judge.id, Interview(other).id, interview(server, logprobs=False).id}) == 2


def test_a_slow_judge_is_asked_in_parallel_and_heard_in_order(server: Server) -> None:
    def slow(body: dict) -> tuple[int, object]:
        time.sleep(0.03 * random.random())
        return replies(body)

    server.behave = slow
    heard = interview(server, concurrency=4).ask(ASKED)
    assert 1 < server.most_at_once <= 4
    server.behave = replies
    assert heard == interview(server, concurrency=1).ask(ASKED)
    assert all(one.answers and len(one.replies) == 1 and one.tokens == 17 for one in heard)


def test_a_wrong_reply_is_asked_for_again_with_the_next_template(server: Server) -> None:
    said = {0: "I see a thing.", 1: "yes\nyes\nyes", 2: "1. **Yes**, it is\n2. **No**"}
    texts = []

    def behave(body: dict) -> tuple[int, object]:
        texts.append(body["messages"][1]["content"][0]["text"])
        return says(said[len(texts) - 1])

    server.behave = behave
    assert interview(server).ask(ASKED[:1]) == [Heard(("yes", "no"), tuple(said.values()), "", 51)]
    assert texts == [message(ASKED[0].key, ASKED[0].questions, attempt) for attempt in range(3)]
    assert len(set(texts)) == 3
    server.behave = lambda body: says("I'm sorry, I can't help with that.")
    (refusal,) = interview(server, attempts=2).ask(ASKED[:1])
    assert (refusal.answers, len(refusal.replies), refusal.problem) == (None, 2, "refused")
    server.behave = lambda body: says("yes")
    assert interview(server).ask(ASKED[:1])[0].problem == "unreadable"
    server.behave = lambda body: (500, b"")
    (silence,) = interview(server, retries=1).ask(ASKED[:1])
    assert (silence.answers, silence.replies, silence.problem) == (None, (), "no reply")


def test_chatty_replies_count_and_say_who_gave_them(server: Server) -> None:
    def chatty(body: dict) -> tuple[int, object]:
        numbered = [
            f"{i}. **{word.title()}** - as one sees" for i, word in enumerate(answer(body), start=1)
        ]
        status, completion = says(
            "Here are my answers:\n\n" + "\n\n".join(numbered) + "\n\nNo further remarks."
        )
        return status, {**completion, "model": "some-model-2024-08-06"}  # type: ignore[dict-item]

    server.behave = chatty
    heard = interview(server).ask(ASKED)
    assert {one.served for one in heard} == {"some-model-2024-08-06"}
    server.behave = replies
    assert [one.answers for one in heard] == [one.answers for one in interview(server).ask(ASKED)]


# --- scores ---------------------------------------------------------------------------------------


class Scripted:
    """Says what it is told for each call, in order; then nothing."""

    id = "scripted"

    def __init__(self, said: Sequence[str | None]) -> None:
        self._said: Iterator[str | None] = iter(said)
        self.tokens: Sequence[int] = ()
        self.served: Sequence[str] = ()

    def ready(self) -> None: ...

    def reply(
        self, questions: Sequence[str], images: Sequence[np.ndarray], system: str
    ) -> list[str | None]:
        self.tokens = [1] * len(questions)
        self.served = ["script"] * len(questions)
        return [next(self._said, None) for _ in questions]


def questionnaire(said: Sequence[str | None], attempts: int = 1) -> Questionnaire:
    prompts = [
        Prompt(
            f"t/{name}/{i}",
            "x",
            f"{name}/style",
            {"questions": ["a?", "b?"], "answers": ["yes", "no"]},
            2.0,
            f"t/{i}",
        )
        for i in range(40)
        for name in ("short", "long")
    ]
    return Questionnaire(prompts, Interview(Scripted(said), attempts), OFFICIAL)


def pictures(folder: Path, count: int) -> list[Path]:
    paths = []
    for i in range(count):
        paths.append(folder / str(i) / "0.png")
        paths[-1].parent.mkdir()
        Pillow.new("RGB", (4, 4)).save(paths[-1])
    return paths


def test_a_value_is_the_share_of_right_answers_and_what_cannot_be_judged_is_said(
    tmp_path: Path,
) -> None:
    paths = pictures(tmp_path, 5)
    paths[1].unlink()
    paths[2].write_bytes(b"no picture")
    benchmark = questionnaire(["yes\nno", "yes\nyes", "I'm sorry, I cannot help."])
    prompts = benchmark.prompts()
    scores = list(benchmark.score(zip(prompts, paths, strict=False)))
    assert [score.value for score in scores] == [1.0, None, None, 0.5, None]
    assert [score.detail.get("unjudged", "")[:20] for score in scores] == [
        *("", "0.png is missing", "0.png cannot be read", "", "refused")
    ]
    assert scores[3].detail == {
        "answers": ["yes", "yes"],
        "right": 1,
        "replies": ["yes\nyes"],
        "served": "script",
        "tokens": 1,
    }
    assert all(Score.from_json(score.to_json()) == score for score in scores)
    lines = list(benchmark.summarise(scores))
    assert lines[0].endswith("a missing or unjudged image is wrong")
    assert f"style                        {100 * 2 / 80:.2f} / {100 * 1 / 80:.2f}" in lines
    assert "5 images judged, in vain: 1 0.png is missing, 1 0.png cannot be read" in "\n".join(
        lines
    )
    assert (
        "it says yes to 75.0 % of 4 questions, the key to 50.0 %; it is right on 100.0 % of those whose key is"
        in lines[-1]
    )
    assert lines[-1].endswith("on 50.0 % of the others")


def test_text_is_read_where_words_are_wanted(tmp_path: Path) -> None:
    class Reader:
        id = "reader-1"

        def read(self, image: np.ndarray) -> list[str]:
            return ["OPEN", "Tea cup"] if image.any() else []

    spec = {
        "questions": ["Is the text 'Open' in the image?"],
        "answers": ["yes"],
        "words": ["Open", "tea", "cup", "x"],
    }
    prompts = [
        Prompt(f"t/{name}", "x", f"{name}/text", spec, 1.0, "t") for name in ("short", "long")
    ]
    plain = Prompt(
        "t/s", "x", "short/style", {k: spec[k] for k in ("questions", "answers")}, 1.0, "s"
    )
    benchmark = Questionnaire(
        [*prompts, plain], Interview(Scripted(["yes"] * 3)), OFFICIAL, reader=Reader()
    )
    paths = pictures(tmp_path, 3)
    Pillow.new("RGB", (4, 4), (9, 9, 9)).save(paths[0])
    scores = list(benchmark.score(zip([*prompts, plain], paths, strict=True)))
    assert scores[0].detail["text"] == {
        "reader": "reader-1",
        "lines": ["OPEN", "Tea cup"],
        "gned": 0.25,
        "recall": 0.75,
    }
    assert scores[1].detail["text"] == {
        "reader": "reader-1",
        "lines": [],
        "gned": 1.0,
        "recall": 0.0,
    }
    assert "text" not in scores[2].detail
    lines = list(benchmark.summarise(scores))
    assert lines[-2:] == [
        "short text by reader-1: GNED 0.2500 (lower is better), recall 0.7500, 1 images",
        "long text by reader-1: GNED 1.0000 (lower is better), recall 0.0000, 1 images",
    ]


@pytest.mark.parametrize("said", [None, "I see nothing that I could answer."])
def test_a_judge_that_cannot_be_read_is_asked_no_more(tmp_path: Path, said: str | None) -> None:
    script = ["yes\nno"] * 7 + [said] * MUTE + ["yes\nno"] * 50
    benchmark = questionnaire(script)
    items = list(zip(benchmark.prompts(), pictures(tmp_path, 60), strict=False))
    kept: list[Score] = []
    with pytest.raises(
        UserError, match=r"20 images in a row without a readable reply .* kept: mend the judge"
    ) as error:
        for score in benchmark.score(items):
            kept.append(score)
    assert [score.value for score in kept] == [
        1.0
    ] * 7  # and the muted images will be asked about again
    assert (said or "no reply") in str(error.value)
    script[15] = "no\nno"
    values = [score.value for score in questionnaire(script).score(items)]
    unread = [None] * (MUTE - 1) if said else []
    assert [value for value in values if value != 1.0] == [*unread[:8], 0.5, *unread[8:]]
    assert len(values) == len(items) - (0 if said else MUTE - 1)


def test_silence_is_counted_over_calls_of_score(tmp_path: Path) -> None:
    """The command scores in pieces while it draws."""
    benchmark = questionnaire([])
    items = list(zip(benchmark.prompts(), pictures(tmp_path, 30), strict=False))
    assert list(benchmark.score(items[:15])) == []
    with pytest.raises(UserError, match="20 images in a row"):
        list(benchmark.score(items[15:]))


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, server: Server) -> Iterator[list[str]]:
    """The command of a run of 78 prompts against the server, without the report."""
    yield [
        *(
            "--config-dir",
            str(TESTS / "toy_conf"),
            "model=toy",
            "benchmark=tiif_testmini",
            "sampler.slots=24",
        ),
        *(
            f"benchmark.metadata={write_folder(tmp_path / 'data')}",
            "benchmark.allow_other_version=true",
        ),
        *(
            "stages=[generate,score]",
            "benchmark.ocr=false",
            f"benchmark.judge.chat.base_url={server.url}",
            "benchmark.judge.chat.backoff_s=0.01",
        ),
    ]


def row(folder: Path) -> dict[str, str]:
    (only,) = csv.DictReader((folder / "results/leaderboard.csv").open())
    return only


def test_a_run_is_scored_summed_up_and_resumed(
    tmp_path: Path,
    server: Server,
    run: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By a server that is busy now and then."""
    monkeypatch.setenv("VLM_API_KEY", "sesame-1234")
    patience = 0

    def busy(body: dict) -> tuple[int, object] | tuple[int, object, dict]:
        nonlocal patience
        if server.asked.count(body) == 1 and len(server.asked) % 3 == 0:
            patience += 1
            return 429, b"too many", {"Retry-After": "0.01"}
        return replies(body)

    server.behave = busy
    code, said = harness(tmp_path, *run, "stages=[generate,score,report]")
    assert code == 0, said
    (folder,) = folders(tmp_path)
    scores = [Score.from_json(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == len(server.asked) - patience == 78 and patience > 0
    for body in server.asked[::9]:
        said_then = "\n".join(f"{word}, because" for word in answer(body))
        assert any(score.detail["replies"] == [said_then] for score in scores)
    value = {score.prompt_id.removeprefix("tiif_testmini/"): score.value for score in scores}
    groups = OFFICIAL.groups.values()
    by_hand = {
        n: np.mean([np.mean([value[f"{d}/{n}/0"] for d in group]) for group in groups])  # type: ignore[misc]
        for n in ("short", "long")
    }
    board = row(tmp_path)
    assert float(board["score"]) == pytest.approx(np.mean(list(by_hand.values())), abs=1e-4)
    assert float(board["short/overall"]) == pytest.approx(by_hand["short"], abs=1e-4)
    assert float(board["long/advanced"]) == pytest.approx(
        np.mean(
            [value[f"{d}/long/0"] for g in OFFICIAL.levels["advanced"] for d in OFFICIAL.groups[g]]
        ),
        abs=1e-4,
    )
    assert board["version"].startswith("other-testmini-") and board["judge"].startswith(
        "vlm-gpt-4o-2024-11-20-"
    )
    summary = (folder / "summary.txt").read_text()
    assert (
        f"overall                      {100 * by_hand['short']:.2f} / {100 * by_hand['long']:.2f}"
        in summary
    )
    assert re.search(r"it says yes to \d\d\.\d % of 156 questions, the key to 50\.0 %", summary)
    before = deterministic(tmp_path)
    monkeypatch.delenv("VLM_API_KEY")  # nothing is left to ask
    asked = len(server.asked)
    code, said = harness(
        tmp_path, *run, "benchmark.judge.chat.concurrency=3", "benchmark.judge.chat.timeout_s=9"
    )
    assert code == 0 and len(server.asked) == asked, said
    assert deterministic(tmp_path) == before
    assert "sesame" not in said + caplog.text


def test_the_estimate_asks_nothing_and_leaves_nothing(
    tmp_path: Path, server: Server, run: list[str]
) -> None:
    code, said = harness(tmp_path, *run, "stages=[estimate]")
    assert code == 0 and "78 calls with 156 questions; about " in said and "tokens" in said
    assert not server.asked and not (tmp_path / "results").exists()
    code, said = harness(tmp_path, *run, "stages=[estimate,score]")
    assert code == 2 and "an estimate is asked for alone" in said
    code, said = harness(tmp_path, "stages=[estimate]")
    assert (
        code == 2
        and "benchmark=pictogram: an estimate is asked for alone, of a benchmark whose judge"
        in said
    )


def test_a_missing_key_is_refused_before_anything_is_made(
    tmp_path: Path, server: Server, run: list[str]
) -> None:
    code, said = harness(tmp_path, *run)
    assert code == 2 and "needs a key: set VLM_API_KEY" in said
    assert not server.asked and not folders(tmp_path)
    code, said = harness(tmp_path, *run, "stages=[generate]")  # drawing needs no judge
    assert code == 0 and len(list(folders(tmp_path)[0].rglob("*.png"))) == 78
    code, said = harness(tmp_path, *run)
    assert code == 2 and "needs a key" in said


def test_a_dead_judge_stops_the_run_which_then_goes_on(
    tmp_path: Path, server: Server, run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key it was sent, echoed in replies and errors, is in no file and no message either."""
    monkeypatch.setenv("VLM_API_KEY", "sesame-1234")
    run = [*run, "benchmark.judge.chat.retries=0"]

    def dies(body: dict) -> tuple[int, object]:
        return (
            replies(body) if len(server.asked) <= 40 else (500, b"Bearer sesame-1234 has no credit")
        )

    server.behave = dies
    code, first = harness(tmp_path, *run)
    assert (
        code == 2 and "20 images in a row without a readable reply (the last: no reply)" in first
    ), first
    (folder,) = folders(tmp_path)
    kept = (folder / "scores.jsonl").read_text().splitlines()
    assert 30 <= len(kept) <= 40
    asked = len(server.asked)
    assert asked <= 40 + 2 * MUTE
    server.behave = lambda body: says("sesame-1234 " + answer(body)[0])
    code, second = harness(tmp_path, *run, "stages=[score]")
    assert code == 2 and "[key]" in second
    assert (folder / "scores.jsonl").read_text().splitlines() == kept
    server.behave = replies
    code, third = harness(tmp_path, *run)
    assert code == 0, third
    assert len((folder / "scores.jsonl").read_text().splitlines()) == 78
    written = b"".join(
        path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()
    )
    assert b"sesame" not in written and "sesame" not in first + second + third


def test_images_without_a_reply_are_asked_about_again(
    tmp_path: Path, server: Server, run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_API_KEY", "sesame-1234")
    run = [*run, "benchmark.judge.chat.retries=0"]
    unheard = set()

    def behave(body: dict) -> tuple[int, object]:
        key = digest(json.dumps(body["messages"]).encode())
        if int(key, 16) % 8:
            return replies(body)
        unheard.add(key)
        return 500, b""

    server.behave = behave
    code, said = harness(tmp_path, *run)
    assert unheard
    assert (
        code == 1
        and f"the judge left {len(unheard)} images without an answer; run again to ask it" in said
    )
    (folder,) = folders(tmp_path)
    assert (folder / "scores.jsonl").read_bytes().count(b"\n") == 78 - len(unheard)
    server.behave = replies
    asked = len(server.asked)
    assert harness(tmp_path, *run)[0] == 0
    assert (folder / "scores.jsonl").read_bytes().count(b"\n") == 78
    assert len(server.asked) == asked + len(unheard)


def test_images_made_elsewhere_are_scored_from_the_references_layout(
    tmp_path: Path, server: Server, run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_API_KEY", "sesame-1234")
    server.behave = lambda body: says(
        "\n".join(["yes"] * (len(asked_in(body)) - 1) + ["no"])
    )  # the key
    for i, dimension in enumerate(OFFICIAL.dimensions):
        for length in ("short", "long"):
            name = f"0{('.png', '.jpg', '.jpeg', '.webp')[i % 4]}"
            path = tmp_path / "made" / dimension / "their model" / f"{length}_description" / name
            path.parent.mkdir(parents=True)
            Pillow.new("RGB", (8, 8), (i, i, i)).save(path)
    next((tmp_path / "made/style/their model/long_description").iterdir()).unlink()
    there = ("stages=[score]", f"benchmark.images={tmp_path / 'made'}")
    code, said = harness(tmp_path, *run, *there)
    assert code == 0 and "1 of 78 images are missing (tiif_testmini/style/long/0)" in said, said
    (folder,) = folders(tmp_path)
    assert (
        "style                        100.00 / 0.00"
        in (folder / "summary.txt").read_text().splitlines()
    )
    assert (
        "overall                      100.00 / 88.89"
        in (folder / "summary.txt").read_text().splitlines()
    )
    assert len(server.asked) == 77
    (tmp_path / "made/text/another/short_description").mkdir(parents=True)
    code, said = harness(tmp_path, *run, *there)
    assert (
        code == 2
        and "has images of another, their model in TIIF-Bench's layout: choose one with" in said
    )
    code, said = harness(tmp_path, *run, *there, "benchmark.images_of=their model")
    assert code == 0 and len(server.asked) == 77, said


def test_a_wrong_key_ends_the_run(
    tmp_path: Path, server: Server, run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_API_KEY", "sesame-1234")
    server.behave = lambda body: (401, b"sesame-1234 is no key")
    code, said = harness(tmp_path, *run)
    assert code == 2 and "check VLM_API_KEY" in said and "sesame" not in said


def test_prompts_of_a_scene_share_questions_and_nothing_leaks_into_them(tmp_path: Path) -> None:
    prompts, _ = read_split("tiif", "testmini", str(write_folder(tmp_path)), True)
    for short, long in zip(prompts[::2], prompts[1::2], strict=True):
        assert replace(short, id="", text="", category="") == replace(
            long, id="", text="", category=""
        )
        assert "word" not in short.text
