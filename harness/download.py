"""Files that the project uses but does not ship: fetched once, into the user's cache.

They are pinned by their sha256. Before a server is asked for anything, it is asked whether it
answers at all: without a network that is known in seconds, not after the retries of a download.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import math
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from threading import Thread
from typing import IO
from urllib.parse import urlsplit

from harness.records import UserError, one_line

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""Seconds without a byte from the server; a whole file may take as long as it needs."""
CHUNK = 1 << 20
"""Bytes read at a time."""
SCHEMES = ("http", "https")
PATIENCE_S = 5.0
"""Seconds in which a server must answer at all; HF_HUB_ETAG_TIMEOUT replaces them."""
ASK_AGAIN_S = 60.0
"""Seconds for which a server is not asked again."""


def cache_folder() -> Path:
    """Name the folder for what the project can make or fetch again; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visual-ar-tts"


def cached_path(name: str) -> Path:
    """Name the path where `fetch` keeps the file `name`."""
    return cache_folder() / "downloads" / name


def file_sha256(path: Path) -> str:
    """Compute the sha256 of a file. Raises UserError for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def fetch(url: str, sha256: str, name: str, otherwise: str = "") -> Path:
    """Return the file behind `url`, from the cache or downloaded into it under `name`.

    `name` is a path in the cache, such as "geneval/metadata.jsonl". `sha256` pins the content, by
    all of its digits or as many of the first ones as are published (at least 8). The hash is
    checked at every call, before anything reads the file; a download is complete and checked before
    it gets its name. `otherwise` is a remedy besides putting a copy into the cache, such as "set
    benchmark.metadata=PATH". Raises UserError if the file cannot be had, or is another one.
    """
    if len(sha256) < 8:
        raise ValueError(f"{sha256!r} is too short to pin a file")
    path = cached_path(name)
    if path.is_file():
        _expect_cached(path, sha256)
        return path
    try:
        if reason := why_silent(url):
            raise OSError(reason)
        _download_checked(url, sha256, path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        alternative = f", or {otherwise}" if otherwise else ""
        raise UserError(
            f"{url} cannot be downloaded ({one_line(error)[:200]}): "
            f"copy it to {path} from where there is a network{alternative}"
        ) from None
    return path


# --- whether there is a network -------------------------------------------------------------------


_asked: dict[str, tuple[float, str]] = {}
"""Servers: when each was asked, and why it was silent; "" if it was not."""


def why_silent(url: str) -> str:
    """Say why the server of an address does not answer; "" if it does, whatever it says.

    It takes at most PATIENCE_S, also where names are resolved slowly.
    """
    if urlsplit(url).scheme not in SCHEMES:
        return ""  # whoever fetches it says what is wrong
    server = _server_of(url)
    asked_at, reason = _asked.get(server, (-math.inf, ""))
    if time.monotonic() - asked_at >= ASK_AGAIN_S:
        reason = _ask_server(server)
        _asked[server] = (time.monotonic(), reason)
    return reason


def prepare_hub() -> str:
    """Let the hub's library use its cache alone where the hub does not answer; say why, else "".

    Call it before anything is looked for on the hub: the library itself tries for half a minute.
    """
    from huggingface_hub import constants

    _, was_silent = _asked.get(_server_of(constants.ENDPOINT), (0.0, ""))
    if constants.HF_HUB_OFFLINE and not was_silent:  # the user's wish, not our finding
        return "HF_HUB_OFFLINE is set"
    reason = why_silent(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = bool(reason)
    return f"{constants.ENDPOINT} does not answer: {reason}" if reason else ""


def _server_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _ask_server(server: str) -> str:
    """Ask a server for its headers, in a thread of its own, which may hang in the resolver."""
    if "all" in urllib.request.getproxies():
        return ""  # a kind of proxy that urllib does not know
    patience_s = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PATIENCE_S)
    reasons: list[str] = []

    def ask() -> None:
        reasons.append(_why_no_headers(server, patience_s))

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience_s)
    return reasons[0] if reasons else f"nothing came in {patience_s:g} s"


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Go to no other server: one that sends elsewhere has answered."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        """Follow no redirection: it is raised as HTTPError."""


def _why_no_headers(server: str, timeout_s: float) -> str:
    """Say why a server sent no headers; "" if it did, or talks but is not trusted by urllib."""
    request = urllib.request.Request(server, method="HEAD")
    try:
        urllib.request.build_opener(_StayHere).open(request, timeout=timeout_s).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)
        return "" if isinstance(cause, ssl.SSLError) else one_line(cause)
    return ""


def format_bytes(size: int) -> str:
    """Write a number of bytes in kB, MB or GB of 1000."""
    amount = size / 1000
    for unit in ("kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"


def _expect_cached(path: Path, sha256: str) -> None:
    """Raise UserError if a file of the cache has another hash."""
    found = file_sha256(path)
    if not found.startswith(sha256):
        raise UserError(
            f"{path} has sha256 {found}, not {sha256}: delete it, and it is downloaded again"
        )


def _download_checked(url: str, sha256: str, path: Path) -> None:
    """Download `url` to `path`, which gets its name only once the content is known to be right."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _download(url, temporary)
        if not found.startswith(sha256):
            raise UserError(
                f"{url} has sha256 {found}, not {sha256}: "
                "what lies there is another file, it was not kept"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _download(url: str, path: Path) -> str:
    """Write what `url` returns to `path`, and return its sha256."""
    from tqdm import tqdm

    if urlsplit(url).scheme not in SCHEMES:
        raise ValueError("only http and https addresses are fetched")
    total = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply, path.open("wb") as file:
        size = int(reply.headers.get("Content-Length") or 0)
        log.info("downloading %s, %s", url, format_bytes(size) if size else "of unknown size")
        name = path.name.strip(".")
        with tqdm(total=size or None, desc=name, unit="B", unit_scale=True, disable=None) as bar:
            while block := reply.read(CHUNK):
                file.write(block)
                total.update(block)
                bar.update(len(block))
        if size and file.tell() != size:
            raise ValueError(f"{file.tell()} of {size} bytes came")
        file.flush()
        os.fsync(file.fileno())
    return total.hexdigest()
