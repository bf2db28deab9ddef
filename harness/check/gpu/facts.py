"""Describe the machine and the code that a result belongs to.

`python -m harness.check.gpu.facts DEVICE SIZE` prints the facts as JSON: asking a GPU for its name
takes some of its memory for as long as the process lives, so a process of its own asks.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from harness.models.devices import choose_device
from harness.records import JSON, UserError, digest, dump, one_line

ROOT = Path(__file__).parents[3]


def ask_for_facts(device: str, size: str) -> dict[str, JSON]:
    """Describe machine and code from a process of its own.

    Raises UserError for a device that does not work.
    """
    command = [sys.executable, "-m", "harness.check.gpu.facts", device, size]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if answer.returncode:
        reason = one_line(answer.stderr.strip().rpartition("\n")[2])[:200]
        raise UserError(f"--device {device} cannot be used: {reason}")
    facts: dict[str, JSON] = json.loads(answer.stdout)
    return facts


def describe_setting(device: str, size: str) -> dict[str, JSON]:
    """Describe the machine and the code: what a result belongs to."""
    is_cuda = choose_device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else f"no GPU ({device})"
    return {
        "device": name,
        "size": size,
        "driver": _find_driver() if is_cuda else "",
        "cuda": torch.version.cuda or "",
        "torch": torch.__version__,
        "triton": _find_version("triton"),
        "python": platform.python_version(),
        "commit": _ask_git("rev-parse", "--short", "HEAD") or "unknown",
        "dirty": bool(_ask_git("status", "--porcelain", "--untracked-files=no")),
        "code": hash_code(),
        "date": date.today().isoformat(),
    }


def hash_code() -> str:
    """Hash the harness' and the methods' Python files, whether or not there is a repository."""
    files = [*(ROOT / "harness").rglob("*.py"), *(ROOT / "methods").rglob("*.py")]
    hashes = [f"{file.relative_to(ROOT)} {digest(file.read_bytes())}" for file in files]
    return digest("\n".join(sorted(hashes)).encode(), 12)


def _find_driver() -> str:
    """Return the version of the GPU's driver; "" where nothing tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return answer.stdout.strip().partition("\n")[0]
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _ask_git(*arguments: str) -> str:
    """Ask git about the checkout that this code runs from; "" where there is none."""
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


if __name__ == "__main__":
    print(dump(describe_setting(*sys.argv[1:])))
