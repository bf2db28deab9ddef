"""Downloads are pinned by hash, and whole or absent; without a network there is a way out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from harness.download import cached_path, fetch, file_sha256
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
