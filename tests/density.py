"""Print how dense the code is, folder by folder.

    python tests/density.py              this checkout
    python tests/density.py FOLDER ...   other checkouts, such as one of an earlier commit

No limit is enforced: the table is for reading beside a pull request. Code lines are those that are
neither blank nor comment nor docstring. "nested" are comprehensions inside a comprehension,
"unrelated" assignments of one tuple to another, "private" uses of another object's `_attribute`,
each per 1,000 code lines. "wide" are lines over 100 columns, "one word" function names without an
underscore, both in percent.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS = 100
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LAYOUT = (
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.COMMENT,
)
ENGINE_BEFORE = (
    *("sampler", "canvas", "rounds", "hooks", "trees"),
    *("session", "scheduler", "rendering", "memory", "meter"),
)
"""Modules that made up the engine when the package had no folders."""


@dataclass
class Measure:
    """Counts over some files."""

    lines: int = 0
    code_lines: int = 0
    comments: int = 0
    nodes: int = 0
    nested: int = 0
    unrelated: int = 0
    private: int = 0
    wide: int = 0
    functions: int = 0
    one_word: int = 0
    longest_function: tuple[int, str] = field(default=(0, ""))
    longest_file: tuple[int, str] = field(default=(0, ""))

    def add(self, path: Path) -> None:
        """Count one file."""
        text = path.read_text()
        tree = ast.parse(text)
        lines = text.splitlines()
        code, comments = _code_lines(text, tree)
        self.lines += len(lines)
        self.code_lines += code
        self.comments += comments
        self.wide += sum(len(line) > COLUMNS for line in lines)
        self.longest_file = max(self.longest_file, (len(lines), path.name))
        for node in ast.walk(tree):
            self.nodes += 1
            self.nested += _is_nested(node)
            self.unrelated += _is_tuple_assignment(node)
            self.private += _is_foreign_private(node)
            if isinstance(node, FUNCTIONS):
                self._add_function(node, path)

    def _add_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, path: Path) -> None:
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        self.functions += 1
        self.one_word += "_" not in node.name.strip("_")
        self.longest_function = max(self.longest_function, (length, f"{path.stem}.{node.name}"))

    def row(self, name: str) -> str:
        """Format the counts as a row of the table."""
        thousands = max(self.code_lines, 1) / 1000
        length, function = self.longest_function
        size, file = self.longest_file
        return (
            f"{name:11}{self.code_lines:7,}{self.nodes / max(self.code_lines, 1):9.1f}"
            f"{self.nested / thousands:9.1f}{self.unrelated / thousands:11.1f}"
            f"{self.private / thousands:9.1f}{100 * self.wide / max(self.lines, 1):7.1f}"
            f"{100 * self.comments / max(self.code_lines, 1):10.1f}"
            f"{100 * self.one_word / max(self.functions, 1):10.0f}"
            f"   {function} {length}, {file} {size}"
        )


HEAD = (
    f"{'':11}{'code':>7}{'nodes':>9}{'nested':>9}{'unrelated':>11}{'private':>9}{'wide':>7}"
    f"{'comments':>10}{'one word':>10}   longest function and file, in lines"
)


def _code_lines(text: str, tree: ast.Module) -> tuple[int, int]:
    """Count code lines and comments."""
    code: set[int] = set()
    comments = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        comments += token.type == tokenize.COMMENT
        if token.type not in LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in _docstrings(tree):
        code.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code), comments


def _docstrings(tree: ast.Module) -> Iterator[ast.Expr]:
    """Find the docstrings of a module, its classes and functions."""
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) or not node.body:
            continue
        first = node.body[0]
        is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        if is_text and isinstance(first.value.value, str):
            yield first


def _is_nested(node: ast.AST) -> bool:
    """Tell whether a comprehension holds another one."""
    if not isinstance(node, COMPREHENSIONS):
        return False
    inside = (inner for child in ast.iter_child_nodes(node) for inner in ast.walk(child))
    return any(isinstance(inner, COMPREHENSIONS) for inner in inside)


def _is_tuple_assignment(node: ast.AST) -> bool:
    """Tell whether one tuple is assigned to another."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return any(isinstance(target, ast.Tuple) for target in node.targets)


def _is_foreign_private(node: ast.AST) -> bool:
    """Tell whether another object's private attribute is used."""
    if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
        return False
    owner = node.value.id if isinstance(node.value, ast.Name) else ""
    return not node.attr.startswith("__") and owner not in ("self", "cls")


def _groups(root: Path) -> dict[str, Iterable[Path]]:
    """List the files of each row of the table."""
    package = root / "harness"
    before = [package / f"{name}.py" for name in ENGINE_BEFORE]
    engine = [*(package / "engine").rglob("*.py"), *(path for path in before if path.exists())]
    rest = ("harness", "methods", "benchmarks", "tests")
    return {"engine": engine} | {name: (root / name).rglob("*.py") for name in rest}


def main(roots: list[str]) -> None:
    """Print the table of each checkout."""
    for root in roots or ["."]:
        print(f"{root}\n{HEAD}")
        for name, paths in _groups(Path(root)).items():
            measure = Measure()
            for path in sorted(paths):
                measure.add(path)
            print(measure.row(name))


if __name__ == "__main__":
    main(sys.argv[1:])
