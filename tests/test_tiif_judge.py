"""TIIF-Bench with a judge behind HTTP that is slow, wrong, chatty, rate-limiting or dead.

Whole runs are those of the toy model.
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
from chat_server import Server, says
from PIL import Image as Pillow
from runs import TESTS, deterministic, folders, harness
from tiif_folder import write_folder

from benchmarks.tiif.files import read_split
from benchmarks.tiif.scores import OFFICIAL
from benchmarks.tiif.vqa_benchmark import MAX_UNREADABLE, VQABenchmark
from benchmarks.tiif.vqa_model import (
    SYSTEM,
    TEMPLATES,
    ImageAnswers,
    ImageQuestions,
    VQAJudge,
    write_message,
)
from harness.judges.vlm import Endpoint
from harness.records import Prompt, Score, UserError, digest

QUESTIONS = re.compile(r"Is (?:it|the text) '?.*\?")


def questions_in(body: dict) -> list[str]:
    return QUESTIONS.findall(body["messages"][1]["content"][0]["text"])


def draw_answers(body: dict) -> list[str]:
    """Answer by picture and questions whatever the template; yes four times in five."""
    picture = body["messages"][1]["content"][1]["image_url"]["url"]
    questions = questions_in(body)
    luck = random.Random(picture + str(questions))
    return [luck.choice(("yes", "yes", "yes", "yes", "no")) for _ in questions]


def write_reply(body: dict) -> str:
    return "\n".join(f"{word}, because" for word in draw_answers(body))


def reply_well(body: dict) -> tuple[int, object]:
    return says(write_reply(body))


# --- one judge ------------------------------------------------------------------------------------

ASKED = [
    ImageQuestions(f"tiif/x/{i}", [" Is it 0?  ", "Is it 1?"], np.full((8, 9, 3), 10 * i, np.uint8))
    for i in range(24)
]


def judge_behind(server: Server, attempts: int = 3, **options: object) -> VQAJudge:
    quick = {"timeout_s": 5.0, "backoff_s": 0.01, "max_tokens": None, "picture": "png", **options}
    return VQAJudge(Endpoint(server.url, "some-model", **quick), attempts)  # type: ignore[arg-type]


def decode_picture(part: dict) -> np.ndarray:
    kind, data = part["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Pillow.open(io.BytesIO(base64.b64decode(data))))


def test_a_call_has_one_image_and_all_questions_and_no_luck_in_it(server: Server) -> None:
    server.behave = reply_well
    judge = judge_behind(server)
    judge.ask(ASKED)
    assert len(server.asked) == len(ASKED)
    by_message = {write_message(one.key, one.questions): one for one in ASKED}
    known = [template.format(questions="Is it 0?\nIs it 1?") for template in TEMPLATES]
    used = set()
    for body in server.asked:
        system, user = body["messages"]
        text, picture = user["content"]
        assert system == {"role": "system", "content": SYSTEM}
        assert "\nIs it 0?\nIs it 1?\n" in text["text"]
        pixels = decode_picture(picture)
        assert any(np.array_equal(pixels, one.image) for one in ASKED)  # PNG loses nothing
        assert body["temperature"] == 0 and "max_tokens" not in body and "logprobs" not in body
        used.add(known.index(text["text"]))
    assert used == {0, 1, 2} and len(by_message) == 3

    other = VQAJudge(Endpoint(server.url, "some-model", temperature=1.0))
    same = judge_behind(server, logprobs=False)
    assert len({judge.id, other.id, same.id}) == 2


def test_a_slow_judge_is_asked_in_parallel_and_answers_in_order(server: Server) -> None:
    def reply_slowly(body: dict) -> tuple[int, object]:
        time.sleep(0.03 * random.random())
        return reply_well(body)

    server.behave = reply_slowly
    answered = judge_behind(server, concurrency=4).ask(ASKED)
    assert 1 < server.most_at_once <= 4
    server.behave = reply_well
    assert answered == judge_behind(server, concurrency=1).ask(ASKED)
    assert all(one.answers and len(one.replies) == 1 and one.tokens == 17 for one in answered)


def test_a_wrong_reply_is_asked_for_again_with_the_next_template(server: Server) -> None:
    replies = ("I see a thing.", "yes\nyes\nyes", "1. **Yes**, it is\n2. **No**")
    texts = []

    def reply_better_each_time(body: dict) -> tuple[int, object]:
        texts.append(body["messages"][1]["content"][0]["text"])
        return says(replies[len(texts) - 1])

    server.behave = reply_better_each_time
    wanted = ImageAnswers(("yes", "no"), replies, "", 51)
    assert judge_behind(server).ask(ASKED[:1]) == [wanted]
    first = ASKED[0]
    assert texts == [write_message(first.key, first.questions, attempt) for attempt in range(3)]
    assert len(set(texts)) == 3


def test_why_there_are_no_answers_is_told(server: Server) -> None:
    server.behave = lambda body: says("I'm sorry, I can't help with that.")
    (refusal,) = judge_behind(server, attempts=2).ask(ASKED[:1])
    assert (refusal.answers, len(refusal.replies), refusal.problem) == (None, 2, "refused")
    server.behave = lambda body: says("yes")
    (too_few,) = judge_behind(server).ask(ASKED[:1])
    assert too_few.problem == "unreadable"
    server.behave = lambda body: (500, b"")
    (silence,) = judge_behind(server, retries=1).ask(ASKED[:1])
    assert (silence.answers, silence.replies) == (None, ())
    assert silence.problem == "no reply: status 500"


def test_chatty_replies_count_and_say_who_gave_them(server: Server) -> None:
    def reply_chattily(body: dict) -> tuple[int, object]:
        lines = ["Here are my answers:"]
        for i, word in enumerate(draw_answers(body), start=1):
            lines.append(f"{i}. **{word.title()}** - as one sees")
        lines.append("No further remarks.")
        status, completion = says("\n\n".join(lines))
        return status, {**completion, "model": "some-model-2024-08-06"}  # type: ignore[dict-item]

    server.behave = reply_chattily
    chatty = judge_behind(server).ask(ASKED)
    assert {one.served for one in chatty} == {"some-model-2024-08-06"}
    server.behave = reply_well
    plain = judge_behind(server).ask(ASKED)
    assert [one.answers for one in chatty] == [one.answers for one in plain]


# --- scores ---------------------------------------------------------------------------------------


class Scripted:
    """A VQA model that gives these replies, in order; then none."""

    id = "scripted"

    def __init__(self, replies: Sequence[str | None]) -> None:
        self._replies: Iterator[str | None] = iter(replies)
        self.tokens: Sequence[int] = ()
        self.served: Sequence[str] = ()

    def ready(self) -> None: ...

    def reply(
        self, questions: Sequence[str], images: Sequence[np.ndarray], system: str
    ) -> list[str | None]:
        self.tokens = [1] * len(questions)
        self.served = ["script"] * len(questions)
        return [next(self._replies, None) for _ in questions]


SPEC = {"questions": ["a?", "b?"], "answers": ["yes", "no"]}


def scripted_benchmark(replies: Sequence[str | None]) -> VQABenchmark:
    """Make a benchmark of 40 scenes whose judge gives these replies."""
    prompts = [
        Prompt(f"t/{length}/{i}", "x", f"{length}/style", SPEC, 2.0, f"t/{i}")
        for i in range(40)
        for length in ("short", "long")
    ]
    return VQABenchmark(prompts, VQAJudge(Scripted(replies), attempts=1), OFFICIAL)


def pictures(folder: Path, count: int) -> list[Path]:
    """Write black pictures; returns their paths."""
    paths = []
    for i in range(count):
        path = folder / str(i) / "0.png"
        path.parent.mkdir()
        Pillow.new("RGB", (4, 4)).save(path)
        paths.append(path)
    return paths


def test_a_value_is_the_share_of_right_answers_and_a_problem_is_told(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 5)
    paths[1].unlink()
    paths[2].write_bytes(b"no picture")
    benchmark = scripted_benchmark(["yes\nno", "yes\nyes", "I'm sorry, I cannot help."])
    scores = list(benchmark.score(zip(benchmark.prompts(), paths, strict=False)))
    assert [score.value for score in scores] == [1.0, None, None, 0.5, None]
    problems = [score.detail.get("unjudged", "")[:20] for score in scores]
    assert problems == ["", "0.png is missing", "0.png cannot be read", "", "refused"]
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
    unjudged = "5 images judged, in vain: 1 0.png is missing, 1 0.png cannot be read"
    assert unjudged in "\n".join(lines)
    assert lines[-1] == (
        "it says yes to 75.0 % of 4 questions, the key to 50.0 %; "
        "it is right on 100.0 % of those whose key is yes, on 50.0 % of the others"
    )


class Reader:
    """Reads the same words in every picture that is not black."""

    id = "reader-1"

    def read(self, image: np.ndarray) -> list[str]:
        return ["OPEN", "Tea cup"] if image.any() else []


def test_text_is_read_where_words_are_wanted(tmp_path: Path) -> None:
    asked = {"questions": ["Is the text 'Open' in the image?"], "answers": ["yes"]}
    worded = {**asked, "words": ["Open", "tea", "cup", "x"]}
    prompts = [
        Prompt("t/short", "x", "short/text", worded, 1.0, "t"),
        Prompt("t/long", "x", "long/text", worded, 1.0, "t"),
        Prompt("t/s", "x", "short/style", asked, 1.0, "s"),
    ]
    judge = VQAJudge(Scripted(["yes"] * 3))
    benchmark = VQABenchmark(prompts, judge, OFFICIAL, reader=Reader())
    paths = pictures(tmp_path, 3)
    Pillow.new("RGB", (4, 4), (9, 9, 9)).save(paths[0])
    written, empty, unworded = benchmark.score(zip(prompts, paths, strict=True))
    assert written.detail["text"] == {
        "reader": "reader-1",
        "lines": ["OPEN", "Tea cup"],
        "gned": 0.25,
        "recall": 0.75,
    }
    assert empty.detail["text"] == {"reader": "reader-1", "lines": [], "gned": 1.0, "recall": 0.0}
    assert "text" not in unworded.detail
    lines = list(benchmark.summarise([written, empty, unworded]))
    assert lines[-2:] == [
        "short text by reader-1: GNED 0.2500 (lower is better), recall 0.7500, 1 images",
        "long text by reader-1: GNED 1.0000 (lower is better), recall 0.0000, 1 images",
    ]


@pytest.mark.parametrize("reply", [None, "I see nothing that I could answer."])
def test_a_judge_that_cannot_be_read_is_asked_no_more(tmp_path: Path, reply: str | None) -> None:
    script = ["yes\nno"] * 7 + [reply] * MAX_UNREADABLE + ["yes\nno"] * 50
    benchmark = scripted_benchmark(script)
    items = list(zip(benchmark.prompts(), pictures(tmp_path, 60), strict=False))
    kept: list[Score] = []
    with pytest.raises(
        UserError, match=r"20 images in a row without a readable reply .* kept: mend the judge"
    ) as error:
        for score in benchmark.score(items):
            kept.append(score)
    # The images without a readable reply have no score: they will be asked about again.
    assert [score.value for score in kept] == [1.0] * 7
    assert (reply or "no reply") in str(error.value)

    script[15] = "no\nno"
    values = [score.value for score in scripted_benchmark(script).score(items)]
    unread = [None] * (MAX_UNREADABLE - 1) if reply else []
    assert [value for value in values if value != 1.0] == [*unread[:8], 0.5, *unread[8:]]
    assert len(values) == len(items) - (0 if reply else MAX_UNREADABLE - 1)


def test_silence_is_counted_over_calls_of_score(tmp_path: Path) -> None:
    """The command scores in pieces while it draws."""
    benchmark = scripted_benchmark([])
    items = list(zip(benchmark.prompts(), pictures(tmp_path, 30), strict=False))
    assert list(benchmark.score(items[:15])) == []
    with pytest.raises(UserError, match="20 images in a row"):
        list(benchmark.score(items[15:]))


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, server: Server) -> list[str]:
    """Write the command of a run of 78 prompts against the server, without the report."""
    return [
        *("--config-dir", str(TESTS / "toy_conf")),
        "model=toy",
        "benchmark=tiif_testmini",
        "sampler.slots=24",
        f"benchmark.metadata={write_folder(tmp_path / 'data')}",
        "benchmark.allow_other_version=true",
        "stages=[generate,score]",
        "benchmark.ocr=false",
        f"benchmark.judge.chat.base_url={server.url}",
        "benchmark.judge.chat.backoff_s=0.01",
    ]


@pytest.fixture
def key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the key that the endpoint asks for; the server's fixture takes it away."""
    monkeypatch.setenv("VLM_API_KEY", "sesame-1234")


def read_board(folder: Path) -> dict[str, str]:
    """Read the only row of the leaderboard."""
    (only,) = csv.DictReader((folder / "results/leaderboard.csv").open())
    return only


def read_scores(folder: Path) -> list[Score]:
    return [Score.from_json(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def expect_sums(cwd: Path, folder: Path) -> None:
    """Sum the scores up by hand, and compare leaderboard and summary with that."""
    value = {}
    for score in read_scores(folder):
        assert score.value is not None
        value[score.prompt_id.removeprefix("tiif_testmini/")] = score.value
    overall = {}
    for length in ("short", "long"):
        groups = []
        for dimensions in OFFICIAL.groups.values():
            groups.append(np.mean([value[f"{name}/{length}/0"] for name in dimensions]))
        overall[length] = np.mean(groups)
    advanced = [name for group in OFFICIAL.levels["advanced"] for name in OFFICIAL.groups[group]]
    long_advanced = np.mean([value[f"{name}/long/0"] for name in advanced])

    board = read_board(cwd)
    assert float(board["score"]) == pytest.approx(np.mean(list(overall.values())), abs=1e-4)
    assert float(board["short/overall"]) == pytest.approx(overall["short"], abs=1e-4)
    assert float(board["long/advanced"]) == pytest.approx(long_advanced, abs=1e-4)
    assert board["version"].startswith("other-testmini-")
    assert board["judge"].startswith("vlm-gpt-4o-2024-11-20-")
    summary = (folder / "summary.txt").read_text()
    cells = f"{100 * overall['short']:.2f} / {100 * overall['long']:.2f}"
    assert f"overall                      {cells}" in summary
    assert re.search(r"it says yes to \d\d\.\d % of 156 questions, the key to 50\.0 %", summary)


@pytest.mark.usefixtures("key")
def test_a_run_is_scored_summed_up_and_resumed(
    tmp_path: Path,
    server: Server,
    run: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server is busy now and then."""
    refused = 0

    def reply_unless_busy(body: dict) -> tuple[int, object] | tuple[int, object, dict]:
        nonlocal refused
        if server.asked.count(body) == 1 and len(server.asked) % 3 == 0:
            refused += 1
            return 429, b"too many", {"Retry-After": "0.01"}
        return reply_well(body)

    # 1. Each image has one score, with the reply that the server gave about it.
    server.behave = reply_unless_busy
    code, output = harness(tmp_path, *run, "stages=[generate,score,report]")
    assert code == 0, output
    (folder,) = folders(tmp_path)
    scores = read_scores(folder)
    assert len(scores) == len(server.asked) - refused == 78 and refused > 0
    replies = [score.detail["replies"] for score in scores]
    for body in server.asked[::9]:
        assert [write_reply(body)] in replies

    # 2. Leaderboard and summary are the sums.
    expect_sums(tmp_path, folder)

    # 3. Running again asks nothing, also without a key and with other settings of the connection.
    before = deterministic(tmp_path)
    monkeypatch.delenv("VLM_API_KEY")
    asked = len(server.asked)
    connection = ("benchmark.judge.chat.concurrency=3", "benchmark.judge.chat.timeout_s=9")
    code, output = harness(tmp_path, *run, *connection)
    assert code == 0 and len(server.asked) == asked, output
    assert deterministic(tmp_path) == before
    assert "sesame" not in output + caplog.text


def test_the_estimate_asks_nothing_and_leaves_nothing(
    tmp_path: Path, server: Server, run: list[str]
) -> None:
    code, output = harness(tmp_path, *run, "stages=[estimate]")
    assert code == 0
    assert "78 calls with 156 questions; about " in output and "tokens" in output
    assert not server.asked and not (tmp_path / "results").exists()
    code, output = harness(tmp_path, *run, "stages=[estimate,score]")
    assert code == 2 and "an estimate is asked for alone" in output
    code, output = harness(tmp_path, "stages=[estimate]")
    assert code == 2
    refusal = "benchmark=pictogram: an estimate is asked for alone, of a benchmark whose judge"
    assert refusal in output


def test_a_missing_key_is_refused_before_anything_is_made(
    tmp_path: Path, server: Server, run: list[str]
) -> None:
    code, output = harness(tmp_path, *run)
    assert code == 2 and "needs a key: set VLM_API_KEY" in output
    assert not server.asked and not folders(tmp_path)
    code, output = harness(tmp_path, *run, "stages=[generate]")  # drawing needs no judge
    assert code == 0 and len(list(folders(tmp_path)[0].rglob("*.png"))) == 78
    code, output = harness(tmp_path, *run)
    assert code == 2 and "needs a key" in output


@pytest.mark.usefixtures("key")
def test_a_dead_judge_stops_the_run_which_then_goes_on(
    tmp_path: Path, server: Server, run: list[str]
) -> None:
    """The key it was sent, echoed in replies and errors, is in no file and no message either."""
    run = [*run, "benchmark.judge.chat.retries=0"]

    def die_after_40(body: dict) -> tuple[int, object]:
        if len(server.asked) <= 40:
            return reply_well(body)
        return 500, b"Bearer sesame-1234 has no credit"

    # 1. The judge dies: the scores so far are kept.
    server.behave = die_after_40
    code, first = harness(tmp_path, *run)
    assert code == 2, first
    assert "20 questions in a row reached nobody (the last: status 500, Bearer [key]" in first
    (folder,) = folders(tmp_path)
    scores = folder / "scores.jsonl"
    kept = scores.read_text().splitlines()
    assert 30 <= len(kept) <= 40
    assert len(server.asked) <= 40 + 2 * MAX_UNREADABLE

    # 2. It answers, but cannot be read: nothing is added.
    server.behave = lambda body: says("sesame-1234 " + draw_answers(body)[0])
    code, second = harness(tmp_path, *run, "stages=[score]")
    assert code == 2 and "[key]" in second
    assert scores.read_text().splitlines() == kept

    # 3. It works again: the run is completed.
    server.behave = reply_well
    code, third = harness(tmp_path, *run)
    assert code == 0, third
    assert len(scores.read_text().splitlines()) == 78
    for path in (tmp_path / "results").rglob("*"):
        assert not path.is_file() or b"sesame" not in path.read_bytes()
    assert "sesame" not in first + second + third


@pytest.mark.usefixtures("key")
def test_images_without_a_reply_are_asked_about_again(
    tmp_path: Path, server: Server, run: list[str]
) -> None:
    run = [*run, "benchmark.judge.chat.retries=0"]
    unanswered = set()

    def fail_for_one_in_eight(body: dict) -> tuple[int, object]:
        key = digest(json.dumps(body["messages"]).encode())
        if int(key, 16) % 8:
            return reply_well(body)
        unanswered.add(key)
        return 500, b""

    server.behave = fail_for_one_in_eight
    code, output = harness(tmp_path, *run)
    assert unanswered and code == 1
    problem = f"the judge left {len(unanswered)} images without an answer; run again to ask it"
    assert problem in output
    (folder,) = folders(tmp_path)
    assert len(read_scores(folder)) == 78 - len(unanswered)

    server.behave = reply_well
    asked = len(server.asked)
    assert harness(tmp_path, *run)[0] == 0
    assert len(read_scores(folder)) == 78
    assert len(server.asked) == asked + len(unanswered)


def reply_with_the_key(body: dict) -> tuple[int, object]:
    """Answer as the prompts of `write_folder` expect: yes, and no to the last question."""
    return says("\n".join(["yes"] * (len(questions_in(body)) - 1) + ["no"]))


def write_images(folder: Path) -> Path:
    """Write an image for each prompt in the reference's layout, but for one of style."""
    for i, dimension in enumerate(OFFICIAL.dimensions):
        ending = (".png", ".jpg", ".jpeg", ".webp")[i % 4]
        for length in ("short", "long"):
            path = folder / dimension / "their model" / f"{length}_description" / f"0{ending}"
            path.parent.mkdir(parents=True)
            Pillow.new("RGB", (8, 8), (i, i, i)).save(path)
    next((folder / "style/their model/long_description").iterdir()).unlink()
    return folder


@pytest.mark.usefixtures("key")
def test_imported_images_are_scored_from_the_references_layout(
    tmp_path: Path, server: Server, run: list[str]
) -> None:
    server.behave = reply_with_the_key
    made = write_images(tmp_path / "made")
    command = [*run, "stages=[score]", f"benchmark.images={made}"]
    code, output = harness(tmp_path, *command)
    assert code == 0, output
    assert "1 of 78 images are missing (tiif_testmini/style/long/0)" in output
    (folder,) = folders(tmp_path)
    summary = (folder / "summary.txt").read_text().splitlines()
    assert "style                        100.00 / 0.00" in summary
    assert "overall                      100.00 / 88.89" in summary
    assert len(server.asked) == 77

    (made / "text/another/short_description").mkdir(parents=True)
    code, output = harness(tmp_path, *command)
    assert code == 2
    assert "has images of another, their model in TIIF-Bench's layout: choose one with" in output
    code, output = harness(tmp_path, *command, "benchmark.images_of=their model")
    assert code == 0 and len(server.asked) == 77, output


@pytest.mark.usefixtures("key")
def test_a_wrong_key_ends_the_run(tmp_path: Path, server: Server, run: list[str]) -> None:
    server.behave = lambda body: (401, b"sesame-1234 is no key")
    code, output = harness(tmp_path, *run)
    assert code == 2 and "check VLM_API_KEY" in output and "sesame" not in output


def test_prompts_of_a_scene_share_questions_and_nothing_leaks_into_them(tmp_path: Path) -> None:
    prompts, _ = read_split("tiif", "testmini", str(write_folder(tmp_path)), True)
    different = {"id": "", "text": "", "category": ""}
    for short, long in zip(prompts[::2], prompts[1::2], strict=True):
        assert replace(short, **different) == replace(long, **different)
        assert "word" not in short.text
