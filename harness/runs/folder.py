"""A run's folder: the append-only journal is the truth; images and tables are projections of it.

    results/<benchmark>/<model>/<method>-<fingerprint>/
        config.yaml      resolved configuration and what the fingerprint was made of
        jobs.jsonl       one line per planned prompt
        records-0.jsonl  one line per finished or failed image, appended after the image is safely on disk
        scores.jsonl     one line per scored image
        timings-0.jsonl  one line per process that drew to its end
        images/00042/2.png

A killed process loses at most the images that were not finished; running again completes the folder
to the same bytes. Several processes may write one run, each its own share of the jobs (`Shard`) to
journals of its own (records-1.jsonl, scores-1.jsonl); whatever any journal has is done. A lock per
share keeps a second writer out.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from omegaconf import OmegaConf
from PIL import Image as Pillow

from harness.records import (
    Job,
    Prompt,
    SampleRecord,
    Score,
    Timing,
    UserError,
    digest,
    dump,
)
from harness.runs.journal import _append, _mend, _writable, journals, read_lines, write_atomic
from harness.runs.lock import Shard, _introduce, _taken, alone

SCHEMA = 1
"""Of run folders; a folder of a newer one is refused."""


FORMATS = ("PNG", "JPEG", "WEBP")
"""Kinds of image files that are read; Pillow knows others that start programs."""


UNREADABLE = (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError)
"""What comes of opening or decoding a file that is damaged, no image, or too large a one."""


Pillow.MAX_IMAGE_PIXELS = 1 << 25  # Pillow refuses twice as many: 8192 x 8192


RECORDED_AS = {
    "benchmarks.tiif.vqa_model.VQAJudge": "benchmarks.tiif.interview.Interview",
    "benchmarks.tiif_pictogram.detector_vqa.DetectorVQA": "benchmarks.tiif_pictogram.looking.Eyes",
    "harness.engine.draft_trees.Dynamic": "harness.trees.Dynamic",
    "harness.engine.draft_trees.Static": "harness.trees.Static",
}
"""Classes that have moved, and the names under which fingerprints know them for good."""


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Name everything that a run's results depend on, in eight hexadecimal digits.

    A class that was moved keeps the name it was first recorded under, so that a folder made before
    the move is still the folder of the same command.
    """
    named = dump({"schema": SCHEMA, **_as_recorded(identity)})
    return hashlib.blake2b(named.encode(), digest_size=4).hexdigest()


def _as_recorded(value: Any) -> Any:
    """The same values, with the recorded name at each `_target_` whose class has moved."""
    if isinstance(value, Mapping):
        return {
            key: RECORDED_AS.get(inner, inner) if key == "_target_" else _as_recorded(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_as_recorded(inner) for inner in value]
    return value


def image_path(prompt: Prompt, image: int) -> str:
    """Where an image lies below the run folder. Raises UserError for a prompt id that could leave
    it.
    """
    parts = prompt.id.split("/")
    if not all(re.fullmatch(r"[\w+-][\w+.-]*", part) for part in parts):
        raise UserError(
            f"prompt id {prompt.id!r} is not usable as a file name: use letters, digits, '+', '-', '_'"
        )
    return "/".join(("images", *(parts[1:] or parts), f"{image}.png"))


def _expect_files(jobs: Sequence[Job]) -> None:
    """Raise UserError unless every image can have a file of its own."""
    files = Counter(image_path(job.prompt, job.image) for job in jobs)
    if shared := next((path for path, images in files.items() if images > 1), None):
        raise UserError(
            f"{files[shared]} images would be {shared}: prompt ids must differ behind the benchmark's name"
        )


def intact(folder: Path, record: SampleRecord) -> bool:
    """Whether a journal line speaks of a delivered image that is still there, byte for byte."""
    file = folder / record.path
    return (
        record.status == "done" and file.is_file() and digest(file.read_bytes()) == record.image_sha
    )


class RunFolder:
    """One run on disk, open for writing a share of its jobs. A context manager: it holds the lock
    while it is open.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], jobs: Sequence[Job], shard: Shard | None = None
    ) -> None:
        """Create the folder, or open it again.

        Raises UserError for another run's folder, a second writer of the share, and a writer of
        other shares.
        """
        self.path = path
        self.shard = shard or Shard()
        if (path / "records-0.jsonl.gz").exists():
            raise UserError(
                f"{path} is packed for publication, without images: choose another results="
            )
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
        """Take over what the journals say; of the own ones, which nobody else appends to, torn
        lines are cut off.
        """
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
                raise UserError(
                    f"{self.path} holds run {found}, not {mine}: move it away or choose another results="
                )
            return
        prompts = {job.prompt.id: job.prompt for job in jobs}
        images = Counter(job.prompt.id for job in jobs)
        lines = [
            dump(
                {
                    "prompt_id": p.id,
                    "text": p.text,
                    "category": p.category,
                    "images": images[p.id],
                    **p.extra_fields,
                }
            )
            for p in prompts.values()
        ]
        write_atomic(self.path / "jobs.jsonl", "".join(line + "\n" for line in lines).encode())
        write_atomic(known, OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())

    @property
    def done(self) -> dict[tuple[str, int], SampleRecord]:
        """Delivered images by job, of all shares, as they were when the folder was opened; of this
        one, as they are.
        """
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
        return [
            job
            for key, job in self._share.items()
            if key in self._done and (*key, judge) not in self._scored
        ]

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
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in (self._journal, self._scores, self._lock):
            with suppress(
                OSError
            ):  # a line that a full disk did not take was complained about already
                file.close()


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of a uint8 [H, W, 3] image; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def tokens_sha(tokens: Sequence[int]) -> str:
    """Hash of an image's tokens, for comparing two drawings of one job."""
    return digest(dump(list(tokens)).encode())
