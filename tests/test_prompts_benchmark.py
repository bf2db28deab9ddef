"""`benchmark=prompts`: own prompts from any file, with costs and a gallery, scored if asked for."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from runs import TOY, finished, folders
from runs import harness as run_harness

from benchmarks.prompts import OwnPrompts
from harness.records import OWN, Answer, Prompt, UserError
from harness.runs.benchmark import BenchmarkSpec
from harness.runs.fingerprint import drop_places
from harness.runs.read import read_run

TEXTS = ["a photo of a cat", "a red car", "three dogs"]
RUN = (*TOY[:2], "model=toy", "sampler.slots=24", "benchmark=prompts", "benchmark.file=mine.txt")
"""Options of a run of own prompts on the toy model."""


def read(folder: Path, name: str, content: str | bytes, **options: Any) -> list[Prompt]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return OwnPrompts(file=str(path), **options).prompts()


# ------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.txt", "a photo of a cat\na red car\nthree dogs\n"),
        ("mine.txt", "\ufeffa photo of a cat\r\n\r\n# a comment\r\n  a red car \r\nthree dogs"),
        ("mine.txt", "a photo of a cat\ra red car\rthree dogs\r"),
        ("mine.csv", "prompt\na photo of a cat\na red car\nthree dogs\n"),
        ("MINE.CSV", '\ufeffnote,Prompt\r\n1,a photo of a cat\r\n,"a red car"\r\n\r\n3,three dogs'),
        ("mine.tsv", "Prompt\tNote\na photo of a cat\tx\na red car\t\nthree dogs\ty\n"),
        ("mine.jsonl", "".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS)),
        ("mine.jsonl", "\ufeff" + "\r\n\r\n".join(json.dumps({"PROMPT": t}) for t in TEXTS)),
    ],
)
def test_every_spelling_of_a_file_gives_the_same_prompts(
    name: str, content: str, tmp_path: Path
) -> None:
    prompts = read(tmp_path, name, content)
    assert prompts == OwnPrompts(prompts_list=TEXTS).prompts()
    assert prompts == [Prompt.of_text(text) for text in TEXTS]
    assert {prompt.category for prompt in prompts} == {OWN}


def test_commas_quotes_and_line_breaks_are_parts_of_a_prompt(tmp_path: Path) -> None:
    hostile = 'a sign: "x=y", {red}\n#1\u2028end'
    row = hostile.replace('"', '""')
    (one,) = read(tmp_path, "mine.csv", f'id,prompt\n7,"{row}"\n')
    assert (one.id, one.text) == ("prompts/7", hostile)
    (same,) = read(tmp_path, "mine.jsonl", json.dumps({"id": 7, "prompt": hostile}))
    assert same == one
    (line,) = read(tmp_path, "mine.txt", 'a sign, "x=y"\u2028end # no comment')
    assert line.text == 'a sign, "x=y"\u2028end # no comment'


def test_ids_and_categories_are_columns(tmp_path: Path) -> None:
    table = "id,prompt,Category,style\n1,a cat,animals,x\n,a dog,,y\n"
    prompts = read(tmp_path, "mine.csv", table)
    assert [prompt.category for prompt in prompts] == ["animals", OWN]
    assert prompts[0].id == "prompts/1"
    assert prompts[1].id == Prompt.of_text("a dog").id
    styles = read(tmp_path, "mine.csv", table, category="Style")
    assert [prompt.category for prompt in styles] == ["x", "y"]
    assert len(read(tmp_path, "mine.csv", table, prompts=1)) == 1


def test_columns_that_nobody_reads_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="harness"):
        read(tmp_path, "mine.csv", "prompt,style,seed\na cat,x,1\n")
    assert "columns that are not read: style, seed" in caplog.text


def test_an_id_follows_the_text_alone_and_is_a_file_name() -> None:
    ids = [Prompt.of_text(text).id for text in ("A cat!", "a cat", "猫", "x" * 500, "a/../b", "..")]
    assert len(set(ids)) == len(ids)
    for one in ids:
        _, _, name = one.partition("/")
        assert len(name) <= 51
        assert name[0].isalnum()
        assert name.isascii()
        assert "/" not in name
    assert Prompt.of_text("a cat").id == "prompts/a-cat-51e4674156"  # pictures hang on it


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("mine.txt", "", "there is no prompt"),
        ("mine.txt", "\n# only a comment\n", "there is no prompt"),
        ("mine.txt", "a cat\na dog\na cat\n", "line 3: the prompt 'a cat' stands in line 1"),
        ("mine.txt", b"a cat\n\xff\xfe\n", "line 2: not UTF-8"),
        ("mine.csv", "", "there is no prompt"),
        ("mine.csv", "prompt\n", "there is no prompt"),
        ("mine.csv", "a cat\na dog\n", "line 1: no column 'prompt' among a cat"),
        ("mine.csv", "prompt,prompt\na,b\n", "line 1: column 'prompt' is there twice"),
        ("mine.csv", "id,prompt\n\n1,a cat, asleep\n", "line 3: 3 cells under 2 columns"),
        ("mine.csv", 'id,prompt\n1,"a\nb"\n2,"open\n', "line 4: not valid CSV"),
        ("mine.csv", "id,prompt\n1,a cat\n1,a dog\n", "line 3: the id '1' stands in line 2"),
        ("mine.csv", "id,prompt\n../x,a cat\n", "line 2: id '../x' would name a file"),
        ("mine.csv", f"id,prompt\n{'x' * 101},a cat\n", "line 2: id 'xxx"),
        ("mine.csv", "id,prompt\n1,\n", "line 2: 'prompt' must be a text"),
        ("mine.csv", "prompt,category\na cat,images\n", "line 2: category 'images' has the name"),
        ("mine.jsonl", "", "there is no prompt"),
        ("mine.jsonl", '{"prompt": "a cat"}\n{"prompt": \n', "line 2: not valid JSON"),
        ("mine.jsonl", '\n["a cat"]\n', "line 2: expected a JSON object, found list"),
        ("mine.jsonl", '{"text": "a cat"}\n', "line 1: 'prompt' must be a text, found None"),
        ("mine.jsonl", '{"prompt": 3}\n', "line 1: 'prompt' must be a text, found 3"),
        ("mine.jsonl", '{"prompt": "x", "id": [1]}\n', "line 1: 'id' must be a text, found [1]"),
        ("mine.jsonl", '{"prompt": "\\ud800"}\n', "line 1: prompt"),
        ("mine.json", "[]", "the ending says what is in it"),
    ],
)
def test_a_bad_file_is_one_line_with_file_and_line(
    name: str, content: str | bytes, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        read(tmp_path, name, content)
    message = str(refused.value)
    assert words in message
    assert name in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "set benchmark.file=PATH"),
        ({"file": "x.txt", "prompts_list": ["a"]}, "one of the two"),
        ({"file": "nowhere.txt"}, "nowhere.txt: cannot be read"),
        ({"prompts_list": []}, "at least one"),
        ({"prompts_list": ["a", "a"]}, "'a' is there twice"),
        ({"prompts_list": ["a"], "images": 0}, "benchmark.images=0"),
        ({"prompts_list": ["a"], "prompts": 2}, "benchmark.prompts=2"),
        ({"prompts_list": ["a"], "judge": SimpleNamespace(id="x")}, "choose a reward"),
    ],
)
def test_options_that_make_no_benchmark_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        OwnPrompts(**options)


def test_ten_thousand_prompts_are_read_at_once(tmp_path: Path) -> None:
    lines = [f"a photo of object number {i}" for i in range(10_000)]
    began = time.process_time()
    prompts = read(tmp_path, "mine.txt", "\n".join(lines))
    assert len({prompt.id for prompt in prompts}) == 10_000
    assert time.process_time() - began < 60  # no square of the number of lines


def test_where_the_prompts_lie_is_no_part_of_a_runs_name() -> None:
    settings = {"_target_": "benchmarks.prompts.OwnPrompts", "file": "a.txt", "images": 1}
    assert drop_places(settings) == drop_places({**settings, "file": "b.csv"})
    foreign = {**settings, "_target_": "mine.Benchmark"}
    assert drop_places(foreign) == foreign


# ------------------------------------------------------------------ scores


class Reward:
    """A reward that says what it is told to."""

    id = "reward-1"

    def __init__(self, answers: Sequence[Any]) -> None:
        self.answers = list(answers)

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[Any]:
        return [self.answers.pop(0) for _ in images]


class Brightness:
    """A reward of a user's own."""

    id = "brightness"

    def __call__(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> list[float]:
        return [float(image.mean()) / 255 for image in images]


def test_values_are_scores_and_all_else_says_why_there_is_none(tmp_path: Path) -> None:
    said = [
        0.25,
        1,
        None,
        1.5,
        -0.1,
        float("nan"),
        "yes",
        Answer("refused", reason="no"),
        Answer("unreachable", reason="down"),
    ]
    texts = [f"prompt {i}" for i in range(len(said) + 1)]
    benchmark = OwnPrompts(judge=Reward(said), prompts_list=texts)
    path = tmp_path / "0.png"
    Pillow.new("RGB", (4, 4)).save(path)
    files = [path] * len(said) + [tmp_path / "1.png"]
    scores = list(benchmark.score(zip(benchmark.prompts(), files, strict=True)))
    assert [score.value for score in scores] == [0.25, 1.0, *[None] * 7]
    why = [str(score.detail.get("unjudged")) for score in scores]
    assert "cannot tell" in why[2]
    assert "1.5 is no score from 0 to 1" in why[3]
    assert "refused: no" in why[7]
    assert "missing" in why[8]
    assert len(scores) == len(files) - 1  # the judge that was not reached is asked again
    assert BenchmarkSpec.of(benchmark).judge == "reward-1"


def test_without_a_judge_nobody_scores() -> None:
    benchmark = OwnPrompts(prompts_list=TEXTS)
    spec = BenchmarkSpec.of(benchmark)
    assert not spec.is_judged
    assert list(benchmark.score([(benchmark.prompts()[0], Path("0.png"))])) == []


# ------------------------------------------------------------------ whole runs


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    return tmp_path


def read_board(cwd: Path) -> list[dict[str, str]]:
    with (cwd / "results/leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def test_without_a_judge_a_run_has_costs_and_a_gallery_and_no_rank(mine: Path) -> None:
    sweep = ("-m", *RUN, "method=plain,toy_best")
    code, said = run_harness(mine, *sweep)
    assert code == 0, said
    assert said.count("not scored") == 2
    rows = read_board(mine)
    assert [row["method"] for row in rows] == ["plain", "toy_best"]
    for row in rows:
        assert (row["score"], row["rank_low"], row["tie_group"], row["judge"]) == ("", "", "", "")
        assert (row["images"], row["unjudged"], row["failed"]) == ("3", "0", "0")
        assert float(row["visual_tokens"]) > 0
    assert (mine / "results/sheet.png").is_file()
    gallery = (mine / "results/report/data/gallery.js").read_text()
    assert all(text in gallery for text in TEXTS)
    assert len(list((mine / "results/report/thumbs").iterdir())) >= len(TEXTS)

    code, said = run_harness(mine, *sweep)
    assert code == 0
    assert "2 of 2 points are finished" in said


def test_a_run_is_resumed_and_its_file_may_move(mine: Path) -> None:
    before = finished(mine, *RUN)
    (folder,) = folders(mine)
    assert not read_run(folder).is_scored
    (image,) = folder.glob("images/a-red-car-*/0.png")
    image.unlink()
    table = "".join(f'{{"prompt": "{text}"}}\n' for text in TEXTS)
    (mine / "other.jsonl").write_text(table)
    code, said = run_harness(mine, *RUN[:-1], "benchmark.file=other.jsonl")
    assert code == 0, said
    assert "1 to draw" in said
    assert folders(mine) == [folder]
    assert image.read_bytes() == before[str(image.relative_to(mine))]


def test_any_reward_scores_later_and_the_run_is_ranked(mine: Path) -> None:
    judged = (
        "-m",
        *RUN,
        "method=plain,toy_best",
        "+benchmark.judge._target_=test_prompts_benchmark.Brightness",
        "benchmark.images=2",
    )
    code, said = run_harness(mine, *judged, "stages=[generate]")
    assert code == 0, said
    code, said = run_harness(mine, *judged, "stages=[score,report]")
    assert code == 0, said
    for row, folder in zip(read_board(mine), folders(mine)[::-1], strict=True):
        run = read_run(folder)
        assert run.is_judged
        assert len(run.scores) == 6
        assert row["judge"] == run.judge == "brightness"
        assert row["unjudged"] == "0"
        assert row["rank_low"]
        assert 0 < float(row["score"]) < 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["stages=[score]"], "judge@benchmark.judge=pictogram_reward"),
        (["stages=[estimate]"], "estimate"),
        (["judge@benchmark.judge=pictogram_verifier"], "choose a reward"),
        (["judge@benchmark.judge=pictogram_judge"], "choose a reward"),
        (["benchmark.file=null"], "benchmark.file=PATH"),
        (["benchmark.file=gone.txt"], "gone.txt"),
        (["benchmark.images=none"], "benchmark.images=none"),
        (["benchmark.fil=x"], "benchmark.fil"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(
    options: list[str], words: str, mine: Path
) -> None:
    code, said = run_harness(mine, *RUN, *options)
    assert code == 2
    (line,) = said.strip().splitlines()
    assert words in line
    assert not (mine / "results").exists()


def write_wandb(mine: Path) -> tuple[int, str]:
    pytest.importorskip("wandb")
    return run_harness(mine, "stages=[report]", "logger=wandb", "logger.mode=offline")


def pack_board(mine: Path) -> tuple[int, str]:
    return run_harness(mine, "pack", "results", "board", module="harness.board")


@pytest.mark.parametrize("command", [pytest.param(write_wandb, marks=pytest.mark.long), pack_board])
def test_what_is_made_of_runs_takes_one_without_scores(
    command: Callable[[Path], tuple[int, str]], mine: Path
) -> None:
    code, said = run_harness(mine, *RUN, "stages=[generate]")
    assert code == 0, said
    code, said = command(mine)
    assert code == 0, said


def test_the_embedded_reward_scores_own_prompts(mine: Path) -> None:
    own = ("benchmark=prompts", "benchmark.file=mine.txt", "judge@benchmark.judge=pictogram_reward")
    code, said = run_harness(mine, *own, "sampler.slots=6", "stages=[generate,score]")
    assert code == 0, said
    (folder,) = folders(mine)
    run = read_run(folder)
    assert len(run.scores) == 3
    assert all(0 <= (score.value or 0) <= 1 for score in run.scores.values())
    assert run.judge.startswith("pictogram-reward-")


def test_an_audit_draws_from_the_run_when_the_file_is_gone(tmp_path: Path) -> None:
    table = 'id,prompt,style\n7,a cat,x\n,"a red car, old",y\n9,three dogs,\n,a hat,x\n'
    file = tmp_path / "mine.csv"
    file.write_text(table)
    run = (*RUN[:-1], "benchmark.file=mine.csv", "benchmark.category=style", "benchmark.prompts=3")
    code, said = run_harness(tmp_path, *run, "stages=[generate]")
    assert code == 0, said
    (folder,) = folders(tmp_path)
    audit = ("run", str(folder))
    for change in (file.unlink, lambda: file.write_text("prompt\nanother\n")):
        change()
        code, said = run_harness(tmp_path, *audit, module="harness.check")
        assert (code, said) == (0, "7 passed, 0 failed\n")
    # What was planned is held against the run's fingerprint.
    plan = folder / "jobs.jsonl"
    plan.write_text(plan.read_text().replace("a red car", "a blue car"))
    code, said = run_harness(tmp_path, *audit, module="harness.check")
    assert code == 1 and "this installation makes run" in said
