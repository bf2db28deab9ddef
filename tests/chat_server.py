"""A chat-completions server on loopback that behaves as a test tells it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Behaviour = Callable[[dict], tuple[Any, ...]]
"""From a request's body to the status, the answer and perhaps more headers."""


class Server:
    """An endpoint on loopback that answers as `behave` tells it, and keeps what it was asked."""

    def __init__(self) -> None:
        self.behave: Behaviour = lambda body: says("yes")
        self.asked: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(self))
        self._http.daemon_threads = True
        threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request as `behave` tells."""
        length = int(handler.headers.get("Content-Length", 0))
        body = json.loads(handler.rfile.read(length) or b"{}")

        # The count ends before the reply is out: whoever has it may ask the next thing at once.
        with self._counted(body, dict(handler.headers)):
            status, answer, *more = self.behave(body)

        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        with suppress(BrokenPipeError, ConnectionResetError):
            handler.send_response(status)
            for name, value in dict(*more).items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

    @contextmanager
    def _counted(self, body: dict, headers: dict[str, str]) -> Iterator[None]:
        """Keep a request, and count those that are served at the same time."""
        with self._lock:
            self.asked.append(body)
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()


def _make_handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.answer(self)

        def do_GET(self) -> None:  # what a redirected POST becomes
            server.answer(self)

        def log_message(self, *_: object) -> None: ...

    return Handler


def says(text: str, top: dict[str, float] | None = None) -> tuple[int, object]:
    """Make the answer with a text; `top` are the probabilities of its likeliest first tokens."""
    choice: dict = {"message": {"role": "assistant", "content": text}}
    if top is not None:
        entries = [{"token": token, "logprob": float(np.log(p))} for token, p in top.items()]
        choice["logprobs"] = {"content": [{"token": text, "top_logprobs": entries}]}
    return 200, {"choices": [choice], "usage": {"total_tokens": 17}}
