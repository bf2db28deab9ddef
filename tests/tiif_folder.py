"""Write a folder in TIIF-Bench's layout in our own words: every dimension, few rows."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.tiif.scores import OFFICIAL


def write_folder(folder: Path, rows: int = 1, split: str = "testmini") -> Path:
    """Write prompts and questions of every dimension.

    Row i of a dimension has i + 2 questions, and the answer to the last one is no. Questions of the
    dimension "text" quote their words.
    """
    for kind in ("prompts", "eval_prompts"):
        (folder / f"{split}_{kind}").mkdir(parents=True)
    for dimension in OFFICIAL.dimensions:
        prompts = [_make_prompt(dimension, i) for i in range(rows)]
        questions = [_make_questions(dimension, i) for i in range(rows)]
        write_lines(folder / f"{split}_prompts" / f"{dimension}_prompts.jsonl", prompts)
        write_lines(folder / f"{split}_eval_prompts" / f"{dimension}_eval_prompts.jsonl", questions)
    return folder


def _make_prompt(dimension: str, row: int) -> dict:
    text = f"a thing of {dimension} number {row}"
    return {
        "type": dimension,
        "short_description": text,
        "long_description": f"{text}, at length",
    }


def _make_questions(dimension: str, row: int) -> dict:
    template = "Is the text 'word {}' in the image?" if dimension == "text" else "Is it {}?  "
    return {
        "type": dimension,
        "yn_question_list": [template.format(i) for i in range(row + 2)],
        "yn_answer_list": ["Yes"] * (row + 1) + ["no"],
    }


def write_lines(path: Path, rows: list[dict]) -> None:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
