"""Optional packages: what one benchmark alone needs, and how to install it."""

from __future__ import annotations

from importlib.util import find_spec

from harness.records import UserError


def require(package: str, *, extra: str, asker: str = "") -> None:
    """Raise UserError with the command to type unless `package` is installed; import nothing.

    `extra` is the extra of pyproject.toml that installs the package. It has the benchmark's name,
    unless `asker` says who else needs it.
    """
    if find_spec(package) is None:
        raise UserError(
            f"{asker or f'benchmark={extra}'} needs {package}, which is not installed: "
            f"pip install 'visual-ar-tts[{extra}]'"
        )
