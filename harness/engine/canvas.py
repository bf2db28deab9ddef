"""What methods hold in their hands: an image being drawn, and the contexts that it is drawn
from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.engine.acceptance import Verdict
from harness.engine.guidance import Guide
from harness.engine.rendering import Picture
from harness.records import Usage


@dataclass(frozen=True, slots=True)
class Context:
    """What a branch is conditioned on. `text` None is the null prompt, shaped as the prompt `like`
    would be.
    """

    text: str | None
    like: str


@dataclass(slots=True)
class Branch:
    """One context of a canvas, and how far its slot is cached."""

    slot: int
    context: Context
    start: int  # context length P
    cached: int = 0  # positions whose keys and values are in the slot
    beyond: set[int] = field(
        default_factory=set
    )  # image places cached behind those, drawn out of order


class Canvas:
    """One image being drawn. A handle: methods read it, only the sampler changes it, except
    `scale`.
    """

    __slots__ = (
        "_ahead",
        "_branches",
        "_guide",
        "_image",
        "_inherited",
        "_islands",
        "_key",
        "_log_probs",
        "_tokens",
        "_total",
        "_usage",
        "_verdict",
        "scale",
        "signals",
        "version",
    )  # fmt: skip

    def __init__(self, key: int, usage: Usage, total: int, scale: float, guide: Guide) -> None:
        self.scale = scale  # guidance scale of the next draw
        self.signals: dict[str, float] = {}  # what the rules said of their rounds, summed up
        self.version = 0  # grows on fork, truncate and condition
        self._key = key
        self._usage = usage
        self._total = total
        self._guide = guide
        self._branches: list[Branch] = []
        self._tokens: list[int] = []
        self._log_probs: list[float] = []
        self._inherited = 0  # leading tokens that came from a fork
        self._islands: dict[
            int, tuple[int, float]
        ] = {}  # behind a gap, by place: token and log-probability
        self._ahead = (
            -1
        )  # logits at hand: -1 none, 0 the frontier's, g those behind g draft tokens too
        self._verdict: Verdict | None = None  # of the last draw, if its draft is followed
        self._image: tuple[tuple[int, ...], Picture] | None = (
            None  # the padding it was shown with, and the picture
        )

    @property
    def tokens(self) -> tuple[int, ...]:
        """Committed tokens in raster order."""
        return tuple(self._tokens)

    @property
    def log_probs(self) -> tuple[float, ...]:
        """Log-probability of every committed token under the law it was drawn from, in nats; NaN if
        unverified.
        """
        return tuple(self._log_probs)

    @property
    def contexts(self) -> tuple[Context, ...]:
        """What the branches are conditioned on."""
        return tuple(branch.context for branch in self._branches)

    @property
    def length(self) -> int:
        return len(self._tokens)

    @property
    def done(self) -> bool:
        return len(self._tokens) == self._total

    @property
    def closed(self) -> bool:
        return not self._branches
