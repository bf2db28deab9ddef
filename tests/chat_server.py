"""A chat-completions server on loopback that behaves as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Behaviour = Callable[[dict], tuple[Any, ...]]
"""From a request's body to the status, the answer and perhaps more headers."""


class Server:
    """An endpoint on loopback that answers as `behave` says; keeps what it was asked."""

    def __init__(self) -> None:
        self.behave: Behaviour = lambda body: says("yes")
        self.asked: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer._serve(self)

            def do_GET(self) -> None:  # what a redirected POST becomes
                outer._serve(self)

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(
            handler.rfile.read(int(handler.headers.get("Content-Length", 0))) or b"{}"
        )
        with self._lock:
            self.asked.append(body)
            self.headers.append(dict(handler.headers))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            status, answer, *more = self.behave(body)
        finally:
            with (
                self._lock
            ):  # before the reply is out: whoever has it may ask the next thing at once
                self._now -= 1
        try:
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            handler.send_response(status)
            for name, value in dict(*more).items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def says(text: str, top: dict[str, float] | None = None) -> tuple[int, object]:
    choice: dict = {"message": {"role": "assistant", "content": text}}
    if top is not None:
        entries = [{"token": token, "logprob": float(np.log(p))} for token, p in top.items()]
        choice["logprobs"] = {"content": [{"token": text, "top_logprobs": entries}]}
    return 200, {"choices": [choice], "usage": {"total_tokens": 17}}
