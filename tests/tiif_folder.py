"""A folder in TIIF-Bench's layout with our own words: every dimension, few rows."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.tiif.scores import OFFICIAL


def write_folder(folder: Path, rows: int = 1, split: str = "testmini") -> Path:
    """Row i of a dimension has i + 2 questions, the last one's answer is no; those about text quote
    its words.
    """
    for kind in ("prompts", "eval_prompts"):
        (folder / f"{split}_{kind}").mkdir(parents=True)
    for stem in OFFICIAL.dimensions:
        texts = []
        keys = []
        for i in range(rows):
            text = f"a thing of {stem} number {i}"
            texts.append(
                {"type": stem, "short_description": text, "long_description": f"{text}, at length"}
            )
            asked = [
                f"Is the text 'word {j}' in the image?" if stem == "text" else f"Is it {j}?  "
                for j in range(i + 2)
            ]
            keys.append(
                {
                    "type": stem,
                    "yn_question_list": asked,
                    "yn_answer_list": ["Yes"] * (i + 1) + ["no"],
                }
            )
        write_lines(folder / f"{split}_prompts" / f"{stem}_prompts.jsonl", texts)
        write_lines(folder / f"{split}_eval_prompts" / f"{stem}_eval_prompts.jsonl", keys)
    return folder


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
