"""Read the pages of the documentation: their fences, commands, links and the files they name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHELL = ("", "sh", "bash", "console")
"""Languages of fences that hold commands."""
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
COMMAND = re.compile(
    r"(?:\bpython|\bPYTHON) -m (?P<module>(?:harness|benchmarks)[\w.]*)(?P<rest>.*)"
)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\((?P<target>[^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(?P<title>.+?) *$", re.MULTILINE)


@dataclass(frozen=True)
class Fence:
    """A block of code: its page, the line that it begins in, its language, title and text."""

    page: Path
    line: int
    language: str
    title: str  # `title="mine/x.py"` behind the language: the file that it is
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command that a page tells people to type: `python -m MODULE ARGUMENTS`."""

    place: str
    module: str
    arguments: tuple[str, ...]


def pages() -> list[Path]:
    """List all pages: the README and its like, docs/, and what lies beside examples and results."""
    found = [path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"]
    for folder in ("docs", "examples"):
        found += (ROOT / folder).rglob("*.md")
    found += ROOT.glob("results/*.md")
    found += (ROOT / "results" / folder / "README.md" for folder in ("board", "gpu"))
    return sorted(path for path in found if path.is_file())


def read_fences(page: Path) -> list[Fence]:
    """List the blocks of code of a page."""
    text = page.read_text(encoding="utf-8")
    fences = []
    for match in FENCE.finditer(text):
        language, _, options = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', options)
        line = text.count("\n", 0, match.start()) + 1
        fences.append(Fence(page, line, language, title[1] if title else "", match["text"]))
    return fences


def read_prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def read_commands(page: Path) -> Iterator[Command]:
    """List the commands of a page, those in its sentences included."""
    for fence in read_fences(page):
        if fence.language in SHELL:
            yield from find_commands(str(fence), fence.text)
    for code in INLINE.findall(read_prose(page)):
        if code.startswith("python -m "):
            yield from find_commands(str(page.relative_to(ROOT)), code)


def find_commands(place: str, text: str) -> Iterator[Command]:
    """List the commands of a text, at most one a line; `place` says where it stands."""
    for line in text.replace("\\\n", " ").splitlines():
        if (command := _find_command(place, line)) is not None:
            yield command


def _find_command(place: str, line: str) -> Command | None:
    found = COMMAND.search(line)
    if found is None or not found["module"].islower():  # harness.NAME stands for any
        return None
    words = shlex.shlex(found["rest"], posix=True, punctuation_chars="();<>|&")
    words.whitespace_split = True
    arguments = []
    for word in words:
        if set(word) <= set("();<>|&"):
            break
        arguments.append(word)
    return Command(place, found["module"].rstrip("."), tuple(arguments))


def read_links(page: Path) -> list[str]:
    """List the targets of a page's links and pictures."""
    return [match["target"] for match in LINK.finditer(read_prose(page))]


def anchors(page: Path) -> set[str]:
    """List the anchors of a page's headings, as GitHub and mkdocs make them."""
    found = set()
    for heading in HEADING.finditer(read_prose(page)):
        kept = re.sub(r"[^\w\- ]", "", heading["title"].lower())
        found.add(kept.replace(" ", "-"))
    return found
