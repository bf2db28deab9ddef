"""A chat-completions server on loopback that behaves as a test tells it.

It passes the self-test of an endpoint by looking at the pictures, unless a test makes it fail; what
the self-test asks is kept apart from what is asked later.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from harness.judges.self_test import QUESTION

Behaviour = Callable[[dict], tuple[Any, ...]]
"""From a request's body to the status, the answer and perhaps more headers."""


class Server:
    """An endpoint on loopback that answers as `behave` tells it, and keeps what it was asked."""

    def __init__(self) -> None:
        self.behave: Behaviour = lambda body: says("yes")
        self.behave_when_tested: Behaviour = look_at_red
        self.asked: list[dict] = []
        self.tested: list[dict] = []
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

        if is_self_test(body):
            self.tested.append(body)
            self._send(handler, *self.behave_when_tested(body))
            return

        # The count ends before the reply is out: whoever has it may ask the next thing at once.
        with self._counted(body, dict(handler.headers)):
            answered = self.behave(body)
        self._send(handler, *answered)

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, answer: Any, *more: dict[str, str]
    ) -> None:
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


def is_self_test(body: dict) -> bool:
    """Whether a request is one of the two questions about pictures whose answers are known."""
    content = body["messages"][-1]["content"] if body.get("messages") else []
    return bool(content) and content[0]["text"] == QUESTION


def look_at_red(body: dict) -> tuple[int, object]:
    """Answer the question of the self-test from the picture that it is about."""
    data = body["messages"][-1]["content"][1]["image_url"]["url"].partition(",")[2]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    red, _, blue = picture.reshape(-1, 3).mean(0)
    return says("Yes." if red > blue else "No.")


def says(text: str, top: dict[str, float] | None = None) -> tuple[int, object]:
    """Make the answer with a text; `top` are the probabilities of its likeliest first tokens."""
    choice: dict = {"message": {"role": "assistant", "content": text}}
    if top is not None:
        entries = [{"token": token, "logprob": float(np.log(p))} for token, p in top.items()]
        choice["logprobs"] = {"content": [{"token": text, "top_logprobs": entries}]}
    return 200, {"choices": [choice], "usage": {"total_tokens": 17}}
