"""Files that the project uses but does not ship: fetched once, into the user's cache.

They are pinned by their sha256.
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
"""Seconds without a byte from the server; a whole file may take as long as it needs."""
CHUNK = 1 << 20
"""Bytes read at a time."""


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
        _download_checked(url, sha256, path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        alternative = f", or {otherwise}" if otherwise else ""
        raise UserError(
            f"{url} cannot be downloaded ({one_line(error)[:200]}): "
            f"copy it to {path} from where there is a network{alternative}"
        ) from None
    return path


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

    if urlsplit(url).scheme not in ("http", "https"):
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
