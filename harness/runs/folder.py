"""Write a run's folder: the append-only journal is the truth; images and tables follow from it.

    results/<benchmark>/<model>/<method>-<fingerprint>/
        config.yaml      resolved configuration and what the fingerprint was made of
        jobs.jsonl       one line per planned prompt
        records-0.jsonl  one line per finished or failed image, once the image is safely on disk
        scores.jsonl     one line per scored image
        metrics.jsonl    one line per measured image and metric, and metrics.json (see metrics.py)
        timings-0.jsonl  one line per process that drew to its end
        images/00042/2.png
        features/EXTRACTOR/00042/2.npy   what benchmarks of sets of images compare
        sources/...      images that prompts ask to edit, as they were given

A killed process loses at most the images that were not finished; running again completes the folder
to the same bytes. Several processes may write one run, each its own share of the jobs (`Shard`) to
journals of its own (records-1.jsonl, scores-1.jsonl); an image that any journal has is done. A lock
per share keeps a second writer out.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from omegaconf import OmegaConf
from PIL import Image as Pillow

from harness.records import (
    FEATURES,
    IMAGE_FORMATS,
    FeaturedScore,
    Job,
    Prompt,
    SampleRecord,
    Score,
    Timing,
    UserError,
    digest,
    dump,
    features_path,
    prompt_path,
)
from harness.runs.journal import (
    append_line,
    cut_torn_line,
    explain_write_errors,
    read_journals,
    write_atomic,
)
from harness.runs.lock import Shard, hold_lock, take_share, write_holder

FORMATS = IMAGE_FORMATS
UNREADABLE = (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError)
"""Errors of opening or decoding a file that is damaged, no image, or too large a one."""
Pillow.MAX_IMAGE_PIXELS = 1 << 25  # Pillow refuses twice as many: 8192 x 8192


class RunFolder:
    """One run on disk, open for writing a share of its jobs.

    A context manager: it holds the lock of its share while it is open.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], jobs: Sequence[Job], shard: Shard | None = None
    ) -> None:
        """Create the folder, or open it again.

        Raises UserError for another run's folder, for a second writer of the share, and while
        others write shares of another number of them.
        """
        self.path = path
        self.shard = shard or Shard()
        if (path / "records-0.jsonl.gz").exists():
            raise UserError(
                f"{path} is packed for publication, without images: choose another results="
            )
        self._jobs = {job.key: job for job in jobs}
        self._share = {job.key: job for job in self.shard.of(jobs)}
        _expect_own_files(jobs)

        # 1. Claim the folder, and the share.
        with explain_write_errors(path), hold_lock(path / ".lock"):
            self._claim(config, jobs)
            self._lock = take_share(path, self.shard)

        # 2. Read what is there, and open the journals.
        try:
            self._read_journals()
            write_holder(self._lock, self.shard, done=self.delivered)
            self._records_file: IO[bytes] = (path / self.shard.records).open("ab")
            self._scores_file: IO[bytes] = (path / self.shard.scores).open("ab")
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in (self._records_file, self._scores_file, self._lock):
            # A line that a full disk did not take was complained about already.
            with suppress(OSError):
                file.close()

    # ------------------------------------------------------------------ what is there

    @property
    def done(self) -> dict[tuple[str, int], SampleRecord]:
        """Delivered images by job.

        Those of other shares are as they were when the folder was opened.
        """
        return dict(self._done)

    @property
    def planned(self) -> int:
        """Count the jobs of this share."""
        return len(self._share)

    @property
    def delivered(self) -> int:
        """Delivered images of this share."""
        return sum(key in self._done for key in self._share)

    def missing(self) -> list[Job]:
        """List the jobs of this share without a delivered image, failed ones included."""
        return [job for key, job in self._share.items() if key not in self._done]

    def delivered_jobs(self) -> list[Job]:
        """List the jobs of this share whose image is there."""
        return [job for key, job in self._share.items() if key in self._done]

    def unscored(self, judge: str) -> list[Job]:
        """List the delivered jobs of this share that `judge` has not scored."""
        return [job for job in self.delivered_jobs() if (*job.key, judge) not in self._scored]

    def read_scores(self, judge: str) -> list[Score]:
        """Read the scores that `judge` gave to images of all shares until now, one for each image.

        Of an image that was scored again, since its features were lost, the last score counts.
        """
        scores = read_journals(self.path, "scores*.jsonl", Score.from_json)
        return list({score.key: score for score in scores if score.judge == judge}.values())

    def image_file(self, job: Job) -> Path:
        """Return where the image of a job lies, or will lie."""
        return self.path / image_path(job.prompt, job.image)

    # ------------------------------------------------------------------ what is added

    def save_record(self, record: SampleRecord, image: np.ndarray | None) -> None:
        """Save an image and then its journal line: a line always speaks of a file that is there.

        A failed job has a line only. The seconds of saving are added to `record.usage`, as
        `save_s` and in `wall_s`.
        """
        if image is not None:
            began = time.perf_counter()
            write_atomic(self.path / record.path, encode_png(image))
            record.usage.save_s += time.perf_counter() - began
            record.usage.wall_s += record.usage.save_s
            self._done[record.key] = record
        append_line(self._records_file, record.to_json())

    def link_image(self, record: SampleRecord, source: Path) -> None:
        """Take an image of another folder as delivered: a link to it instead of a file."""
        link = self.path / record.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(source.resolve())
        self._done[record.key] = record
        append_line(self._records_file, record.to_json())

    def save_features(self, given: FeaturedScore) -> Score:
        """Save the features of a scored image; returns its score, whose detail names their sha256.

        They are on disk before the score is: a line always speaks of files that are there.
        """
        score = given.score
        shas = {}
        for extractor, features_D in sorted(given.features.items()):
            data = encode_features(features_D)
            shas[extractor] = digest(data)
            file = self.path / features_path(extractor, score.prompt_id, score.image)
            write_atomic(file, data)
        return replace(score, detail={**score.detail, FEATURES: shas})

    def save_score(self, score: Score) -> None:
        """Append a score to the journal."""
        self._scored.add(score.key)
        append_line(self._scores_file, score.to_json())

    def save_timing(self, timing: Timing) -> None:
        """Append what a process took that has drawn to its end."""
        path = self.path / self.shard.timings
        cut_torn_line(path)
        with path.open("ab") as file:
            append_line(file, timing.to_json())

    # ------------------------------------------------------------------ opening

    def _claim(self, config: Mapping[str, Any], jobs: Sequence[Job]) -> None:
        """Write what is planned into a new folder, and source images wherever one is missing.

        Raises UserError for another run's folder.
        """
        known = self.path / "config.yaml"
        is_new = not known.exists()
        if not is_new:
            mine = config["run"]["fingerprint"]
            found = _read_fingerprint(known)
            if found != mine:
                raise UserError(
                    f"{self.path} holds run {found}, not {mine}: "
                    "move it away or choose another results="
                )
        for source in {job.prompt.source for job in jobs if job.prompt.source is not None}:
            file = self.path / source_path(source.sha)
            if not file.is_file():
                write_atomic(file, source.data)
        if not is_new:
            return
        plan = "".join(line + "\n" for line in _plan_lines(jobs))
        write_atomic(self.path / "jobs.jsonl", plan.encode())
        write_atomic(known, OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())

    def _read_journals(self) -> None:
        """Read what was delivered and scored, after cutting torn lines off this share's journals.

        Nobody else appends to those. A torn line of another share may still become whole.
        """
        cut_torn_line(self.path / self.shard.records)
        cut_torn_line(self.path / self.shard.scores)
        records = read_journals(self.path, "records-*.jsonl", SampleRecord.from_json)
        self._done = {
            record.key: record
            for record in records
            if record.key in self._jobs and is_intact(self.path, record)
        }
        scores = read_journals(self.path, "scores*.jsonl", Score.from_json)
        last = {score.key: score for score in scores}
        self._scored = {key for key, score in last.items() if has_features(self.path, score)}


# ------------------------------------------------------------------ images


def image_path(prompt: Prompt, image: int) -> str:
    """Return where an image lies below the run folder.

    Raises UserError for a prompt id that could lead out of the folder.
    """
    return f"images/{prompt_path(prompt.id)}/{image}.png"


def source_path(sha: str) -> str:
    """Return where a source image lies below the run folder, by its hash."""
    return f"sources/{digest(sha.encode(), 16)}"


def is_intact(folder: Path, record: SampleRecord) -> bool:
    """Return whether a record is of a delivered image that is still there, byte for byte."""
    file = folder / record.path
    return (
        record.status == "done" and file.is_file() and digest(file.read_bytes()) == record.image_sha
    )


def has_features(folder: Path, score: Score) -> bool:
    """Return whether all features that a score speaks of are still there, byte for byte."""
    shas = score.detail.get(FEATURES)
    if not isinstance(shas, Mapping):  # what another benchmark calls features has no files
        return True
    for extractor, sha in shas.items():
        file = folder / features_path(extractor, score.prompt_id, score.image)
        if not file.is_file() or digest(file.read_bytes()) != sha:
            return False
    return True


def encode_features(features_D: np.ndarray) -> bytes:
    """Encode features as a NumPy file; equal numbers give equal bytes."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(features_D, dtype=np.float32), allow_pickle=False)
    return buffer.getvalue()


def encode_png(image: np.ndarray) -> bytes:
    """Encode a uint8 [H, W, 3] image as PNG; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def hash_tokens(tokens: Sequence[int]) -> str:
    """Hash an image's tokens, to compare two drawings of one job."""
    return digest(dump(list(tokens)).encode())


# ------------------------------------------------------------------ helpers


def _expect_own_files(jobs: Sequence[Job]) -> None:
    """Raise UserError unless every image can have a file of its own."""
    files = Counter(image_path(job.prompt, job.image) for job in jobs)
    for path, images in files.items():
        if images > 1:
            raise UserError(
                f"{images} images would be {path}: prompt ids must differ behind the benchmark's "
                "name"
            )


def _read_fingerprint(config: Path) -> Any:
    """Return the fingerprint in a config.yaml, None if there is none."""
    written = OmegaConf.to_container(OmegaConf.load(config))
    return written.get("run", {}).get("fingerprint") if isinstance(written, dict) else None


def _plan_lines(jobs: Sequence[Job]) -> Iterator[str]:
    """Write a line of jobs.jsonl for each prompt."""
    images = Counter(job.prompt.id for job in jobs)
    prompts = {job.prompt.id: job.prompt for job in jobs}
    for prompt in prompts.values():
        line = {
            "prompt_id": prompt.id,
            "text": prompt.text,
            "category": prompt.category,
            "images": images[prompt.id],
            **prompt.extra_fields,
        }
        yield dump(line)
