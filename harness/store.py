"""A run's folder: the append-only journal is the truth; images and tables are projections of it.

    results/<benchmark>/<model>/<method>-<fingerprint>/
        config.yaml      resolved configuration and what the fingerprint was made of
        jobs.jsonl       one line per planned prompt
        records-0.jsonl  one line per finished or failed image, appended after the image is safely on disk
        scores.jsonl     one line per scored image
        images/00042/2.png

A killed process loses at most the images that were not finished; running again completes the folder to the same
bytes. A lock keeps a second writer out.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import numpy as np
from omegaconf import OmegaConf
from PIL import Image as Pillow

from harness.records import Job, Prompt, SampleRecord, Score, UserError, digest, dump, one_line

SCHEMA = 1
"""Of run folders; a folder of a newer one is refused."""

_Row = TypeVar("_Row")


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that name everything a run's results depend on."""
    return hashlib.blake2b(dump({"schema": SCHEMA, **identity}).encode(), digest_size=4).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, sees either nothing or all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_lines(path: Path, parse: Callable[[str], _Row]) -> Iterator[_Row]:
    """Parsed lines of a journal, `.gz` or not; a torn last line, left by a kill, is passed over.

    Raises UserError with the line number for any other line that cannot be read.
    """
    try:
        data = path.read_bytes()
        *lines, tail = (gzip.decompress(data) if path.suffix == ".gz" else data).split(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({one_line(getattr(error, 'strerror', None) or error)})") from None
    for number, line in enumerate([*lines, tail] if tail else lines, start=1):
        try:
            yield parse(line.decode())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number > len(lines):
                return
            raise UserError(
                f"{path}, line {number}: cannot be read ({one_line(error)}); restore or delete it"
            ) from None


def journals(folder: Path, name: str) -> list[Path]:
    """A run folder's files of that name ("records-*.jsonl": every shard), packed ones (`.gz`) among them."""
    found = sorted([*folder.glob(name), *folder.glob(f"{name}.gz")])
    return found or [folder / name]


def image_path(prompt: Prompt, image: int) -> str:
    """Where an image lies below the run folder. Raises UserError for a prompt id that could leave it."""
    parts = prompt.id.split("/")[1:] or [prompt.id]
    if not all(re.fullmatch(r"[\w+-][\w+.-]*", part) for part in parts):
        raise UserError(f"prompt id {prompt.id!r} is not usable as a file name: use letters, digits, '+', '-', '_'")
    return "/".join(("images", *parts, f"{image}.png"))


class RunFolder:
    """One run on disk, open for writing. A context manager: it holds the lock while it is open."""

    def __init__(self, path: Path, config: Mapping[str, Any], jobs: Sequence[Job]) -> None:
        """Create the folder, or open it again. Raises UserError for another run's folder or a second writer."""
        self.path = path
        if (path / "records-0.jsonl.gz").exists():
            raise UserError(f"{path} is packed for publication, without images: choose another results=")
        self._jobs = {job.key: job for job in jobs}
        path.mkdir(parents=True, exist_ok=True)
        self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UserError(f"{path} is being written by another process: wait for it, or stop it") from error
        try:
            self._claim(config, jobs)
            self._done = {
                r.key: r for r in _repaired(path / "records-0.jsonl", SampleRecord.from_json) if self._intact(r)
            }
            self._scored = {s.key for s in _repaired(path / "scores.jsonl", Score.from_json)}
            self._journal: IO[bytes] = (path / "records-0.jsonl").open("ab")
            self._scores: IO[bytes] = (path / "scores.jsonl").open("ab")
        except BaseException:
            self._lock.close()
            raise

    def _claim(self, config: Mapping[str, Any], jobs: Sequence[Job]) -> None:
        known = self.path / "config.yaml"
        mine = config["run"]["fingerprint"]
        if known.exists():
            theirs = OmegaConf.to_container(OmegaConf.load(known))
            found = theirs.get("run", {}).get("fingerprint") if isinstance(theirs, dict) else None
            if found != mine:
                raise UserError(f"{self.path} holds run {found}, not {mine}: move it away or choose another results=")
            return
        prompts = {job.prompt.id: job.prompt for job in jobs}
        images = Counter(job.prompt.id for job in jobs)
        lines = [
            dump({"prompt_id": p.id, "text": p.text, "category": p.category, "images": images[p.id], **p.standing})
            for p in prompts.values()
        ]
        write_atomic(self.path / "jobs.jsonl", "".join(line + "\n" for line in lines).encode())
        write_atomic(known, OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())

    def _intact(self, record: SampleRecord) -> bool:
        """Whether a journal line speaks of a delivered image that is still there, byte for byte."""
        if record.status != "done" or record.key not in self._jobs:
            return False
        file = self.path / record.path
        return file.is_file() and digest(file.read_bytes()) == record.image_sha

    @property
    def done(self) -> dict[tuple[str, int], SampleRecord]:
        """Delivered images by job."""
        return dict(self._done)

    def missing(self) -> list[Job]:
        """Planned jobs that have no delivered image yet, failed ones included."""
        return [job for key, job in self._jobs.items() if key not in self._done]

    def unscored(self, judge: str) -> list[Job]:
        """Delivered jobs that `judge` has not scored yet."""
        return [self._jobs[key] for key in self._jobs if key in self._done and (*key, judge) not in self._scored]

    def file(self, job: Job) -> Path:
        return self.path / image_path(job.prompt, job.image)

    def save(self, record: SampleRecord, image: np.ndarray | None) -> None:
        """Image first, then the journal line: a line always speaks of a file that is there."""
        if image is not None:
            write_atomic(self.path / record.path, encode_png(image))
            self._done[record.key] = record
        _append(self._journal, record.to_json())

    def adopt(self, record: SampleRecord, source: Path) -> None:
        """Take an image that lies elsewhere as delivered: a link to it instead of a file."""
        link = self.path / record.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(source.resolve())
        self._done[record.key] = record
        _append(self._journal, record.to_json())

    def save_score(self, score: Score) -> None:
        self._scored.add(score.key)
        _append(self._scores, score.to_json())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._journal, self._scores, self._lock):
            file.close()


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of a uint8 [H, W, 3] image; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def tokens_sha(tokens: Sequence[int]) -> str:
    """Hash of an image's tokens, for comparing two drawings of one job."""
    return digest(dump(list(tokens)).encode())


def _append(file: IO[bytes], line: str) -> None:
    file.write(line.encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _repaired(path: Path, parse: Callable[[str], _Row]) -> list[_Row]:
    """Rows of a journal that is about to be appended to: a torn last line is cut off first."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    return list(read_lines(path, parse))
