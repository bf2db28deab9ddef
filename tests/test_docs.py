"""What the documentation says to type can be typed, and what it names is there.

Every command is composed or parsed by the program's own parser, nothing is drawn; blocks of Python
are run.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.utils import instantiate
from pages import (
    INLINE,
    ROOT,
    Command,
    Fence,
    anchors,
    find_commands,
    pages,
    read_commands,
    read_fences,
    read_links,
    read_prose,
)
from runs import ENTRY
from runs import harness as run_harness

import harness.cli
from harness.runs.options import expect_options
from harness.sweeps.ledger import is_command_option
from harness.sweeps.overrides import defer_swept_options

PAGES = pages()
FENCES = [fence for page in PAGES for fence in read_fences(page)]
COMMANDS = list(
    {
        (command.module, command.arguments): command
        for page in PAGES
        for command in read_commands(page)
    }.values()
)
"""Each command once, wherever it stands."""
README_LINES = 120

FILE_NAME = re.compile(
    r"(?:harness|methods|benchmarks|conf|docs|tests|examples|\.ci|\.github)/[\w./*-]+"
)
"""A file or folder of the repository, as sentences name it."""


def name_of(thing: object) -> str:
    """Name a page, fence or command in the output of the tests."""
    if isinstance(thing, Path):
        return str(thing.relative_to(ROOT))
    if isinstance(thing, Command):
        return f"{thing.place} {thing.module} {' '.join(thing.arguments)}"[:100]
    return str(thing)


def test_the_pages_are_found() -> None:
    names = {name_of(page) for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/running.md"} <= names
    assert len(COMMANDS) > 40
    assert {"", "python", "yaml"} <= {fence.language for fence in FENCES}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_all_places_name_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    heading = re.search(r"^## (\d+\.\d+\.\d+), ", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heading is not None
    assert heading[1] == project["version"] == citation["version"]


# ------------------------------------------------------------------ commands


class ParsedError(Exception):
    """A parser took the arguments: what would happen next is not carried out."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands end once their arguments are parsed."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *inputs: object) -> None:
        parse(self, *inputs)  # type: ignore[call-overload]
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the files that pages show, by their titles."""
    for fence in FENCES:
        if fence.title:
            path = tmp_path / fence.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fence.text)
    write_results(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write_results(results: Path) -> None:
    """Make a results folder of the board's smallest runs, for pages that read one."""
    board = ROOT / "results/board"
    runs = [config.parent for config in board.rglob("config.yaml")]
    smallest = sorted(runs, key=lambda run: sum(file.stat().st_size for file in run.iterdir()))
    for run in smallest[:5]:
        shown = results / run.relative_to(board)
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.symlink_to(run)


@pytest.mark.parametrize("command", COMMANDS, ids=name_of)
@pytest.mark.usefixtures("written")
def test_a_command_can_be_typed(command: Command, request: pytest.FixtureRequest) -> None:
    if command.module == "harness":
        compose_all(command.arguments)
    elif command.module == "harness.bench":
        name, *options = command.arguments
        if not name.startswith("-"):
            compose_all([f"+bench={name}", *options])
    else:
        request.getfixturevalue("parse_only")
        expect_parsed(command)


def compose_all(arguments: Sequence[str]) -> None:
    """Compose each run that a command asks for, and check the types of its options."""
    Plugins.instance()
    composed = [one for one in arguments if not one.startswith("prompt=")]  # no part of a run
    parsed = get_args_parser().parse_args(defer_swept_options(composed))
    if parsed.help or parsed.shell_completion:
        return
    overrides = list(parsed.overrides)
    if parsed.config_dir:
        overrides.append(f"hydra.searchpath=[file://{find_folder(parsed.config_dir)}]")
    with initialize_config_module("conf", version_base="1.3"):
        if not parsed.multirun:
            expect_composed(tuple(overrides))
            return
        typed = OverridesParser.create().parse_overrides(overrides)
        single = [one.input_line or "" for one in typed if not one.is_sweep_override()]
        config = compose("config", single, return_hydra_config=True)
        for batch in instantiate(config.hydra.sweeper).split_arguments(typed, None):
            for job in batch:
                expect_composed(tuple(one for one in job if not is_command_option(one)))


@cache
def expect_composed(overrides: tuple[str, ...]) -> None:
    """Compose one run, and check the types of its options; the same run only once."""
    expect_options(compose("config", list(overrides)))


def find_folder(name: str) -> Path:
    """Find a folder that a command names: of a page's own files, or of the repository."""
    found = [place / name for place in (Path.cwd(), ROOT) if (place / name).is_dir()]
    assert found, f"{name}: no page shows its files, and the repository has no such folder"
    return found[0]


@pytest.fixture(autouse=True)
def forget_hydra() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


def expect_parsed(command: Command) -> None:
    """Hand a command's arguments to its own parser."""
    is_package = (ROOT / command.module.replace(".", "/")).is_dir()
    module = importlib.import_module(command.module + ".__main__" * is_package)
    if not hasattr(module, "main"):
        assert not command.arguments
        return
    argv = sys.argv
    sys.argv = [command.module, *command.arguments]
    try:
        with pytest.raises(ParsedError):
            module.main()
    except SystemExit as stop:
        assert not stop.code, command
    finally:
        sys.argv = argv


def test_a_command_that_is_wrong_is_found() -> None:
    with pytest.raises(Exception, match="method/no_method"):
        compose_all(["method=no_method"])
    GlobalHydra.instance().clear()
    with pytest.raises(Exception, match="n='many'"):
        compose_all(["-m", "method=best_of_n", "method.n=2,many"])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_targets_of_make_and_extras_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)\b", text, re.MULTILINE)) <= targets
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for names in re.findall(r"(?:\.|visual-ar-tts)\[([a-z,]+)\]", text):
        assert set(names.split(",")) <= set(extras)


# ------------------------------------------------------------------ help


def test_help_has_a_purpose_five_examples_and_all_choices(tmp_path: Path) -> None:
    code, said = run_harness(tmp_path, "--help")
    assert code == 0, said
    assert said.startswith("Compare test-time scaling and acceleration methods")
    examples = [one for one in find_commands("--help", said) if one.module == "harness"]
    assert len(examples) >= 5
    for example in examples:
        compose_all(example.arguments)
    for group in ("method", "benchmark", "model", "judge", "experiment", "sampler"):
        choices = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
        assert f"\n{group}: {', '.join(choices)}\n" in said
    assert "harness -sc install=bash" in said


def list_modules() -> list[str]:
    """List the modules that take a command line, but for those that other commands start."""
    found = {"harness.bench"}
    for folder in ("harness", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if "ArgumentParser(" in path.read_text() or "training.parser(" in path.read_text():
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found.add(re.sub(r"\.(?:__main__|__init__)$", "", module))
    return sorted(found - {"harness.training.loop"})


@pytest.mark.parametrize("module", list_modules())
def test_help_of_a_command_says_what_it_is_for(module: str, tmp_path: Path) -> None:
    code, said = run_harness(tmp_path, "--help", module=module)
    assert code == 0, said
    purpose = importlib.import_module(ENTRY.get(module, module)).__doc__ or ""
    assert purpose.splitlines()[0] in said
    assert f"python -m {module}" in said


# ------------------------------------------------------------------ blocks of code


@pytest.mark.parametrize("fence", [f for f in FENCES if f.language == "python"], ids=name_of)
@pytest.mark.usefixtures("written")
def test_a_block_of_python_runs(fence: Fence, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(fence.text, str(fence), "exec")
    exec(code, {"__name__": "page"})


@pytest.mark.parametrize("fence", [f for f in FENCES if f.language == "yaml"], ids=name_of)
def test_a_block_of_yaml_is_read(fence: Fence) -> None:
    assert yaml.safe_load(fence.text)


# ------------------------------------------------------------------ what pages name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in read_links(page):
        address = urlsplit(target)
        if address.scheme:
            continue
        there = (page.parent / unquote(address.path)).resolve() if address.path else page
        is_missing = address.fragment and there.exists() and address.fragment not in anchors(there)
        if is_missing or not there.exists():
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    """Sentences name files from the root on; docs/architecture.md some from harness/ on."""
    missing = []
    for code in INLINE.findall(read_prose(page)):
        if FILE_NAME.fullmatch(code) and not list(ROOT.glob(code.rstrip("/"))):
            missing.append(code)
    assert missing == []


TABLES = {"methods.md": "method", "benchmarks.md": "benchmark", "models.md": "model"}


@pytest.mark.parametrize("name", TABLES)
def test_a_page_names_every_choice_of_its_group(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    choices = {path.stem for path in (ROOT / "conf" / TABLES[name]).glob("*.yaml")}
    assert {choice for choice in choices if not re.search(rf"`(?:\w+=)?{choice}`", text)} == set()


# ------------------------------------------------------------------ the site


class Links(HTMLParser):
    """What a page of the site has: its anchors, its links, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {values[key] or "" for key in ("id", "name") if key in values}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")
        elif tag == "link" and values.get("rel") != "canonical":
            self.loads.append(values.get("href") or "")
        elif tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loads.append(values["src"] or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Links]:
    """The pages of the site, built strictly."""
    if find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return {path: Links(path) for path in folder.rglob("*.html") if path.name != "404.html"}


def test_the_site_holds_all_pages_and_public_names(site: dict[Path, Links]) -> None:
    folder = min(site, key=lambda path: len(path.parts)).parent
    for page in (ROOT / "docs").rglob("*.md"):
        assert folder / page.relative_to(ROOT / "docs").with_suffix(".html") in site
    shown = {anchor.rpartition(".")[2] for anchor in site[folder / "api.html"].anchors}
    assert set(harness.__all__) <= shown


def test_links_of_the_site_lead_somewhere(site: dict[Path, Links]) -> None:
    broken = []
    for path, page in site.items():
        for link in (*page.links, *page.loads):
            address = urlsplit(link)
            if address.scheme:
                continue
            there = (path.parent / unquote(address.path)).resolve() if address.path else path
            known = site[there].anchors if there in site else {address.fragment}
            if not there.exists() or (address.fragment and address.fragment not in known):
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_the_site_loads_nothing_from_elsewhere(site: dict[Path, Links]) -> None:
    loads = {load for page in site.values() for load in page.loads}
    assert loads
    assert [load for load in loads if urlsplit(load).netloc] == []
