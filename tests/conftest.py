"""For all tests: one thread, our plug-ins of Hydra, configurations parsed once, and a chat server.

Two threads that spin on shared cores are slower than one, and reductions of one keep their order.
Hydra looks for plug-ins once in a process: a test that composes before they are there would take
them from all tests behind it.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start, too

import pytest
import torch
from chat_server import Server
from omegaconf import OmegaConf

from harness.cli import enable_plugins

torch.set_num_threads(1)
enable_plugins()

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
