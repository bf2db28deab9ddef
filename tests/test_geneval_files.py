"""GenEval's files: prompts, results and conformance cases, good and bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.geneval.conformance import conformance
from benchmarks.geneval.prompts import TASKS, read_prompts
from benchmarks.geneval.summary import format_result, read_results, summarize
from benchmarks.geneval.verdict import COLORS, RELATIONS
from harness.models.pictogram import grammar
from harness.records import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data" / "geneval"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="GenEval's data files are not beside the repository"
)

CAT = {
    "tag": "single_object",
    "include": [{"class": "cat", "count": 1}],
    "prompt": "a photo of a cat",
}
LEFT = {
    "tag": "position",
    "include": [
        {"class": "dog", "count": 1},
        {"class": "cat", "count": 1, "position": ["left of", 0]},
    ],
    "prompt": "a photo of a cat left of a dog",
}
CASE = {
    "id": "ours-1",
    "metadata": CAT,
    "detections": [{"class": "cat", "box": [0, 0, 9, 9], "score": 0.5}],
    "expected": {"correct": True, "reason": "", "kept": {"cat": [0]}, "color_checked": []},
}


def write(folder: Path, *lines: object) -> Path:
    """Write a file of these lines: texts as they are, all others as JSON."""
    path = folder / "file.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts))
    return path


def cat_with(**changes: object) -> dict:
    """Change the only clause of the row CAT."""
    return {**CAT, "include": [{**CAT["include"][0], **changes}]}


def test_ids_are_row_indices(tmp_path: Path) -> None:
    first, second = read_prompts(write(tmp_path, CAT, LEFT), classes=("cat", "dog"))
    assert (first.id, first.text, first.category) == (
        "geneval/00000",
        "a photo of a cat",
        "single_object",
    )
    assert (second.id, second.spec) == ("geneval/00001", LEFT)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"tag": ', "not valid JSON"),
        ("", "blank line"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "not valid JSON"),
        ({k: v for k, v in CAT.items() if k != "prompt"}, "'prompt' is missing"),
        ({**CAT, "exclud": []}, "unknown key 'exclud'"),
        ({**CAT, "tag": "single"}, "unknown tag 'single'"),
        ({**CAT, "prompt": " "}, "'prompt' must be a text"),
        ({**CAT, "include": {}}, "'include' must be a list"),
        ({**CAT, "include": []}, "no clause"),
        ({**CAT, "include": ["cat"]}, "include clause 0: expected a JSON object"),
        (cat_with(count=0), "'count' must be a whole number of at least 1, found 0"),
        (cat_with(count=True), "'count' must be a whole number"),
        (cat_with(colour="red"), "unknown key 'colour'"),
        (cat_with(color="beige"), "unknown color 'beige'"),
        (cat_with(color=["red"]), "unknown color"),
        (cat_with(**{"class": "wolf"}), "unknown class 'wolf'"),
        (
            cat_with(position=["left of", 0]),
            "'position' refers to clause 0, which is not an earlier one",
        ),
        (cat_with(position=["near", 0]), "unknown relation 'near'"),
        (cat_with(position=["above", -1]), "must be a clause index, found -1"),
        (cat_with(position="above"), "'position' must be [relation, clause index]"),
        (
            {**CAT, "exclude": [{"class": "cat", "count": 2, "color": "red"}]},
            "exclude clause 0: unknown key 'color'",
        ),
    ],
)
def test_a_bad_line_is_named_by_number_and_problem(
    tmp_path: Path, row: object, problem: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_prompts(write(tmp_path, CAT, row, CAT), classes=("cat", "dog"))
    assert "file.jsonl, line 2: " in str(caught.value)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file is empty"):
        read_prompts(write(tmp_path))
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match="line 1: not valid JSON"):
        read_prompts(tmp_path / "image.png")


def test_a_conformance_file_counts_what_agrees(tmp_path: Path) -> None:
    wrong = {**CASE, "id": "ours-2", "expected": {**CASE["expected"], "correct": False}}
    passed, failed, messages = conformance(write(tmp_path, CASE, wrong, CASE))
    assert (passed, failed) == (2, 1)
    assert messages == ["line 2, ours-2: correct is True, expected False"]


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ({"id": "x"}, "expected 'detections' (a verdict case) or 'rows' (a summary case)"),
        ({k: v for k, v in CASE.items() if k != "expected"}, "'expected' is missing"),
        ({**CASE, "options": {"treshold": 0.2}}, "treshold"),
        (
            {**CASE, "detections": [{"class": "cat", "box": [0, 0, 9], "score": 0.5}]},
            "a detection has class, box",
        ),
        ({**CASE, "detections": 3}, "not a conformance case"),
        ({**CASE, "metadata": {**CAT, "tag": "dogs"}}, "unknown tag 'dogs'"),
        ({"rows": [{"tag": "colors"}], "expected": {}}, "'filename' must be a str"),
        ({"rows": [], "expected": {}}, "no results"),
    ],
)
def test_a_malformed_case_is_named(tmp_path: Path, case: dict, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        conformance(write(tmp_path, CASE, case))
    assert "line 2: " in str(caught.value)
    assert problem in str(caught.value)


def result(tag: str, correct: bool, prompt: str = "p", image: int = 0) -> dict:
    """Make a row of a result file, with a key that the reference does not write."""
    row = {
        "filename": f"{prompt}/{image}.png",
        "tag": tag,
        "prompt": prompt,
        "correct": correct,
        "metadata": prompt,
    }
    return {**row, "reason": "", "details": "{}", "seed": 1}


def test_the_summary_is_macro_over_tasks_and_says_what_is_missing(tmp_path: Path) -> None:
    rows = [result("colors", i == 0, "a", i) for i in range(4)]
    rows.append(result("position", True, "b"))
    summary = summarize(read_results(write(tmp_path, *rows)))
    assert (summary.total_images, summary.total_prompts) == (5, 2)
    assert (summary.image_accuracy, summary.prompt_accuracy) == (0.4, 1.0)
    assert summary.overall == 0.625
    assert summary.missing == ("single_object", "two_object", "counting", "color_attr")
    assert str(summary).endswith(
        "PARTIAL: no image of single_object, two_object, counting, color_attr"
    )
    with pytest.raises(UserError, match="line 1: 'correct' must be a bool, found 1"):
        read_results(write(tmp_path, {**rows[0], "correct": 1}))
    with pytest.raises(UserError, match="no results"):
        summarize([])


def test_the_embedded_model_speaks_the_same_words() -> None:
    assert grammar.TASKS == TASKS
    assert grammar.COLORS == COLORS
    assert set(grammar.RELATIONS) == set(RELATIONS)


@needs_shared
def test_the_reference_evaluator_agrees() -> None:
    assert conformance(SHARED / "conformance.jsonl") == (228, 0, [])
    assert conformance(SHARED / "summary_conformance.jsonl") == (11, 0, [])


@needs_shared
def test_the_official_files_can_be_read() -> None:
    names = (SHARED / "object_names.txt").read_text().split("\n")
    prompts = read_prompts(SHARED / "evaluation_metadata.jsonl", classes=names)
    assert len(prompts) == 553
    assert tuple(grammar.CLASSES) == tuple(filter(None, names))
    summary = summarize(read_results(SHARED / "results_example.jsonl"))
    expected = json.loads((SHARED / "results_example_summary.json").read_text())
    assert summary.lines() == expected["printed"]
    assert summary.missing == ()


@needs_shared
def test_a_result_file_is_written_as_the_reference_writes_it() -> None:
    example = SHARED / "results_example.jsonl"
    assert "".join(map(format_result, read_results(example))) == example.read_text()
