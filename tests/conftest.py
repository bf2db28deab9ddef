"""One thread: two that spin on shared cores are slower, and reductions keep their order. And a
server to ask.
"""

from collections.abc import Iterator

import pytest
import torch
from chat_server import Server

torch.set_num_threads(1)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A chat server, and an environment without another one."""
    for name in ("VLM_BASE_URL", "VLM_MODEL", "VLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    one = Server()
    yield one
    one.close()
