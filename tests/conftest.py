"""For all tests: one thread, our plug-ins of Hydra, no network, slow work once, a chat server.

Two threads that spin on shared cores are slower than one, and reductions of one keep their order.
Hydra looks for plug-ins once in a process: a test that composes before they are there would take
them from all tests behind it.
"""

import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import Server
from huggingface_hub import constants
from omegaconf import OmegaConf

from harness import download
from harness.cli import enable_plugins

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visual-ar-tts-tests"
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4e9
"""What the folders of all tests may take, with room to spare."""


def keep_bytecode() -> None:
    """Keep bytecode where the environment forbids to write it beside the sources.

    Compiling the tests takes each worker 20 seconds.
    """
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode = False
        sys.pycache_prefix = str(CACHE)


def write_into_memory() -> None:
    """Let the folders of tests lie in memory, where there is much: each image is synced to disk."""
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


keep_bytecode()
write_into_memory()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
torch.set_num_threads(1)
enable_plugins()
ask_server = download._ask_server


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no server answer but those of tests, and none be remembered."""

    def ask(server: str) -> str:
        return ask_server(server) if "127.0.0.1" in server else "no network in tests"

    monkeypatch.setattr(download, "_ask_server", ask)
    monkeypatch.setattr(download, "_asked", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


_parse = OmegaConf.load
_parsed: dict[str, Any] = {}


def parse_once(file: Any) -> Any:
    """Parse a configuration as `OmegaConf.load` does, each text once in a process.

    Hydra reads its files anew for each run that it composes, thousands of times in all tests.
    """
    is_open = isinstance(file, io.TextIOBase)
    text = file.read() if is_open else Path(file).read_text("utf-8")
    if text not in _parsed:
        if is_open:
            file.seek(0)
        _parsed[text] = OmegaConf.to_container(_parse(file))
    return OmegaConf.create(_parsed[text])


OmegaConf.load = staticmethod(parse_once)  # type: ignore[method-assign,assignment]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A chat server, and an environment that names no other one."""
    for name in ("VLM_BASE_URL", "VLM_MODEL", "VLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    one = Server()
    yield one
    one.close()
