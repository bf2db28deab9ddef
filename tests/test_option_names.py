"""Every option that a message names is spelled as the user types it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import TOY, harness

from harness.engine.option_names import WHOLE, list_options, options_at, spell_options
from harness.records import UserError

RULE = {"k", "delta", "multiplier"}


@pytest.mark.parametrize(
    ("said", "spelled"),
    [
        ("k=-1: cannot be", "method.rule.k=-1: cannot be"),
        ("rule.k=-1: cannot be", "method.rule.k=-1: cannot be"),
        ("set rule.multiplier", "set method.rule.multiplier"),
        ("delta=2, multiplier=3: one", "method.rule.delta=2, method.rule.multiplier=3: one"),
        ("the k nearest, delta apart", "the k nearest, delta apart"),
        ("method.k=3, model.k=3 and other=4", "method.k=3, model.k=3 and other=4"),
        ("+method.k=3, judge@method.k=x", "+method.k=3, judge@method.k=x"),
        ("/a/k=3/delta.k=4 and k.txt", "/a/k=3/delta.k=4 and k.txt"),
    ],
)
def test_a_part_is_spelled_from_its_place_on(said: str, spelled: str) -> None:
    assert spell_options(said, "method.rule", RULE) == spelled
    assert spell_options(spelled, "method.rule", RULE) == spelled  # once is enough


def test_a_part_of_a_part_has_both_names() -> None:
    said = "drafter.coupling=threshold: draft.pt is no tree; set drafter.init=random"
    spelled = (
        "method.drafter.coupling=threshold: draft.pt is no tree; set method.drafter.init=random"
    )
    assert spell_options(said, "method", {"drafter", "draft", "gamma"}) == spelled


def test_options_are_those_of_the_constructor() -> None:
    class Part:
        def __init__(self, k: int, checkpoint: str | None = None) -> None:
            pass

    assert list_options(Part) == list_options(Part(1)) == {"k", "checkpoint"}
    with (
        pytest.raises(UserError, match=r"^set metrics\.hps\.checkpoint=PATH$"),
        options_at("metrics.hps", Part(1)),
    ):
        raise UserError("set checkpoint=PATH")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("method=sjd", "method.drafter.coupling=magic"), "method.drafter.coupling=magic"),
        (("method=pjd", "method.drafter.init=magic"), "method.drafter.init=magic"),
        (("method=lantern", "method.rule.k=-1"), "method.rule.k=-1"),
        (("method=cool_sd", "method.rule.nu=-1"), "method.rule.nu=-1"),
        (("method=cool_sd", "method.gamma.children=magic"), "method.gamma.children=magic"),
        (("method=sjd_pac", "method.gamma.width=0"), "method.gamma.width=0"),
        (("method=sjd_pac", "method.drafter.coupling=threshold"), "method.drafter.coupling="),
        (("method=best_of_n_pjd", "method.decoding.window=0"), "method.decoding.window=0"),
        (("method=best_of_n_sjd_pac", "method.decoding.gamma.width=0"), "method.decoding.gamma."),
        (("method=vvs", "method.schedule.interval=0"), "method.schedule.interval=0"),
        (("method=fr_tts", "method.features.cells=0"), "method.features.cells=0"),
        (("method=plain", "model.sampling.scale=0.5"), "model.sampling.scale=0.5"),
        (("metrics=[clip]", "metrics.clip.convention=magic"), "metrics.clip.convention=magic"),
        (("metrics=[hps]", "metrics.hps.batch=0"), "metrics.hps.batch=0"),
    ],
)
def test_messages_of_parts_can_be_typed(
    arguments: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    code, said = harness(tmp_path, *arguments, "benchmark.prompts=2", "benchmark.images=1")
    assert code == 2, said
    (line,) = said.strip().splitlines()
    names = [word for word in line.replace(",", " ").split() if "=" in word]
    assert line.startswith(f"error: {named}") or f" {named}" in line, line
    begins = ("method.", "model.", "metrics.", "--cfg")
    assert all(name.startswith(begins) for name in names), line


def test_flags_may_follow_options(tmp_path: Path) -> None:
    code, said = harness(tmp_path, *TOY, "-m", "benchmark.prompts=2", "seed=0,1")
    assert code == 0, said
    assert "point 2 of 2: " in said


# --- the messages themselves ----------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
OWNED = re.compile(r"(?<![\w.@/+-])(?P<owner>[a-z_]\w*)\.(?P<name>[a-z_]\w*)(?:\.[a-z_]\w*)*=")
OF_FUNCTIONS = {"children", "delta", "multiplier"}
"""Options that a function checks for the class whose options they are."""


def list_errors(tree: ast.Module) -> Iterator[tuple[ast.ClassDef | None, str]]:
    """Yield the texts of all errors that a module raises, each with its class."""
    owners: dict[int, ast.ClassDef] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for inner in ast.walk(node):
                owners[id(inner)] = node
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            for text in ast.walk(node.exc):
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield owners.get(id(node)), text.value


def declared(owner: ast.ClassDef) -> set[str]:
    """The options of a class: its fields, or the arguments of its constructor."""
    found = set()
    for node in owner.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            found |= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    return found


def test_no_message_names_an_option_that_cannot_be_typed() -> None:
    """It begins as options do, or is an option of the part itself, which is spelled from there."""
    seen = 0
    wrong = []
    for folder in ("harness", "methods", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for owner, text in list_errors(ast.parse(file.read_text())):
                for mention in OWNED.finditer(text):
                    seen += 1
                    own = OF_FUNCTIONS if owner is None else declared(owner)
                    if mention["owner"] not in WHOLE and mention["name"] not in own:
                        wrong.append(f"{file.relative_to(ROOT)}: {mention.group()}")
    assert wrong == []
    assert seen > 100
