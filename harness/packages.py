"""Reach the project's own packages wherever a command runs, and an author's code beside a conf.

`methods`, `benchmarks` and `conf` are common names. A folder of such a name in the current folder,
or on PYTHONPATH, must not be taken for ours: `pin_own_packages` has them found beside `harness`
before anything else is asked. An author's own `methods/` and `benchmarks/` are found in addition.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from harness.records import UserError

HOME = Path(__file__).resolve().parent.parent
"""The folder that holds `harness` and the packages below."""
OWN = ("methods", "benchmarks", "conf")
"""The project's packages beside `harness`."""
SHARED = ("methods", "benchmarks")
"""Of these, packages to which an author's folder of the same name may add modules."""


class OwnPackages(MetaPathFinder):
    """Find the project's packages in HOME, never elsewhere."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find one of the project's packages; leave all other modules to other finders."""
        return PathFinder.find_spec(name, [str(HOME)]) if name in OWN else None


def pin_own_packages() -> None:
    """Have the project's packages found before any other of their names."""
    if not any(isinstance(finder, OwnPackages) for finder in sys.meta_path):
        sys.meta_path.insert(0, OwnPackages())


def expect_own_packages() -> None:
    """Raise UserError if others of their names were imported before the harness was."""
    for name in OWN:
        module = importlib.import_module(name)
        folders = [Path(folder).resolve() for folder in getattr(module, "__path__", ())]
        if HOME / name not in folders:
            place = getattr(module, "__file__", None) or ", ".join(map(str, folders))
            raise UserError(
                f"package {name!r} of {place} was imported before harness, "
                "whose own has that name: import harness first"
            )


def add_author_folder(folder: Path) -> None:
    """Put a folder with an author's code on the import path, behind all that is there.

    Modules of its `methods/` and `benchmarks/` join ours. Raises UserError for one whose name is
    taken: nobody could tell which of the two is meant.
    """
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    for name in SHARED:
        beside = folder / name
        if beside.is_dir() and beside.resolve() != HOME / name:
            _join(name, beside)
    importlib.invalidate_caches()


def _join(name: str, beside: Path) -> None:
    """Add the modules of a folder to one of our packages."""
    own = {path.stem for path in (HOME / name).iterdir()}
    for path in sorted(beside.iterdir()):
        is_module = path.suffix == ".py" or path.is_dir()
        if is_module and path.stem in own and not path.stem.startswith("__"):
            raise UserError(
                f"{path} has the name of the project's own {name}.{path.stem}: rename it"
            )
    package = importlib.import_module(name)
    if str(beside) not in package.__path__:
        package.__path__.append(str(beside))
