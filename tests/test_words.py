"""One concept has one word: the retired ones are neither names nor prose (docs/glossary.md)."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
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


def tokens(path: Path) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(path.read_text()).readline)


@pytest.mark.parametrize("words", RETIRED_NAMES)
def test_no_name_is_a_retired_word(words: str) -> None:
    retired = re.compile(RETIRED_NAMES[words])
    found = []
    for path in files(*PROGRAM):
        for token in tokens(path):
            is_retired = token.type == tokenize.NAME and retired.fullmatch(token.string)
            if is_retired and token.string not in KEPT_NAMES:
                found.append(f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}")
    assert found == []


@pytest.mark.parametrize("words", RETIRED_PROSE)
def test_no_docstring_or_comment_uses_a_retired_word(words: str) -> None:
    """Tests may speak of laws: there the word has its meaning, a statement that a test holds."""
    retired = re.compile(RETIRED_PROSE[words])
    found = []
    for path in files(*PROGRAM):
        for token in tokens(path):
            is_text = token.type == tokenize.COMMENT or token.string.lstrip("r").startswith('"""')
            if is_text and retired.search(token.string):
                line = next(line for line in token.string.splitlines() if retired.search(line))
                found.append(f"{path.relative_to(ROOT)}:{token.start[0]}: {line.strip()}")
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        if page.name == "glossary.md" or not page.exists():
            continue
        for number, line in enumerate(page.read_text().splitlines(), start=1):
            if retired.search(line) and "`law_gap`" not in line and "test" not in line:
                found.append(f"{page.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []
