"""The audit of reproducibility: what is promised holds for every kind of method, and a method that
breaks the promise is found out.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import TESTS, harness

from harness.engine.canvas import Canvas
from harness.engine.session import Session
from harness.reproducibility import VARIATIONS

TOY = (
    f"hydra.searchpath=[file://{TESTS / 'toy_conf'}]",
    "model=toy",
    "benchmark=toy",
    "benchmark.prompts=3",
)
METHODS = ["plain", "toy_scalingar", "toy_gridar", "toy_speculative"]
"""A method of each kind."""


class Counting:
    """Begins each image with the number of images before it: what no method may know."""

    rows = 1
    branches = 2
    tokens_per_step = 1

    def __init__(self) -> None:
        self.images = 0

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        s.commit(canvas, [self.images % 32])
        self.images += 1
        await s.run([canvas])
        return canvas


def audit(cwd: Path, *options: str) -> tuple[int, list[str]]:
    """Run `harness.check repeat` on the toy model: its exit code, and the lines that it prints."""
    command = ("repeat", *TOY, "sampler.slots=24", *options)
    code, output = harness(cwd, *command, module="harness.check")
    return code, output.splitlines()


def table_rows(lines: list[str]) -> list[list[str]]:
    """The cells of the table that an audit prints."""
    return [line.split(" | ") for line in lines if line.startswith("| `")]


def test_every_kind_of_method_keeps_the_promise_of_constant_numerics(tmp_path: Path) -> None:
    code, lines = audit(tmp_path, f"method={','.join(METHODS)}")
    assert code == 0, lines
    rows = table_rows(lines)
    assert [row[0] for row in rows] == [f"| `{method}`" for method in METHODS]
    for row in rows:
        assert row[1:6] == ["bits"] * 5
    assert lines[-1] == f"{len(VARIATIONS) * len(METHODS)} passed, 0 failed"
    assert not list(tmp_path.iterdir())


def test_a_method_that_knows_of_other_images_is_found_out(tmp_path: Path) -> None:
    code, lines = audit(tmp_path, "method=toy_counting")
    assert code == 1
    (row,) = table_rows(lines)
    assert "differs (0% same tokens)" in row[1]
    broken = "toy_counting, again: promised to agree in every bit, but differs (0% same tokens)"
    assert broken in lines


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["method=ploin"], ["ploin", "plain"]),
        (["sampler.slots=1"], ["sampler.slots=1"]),
        (["a"], ["a"]),
    ],
)
def test_bad_options_are_one_line(options: list[str], words: list[str], tmp_path: Path) -> None:
    code, lines = audit(tmp_path, *options)
    assert code == 2, lines
    (line,) = lines
    assert all(word in line for word in words), line
