"""The values that all parts of the harness exchange: prompts, jobs, costs, records and scores.

Numbers that leave the process carry their unit in the name (`_s` seconds, `_gb` 10^9 bytes);
positions, passes and the like are counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import re
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from annotated_types import Ge, Gt, Le

if TYPE_CHECKING:
    import numpy as np
    from pydantic import TypeAdapter

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]


Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
"""Numbers of a range. A constructor that declares an option by them never gets another one: runs
check the annotations of options before they build anything."""

_Row = TypeVar("_Row")

PACKAGE = Path(__file__).resolve().parent
"""The folder of the harness's own code."""

AUTHOR_ERRORS = PACKAGE / "engine" / "author_errors.py"
"""The module whose errors name the line of an author themselves."""

PLUG_IN = 2
"""The rank of files that are not the project's own."""
MOST_CAUSES = 4
"""Errors of a chain of causes that a line tells."""
PROMPT_CUT = "prompt_cut"
"""The note of a record that says how many positions of its prompt's end the model did not read.

Of a prompt and what a method made of it, the longest counts."""
OWN = "own_prompts"
"""The category of prompts for which nobody has named one."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
"""Kinds of image files that are read; Pillow knows others that start programs."""
MOST_NAMED = 40
"""Characters of a text that stand in its id."""
STRICT: Mapping[str, Any] = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
"""How lines of journals are read: no unknown field, no conversion, finite numbers only."""


class UserError(Exception):
    """Something the user can mend: the message names the value and the remedy in one line."""


class NotFiniteError(Exception):
    """Numbers of one image are infinite or no numbers: nothing may be drawn or shown from them."""


class UnansweredError(Exception):
    """A judge left questions about an image without an answer: nothing may be decided from that."""


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """Bytes that one thing takes of a device: fixed ones, and some for each slot of the sampler.

    Of the fixed ones `held` are on the device already. `device` is where it lies, "" the sampler's.
    Parts with the same `key` are one, such as weights that two judges share.
    """

    name: str
    fixed: int = 0
    per_slot: int = 0
    held: int = 0
    device: str = ""
    key: str = ""
    is_declared: bool = True  # False: it takes memory, and nobody says how much


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image that a prompt asks to edit: the bytes of its file, which name it."""

    data: bytes = field(repr=False)
    name: str = field(default="", compare=False)
    """What messages call it, such as its path."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an image's file. Raises UserError for one that cannot be read or is no image."""
        try:
            source = cls(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        source.pixels()
        return source

    @classmethod
    def of_pixels(cls, pixels: np.ndarray, name: str = "") -> Self:
        """Take pixels, uint8 [H, W, 3]. Raises UserError for anything else."""
        from PIL import Image

        if pixels.dtype.name != "uint8" or pixels.ndim != 3 or pixels.shape[2] != 3:
            shape = list(pixels.shape)
            raise UserError(
                f"a source image of {pixels.dtype.name} {shape}: give uint8 [height, width, 3]"
            )
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        return cls(buffer.getvalue(), name)

    @property
    def sha(self) -> str:
        """Return the sha256 of the file, as prompts, fingerprints and journals name the image."""
        return digest(self.data)

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height, read from the file's head. Raises UserError as `pixels`."""
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.data), formats=IMAGE_FORMATS) as opened:
                return opened.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._explain(error) from None

    def pixels(self) -> np.ndarray:
        """Decode the image, uint8 [H, W, 3]; what is transparent is shown over white.

        Raises UserError for a file that is no image.
        """
        import numpy as np
        from PIL import Image, ImageOps

        try:
            with Image.open(io.BytesIO(self.data), formats=IMAGE_FORMATS) as opened:
                upright = ImageOps.exif_transpose(opened)
                if not upright.has_transparency_data:
                    return np.asarray(upright.convert("RGB"))
                rgba = upright.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> UserError:
        return UserError(
            f"source image {self.name or self.sha[:12]} cannot be read ({one_line(error)}): "
            "give a PNG, JPEG or WEBP file"
        )


@dataclass(frozen=True, slots=True)
class Prompt:
    """One benchmark prompt. `spec` is the answer key; it never reaches a method or a reward.

    With a `source`, the text says how that image is to be edited.

    Raises UserError for a weight that is not a positive number, for a category that no table could
    show, and for text that UTF-8 cannot carry.
    """

    id: str
    text: str
    category: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    """Weight of each of its images inside the category, e.g. its number of questions."""
    cluster: str = ""
    """Prompts of one cluster are resampled together, as they depend on each other; "" is none."""
    source: SourceImage | None = None
    """The image that is to be edited; None where one is drawn from the text alone."""

    @classmethod
    def of_text(cls, text: str, category: str = OWN, source: SourceImage | None = None) -> Self:
        """Make the prompt of a text that nobody has numbered.

        Its id is made of the text and the source alone, and noise follows ids: one text is drawn
        from one noise, whatever other prompts are drawn, in whatever order. Raises UserError for a
        text without a word.
        """
        if not text.strip():
            raise UserError(f"prompt {text!r}: write what is to be drawn")
        name = _name_text(text) + (f"-{source.sha[:10]}" if source else "")
        return cls(f"prompts/{name}", text, category, source=source)

    def __post_init__(self) -> None:
        if half := _SURROGATE.search(self.id + self.text + self.cluster):
            raise UserError(
                f"prompt {printable(self.id)}: its text has {half.group()!r}, half of a character, "
                "which no file can hold: mend or delete it"
            )
        if not self.category.isprintable():
            raise UserError(
                f"prompt {self.id!r}: category {self.category!r} has characters "
                "that cannot be printed"
            )
        if not 0 < self.weight < math.inf:
            raise UserError(f"prompt {self.id}: weight {self.weight} is not a positive number")

    @property
    def extra_fields(self) -> dict[str, Any]:
        """`weight`, `cluster` and the hash of the `source`, each only if it is not the default.

        Job lists and fingerprints include them; with defaults left out, prompts without any
        read as they always did.
        """
        extra: dict[str, Any] = {}
        if self.weight != 1:
            extra["weight"] = self.weight
        if self.cluster:
            extra["cluster"] = self.cluster
        if self.source is not None:
            extra["source"] = self.source.sha
        return extra


def _name_text(text: str) -> str:
    """Name a text by its first words, as a file name may be, and by its hash."""
    words = re.findall("[a-z0-9]+", text.lower())
    beginning = "-".join(words)[:MOST_NAMED].strip("-")
    sha = digest(_SURROGATE.sub(REPLACEMENT, text).encode(), 10)
    return f"{beginning}-{sha}" if beginning else sha


@dataclass(frozen=True, slots=True)
class Job:
    """One image to deliver: the unit of work, of seeding and of resume."""

    prompt: Prompt
    image: int

    @property
    def key(self) -> tuple[str, int]:
        """Identify the image in its run."""
        return self.prompt.id, self.image


@dataclass(slots=True)
class Usage:
    """What one delivered image cost, with all candidates that were discarded for it.

    Counts are the same in every run of the job; the fields in `TIMES` are not. Written by the
    sampler, the scheduler and the writer of records only.
    """

    __pydantic_config__: ClassVar = STRICT

    sampled: int = 0
    """Image tokens that the target drew, or accepted from a draft."""
    skipped: int = 0
    """Image tokens committed without the target having seen them."""
    discarded: int = 0
    """Of these two, tokens thrown away later: by truncate, close, or a fork over their canvas."""
    target_passes: int = 0
    """Forwards of the target that the job took part in, one after the other."""
    target_positions: int = 0
    """Image positions computed by the target in all branches: guidance, drafts, prefilled again."""
    text_positions: int = 0
    """Prompt positions computed by the target in all branches, as if no branch shared a prompt.

    Those of a source image to be edited are among them."""
    drafted_positions: int = 0
    """Positions computed by a drafter."""
    renders: int = 0
    """Images decoded from tokens, partial ones included."""
    judge_calls: int = 0
    """Images put to a judge."""
    judge_tokens: int = 0
    """Tokens read and written by judges that are language models."""
    unanswered: int = 0
    """Of `judge_calls`, those that were refused, could not be read, or reached nobody."""
    device_s: float = 0.0
    """Device seconds: the job's share of each batch, so that all jobs' shares add up to the total.

    They are the sum of the following five.
    """
    text_s: float = 0.0
    """Device seconds of turning prompts into embeddings."""
    prefill_s: float = 0.0
    """Device seconds of caching prompts, and image tokens that were not drawn one by one."""
    decode_s: float = 0.0
    """Device seconds of decode steps: forwards, distributions, probes and draws."""
    draft_s: float = 0.0
    """Device seconds of drafters."""
    render_s: float = 0.0
    """Device seconds of decoding images from tokens."""
    judge_s: float = 0.0
    """Host seconds inside judges, shared evenly among the images of a call."""
    save_s: float = 0.0
    """Host seconds of saving the image, until it was safely on disk."""
    wall_s: float = 0.0
    """Host seconds from admission until the image was safely on disk.

    They are a latency only if images are drawn one at a time (concurrency 1).
    """

    @property
    def visual_tokens(self) -> int:
        """Image tokens ever committed: the papers' "visual tokens", guidance not doubled."""
        return self.sampled + self.skipped


AnswerKind = Literal["answered", "refused", "unreadable", "unreachable"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge answered to one question, or why there is no answer.

    "answered": `value` is what was asked for, such as a score or words. "refused": the judge will
    not answer. "unreadable": it replied, but not with what was asked for. "unreachable": no reply
    came, since nothing listens there, or only errors came back.
    """

    kind: AnswerKind
    value: Any = None  # None unless it is answered
    text: str = ""  # the reply as it came
    reason: str = ""  # why there is no answer

    @classmethod
    def of(cls, said: object) -> Answer:
        """Type what a judge returned: an `Answer`, a value, or None where it could not tell.

        A number that is not finite is no score, so it is unreadable.
        """
        if isinstance(said, Answer):
            return cls.of(said.value) if said.answered and _is_no_score(said.value) else said
        if said is None:
            return cls("unreadable", reason="the judge cannot tell")
        if _is_no_score(said):
            return cls("unreadable", text=str(said), reason=f"{said} is no score")
        if isinstance(said, Real) and not isinstance(said, int):
            return cls("answered", float(said))
        return cls("answered", said, text=said if isinstance(said, str) else "")

    @property
    def answered(self) -> bool:
        """Tell whether there is a value."""
        return self.kind == "answered"

    @property
    def problem(self) -> str:
        """Say in a line why there is no value, with the beginning of the reply."""
        said = f", it said {one_line(self.text)[:120]!r}" if self.text.strip() else ""
        return self.kind + (f": {one_line(self.reason)[:200]}" if self.reason else "") + said


def _is_no_score(value: object) -> bool:
    """Tell whether a value is a number, and NaN or infinite."""
    return isinstance(value, Real) and not math.isfinite(value)


def describe_silence(judge: str, answers: Sequence[Answer]) -> str:
    """Say in a line how many questions a judge left without an answer, and why the first one."""
    silent = [answer for answer in answers if not answer.answered]
    return (
        f"judge {judge} left {len(silent)} of {len(answers)} questions without an answer "
        f"({silent[0].problem})"
    )


Stage = Literal["text", "prefill", "decode", "draft", "render"]
"""What the device works on. The fields `<stage>_s` of `Usage` add up to its `device_s`."""
STAGES = ("text_s", "prefill_s", "decode_s", "draft_s", "render_s", "judge_s", "save_s")
"""The fields of `Usage` that divide an image's time: device stages, judges, saving.

What `wall_s` has besides them is the host's own time.
"""
TIMES = ("device_s", *STAGES, "wall_s")
"""All fields of `Usage` in seconds. They differ between two runs of a job; no other field does."""


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One line of a run's journal: a delivered image, or a job that failed and will be retried."""

    __pydantic_config__: ClassVar = STRICT

    prompt_id: str
    image: int
    category: str
    status: Literal["done", "failed"]
    usage: Usage
    tokens_sha: str = ""
    image_sha: str = ""
    path: str = ""  # relative to the run folder
    error: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)  # from `Session.note`
    stamp: Mapping[str, str] = field(default_factory=dict)  # commit, device, versions

    @property
    def key(self) -> tuple[str, int]:
        """Return the key of the `Job`."""
        return self.prompt_id, self.image

    def to_json(self) -> str:
        """Write the record as a journal line."""
        return dump(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read a journal line. Raises ValueError that names the field and its value."""
        record = parse_row(cls, line)
        _expect_not_negative({"image": record.image, **dataclasses.asdict(record.usage)})
        return record


@dataclass(frozen=True, slots=True)
class Score:
    """One line of a run's scores.

    `value` is in [0, 1]; None means that the judge could not tell: counted, and wrong. A score of
    another value is neither written nor read.
    """

    __pydantic_config__: ClassVar = STRICT

    prompt_id: str
    image: int
    judge: str  # judge id, revision and prompt hash
    value: float | None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def expect_in_range(self) -> None:
        """Raise ValueError for a value that no score has."""
        if self.value is not None and not 0 <= self.value <= 1:
            raise ValueError(
                f"score {self.value}: "
                "a score is a number from 0 to 1, or None where the judge could not tell"
            )

    @property
    def key(self) -> tuple[str, int, str]:
        """Identify the score in its run."""
        return self.prompt_id, self.image, self.judge

    def to_json(self) -> str:
        """Write the score as a line of JSON. Raises ValueError for one that cannot be written."""
        self.expect_in_range()
        return dump(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read a line of JSON. Raises ValueError that names the field and its value."""
        score = parse_row(cls, line)
        _expect_not_negative({"image": score.image})
        score.expect_in_range()
        return score


@dataclass(frozen=True, slots=True)
class FeaturedScore:
    """A score with the features of its image, by the extractor's identity: float32 [D].

    A benchmark yields it in place of a score where sets of images are to be compared. The harness
    keeps the features beside the image, and their sha256 under `FEATURES` in the score's detail.
    """

    score: Score
    features: Mapping[str, np.ndarray]


FEATURES = "features"
"""What a score's detail calls the sha256 of each file of features, by the extractor's identity."""


def prompt_path(prompt_id: str) -> str:
    """Return where the files of a prompt lie below a folder of their kind.

    The first part of the id, the benchmark's name, is left out. Raises UserError for an id that
    could lead out of the folder.
    """
    parts = prompt_id.split("/")
    if not all(re.fullmatch(r"[\w+-][\w+.-]*", part) for part in parts):
        raise UserError(
            f"prompt id {prompt_id!r} is not usable as a file name: "
            "use letters, digits, '+', '-', '_'"
        )
    return "/".join(parts[1:] or parts)


def features_path(extractor: str, prompt_id: str, image: int) -> str:
    """Return where the features of an image lie below its run folder, by the extractor's identity.

    Raises UserError for an identity that is not usable as a file name.
    """
    if not re.fullmatch(r"\w[\w+.-]*", extractor):
        raise UserError(
            f"extractor {extractor!r} is not usable as a file name: use letters, digits, '-', '_'"
        )
    return f"features/{extractor}/{prompt_path(prompt_id)}/{image}.npy"


SET_METRICS = "set_metrics.json"
"""Where a run's folder has the metrics of its images as a set."""
PLAIN_DISTANCE = "set_metrics-vs-"
"""How the names of files begin that keep the distance to a plain run, of that fingerprint.

They are derived: a report makes them again.
"""


@dataclass(frozen=True, slots=True)
class SetMetric:
    """A metric of a set of `n` images against `m` reference images; their number may be unknown.

    `error` and `pseudo` (by prompt id) are missing where the error cannot be known; `note` says
    why. `bias` is what two sets of one normal distribution of these sizes are apart, on average.
    """

    __pydantic_config__: ClassVar = STRICT

    value: float
    n: int
    m: int | None
    extractor: str
    reference: str
    error: float | None = None
    bias: float | None = None
    note: str = ""
    pseudo: Mapping[str, float] = field(default_factory=dict)
    unit: str = "squared distance"
    better: Literal["higher", "lower"] = "lower"

    @property
    def id(self) -> str:
        """Name what it is of: metrics of other ids differ in more than their images."""
        return f"{self.extractor}-to-{self.reference}-n{self.n}-m{self.m or 'unknown'}"


@dataclass(frozen=True, slots=True)
class SetMetrics:
    """The metrics of a run's images as a set, and how many of the planned ones are scored.

    A run that is not complete has none: a set of fewer images is another measurement. `features` is
    a digest of the features that they were made of; `note` says why a complete set has none.
    """

    __pydantic_config__: ClassVar = STRICT

    judge: str
    planned: int
    scored: int
    features: str = ""
    metrics: Mapping[str, SetMetric] = field(default_factory=dict)
    note: str = ""

    @property
    def problem(self) -> str:
        """Say why there is no metric; "" if there may be one."""
        if self.scored == self.planned:
            return self.note
        return f"incomplete {self.scored:,}/{self.planned:,}"

    def to_json(self) -> str:
        """Write the file's text; equal metrics give equal text."""
        return dump(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read the file's text. Raises ValueError that names the field and its value."""
        return parse_row(cls, text)


@dataclass(frozen=True, slots=True)
class Timing:
    """One line of a run's timings: what one process took for all the images that it drew.

    Seconds are the host's, until the images were saved. Scoring in between is not in them. A
    process that is killed leaves no line.
    """

    __pydantic_config__: ClassVar = STRICT

    images: int  # delivered
    seconds: float
    scoring_s: float  # not in `seconds`
    slots: int
    rounds: int  # decode steps
    fed: int  # active branch steps: fed / (rounds * slots) is the slot utilisation
    warm_up: int = 0  # images drawn before, and not counted
    warm: bool = False  # whether their times settled
    first_s: float | None = None  # of the first of them: includes compiling and capturing
    joules: float | None = None  # of the whole GPU, without warm-up and scoring
    peak_memory_gb: float | None = None
    machine: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Write the timing as a line of JSON."""
        return dump(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read a line of JSON. Raises ValueError that names the field and its value."""
        timing = parse_row(cls, line)
        _expect_not_negative(dataclasses.asdict(timing))
        return timing


# ------------------------------------------------------------------ reading


def parse_row(kind: type[_Row], line: str | bytes) -> _Row:
    """Read a dataclass from JSON, strictly: each field has its type, and there is no other field.

    Raises ValueError that names the first bad field, its value and what was expected.
    """
    from pydantic import ValidationError

    try:
        row: _Row = _make_reader(kind).validate_json(line)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(map(str, first["loc"]))
        value = f"{field_name}: {str(first['input'])[:60]!r}, " if field_name else ""
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{value}{message[:1].lower()}{message[1:]}") from None
    return row


@lru_cache
def _make_reader(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _expect_not_negative(fields: Mapping[str, Any]) -> None:
    """Raise ValueError for a count or a measure below zero."""
    for name, value in fields.items():
        if isinstance(value, int | float) and value < 0:
            raise ValueError(f"{name}: {value} is negative")


def dump(value: Any) -> str:
    """Write canonical JSON: sorted keys, no blanks, no NaN; equal values give equal text.

    Half a surrogate pair, which UTF-8 cannot carry, becomes U+FFFD. Raises ValueError for numbers
    that are not finite, and TypeError for what JSON has no form for.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text if text.isascii() else _SURROGATE.sub(REPLACEMENT, text)


def digest(data: bytes, length: int = 64) -> str:
    """Return the first `length` hexadecimal digits of the sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:length]


def explain_error(error: BaseException) -> str:
    """Say in a line what an unexpected error is, and where its author finds it.

    That is the innermost line of a plug-in, if there is one, else of a method or benchmark of ours,
    else of the harness; and the same of each cause that the error has.
    """
    links: list[str] = []
    link: BaseException | None = error
    while link is not None and len(links) < MOST_CAUSES:
        links.append(_explain_alone(link))
        link = link.__cause__
    return "; caused by ".join(links)


def _explain_alone(error: BaseException) -> str:
    """Explain an error without its cause."""
    text = f"{type(error).__name__}: {one_line(error)}"
    frames = _list_frames(error)
    if frames:
        frame = max(enumerate(frames), key=lambda each: (_rank(each[1].filename), each[0]))[1]
        if _rank(frame.filename) == 0 and Path(frames[-1].filename) == AUTHOR_ERRORS:
            return text  # the message names the author's line; ours says nothing to them
        text += f" ({near_path(frame.filename)}, line {frame.lineno}, in {frame.name}"
        text += f": {frame.line})" if frame.line else ")"
    return text


def is_raised_by_plug_in(error: BaseException) -> bool:
    """Tell whether code that is not the project's own raised an error, or called what did."""
    return any(_rank(frame.filename) == PLUG_IN for frame in _list_frames(error))


def _list_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """List the frames that an error passed, the innermost last, but those of libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not _is_library(frame.filename)]


def _rank(file: str) -> int:
    """Rank a file by how likely its author is to have made a mistake: plug-ins are the first."""
    path = Path(file)
    if path.is_relative_to(PACKAGE):
        return 0
    is_own = any(path.is_relative_to(PACKAGE.parent / name) for name in ("methods", "benchmarks"))
    return 1 if is_own else PLUG_IN


def _is_library(file: str) -> bool:
    """True for files of Python and of installed packages, and for what is no file."""
    is_package = "site-packages" in Path(file).parts and not Path(file).is_relative_to(PACKAGE)
    return is_package or file.startswith(("<", _standard_library()))


@lru_cache
def _standard_library() -> str:
    """Return the folder of Python's own library."""
    return sysconfig.get_paths()["stdlib"]


def near_path(file: str) -> str:
    """Return a file's path from the current folder, if it lies below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


REPLACEMENT = "\ufffd"
"""What stands for a character that cannot be kept."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNKEPT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and line break
    "\u200e\u200f\u202a-\u202e\u2066-\u2069"  # those that turn the direction of writing
    "\ud800-\udfff]"  # halves of surrogate pairs, which UTF-8 cannot carry
)


def clean_text(text: str) -> str:
    """Replace what text from outside must not bring in, each character by U+FFFD.

    That is half a surrogate pair, and every control character but tab and line break.
    """
    return _UNKEPT.sub(REPLACEMENT, text.replace("\r\n", "\n"))


def one_line(error: BaseException | str) -> str:
    """Return a message without its line breaks, as a terminal may show it."""
    return printable(" ".join(str(error).split()))


def printable(text: str) -> str:
    """Spell control characters out: text from files and servers must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
