"""One concept has one word: the retired ones are neither names nor prose (docs/glossary.md)."""

from __future__ import annotations

import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = ("harness", "methods", "benchmarks")

RETIRED_NAMES = {
    "law, laws (of tensors)": r"(?:.*_)?laws?(?:_.*)?",
    "stream (of a canvas)": r"_?streams",
    "leftover": r"leftover",
    "faced, stakes": r"faced|stakes?|stake_.*",
    "own (a token's probability)": r"own_R.*",
    "plant, planted": r"plant(?:ed)?",
    "credit": r"credits?(?:_.*)?",
    "shadow, trail, past": r"_?(?:shadows?|trails?|past)",
    "islands, beyond, ahead": r"_(?:islands|ahead)|beyond",
    "kinship, standing, fate": r"_?(?:kinship|standing|fate)",
    "last_words, told, say": r"_?(?:last_words|told|say)",
    "Eyes, Witness": r"Eyes|Witness",
    "Elsewhere (imported images)": r"Elsewhere",
}
"""Names that were replaced, each as a whole identifier."""
KEPT_NAMES = {"law_gap"}
"""Options of published configurations keep their name."""

RETIRED_PROSE = {
    "law": r"\blaws?\b",
    "company": r"\bcompany\b",
    "streams of a canvas": r"\b(?:text|null|two|one|both|several) streams?\b|\bstreams of\b",
    "leftover": r"\bleftovers?\b",
    "fate": r"\bfates?\b",
    "kinship": r"\bkinship\b",
    "last words": r"\blast words\b",
    "elsewhere's": r"\bWitness\b|\bEyes\b",
}


RECORDED_PLACES = {
    "harness/trees.py",
    "benchmarks/tiif/interview.py",
    "benchmarks/tiif_pictogram/looking.py",
}
"""Re-exports at places that configurations of earlier runs name."""


def files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if str(path.relative_to(ROOT)) not in RECORDED_PLACES:
                yield path


@cache
def tokens() -> list[tuple[Path, tokenize.TokenInfo]]:
    """All names, comments and docstrings of the program, each with its file; read once."""
    found = []
    for path in files(*PROGRAM):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.NAME or is_text(token):
                found.append((path, token))
    return found


def is_text(token: tokenize.TokenInfo) -> bool:
    """Whether a token is a comment or a docstring."""
    return token.type == tokenize.COMMENT or token.string.lstrip("r").startswith('"""')


@cache
def places() -> dict[str, list[str]]:
    """Where each name of the program stands."""
    found = defaultdict(list)
    for path, token in tokens():
        if token.type == tokenize.NAME:
            found[token.string].append(f"{path.relative_to(ROOT)}:{token.start[0]}")
    return found


@cache
def lines_of_pages() -> list[tuple[str, str]]:
    """The lines of the documentation, each with its place."""
    found = []
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        if page.name == "glossary.md" or not page.exists():
            continue
        for number, line in enumerate(page.read_text().splitlines(), start=1):
            found.append((f"{page.relative_to(ROOT)}:{number}", line))
    return found


@pytest.mark.parametrize("words", RETIRED_NAMES)
def test_no_name_is_a_retired_word(words: str) -> None:
    retired = re.compile(RETIRED_NAMES[words])
    assert "Session" in places()
    found = {name: at for name, at in places().items() if retired.fullmatch(name)}
    assert {name: at for name, at in found.items() if name not in KEPT_NAMES} == {}


@pytest.mark.parametrize("words", RETIRED_PROSE)
def test_no_docstring_or_comment_uses_a_retired_word(words: str) -> None:
    """Tests may speak of laws: there the word has its meaning, a statement that a test holds."""
    retired = re.compile(RETIRED_PROSE[words])
    found = []
    for path, token in tokens():
        if is_text(token) and retired.search(token.string):
            line = next(line for line in token.string.splitlines() if retired.search(line))
            found.append(f"{path.relative_to(ROOT)}:{token.start[0]}: {line.strip()}")
    for place, line in lines_of_pages():
        if retired.search(line) and "`law_gap`" not in line and "test" not in line:
            found.append(f"{place}: {line.strip()[:80]}")
    assert found == []
