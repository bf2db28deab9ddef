"""Downloads are pinned by hash, and whole or absent; without a network there is a way out."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
from conftest import ask_server
from huggingface_hub import constants

from harness import download
from harness.download import cached_path, fetch, file_sha256, prepare_hub, why_silent
from harness.models.checkpoint import locate
from harness.records import UserError

CONTENT = b"a file\n" * 1000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Serves the file, a part of it, or nothing, and keeps the paths that it was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/absent":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100] if self.path == "/torn" else CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("ALL_PROXY", "all_proxy", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    Server.asked = []
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


def test_a_file_is_fetched_once(server: str) -> None:
    path = fetch(f"{server}/good", SHA, "some/file.txt")
    again = fetch(f"{server}/good", SHA, "some/file.txt")
    assert path == again == cached_path("some/file.txt")
    assert path.read_bytes() == CONTENT
    assert file_sha256(path) == SHA
    assert Server.asked == ["/good"]


def test_the_first_digits_of_a_hash_are_a_pin(server: str) -> None:
    assert fetch(f"{server}/good", SHA[:8], "file").is_file()
    with pytest.raises(ValueError, match="too short"):
        fetch(f"{server}/good", SHA[:7], "file")


@pytest.mark.parametrize(
    ("where", "sha256", "problem"),
    [
        ("/good", "0" * 64, f"has sha256 {SHA}, not 0000"),
        ("/absent", SHA, "cannot be downloaded (HTTP Error 404"),
        ("/torn", SHA, "cannot be downloaded ("),
    ],
)
def test_what_is_not_the_file_is_not_kept(
    server: str, where: str, sha256: str, problem: str
) -> None:
    with pytest.raises(UserError) as caught:
        fetch(f"{server}{where}", sha256, "file")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(cached_path("file").parent.iterdir()) == []


def test_a_changed_file_of_the_cache_is_refused(server: str) -> None:
    path = fetch(f"{server}/good", SHA, "file")
    path.write_bytes(b"other")
    with pytest.raises(UserError, match=r"not .*: delete it, and it is downloaded again"):
        fetch(f"{server}/good", SHA, "file")


def test_without_a_network_the_message_has_the_remedy(server: str) -> None:
    nobody = server.rsplit(":", 1)[0] + ":9"
    with pytest.raises(UserError) as caught:
        fetch(f"{nobody}/good", SHA, "file", otherwise="set benchmark.metadata=PATH")
    remedy = (
        f"copy it to {cached_path('file')} from where there is a network, "
        "or set benchmark.metadata=PATH"
    )
    assert str(caught.value).endswith(remedy)
    with pytest.raises(UserError, match="only http and https"):
        fetch("file:///etc/hostname", SHA, "file")


# --- whether there is a network -------------------------------------------------------------------


@pytest.fixture
def closed(server: str) -> str:
    """The address of a port at which nobody listens."""
    return server.rsplit(":", 1)[0] + ":9"


def test_a_server_that_answers_anything_is_not_asked(server: str, closed: str) -> None:
    assert why_silent(f"{server}/absent") == ""
    assert "refused" in why_silent(f"{closed}/good")


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    released = Event()
    reached = Event()
    asked: list[str] = []

    def hang(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        reached.set()
        released.wait(20)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(download, "_ask_server", ask_server)
    monkeypatch.setattr(download, "PATIENCE_S", 0.1)
    began = time.monotonic()
    try:
        for _ in range(3):  # the second and third are told from memory
            assert why_silent("https://nowhere.invalid/x") == "nothing came in 0.1 s"
        assert reached.wait(20)
    finally:
        released.set()
    assert asked == ["nowhere.invalid"]
    assert time.monotonic() - began < 20


def test_a_server_is_asked_again_after_a_while(closed: str) -> None:
    name = closed
    download._asked[name] = (time.monotonic(), "it was silent")
    assert why_silent(name) == "it was silent"
    download._asked[name] = (time.monotonic() - download.ASK_AGAIN_S, "it was silent")
    assert "refused" in why_silent(name)


def test_the_hubs_library_tries_nothing_where_the_hub_is_out_of_reach(
    server: str, closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)  # between the library's own tries
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    words = f"({closed} does not answer: "
    for option in ("model.checkpoint", "checkpoint"):
        with pytest.raises(UserError) as caught:
            locate("some/model", None, ["*.json"], None, option)
        assert words in str(caught.value)
        assert str(caught.value).endswith(f"or set {option}=PATH")
    assert waited == []
    assert constants.HF_HUB_OFFLINE

    monkeypatch.setattr(constants, "ENDPOINT", server)  # the network is back
    download._asked[server] = (time.monotonic() - download.ASK_AGAIN_S, "it was silent")
    assert prepare_hub() == ""
    assert not constants.HF_HUB_OFFLINE


def test_who_wants_to_be_offline_stays_so(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    assert prepare_hub() == "HF_HUB_OFFLINE is set"
    assert constants.HF_HUB_OFFLINE
