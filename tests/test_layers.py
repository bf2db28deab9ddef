"""Imports go one way only, and objects keep their private parts to their own module."""

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
"""Packages that `import harness` must not load."""

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
    {"check"},
]
"""Folders of the harness from the ground up.

A module may import its own room and those of lower rows. What lies beside the folders is a command,
`records` and `download` apart; so are the plugins.
"""

DISCREET = [name for row in ROOMS for name in sorted(row)]
"""Rooms in which no object's private parts are read outside its own module: all of them."""
PUBLIC_DESPITE_UNDERSCORE = {"_exit", "_asdict", "_fields", "_replace"} | {
    "_is_mkldnn_bf16_supported", "_linear_pointwise", "_reorder_linear_weight"
}  # fmt: skip
"""Documented names, of `os` and of named tuples; and torch's operators that have no other name."""


def list_modules(folder: str) -> Iterator[tuple[str, Path]]:
    """List the modules below a folder of the project: dotted name and file."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def list_imports(path: Path, *, anywhere: bool = True) -> set[str]:
    """Dotted names that a file imports, names out of modules included."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if anywhere else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str:
    """The room of a module of `harness`; the package itself offers what all rooms have."""
    _, _, rest = module.partition(".")
    name = rest.split(".")[0]
    if name in {"records", "download"}:
        return name
    has_folder = name and (ROOT / "harness" / name).is_dir()
    return name if has_folder and name != "plugins" else "commands"


def row_of(room: str) -> int:
    """How high a room lies. Fails for a folder that has no row yet."""
    for height, names in enumerate(ROOMS):
        if room in names:
            return height
    raise AssertionError(f"harness/{room} has no place in the order of rooms: give it one")


def top_of(name: str) -> str:
    """The package of a dotted name."""
    return name.split(".")[0]


# ------------------------------------------------------------------ imports


def test_rooms_import_downwards_only() -> None:
    known = {module for module, _ in list_modules("harness")}
    for module, path in list_modules("harness"):
        for name in list_imports(path):
            owners = [m for m in known if name == m or name.startswith(f"{m}.")]
            if not owners or name == "harness":
                continue  # another package; names out of ours are listed themselves
            mine = room_of(module)
            theirs = room_of(max(owners, key=len))
            assert mine == theirs or row_of(theirs) < row_of(mine), f"{module} imports {name}"


def test_harness_knows_no_method_and_no_benchmark() -> None:
    for module, path in list_modules("harness"):
        packages = {top_of(name) for name in list_imports(path)}
        assert not packages & {"methods", "benchmarks", "conf"}, module


def test_methods_know_only_the_public_names() -> None:
    public = {f"harness.{name}" for name in list_public_names()}
    for module, path in list_modules("methods"):
        for name in list_imports(path):
            if top_of(name) == "harness":
                assert name == "harness" or name in public, f"{module} imports {name}"
            forbidden = {"benchmarks", "time", "transformers", "hydra"}
            assert top_of(name) not in forbidden, f"{module} imports {name}"


def list_public_names() -> list[str]:
    import harness

    return harness.__all__


def test_benchmarks_know_records_judges_and_the_embedded_world() -> None:
    allowed = (
        "harness.records",
        "harness.download",
        "harness.results.stats",
        "harness.results.columns",
        "harness.judges",
        "harness.models.checkpoint",
        "harness.models.devices",
        "harness.models.pictures",
        "harness.parity.fixture",
        "harness.models.pictogram.grammar",
        "harness.models.pictogram.world",
    )
    for module, path in list_modules("benchmarks"):
        for name in list_imports(path):
            if top_of(name) in ("harness", "methods"):
                assert name.startswith(allowed), f"{module} imports {name}"


READABLE = {
    *("tokens", "log_probs", "length", "done", "closed", "contexts"),
    *("signals", "version", "scale"),
}
"""What a method may use of a canvas: all that it reads, and the guidance scale that it sets."""


def test_methods_leave_the_state_of_a_canvas_to_the_sampler() -> None:
    """Nothing is drawn or charged outside the sampler; a session's own members are no canvas's."""
    from harness.engine.canvas import Canvas

    kept = {name for name in dir(Canvas) if not name.startswith("_")} - READABLE
    assert {"append_drawn", "ledger", "logits_depth"} <= kept
    for module, path in list_modules("methods"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or node.attr not in kept:
                continue
            owner = ast.unparse(node.value)
            assert owner in ("self", "s"), f"{module}: {owner}.{node.attr}"


@pytest.mark.parametrize("package", ["wandb", "mmdet", "mmengine", "open_clip", "transformers"])
def test_heavy_packages_are_imported_inside_functions(package: str) -> None:
    for folder in ("harness", "methods", "benchmarks"):
        for module, path in list_modules(folder):
            packages = {top_of(name) for name in list_imports(path, anywhere=False)}
            assert package not in packages, f"{module} imports {package} when it is imported"


def test_import_harness_is_light() -> None:
    code = f"import harness, sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    import harness

    for name in list_public_names():
        assert getattr(harness, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = harness.nothing_of_that_name


# ------------------------------------------------------------------ private parts


def is_private(name: str) -> bool:
    """Whether a name is private by its underscore; `__init__` and `_target_` are not."""
    is_marked = name.startswith("_") and not name.endswith("_")
    return is_marked and name not in PUBLIC_DESPITE_UNDERSCORE


def is_own(value: ast.expr) -> bool:
    """Whether an expression is the object itself: `self`, `cls` or `super()`."""
    if isinstance(value, ast.Name):
        return value.id in ("self", "cls")
    return isinstance(value, ast.Call) and ast.unparse(value.func) == "super"


def list_private_definitions(tree: ast.Module) -> set[str]:
    """Private names of a module's own: functions, classes, fields, and attributes of `self`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node, ast.Name):
                found.add(node.id)
            elif is_own(node.value):
                found.add(node.attr)
    return {name for name in found if is_private(name)}


def find_indiscretions(source: str) -> list[str]:
    """Find where a module reads or sets a private attribute that it does not define itself."""
    tree = ast.parse(source)
    defined = list_private_definitions(tree)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not is_private(node.attr):
            continue
        if not is_own(node.value) and node.attr not in defined:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("room", DISCREET)
def test_private_parts_are_read_in_their_own_module_only(room: str) -> None:
    found = []
    for module, path in list_modules("harness"):
        if room_of(module) == room:
            found += [f"{path.name}, {place}" for place in find_indiscretions(path.read_text())]
    assert not found


def test_an_indiscretion_is_seen() -> None:
    module = """
class Canvas:
    def __init__(self, other):
        self._tokens = []
        self._tokens += other._tokens
        other._logits = super()._draw(self._draw)

    def close(self, folder):
        return os._exit(folder.config._target_), folder.__dict__, folder._lock.name
"""
    assert find_indiscretions(module) == ["line 6: other._logits", "line 9: folder._lock"]
