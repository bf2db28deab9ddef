"""Name the source of plug-ins: classes of a configuration that are not the project's own.

A result follows its code. The project's own code is named by one number (`fingerprint.CODE`), which
changes whenever results do. The code of a plug-in, which nobody numbers, is named by its content:
the module of each class, and what that imports from its own folder or package. Imports are read
from the source, so a module that is imported under a name made at run time is not seen.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.records import digest

PROJECT = Path(__file__).resolve().parents[2]
OWN_PACKAGES = tuple(PROJECT / name for name in ("harness", "methods", "benchmarks", "conf"))
"""Folders of the project's own code and configuration."""
LIBRARIES = frozenset({"hydra", "omegaconf", "numpy", "torch", "torchvision", "transformers"})
"""Packages of others whose classes and functions a configuration may name; they are versioned."""
DIGITS = 16
"""Hexadecimal digits of the hash of a module."""


def hash_plugins(config: Any) -> dict[str, str]:
    """Hash the modules of all plug-in classes in a plain configuration: module name -> sha256.

    {} if all classes are the project's own. A class that cannot be found is left to whoever builds
    it.
    """
    return {name: _hash_file(path) for name, path in find_plugin_files(config).items()}


def find_plugin_files(config: Any) -> dict[str, Path]:
    """Find the files of all plug-in classes in a plain configuration, and of what they import.

    Returns module name -> file, sorted by name.
    """
    found: dict[str, Path] = {}
    for target in sorted(set(list_targets(config))):
        module = _find_target_module(target)
        if module is not None:
            _collect(module, found)
    return dict(sorted(found.items()))


def list_targets(config: Any) -> Iterator[str]:
    """List the `_target_`s of a plain configuration, the outer ones first.

    Where that is a function of Hydra's that looks an object up, the object is among them.
    """
    if isinstance(config, Mapping):
        target = config.get("_target_")
        if isinstance(target, str):
            yield target
            if target.startswith("hydra.utils.get_") and isinstance(config.get("path"), str):
                yield config["path"]
        for value in config.values():
            yield from list_targets(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from list_targets(value)


def is_own(path: Path) -> bool:
    """Tell whether a file is of the project's own code or configuration."""
    resolved = path.resolve()
    return any(resolved.is_relative_to(folder) for folder in OWN_PACKAGES)


# ------------------------------------------------------------------ modules


def _collect(module: str, found: dict[str, Path]) -> None:
    """Add a plug-in's module, the packages around it, and what they import from beside it."""
    path = _file_of(module)
    if path is None or module in found or is_own(path) or _is_library(module):
        return
    found[module] = path
    package, _, _ = module.rpartition(".")
    if package:
        _collect(package, found)
    for imported in _list_imports(module, path):
        if _is_beside(imported, module):
            _collect(imported, found)


def _is_library(module: str) -> bool:
    top = module.partition(".")[0]
    return top in LIBRARIES or top in sys.stdlib_module_names


def _is_beside(imported: str, module: str) -> bool:
    """True for a module of the same package, or of the same folder outside installed packages."""
    top = module.partition(".")[0]
    other_top = imported.partition(".")[0]
    if top == other_top:
        return True
    own = _file_of(top)
    other = _file_of(other_top)
    if own is None or other is None or "site-packages" in own.parts:
        return False
    return _folder_of(own) == _folder_of(other)


def _folder_of(top_module: Path) -> Path:
    """Return the folder in which a module or package without a parent lies."""
    path = top_module.resolve()
    return path.parent.parent if path.name == "__init__.py" else path.parent


def _find_target_module(target: str) -> str | None:
    """Return the module in which a `_target_` is looked up: its longest part that is one."""
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        if _file_of(name) is not None:
            return name
    return None


def _file_of(module: str) -> Path | None:
    """Return the source file of a module; None for what has none, such as a built-in."""
    origin = getattr(sys.modules.get(module), "__file__", None)
    if origin is None:
        # A parent that does not import, and names such as "a..b".
        with suppress(ImportError, ValueError, AttributeError, SyntaxError):
            spec = importlib.util.find_spec(module)
            origin = spec.origin if spec is not None and spec.has_location else None
    return Path(origin) if origin and origin.endswith(".py") else None


# ------------------------------------------------------------------ source


def _list_imports(module: str, path: Path) -> Iterable[str]:
    """List the names of modules, and of what may be modules, that a source file imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _resolve_base(node, package)
            names.append(base)
            names += [f"{base}.{alias.name}" for alias in node.names]
    return [name for name in names if name]


def _resolve_base(node: ast.ImportFrom, package: str) -> str:
    """Return the full name of the module that names are imported from."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    parent = ".".join(parts[: len(parts) - node.level + 1])
    return f"{parent}.{node.module}" if node.module else parent


@lru_cache
def _hash_file(path: Path) -> str:
    """Hash a file as this process first saw it, which is what it has imported."""
    try:
        return digest(path.read_bytes(), DIGITS)
    except OSError:
        return ""
