"""Drive headless Chromium over a pipe: open pages from disk, press keys, take pictures."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: the page is not opened"
)
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
KEY_CODES = {
    "Enter": 13,
    "Escape": 27,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}
POLLING = """
new Promise((done, fail) => {
  const until = performance.now() + %d;
  const look = () => {
    let value;
    try { value = (%s) } catch { value = null }
    if (value) done(value);
    else if (performance.now() > until) fail(new Error('never true: ' + %s));
    else setTimeout(look, 20);
  };
  look();
})
"""


class Browser:
    """A browser with one page; `errors` lists what the page threw or logged as an error."""

    def __init__(self, width: int = 1320, height: int = 900) -> None:
        self._home = tempfile.mkdtemp()
        self._in, to_browser = os.pipe()
        from_browser, self._out = os.pipe()
        self._send = os.fdopen(to_browser, "wb")
        self._receive = os.fdopen(from_browser, "rb")

        def connect_pipes() -> None:  # Chromium reads from descriptor 3 and writes to 4
            os.dup2(os.dup(self._in), 3)
            os.dup2(os.dup(self._out), 4)

        # 1. Start Chromium at the other ends of both pipes.
        window = (f"--user-data-dir={self._home}", f"--window-size={width},{height}")
        self._process = subprocess.Popen(
            [str(CHROMIUM), *OPTIONS, *window, "about:blank"],
            preexec_fn=connect_pipes,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(self._in)
        os.close(self._out)

        # 2. Attach to its page.
        self._number = 0
        self._session = ""
        self.errors: list[str] = []
        targets = self._ask("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        self.size(width, height)

    def size(self, width: int, height: int) -> None:
        """Set the size of the page, in CSS pixels; a narrow one is a phone's."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 700,
        )

    def open(self, page: Path, address: str = "", theme: str = "light") -> None:
        """Load a page anew and wait until it has been painted."""
        self._ask("Page.navigate", url="about:blank")
        self._ask("Page.navigate", url=f"{page.resolve().as_uri()}?theme={theme}{address}")
        self.wait("document.documentElement.dataset.painted")

    def leave(self) -> None:
        """Leave the page and forget its errors: those of images come when they are decoded."""
        self._ask("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank' && document.readyState === 'complete'")
        self._ask("Log.clear")
        self.errors.clear()

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression. Raises AssertionError if it throws."""
        found = self._ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            exception = found["exceptionDetails"].get("exception", {})
            raise AssertionError(exception.get("description", found))
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> Any:
        """Wait for an expression to be true; return its value."""
        return self.evaluate(POLLING % (1000 * seconds, condition, json.dumps(condition)))

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {}
        if key == "Enter":
            text = {"text": "\r"}
        elif len(key) == 1:
            text = {"text": key}
        press = {"key": key, "windowsVirtualKeyCode": KEY_CODES.get(key, 0)}
        self._ask("Input.dispatchKeyEvent", type="keyDown", **press, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **press)

    def picture(self, path: Path) -> None:
        """Write a PNG of what the page shows."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def _ask(self, method: str, **parameters: Any) -> Any:
        """Call a method of Chromium's debugging protocol, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note_error(answer)

    def _note_error(self, event: dict[str, Any]) -> None:
        """Keep what an event says of an error of the page."""
        if event.get("method") == "Runtime.exceptionThrown":
            details = event["params"]["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        if event.get("method") == "Log.entryAdded":
            entry = event["params"]["entry"]
            if entry["level"] == "error":
                self.errors.append(entry["text"])

    def _read(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            if not byte:
                raise AssertionError("the browser is gone")
            data += byte
        answer: dict[str, Any] = json.loads(data)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._send.close()
        self._process.kill()
        self._process.wait()
        self._receive.close()
        shutil.rmtree(self._home, ignore_errors=True)
