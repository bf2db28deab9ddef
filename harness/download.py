"""Files that the project uses but does not ship: fetched once into the user's cache, pinned by
their sha256.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from harness.records import UserError, one_line

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""Without a byte from the server; a whole file may take as long as it needs."""
CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where the project keeps what it can make or fetch again; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visual-ar-tts"


def cached(name: str) -> Path:
    """Where `fetch` keeps the file `name`."""
    return cache_folder() / "downloads" / name


def file_sha256(path: Path) -> str:
    """The sha256 of a file. Raises UserError for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def fetch(url: str, sha256: str, name: str, otherwise: str = "") -> Path:
    """The file behind `url`, from the cache or downloaded into it under `name`
    ("geneval/metadata.jsonl").

    `sha256` pins the content, by all of its digits or as many of the first ones as are published
    (at least 8). The hash is checked at every call, before anything reads the file; a download is
    complete and checked before it has its name. `otherwise` is the remedy besides putting a copy
    into the cache, such as "set benchmark.metadata=PATH". Raises UserError where the file cannot be
    had, or is another one.
    """
    if len(sha256) < 8:
        raise ValueError(f"{sha256!r} is too short to pin a file")
    path = cached(name)
    if path.is_file():
        if not (found := file_sha256(path)).startswith(sha256):
            raise UserError(
                f"{path} has sha256 {found}, not {sha256}: delete it, and it is downloaded again"
            )
        return path
    log.info("downloading %s", url)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _download(url, temporary)
        if not found.startswith(sha256):
            raise UserError(
                f"{url} has sha256 {found}, not {sha256}: what lies there is another file, it was not kept"
            )
        os.replace(temporary, path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        copy = f"copy it to {path} from where there is a network"
        raise UserError(
            f"{url} cannot be downloaded ({one_line(error)[:200]}): {copy}{f', or {otherwise}' if otherwise else ''}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _download(url: str, path: Path) -> str:
    """Write what `url` returns to `path` and tell its sha256."""
    from tqdm import tqdm

    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("only http and https addresses are fetched")
    total = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply, path.open("wb") as file:
        size = int(reply.headers.get("Content-Length") or 0)
        with tqdm(
            total=size or None, desc=path.name.strip("."), unit="B", unit_scale=True, disable=None
        ) as bar:
            while block := reply.read(CHUNK):
                file.write(block)
                total.update(block)
                bar.update(len(block))
        if size and file.tell() != size:
            raise ValueError(f"{file.tell()} of {size} bytes came")
        file.flush()
        os.fsync(file.fileno())
    return total.hexdigest()
