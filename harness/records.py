"""The values every part of the harness speaks of: prompts, jobs, what an image cost, what was
recorded and scored.

Numbers that leave the process carry their unit in the name; positions and passes are counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]


class UserError(Exception):
    """Something the user can mend: the message names the value and the remedy in one line."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One benchmark prompt. `spec` is the answer key; it never reaches a method or a reward.

    Raises UserError for a weight that is not a positive number, and for a category that no table
    could show.
    """

    id: str
    text: str
    category: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0  # of each of its images inside the category, e.g. its number of questions
    cluster: str = ""  # prompts that share one stand or fall together and are resampled together; "" = it is alone

    def __post_init__(self) -> None:
        if not self.category.isprintable():
            raise UserError(
                f"prompt {self.id!r}: category {self.category!r} has characters that cannot be printed"
            )
        if not 0 < self.weight < math.inf:
            raise UserError(f"prompt {self.id}: weight {self.weight} is not a positive number")

    @property
    def standing(self) -> dict[str, Any]:
        """`weight` and `cluster` where they differ from the usual: what journals and fingerprints
        add for them.
        """
        return {
            **({} if self.weight == 1 else {"weight": self.weight}),
            **({"cluster": self.cluster} if self.cluster else {}),
        }


@dataclass(frozen=True, slots=True)
class Job:
    """Unit of work, of seeding and of resume: one delivered image."""

    prompt: Prompt
    image: int

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt.id, self.image


@dataclass(slots=True)
class Usage:
    """What one delivered image cost, terminated candidates included. Written by the sampler and the
    scheduler only.
    """

    sampled: int = 0  # image tokens committed through the target's law
    skipped: int = 0  # image tokens committed without the target having seen them
    discarded: int = 0  # committed tokens later thrown away by truncate, fork-over or close
    target_passes: int = 0  # sequential target forwards the job took part in (its depth)
    target_positions: int = (
        0  # image positions computed by the target, all branches: drafts, re-prefill, guidance
    )
    text_positions: int = (
        0  # prompt positions computed by the target, all branches, as if no branch shared another's
    )
    drafted_positions: int = 0  # positions computed by a drafter
    renders: int = 0  # VQ decodes, partial ones included
    judge_calls: int = 0  # images put to a judge
    judge_tokens: int = 0  # tokens read and written by language-model judges
    device_s: float = 0.0  # its share of device seconds; shares add up to the total over all jobs
    text_s: float = 0.0  # of these: prompts into embeddings
    prefill_s: float = 0.0  # prompts, and tokens that were not drawn one by one, into the cache
    decode_s: float = 0.0  # decoding forwards, laws and draws
    draft_s: float = 0.0  # drafters
    render_s: float = 0.0  # VQ decodes
    judge_s: float = 0.0  # seconds inside judges
    save_s: float = 0.0  # seconds until the image was safely on disk
    wall_s: float = (
        0.0  # admission until the image was safely on disk; meaningful at concurrency 1 only
    )

    @property
    def visual_tokens(self) -> int:
        """Image tokens ever committed: the papers' "visual tokens", guidance not doubled."""
        return self.sampled + self.skipped


Stage = Literal["text", "prefill", "decode", "draft", "render"]
"""What the device is at work on; its share is `<stage>_s` of `Usage`, and they add up to
`device_s`.
"""
STAGES = ("text_s", "prefill_s", "decode_s", "draft_s", "render_s", "judge_s", "save_s")
"""The fields of `Usage` that say where an image's time went. What `wall_s` has besides is the
host's own.
"""
TIMES = ("device_s", *STAGES, "wall_s")
"""The fields of `Usage` that differ between two runs of the same job; every other field is
deterministic.
"""


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One line of a run's journal: a delivered image, or a job that failed and will be retried."""

    prompt_id: str
    image: int
    category: str
    status: Literal["done", "failed"]
    usage: Usage
    tokens_sha: str = ""
    image_sha: str = ""
    path: str = ""  # relative to the run folder
    error: str = ""
    notes: Mapping[str, Any] = field(
        default_factory=dict
    )  # what the method said with `Session.note`
    stamp: Mapping[str, str] = field(default_factory=dict)  # commit, device, versions

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt_id, self.image

    def to_json(self) -> str:
        return dump(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        row = json.loads(line)
        return cls(**{**row, "usage": Usage(**row["usage"])})


@dataclass(frozen=True, slots=True)
class Score:
    """One line of a run's scores. `value` is in [0, 1]; None means the judge could not tell:
    counted, and wrong.
    """

    prompt_id: str
    image: int
    judge: str  # judge id, revision and prompt hash
    value: float | None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, str]:
        return self.prompt_id, self.image, self.judge

    def to_json(self) -> str:
        return dump(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        return cls(**json.loads(line))


@dataclass(frozen=True, slots=True)
class Timing:
    """One line of a run's timings: what a process that drew some of its images took for them all.

    The host's clock, until the images were saved; scoring in between is apart. A process that is
    killed leaves none.
    """

    images: int  # delivered
    seconds: float
    scoring_s: float  # not in `seconds`
    slots: int
    rounds: int  # decoding forwards
    fed: int  # branches that they fed: fed / (rounds * slots) is the slot utilisation
    warm_up: int = 0  # images drawn before, and not counted
    warm: bool = False  # whether they settled
    first_s: float | None = None  # the first of them: compiling and capturing are in it
    joules: float | None = None  # of the whole GPU, warm-up and scoring apart
    peak_memory_gb: float | None = None
    machine: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return dump(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        return cls(**json.loads(line))


def dump(value: Any) -> str:
    """Canonical JSON: sorted keys, no blanks, no NaN; equal values give equal text."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(data: bytes, length: int = 64) -> str:
    """First `length` hexadecimal digits of the sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:length]


def one_line(error: BaseException | str) -> str:
    """A message without its line breaks, as a terminal may show it."""
    return printable(" ".join(str(error).split()))


def printable(text: str) -> str:
    """Text whose control characters are spelled out: what comes from files and servers must not
    steer a terminal.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
