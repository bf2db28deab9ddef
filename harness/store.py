"""A run's folder: the append-only journal is the truth; images and tables are projections of it.

    results/<benchmark>/<model>/<method>-<fingerprint>/
        config.yaml      resolved configuration and what the fingerprint was made of
        jobs.jsonl       one line per planned prompt
        records-0.jsonl  one line per finished or failed image, appended after the image is safely on disk
        scores.jsonl     one line per scored image
        timings-0.jsonl  one line per process that drew to its end
        images/00042/2.png

A killed process loses at most the images that were not finished; running again completes the folder to the same
bytes. Several processes may write one run, each its own share of the jobs (`Shard`) to journals of its own
(records-1.jsonl, scores-1.jsonl); whatever any journal has is done. A lock per share keeps a second writer out.
"""

from __future__ import annotations

import dataclasses
import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import socket
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import numpy as np
from omegaconf import OmegaConf
from PIL import Image as Pillow

from harness.records import Job, Prompt, SampleRecord, Score, Timing, UserError, digest, dump, one_line

SCHEMA = 1
"""Of run folders; a folder of a newer one is refused."""

PROBES = 4
"""Attempts at a lock: who asks for its holder takes it for a moment."""

FORMATS = ("PNG", "JPEG", "WEBP")
"""Kinds of image files that are read; Pillow knows others that start programs."""
UNREADABLE = (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError)
"""What comes of opening or decoding a file that is damaged, no image, or too large a one."""
Pillow.MAX_IMAGE_PIXELS = 1 << 25  # Pillow refuses twice as many: 8192 x 8192

_Row = TypeVar("_Row")


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that name everything a run's results depend on."""
    return hashlib.blake2b(dump({"schema": SCHEMA, **identity}).encode(), digest_size=4).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, sees either nothing or all of it. Raises UserError where it cannot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def append(path: Path, line: str) -> None:
    """Append a line to a journal that several processes write: whole, and behind whole ones."""
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _mend(path)
            _append(file, line)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """A full or read-only disk is for the user to mend: raises UserError instead of OSError."""
    try:
        yield
    except OSError as error:
        why = one_line(error.strerror or error)
        raise UserError(
            f"{path}: cannot be written ({why}): make room or choose another results=, then run the same command again"
        ) from error


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
    parts = prompt.id.split("/")
    if not all(re.fullmatch(r"[\w+-][\w+.-]*", part) for part in parts):
        raise UserError(f"prompt id {prompt.id!r} is not usable as a file name: use letters, digits, '+', '-', '_'")
    return "/".join(("images", *(parts[1:] or parts), f"{image}.png"))


def _expect_files(jobs: Sequence[Job]) -> None:
    """Raise UserError unless every image can have a file of its own."""
    files = Counter(image_path(job.prompt, job.image) for job in jobs)
    if shared := next((path for path, images in files.items() if images > 1), None):
        raise UserError(f"{files[shared]} images would be {shared}: prompt ids must differ behind the benchmark's name")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` shares of a run's jobs: every count-th, from the index-th on. Results have no trace of it."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read "i/n". Raises UserError for anything else."""
        found = re.fullmatch(r"(\d+)/(\d+)", str(text))
        if not found or int(found[1]) >= int(found[2]):
            raise UserError(f"shard={text}: write i/n, the i-th of n shares with i from 0 to n - 1, such as 0/2")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, jobs: Sequence[_Row]) -> Sequence[_Row]:
        """Its share."""
        return jobs[self.index :: self.count]

    @property
    def records(self) -> str:
        return f"records-{self.index}.jsonl"

    @property
    def scores(self) -> str:
        return f"scores-{self.index}.jsonl" if self.index else "scores.jsonl"

    @property
    def timings(self) -> str:
        return f"timings-{self.index}.jsonl"

    @property
    def lock(self) -> str:
        return f".lock-{self.index}"


@dataclass(frozen=True, slots=True)
class Writer:
    """A process that writes a run folder now."""

    shard: str
    pid: int
    host: str
    since: float  # seconds since 1970, by its own clock
    done: int  # images of its share that were there when it began


def writers(folder: Path) -> list[Writer]:
    """Who holds a lock of a run folder."""
    return [writer for lock in sorted(folder.glob(".lock-*")) if (writer := _holder(lock))]


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is inside; for moments only."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def intact(folder: Path, record: SampleRecord) -> bool:
    """Whether a journal line speaks of a delivered image that is still there, byte for byte."""
    file = folder / record.path
    return record.status == "done" and file.is_file() and digest(file.read_bytes()) == record.image_sha


class RunFolder:
    """One run on disk, open for writing a share of its jobs. A context manager: it holds the lock while it is open."""

    def __init__(self, path: Path, config: Mapping[str, Any], jobs: Sequence[Job], shard: Shard | None = None) -> None:
        """Create the folder, or open it again.

        Raises UserError for another run's folder, a second writer of the share, and a writer of other shares.
        """
        self.path, self.shard = path, shard or Shard()
        if (path / "records-0.jsonl.gz").exists():
            raise UserError(f"{path} is packed for publication, without images: choose another results=")
        self._jobs = {job.key: job for job in jobs}
        self._share = {job.key: job for job in self.shard.of(jobs)}
        _expect_files(jobs)
        with _writable(path), alone(path / ".lock"):
            self._claim(config, jobs)
            self._lock = _taken(path, self.shard)
        try:
            self._read()
            _introduce(self._lock, self.shard, done=self.made)
            self._journal: IO[bytes] = (path / self.shard.records).open("ab")
            self._scores: IO[bytes] = (path / self.shard.scores).open("ab")
        except BaseException:
            self._lock.close()
            raise

    def _read(self) -> None:
        """Take over what the journals say; of the own ones, which nobody else appends to, torn lines are cut off."""
        _mend(self.path / self.shard.records)
        _mend(self.path / self.shard.scores)
        records = [path for path in journals(self.path, "records-*.jsonl") if path.exists()]
        scores = [path for path in journals(self.path, "scores*.jsonl") if path.exists()]
        lines = [record for path in records for record in read_lines(path, SampleRecord.from_json)]
        self._done = {r.key: r for r in lines if r.key in self._jobs and intact(self.path, r)}
        self._scored = {score.key for path in scores for score in read_lines(path, Score.from_json)}

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

    @property
    def done(self) -> dict[tuple[str, int], SampleRecord]:
        """Delivered images by job, of all shares, as they were when the folder was opened; of this one, as they are."""
        return dict(self._done)

    @property
    def planned(self) -> int:
        """Jobs of this share."""
        return len(self._share)

    @property
    def made(self) -> int:
        """Delivered images of this share."""
        return sum(key in self._done for key in self._share)

    def missing(self) -> list[Job]:
        """Jobs of this share that have no delivered image yet, failed ones included."""
        return [job for key, job in self._share.items() if key not in self._done]

    def unscored(self, judge: str) -> list[Job]:
        """Delivered jobs of this share that `judge` has not scored yet."""
        return [job for key, job in self._share.items() if key in self._done and (*key, judge) not in self._scored]

    def scores(self, judge: str) -> list[Score]:
        """What `judge` said of images of all shares until now."""
        paths = [path for path in journals(self.path, "scores*.jsonl") if path.exists()]
        return [s for path in paths for s in read_lines(path, Score.from_json) if s.judge == judge]

    def file(self, job: Job) -> Path:
        return self.path / image_path(job.prompt, job.image)

    def save(self, record: SampleRecord, image: np.ndarray | None) -> None:
        """Image first, then the journal line: a line always speaks of a file that is there.

        How long the image took is added to the record's usage.
        """
        if image is not None:
            began = time.perf_counter()
            write_atomic(self.path / record.path, encode_png(image))
            record.usage.save_s += time.perf_counter() - began
            record.usage.wall_s += record.usage.save_s
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

    def save_timing(self, timing: Timing) -> None:
        path = self.path / self.shard.timings
        _mend(path)
        with path.open("ab") as file:
            _append(file, timing.to_json())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._journal, self._scores, self._lock):
            with suppress(OSError):  # a line that a full disk did not take was complained about already
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
    with _writable(Path(file.name)):
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _mend(path: Path) -> None:
    """Cut off the torn last line of a journal that is about to be appended to."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


def _taken(folder: Path, shard: Shard) -> IO[str]:
    """The lock of a share. Raises UserError if somebody has it, or writes other shares than those of `shard.count`."""
    for writer in writers(folder):
        if Shard.parse(writer.shard).count != shard.count:
            raise UserError(f"{folder} is being written in shares {writer.shard}: wait for them, or take as many")
    lock = (folder / shard.lock).open("a+")
    for attempt in range(PROBES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _introduce(lock, shard, done=0)
            return lock
        except OSError as error:
            if attempt + 1 == PROBES:
                lock.close()
                raise UserError(f"{folder} is being written by another process: wait for it, or stop it") from error
            time.sleep(0.1)  # somebody may only be looking who writes
    raise AssertionError


def _introduce(lock: IO[str], shard: Shard, done: int) -> None:
    writer = Writer(str(shard), os.getpid(), socket.gethostname(), time.time(), done)
    lock.truncate(0)
    lock.write(dump(dataclasses.asdict(writer)))
    lock.flush()


def _holder(lock: Path) -> Writer | None:
    """Who holds a lock; a holder that has not said so yet counts as nobody."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            with suppress(ValueError, TypeError):
                return Writer(**json.loads(file.read()))
    return None
