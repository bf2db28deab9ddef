"""The audit of determinism: what it promises holds for every kind of method, and it sees a method
that breaks it.
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
    code, output = harness(
        cwd, "repeat", *TOY, "sampler.slots=24", *options, module="harness.check"
    )
    return code, output.splitlines()


def test_every_kind_of_method_keeps_the_promise_of_constant_numerics(tmp_path: Path) -> None:
    methods = ["plain", "toy_scalingar", "toy_gridar", "toy_speculative"]
    code, lines = audit(tmp_path, f"method={','.join(methods)}")
    assert code == 0, lines
    rows = [line.split(" | ") for line in lines if line.startswith("| `")]
    assert [row[0] for row in rows] == [f"| `{method}`" for method in methods]
    assert all(row[1:6] == ["bits"] * 5 for row in rows)
    assert lines[-1] == f"{len(VARIATIONS) * len(methods)} passed, 0 failed"
    assert not list(tmp_path.iterdir())


def test_a_method_that_knows_its_company_is_found_out(tmp_path: Path) -> None:
    code, lines = audit(tmp_path, "method=toy_counting")
    assert code == 1
    (row,) = [line for line in lines if line.startswith("| `")]
    assert "differs (0% same tokens)" in row.split(" | ")[1]
    assert (
        "toy_counting, again: promised to agree in every bit, but differs (0% same tokens)" in lines
    )


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
    assert code == 2 and len(lines) == 1 and all(word in lines[0] for word in words), lines
