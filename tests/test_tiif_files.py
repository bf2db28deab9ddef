"""TIIF-Bench's files: the published ones to the byte, others only when asked for, and marked."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from tiif_folder import write_folder, write_lines

from benchmarks.tiif.benchmark import Tiif
from benchmarks.tiif.files import COMMIT, official_hashes, read_split
from benchmarks.tiif.scores import LENGTHS, OFFICIAL, weighted_mean
from benchmarks.tiif.vqa_benchmark import VQABenchmark
from benchmarks.tiif.vqa_model import VQAJudge
from harness.records import Prompt, UserError
from harness.runs.folder import image_path

SHARED = Path(__file__).parents[2] / "shared" / "data" / "tiif_bench"
with_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="TIIF-Bench's data files are not beside the repository"
)


def read(folder: Path, split: str = "testmini", allow: bool = True) -> tuple[list[Prompt], str]:
    return read_split("tiif", split, str(folder), allow)


def test_the_pinned_hashes_are_the_published_set() -> None:
    lines = "".join(f"{sha}  {path}\n" for path, sha in sorted(official_hashes().items()))
    assert len(official_hashes()) == 156
    assert hashlib.sha256(lines.encode()).hexdigest().startswith("84aea8e34cc493c2")


@with_data
@pytest.mark.parametrize(
    ("split", "scenes", "questions", "noes", "dimensions"),
    [
        (
            "test",
            2538,
            12160,
            329,
            {
                "numeracy": (75, 514),
                "text": (300, 2088),
                "style": (300, 300),
                "shape+2d": (33, 164),
            },
        ),
        (
            "testmini",
            277,
            1446,
            34,
            {"numeracy": (8, 48), "text": (30, 221), "real_world": (25, 268)},
        ),
    ],
)
def test_the_published_files_have_the_published_numbers(
    split: str, scenes: int, questions: int, noes: int, dimensions: dict[str, tuple[int, int]]
) -> None:
    prompts, version = read(SHARED, split, allow=False)
    assert version == f"{split}@{COMMIT[:8]}"
    assert Counter(p.category.split("/")[0] for p in prompts) == {"short": scenes, "long": scenes}
    categories = {f"{length}/{name}" for length in LENGTHS for name in OFFICIAL.dimensions}
    assert {p.category for p in prompts} == categories
    assert sum(p.weight for p in prompts) == 2 * questions
    for dimension, counts in dimensions.items():
        there = [p for p in prompts if p.category == f"long/{dimension}"]
        assert (len(there), sum(p.weight for p in there)) == counts

    clusters = Counter(p.cluster for p in prompts)
    assert len(clusters) == scenes and set(clusters.values()) == {2}
    assert len({image_path(p, 0) for p in prompts}) == len(prompts)
    answers = Counter(answer for p in prompts for answer in p.spec["answers"])
    assert answers["no"] == 2 * noes
    words = next(p for p in prompts if p.id == "tiif/text/short/0").spec["words"]
    assert words == ["drink", "tea", "eat", "cake", "relax", "enjoy", "delight"]


@with_data
@pytest.mark.parametrize(("split", "overall"), [("test", 0.969), ("testmini", 0.970)])
def test_a_judge_that_always_says_yes_scores_above_every_model(split: str, overall: float) -> None:
    keys: dict[str, list[bool]] = {}
    for prompt in read(SHARED, split)[0]:
        answers = [answer == "yes" for answer in prompt.spec["answers"]]
        keys.setdefault(prompt.category, []).extend(answers)
    accuracy = {category: sum(yes) / len(yes) for category, yes in keys.items()}
    score = weighted_mean(OFFICIAL.aggregates(accuracy)["score"], accuracy)
    assert score == pytest.approx(overall, abs=5e-4)


@with_data
def test_a_download_is_pinned_file_by_file_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Reply(io.BytesIO):
        headers: dict[str, str] = {}  # noqa: RUF012

    def serve(url: str, timeout: float) -> Reply:
        asked.append(url)
        path = unquote(url.partition("/data/")[2])
        return Reply((SHARED / path).read_bytes())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("harness.download.why_silent", lambda _: "")
    monkeypatch.setattr("urllib.request.urlopen", serve)
    first = read_split("tiif", "testmini", None, False)
    assert len(asked) == 78 and all(f"/TIIF-Bench/{COMMIT}/data/testmini_" in url for url in asked)
    assert not any("+" in url for url in asked) and sum("%2B" in url for url in asked) == 60
    assert read_split("tiif", "testmini", None, False) == first == read(SHARED, allow=False)
    assert len(asked) == 78  # from the cache
    kept = next(tmp_path.rglob("style_prompts.jsonl"))
    kept.write_bytes(kept.read_bytes() + b"\n")
    with pytest.raises(UserError, match="delete it, and it is downloaded again"):
        read_split("tiif", "testmini", None, True)


def test_other_files_are_refused_or_marked(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    with pytest.raises(
        UserError, match=r"has sha256 [0-9a-f]{64}, the published one [0-9a-f]{64} \(78 of 78 files"
    ):
        read(folder, allow=False)
    prompts, version = read(folder)
    assert re.fullmatch(r"other-testmini-[0-9a-f]{12}", version)
    assert len(prompts) == 78
    path = folder / "testmini_prompts" / "style_prompts.jsonl"
    path.write_text(path.read_text().replace("thing", "ting"))
    assert read(folder)[1] != version
    path.unlink()
    with pytest.raises(
        UserError,
        match=r"testmini_prompts/style_prompts\.jsonl is not there; set benchmark\.metadata",
    ):
        read(folder)
    with pytest.raises(UserError, match=r"benchmark\.split=mini: choose from test, testmini"):
        read(folder, "mini")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("prompts", {"long_description": ""}, "expected type 'style' and a long_description"),
        ("prompts", {"type": "text"}, "expected type 'style' and a short_description"),
        (
            "eval_prompts",
            {"yn_answer_list": ["yes"]},
            r"expected yes or no for each of 2 questions",
        ),
        (
            "eval_prompts",
            {"yn_answer_list": ["yes", "maybe"]},
            r"expected yes or no for each of 2 questions",
        ),
        (
            "eval_prompts",
            {"yn_question_list": []},
            "expected type 'style', yn_question_list and yn_answer_list",
        ),
        ("eval_prompts", {"yn_question_list": "Is it?"}, "expected type 'style', yn_question_list"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, kind: str, change: dict, message: str) -> None:
    path = write_folder(tmp_path) / f"testmini_{kind}" / f"style_{kind}.jsonl"
    write_lines(path, [{**json.loads(path.read_text()), **change}])
    with pytest.raises(UserError, match=rf"{path.name}, line 1: {message}"):
        read(tmp_path)


def test_prompt_and_question_files_belong_together(tmp_path: Path) -> None:
    path = write_folder(tmp_path) / "testmini_prompts" / "text_prompts.jsonl"
    path.write_text(path.read_text() * 2)
    with pytest.raises(UserError, match=r"1 rows, .* has 2; they belong together"):
        read(tmp_path)
    write_lines(path, [json.loads(path.read_text().splitlines()[0])])
    path = tmp_path / "testmini_eval_prompts" / "text_eval_prompts.jsonl"
    path.write_text(path.read_text().replace("Is the text", "Is that text"))
    with pytest.raises(UserError, match="line 1: a question about text does not quote its word"):
        read(tmp_path)


class Nobody:
    """A VQA model that is never asked."""

    id = "nobody"
    tokens = ()
    served = ()


def test_fewer_prompts_keep_both_lengths_of_a_scene(tmp_path: Path) -> None:
    prompts, _ = read(write_folder(tmp_path, rows=3))
    judge = VQAJudge(Nobody())  # type: ignore[arg-type]
    some = {}
    for wanted in (2, 78, 100):
        some[wanted] = VQABenchmark(prompts, judge, OFFICIAL, wanted=wanted).prompts()
    for wanted, chosen in some.items():
        assert len(chosen) == wanted
        assert set(Counter(p.cluster for p in chosen).values()) == {2}
    assert {p.category for p in some[78]} == {p.category for p in prompts}
    assert {p.id for p in some[2]} < {p.id for p in some[78]} < {p.id for p in some[100]}


def test_impossible_numbers_are_refused(tmp_path: Path) -> None:
    prompts, _ = read(write_folder(tmp_path, rows=3))
    judge = VQAJudge(Nobody())  # type: ignore[arg-type]
    for wrong in (0, 3, 236):
        with pytest.raises(
            UserError, match=f"benchmark.prompts={wrong}: choose an even number up to the 234"
        ):
            VQABenchmark(prompts, judge, OFFICIAL, wanted=wrong)
    with pytest.raises(UserError, match=r"benchmark\.images=0"):
        VQABenchmark(prompts, judge, OFFICIAL, images=0)
    with pytest.raises(UserError, match=r"benchmark\.judge\.attempts=0"):
        VQAJudge(Nobody(), attempts=0)  # type: ignore[arg-type]


def test_a_missing_ocr_is_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ready(Nobody):
        def ready(self) -> None: ...

    monkeypatch.setitem(sys.modules, "rapidocr", None)
    judge = VQAJudge(Ready())  # type: ignore[arg-type]
    options: dict[str, Any] = {"metadata": str(write_folder(tmp_path)), "allow_other_version": True}
    Tiif(judge, "testmini", ocr=False, **options).ready()
    with pytest.raises(UserError, match="needs rapidocr, which is not installed"):
        Tiif(judge, "testmini", **options).ready()
