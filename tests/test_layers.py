"""Imports go one way only: what each part may know of the others (architecture: who may import
whom).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch",
    "pandas",
    "hydra",
    "transformers",
    "open_clip",
    "mmdet",
    "wandb",
    "matplotlib",
    "scipy",
}

ROOMS = [
    {"records"},
    {"download", "kernels"},
    {"models"},
    {"engine"},
    {"drafters", "judges", "parity", "runs"},
    {"sweeps"},
    {"results"},
    {"commands"},
    {"training", "bench"},
]
"""Folders from the ground up. A module may import its own room and those of lower rows."""


def modules(folder: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(path: Path, *, anywhere: bool = True) -> set[str]:
    """Dotted names of what a file imports, names out of modules included."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if anywhere else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    """The room of a module of `harness`: its folder; what lies beside the folders is a command."""
    name = module.split(".")[1]
    if name in {"records", "download"} or (ROOT / "harness" / name).is_dir():
        return "commands" if name == "plugins" else name
    return "commands"


def row(name: str) -> int:
    """How high a room lies. Fails for a folder that has no row yet."""
    found = [height for height, names in enumerate(ROOMS) if name in names]
    assert found, f"harness/{name} has no place in the order of rooms: give it one"
    return found[0]


def test_rooms_import_downwards_only() -> None:
    known = {module for module, _ in modules("harness")}
    for module, path in modules("harness"):
        if module == "harness":
            continue
        for name in imported(path):
            if not name.startswith("harness."):
                continue
            owner = max((m for m in known if name == m or name.startswith(f"{m}.")), key=len)
            if owner == "harness":
                continue
            mine = room(module)
            theirs = room(owner)
            assert mine == theirs or row(theirs) < row(mine), f"{module} imports {name}"


def test_harness_knows_no_method_and_no_benchmark() -> None:
    for module, path in modules("harness"):
        names = imported(path)
        assert not {n for n in names if n.split(".")[0] in ("methods", "benchmarks", "conf")}, (
            module
        )


def test_methods_know_only_the_public_names() -> None:
    for module, path in modules("methods"):
        for name in imported(path):
            top = name.split(".")[0]
            allowed = (
                name == "harness"
                or name.startswith("methods")
                or top not in ("harness", "benchmarks", "time")
            )
            assert allowed or (name.count(".") == 1 and name.split(".")[1] in public()), (
                f"{module} imports {name}"
            )
            assert top not in ("transformers", "time", "hydra"), f"{module} imports {name}"


def public() -> list[str]:
    import harness

    return harness.__all__


def test_benchmarks_know_records_judges_and_the_grammar() -> None:
    values = ("harness.records", "harness.download", "harness.results.stats")
    allowed = (
        *values,
        "harness.judges",
        "harness.models.checkpoint",
        "harness.models.pictogram.grammar",
    )
    for module, path in modules("benchmarks"):
        for name in imported(path):
            if name.split(".")[0] in ("harness", "methods"):
                assert name.startswith(allowed), f"{module} imports {name}"


@pytest.mark.parametrize("package", ["wandb", "mmdet", "mmengine", "open_clip", "transformers"])
def test_heavy_packages_are_imported_inside_functions(package: str) -> None:
    for folder in ("harness", "methods", "benchmarks"):
        for module, path in modules(folder):
            names = {name.split(".")[0] for name in imported(path, anywhere=False)}
            assert package not in names, f"{module} imports {package} when it is imported"


def test_import_harness_is_light() -> None:
    code = f"import harness, sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert said.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    import harness

    for name in public():
        assert getattr(harness, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = harness.nothing_of_that_name
