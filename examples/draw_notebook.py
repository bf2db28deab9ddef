"""Write examples/draw.ipynb: `python examples/draw_notebook.py` executes it and stores the outputs.

Its cells are the list `CELLS`. No notebook server is needed: each code cell is executed, and what
its last expression is, and what it prints, is stored as Jupyter would. `tests/test_draw.py`
executes the stored notebook and compares its outputs.
"""

from __future__ import annotations

import ast
import base64
import io
import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("draw.ipynb")
CELLS = [
    (
        "markdown",
        "# Draw an image\n\n"
        "One call draws an image of a prompt with any method, on the embedded model unless another "
        "is named. It is the image that a run journals: the same seed and prompt give the same "
        "bytes and counts.",
    ),
    ("code", 'import harness\n\nharness.draw("best_of_n", "a photo of a cat", n=4)'),
    (
        "markdown",
        "A drawing has the picture, its tokens, what it cost, and what the method noted.",
    ),
    (
        "code",
        'cat = harness.draw("best_of_n", "a photo of a cat", n=4)\n'
        "print(cat.image.size, len(cat.tokens))\n"
        "print(cat.usage.visual_tokens, cat.usage.target_passes, cat.usage.judge_calls)\n"
        'print(sorted(cat.notes), len(cat.notes["scores"]))',
    ),
    ("markdown", "Several prompts are drawn together, as one batch."),
    (
        "code",
        'harness.draw("plain", ["a photo of a red car", "a photo of two dogs"], seed=1)',
    ),
    (
        "markdown",
        "Options are the method's own. A judge or a drafter is the name of a configuration, or an "
        "object: here a reward of a few lines.",
    ),
    (
        "code",
        "class Brightness:\n"
        '    id = "brightness"\n\n'
        "    def __call__(self, texts, images):\n"
        "        return [float(image.mean()) / 255 for image in images]\n\n\n"
        'harness.draw("best_of_n", "a photo of a cat", n=4, reward=Brightness())',
    ),
    ("markdown", "A method of your own is drawn with as it is."),
    (
        "code",
        "class Last:\n"
        "    rows, branches, tokens_per_step = 4, 2, 1\n\n"
        "    async def generate(self, prompt, s):\n"
        "        candidates = s.open(4)\n"
        "        await s.run(candidates)\n"
        "        return candidates[-1]\n\n\n"
        'harness.draw(Last(), "a photo of a cat")',
    ),
    ("markdown", "Model and method stay loaded for the next call, until they are released."),
    ("code", "harness.release()"),
]
"""Kind and source of each cell."""


def write_notebook(path: Path) -> None:
    """Execute all cells, and store them with their outputs."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    count = 0
    for i, (kind, source) in enumerate(CELLS):
        cell: dict[str, Any] = {
            "cell_type": kind,
            "id": f"cell-{i}",
            "metadata": {},
            "source": source.splitlines(keepends=True),
        }
        if kind == "code":
            count += 1
            cell["execution_count"] = count
            cell["outputs"] = execute_cell(source, names, count)
        cells.append(cell)
    notebook = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def execute_cell(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Execute a cell among the names of the cells before; returns its outputs as Jupyter has them.

    The value of a last expression is displayed.
    """
    tree = ast.parse(source)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(tree, f"<cell {count}>", "exec"), names)
        shown = eval(compile(last, f"<cell {count}>", "eval"), names) if last else None

    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        lines = text.splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": lines})
    if shown is not None:
        outputs.append(
            {
                "data": display_data(shown),
                "execution_count": count,
                "metadata": {},
                "output_type": "execute_result",
            }
        )
    return outputs


def display_data(value: Any) -> Mapping[str, Any]:
    """Return how a value is displayed, by MIME type."""
    data: dict[str, Any] = {"text/plain": [repr(value)]}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = [value._repr_html_()]
    if hasattr(value, "_repr_png_"):
        data["image/png"] = base64.b64encode(value._repr_png_()).decode()
    return data


if __name__ == "__main__":
    write_notebook(NOTEBOOK)
    print(NOTEBOOK)
