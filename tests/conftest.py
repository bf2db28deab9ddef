"""For all tests: one thread, our plug-ins of Hydra, no network, and a chat server to ask.

Two threads that spin on shared cores are slower than one, and reductions of one keep their order.
Hydra looks for plug-ins once in a process: a test that composes before they are there would take
them from all tests behind it.
"""

from collections.abc import Iterator

import pytest
import torch
from chat_server import Server
from huggingface_hub import constants

from harness import download
from harness.cli import enable_plugins

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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A chat server, and an environment that names no other one."""
    for name in ("VLM_BASE_URL", "VLM_MODEL", "VLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    one = Server()
    yield one
    one.close()
