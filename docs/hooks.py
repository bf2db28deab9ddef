"""Hooks of the documentation site (mkdocs.yml): pages link to any file of the repository.

In the repository and on its web pages `../results/board/README.md` is a link that works, but the
site has only what is in docs/. Every file that a page links to is therefore added to the site,
below repository/, and the links are rewritten; Markdown among them becomes pages, whose links are
followed in turn, and a folder becomes a list of its files. The README is the site's first page, and
docs/api.md lists what `harness` exports.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
OUTSIDE = "repository"
"""Folder of the site for files that are not in docs/."""
HOME = ROOT / "README.md"
ALWAYS = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
"""Pages that the menu names, whether a page links to them or not."""
LINK = re.compile(r"(?P<head>\]\()(?P<path>[^()\s#:]+)(?P<anchor>#[^()\s]*)?(?P<tail>\))")
"""A relative link or picture of Markdown."""
PUBLIC_NAMES = "<!-- public names -->"
"""What docs/api.md has where the public names go."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, and the files outside docs/ that pages link to."""
    files.append(_add_file(HOME, config))
    waiting = [DOCS / file.src_uri for file in files.documentation_pages() if _is_in_docs(file)]
    waiting += [HOME, *(ROOT / name for name in ALWAYS)]
    for path in ALWAYS:
        files.append(_add_file(ROOT / path, config))
    while waiting:
        page = waiting.pop()
        for target in _list_files(page) if page.is_dir() else _list_targets(page):
            if files.get_file_from_path(_site_path(target)) is None:
                files.append(_add_file(target, config))
                if target.is_dir() or target.suffix == ".md":
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite a page's links to files of the repository, and list the public names."""
    if page.file.abs_src_path is None:
        return markdown  # the page of a folder
    source = Path(page.file.abs_src_path).resolve()
    if PUBLIC_NAMES in markdown:
        markdown = markdown.replace(PUBLIC_NAMES, _list_public_names())

    def rewrite(link: re.Match[str]) -> str:
        target = _find_target(source, link["path"])
        if target is None:
            return link[0]  # mkdocs says that nothing is there
        there = os.path.relpath(_site_path(target), Path(page.file.src_uri).parent)
        return f"{link['head']}{there}{link['anchor'] or ''}{link['tail']}"

    return LINK.sub(rewrite, markdown)


# ------------------------------------------------------------------ where a file is on the site


def _is_in_docs(file: File) -> bool:
    return (DOCS / file.src_uri).is_file()


def _site_path(source: Path) -> str:
    """Return the path in the site's sources of a file of the repository."""
    if source == HOME:
        return "index.md"
    if source.is_relative_to(DOCS):
        return source.relative_to(DOCS).as_posix()
    place = f"{OUTSIDE}/{source.relative_to(ROOT).as_posix()}"
    return f"{place}/index.md" if source.is_dir() else place


def _add_file(source: Path, config: MkDocsConfig) -> File:
    place = _site_path(source)
    kind = InclusionLevel.NOT_IN_NAV
    if source.is_dir():
        return File.generated(config, place, content=_write_list(source), inclusion=kind)
    return File.generated(config, place, abs_src_path=str(source), inclusion=kind)


def _list_targets(source: Path) -> Iterator[Path]:
    """List the files of the repository that a page links to."""
    for link in LINK.finditer(source.read_text(encoding="utf-8")):
        if (target := _find_target(source, link["path"])) is not None:
            yield target


def _find_target(source: Path, path: str) -> Path | None:
    """Return the file of the repository that a link means; None if there is none."""
    target = (source.parent / path).resolve()
    is_inside = target.is_relative_to(ROOT) and target.exists()
    return target if is_inside else None


def _list_files(folder: Path) -> list[Path]:
    """List the files below a folder, without what Python has compiled."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]


def _write_list(folder: Path) -> str:
    """Write the page of a folder: a list of its files."""
    names = [path.relative_to(folder).as_posix() for path in _list_files(folder)]
    return "\n".join(
        [f"# {folder.relative_to(ROOT)}\n", *(f"- [{name}]({name})" for name in names)]
    )


# ------------------------------------------------------------------ the public names


def _list_public_names() -> str:
    """Write what `harness` exports, by the module that defines it, for mkdocstrings.

    The package is read and not imported: it needs torch for most of them, this does not.
    """
    exported = griffe.load("harness", search_paths=[str(ROOT)], submodules=False)
    sections: dict[str, list[str]] = {}
    for name, member in sorted(exported.members.items()):
        if member.is_alias and member.target_path.startswith("harness."):
            module = member.target_path.removesuffix(f".{name}")
            sections.setdefault(module, []).append(name)
    parts = []
    for module, names in sorted(sections.items()):
        parts.append(f"## {module}\n")
        parts += [f"::: {module}.{name}\n" for name in names]
    return "\n".join(parts)
