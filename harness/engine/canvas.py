"""An image being drawn, the contexts that it is drawn from, and every change of its state.

The state of a branch is two numbers, *committed tokens* and *cached positions*:

    [ context: `start` positions ][ image tokens 0 .. n-1 ]
     ------- `cached` ------------------>|<-- pending -->|<- draft ->    fed in one forward

Prefill, decoding, verification of a draft, skipping, rewinding and re-prompting are the same
forward over pending positions; they differ in how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.engine.acceptance import DraftVerdict
from harness.engine.guidance import Guide
from harness.engine.rendering import Picture
from harness.models.raster import Raster
from harness.records import SourceImage, Usage

NO_LOGITS = -1
"""The `logits_depth` of a canvas whose next forward has not run."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a branch is conditioned on.

    `text` None is the null prompt, shaped as that of the prompt `like`. `source` is the image that
    is edited; without one it is the empty image, for models that edit.
    """

    text: str | None
    like: str
    source: SourceImage | None = None


@dataclass(slots=True)
class Branch:
    """One context of a canvas, the slot that holds it, and how many positions are cached there.

    `start` is the context's length P. `cached` positions have keys and values, the context's first.
    Image places that were drawn out of order and are cached behind the first gap are in
    `cached_behind_gap`.
    """

    slot: int
    context: Context
    start: int
    cached: int = 0
    cached_behind_gap: set[int] = field(default_factory=set)

    def copy_from(self, other: Branch) -> None:
        """Take over the context and the cached positions of another branch, not its slot."""
        self.context = other.context
        self.start = other.start
        self.cached = other.cached
        self.cached_behind_gap = set()

    def mark_cached(self, places: Sequence[int]) -> None:
        """Note image places that a forward out of order has cached."""
        self.cached_behind_gap.update(places)
        self.cached = max(self.cached, self.start)
        while self.cached - self.start in self.cached_behind_gap:
            self.cached_behind_gap.remove(self.cached - self.start)
            self.cached += 1
        # Those that were fed once more are in the cached part already.
        self.cached_behind_gap = {
            p for p in self.cached_behind_gap if p >= self.cached - self.start
        }


class Canvas:
    """One image being drawn, and its transitions.

    A method reads `tokens`, `log_probs`, `length`, `done`, `closed`, `contexts`, `signals` and
    `version`, and sets `scale`. All other members are the engine's: `tests/test_layers.py` keeps
    methods away from them, so that nothing is drawn or charged outside the sampler.
    """

    __slots__ = (
        "_image",
        "_inherited",
        "_log_probs",
        "_out_of_order",
        "_raster",
        "_tokens",
        "branches",
        "fault_at",
        "front_retests",
        "front_verdicts",
        "guide",
        "key",
        "ledger",
        "logits_depth",
        "scale",
        "signals",
        "verdict",
        "version",
    )

    def __init__(self, key: int, ledger: Usage, raster: Raster, scale: float, guide: Guide) -> None:
        self.scale = scale  # guidance scale of the next draw
        self.signals: dict[str, float] = {}  # what rules measured, summed over decode steps
        self.version = 0  # grows on fork, truncate and condition
        self.key = key  # names the canvas's noise
        self.ledger = ledger  # of the job
        self.guide = guide
        self.branches: list[Branch] = []
        self.verdict: DraftVerdict | None = None  # of the last draw, if its draft is followed
        self.front_verdicts: dict[int, DraftVerdict] = {}  # of followed fronts, by row of the image
        self.front_retests: dict[int, int] = {}  # row -> its fronts that committed no next token
        self.fault_at: int | None = None  # a place whose probabilities were not finite
        self.logits_depth = NO_LOGITS  # longest draft with logits; 0 is the frontier alone
        self._raster = raster
        self._tokens: list[int] = []
        self._log_probs: list[float] = []
        self._inherited = 0  # leading tokens that came from a fork
        self._out_of_order: dict[int, tuple[int, float]] = {}  # place -> token, log-probability
        self._image: tuple[tuple[int, ...], Picture] | None = None  # padding and picture

    # ------------------------------------------------------------------ what methods read

    @property
    def tokens(self) -> tuple[int, ...]:
        """Return the committed tokens in raster order, with those of forced places."""
        return tuple(self._tokens)

    @property
    def log_probs(self) -> tuple[float, ...]:
        """Return the log-probability of each committed token in nats; NaN if unverified.

        It is taken under the distribution that the token was drawn from.
        """
        return tuple(self._log_probs)

    @property
    def contexts(self) -> tuple[Context, ...]:
        """Return what the branches are conditioned on."""
        return tuple(branch.context for branch in self.branches)

    @property
    def length(self) -> int:
        """Count the committed tokens."""
        return len(self._tokens)

    @property
    def done(self) -> bool:
        """Tell whether all tokens of the image are committed."""
        return len(self._tokens) == self._raster.places

    @property
    def closed(self) -> bool:
        """Tell whether the canvas has given its slots back."""
        return not self.branches

    # ------------------------------------------------------------------ what the engine asks

    @property
    def last_token(self) -> int:
        """Return the last committed token; 0 for an empty canvas."""
        return self._tokens[-1] if self._tokens else 0

    @property
    def left(self) -> int:
        """Count the tokens that are still to be committed."""
        return self._raster.places - len(self._tokens)

    @property
    def out_of_order(self) -> dict[int, tuple[int, float]]:
        """Map each place drawn behind a gap to its token and log-probability; do not change it."""
        return self._out_of_order

    @property
    def slots(self) -> list[int]:
        """Return the slot of each branch."""
        return [branch.slot for branch in self.branches]

    def pending(self, branch: Branch) -> int:
        """Count the positions of a branch that are committed and not cached."""
        return branch.start + len(self._tokens) - branch.cached

    def is_ready(self, draft_length: int = 0) -> bool:
        """Tell whether the logits that a draw with such a draft needs are at hand."""
        return self.logits_depth >= draft_length

    def is_steady(self) -> bool:
        """Tell whether every branch has exactly one pending position, so that `burst` can go on."""
        if self.logits_depth != NO_LOGITS or self._out_of_order or self.done:
            return False
        return all(self.pending(branch) == 1 for branch in self.branches)

    def expect_open(self) -> None:
        """Raise ValueError if the canvas is closed."""
        if not self.branches:
            raise ValueError("the canvas is closed")

    def expect_no_gap(self) -> None:
        """Raise ValueError if tokens lie behind a gap."""
        if self._out_of_order:
            raise ValueError(
                "tokens were drawn out of order: go on with draw_at until the gaps are filled, "
                "or truncate"
            )

    # ------------------------------------------------------------------ transitions

    def _note_fault(self, first: int, log_probs: Sequence[float]) -> None:
        """Note the first place whose token was drawn from probabilities that are not finite.

        All probabilities of such a place are NaN, the drawn token's among them: the host finds it
        in what it reads anyway, and nothing waits for the device.
        """
        if self.fault_at is None and math.isnan(sum(log_probs)):
            self.fault_at = first + next(i for i, p in enumerate(log_probs) if math.isnan(p))

    def append_drawn(self, tokens: Sequence[int], log_probs: Sequence[float]) -> None:
        """Commit tokens that were drawn from the target's distribution, and charge them.

        Nothing is charged for forced places, here and in the other transitions.
        """
        self._note_fault(self.length, log_probs)
        first = self.length
        self._tokens.extend(tokens)
        self._log_probs.extend(log_probs)
        self.ledger.sampled += self._raster.count_codes(first, self.length)
        self.recount_cached()

    def append_unseen(self, tokens: Sequence[int]) -> None:
        """Commit tokens that the target has not seen, and charge them as skipped."""
        first = self.length
        self._tokens.extend(tokens)
        for place in range(first, self.length):
            self._log_probs.append(0.0 if self._raster.is_forced(place) else math.nan)
        self.ledger.skipped += self._raster.count_codes(first, self.length)
        self.recount_cached()

    def insert_drawn(
        self, places: Sequence[int], tokens: Sequence[int], log_probs: Sequence[float]
    ) -> None:
        """Commit tokens drawn at chosen places, and charge them.

        Those with no gap before them join the committed tokens.
        """
        for place, token, log_prob in zip(places, tokens, log_probs, strict=True):
            self._note_fault(place, [log_prob])
            self._out_of_order[place] = (token, log_prob)
        self.ledger.sampled += self._count_codes_at(places)
        while self.length in self._out_of_order:
            token, log_prob = self._out_of_order.pop(self.length)
            self._tokens.append(token)
            self._log_probs.append(log_prob)
        self._forget_derived()

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens, none behind a gap; the others count as discarded.

        Raises ValueError if there are not so many.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"truncate to {length}: the canvas has {self.length} tokens")
        inherited = min(self._inherited, length)
        kept = self._raster.count_codes(inherited, length)
        self.ledger.discarded += self._count_own() - kept
        self._inherited = inherited
        self._out_of_order.clear()
        self.front_retests.clear()
        del self._tokens[length:]
        del self._log_probs[length:]
        self.recount_cached()
        self.version += 1

    def copy_from(self, source: Canvas) -> None:
        """Become a copy of `source` in this canvas's own slots; what was drawn here is discarded.

        There must be as many branches on both sides. A verdict is not copied: drafts that both
        canvases made of it would not be independent.
        """
        self.discard()
        self._out_of_order.clear()
        for mine, theirs in zip(self.branches, source.branches, strict=True):
            mine.copy_from(theirs)
        self._tokens = list(source._tokens)
        self._log_probs = list(source._log_probs)
        self._inherited = source.length
        self._image = source._image
        self.logits_depth = source.logits_depth
        self.verdict = None
        self.front_verdicts.clear()
        self.front_retests.clear()
        self.scale = source.scale
        self.guide = source.guide
        self.signals = dict(source.signals)
        self.version += 1

    def condition(self, guide: Guide) -> None:
        """Take a new guide after branches were changed.

        The last position is fed again, so that all branches have their logits there.
        """
        self.guide = guide
        self.logits_depth = NO_LOGITS
        self.verdict = None
        self.front_verdicts.clear()
        for branch in self.branches:
            branch.cached = min(branch.cached, branch.start + self.length - 1)
        self.version += 1

    def recount_cached(self) -> None:
        """Make the last token pending, and forget what followed from the tokens as they were.

        What lies behind it in the cache counts no more; logits, picture and verdict belonged to the
        earlier tokens.
        """
        for branch in self.branches:
            branch.cached = max(0, min(branch.cached, branch.start + self.length - 1))
            branch.cached_behind_gap.clear()
        self.front_verdicts.clear()
        self._forget_derived()

    def discard(self) -> None:
        """Charge all tokens that were drawn here as discarded."""
        self.ledger.discarded += self._count_own()

    def charge_fed(self, branch: Branch, count: int) -> None:
        """Count `count` more positions of a branch as cached, and charge them."""
        text = max(0, min(branch.start - branch.cached, count))
        self.ledger.text_positions += text
        self.ledger.target_positions += count - text
        branch.cached += count

    def add_signals(self, measured: dict[str, float]) -> None:
        """Add what a rule measured in one decode step."""
        for name, value in measured.items():
            self.signals[name] = self.signals.get(name, 0.0) + value

    # ------------------------------------------------------------------ pictures

    def picture_of(self, padding: tuple[int, ...]) -> Picture | None:
        """Return the picture that was made of the present tokens and this padding, if any."""
        if self._image is None or self._image[0] != padding:
            return None
        return self._image[1]

    def keep_picture(self, padding: tuple[int, ...], picture: Picture) -> None:
        """Keep a picture of the present tokens until they change, and charge it."""
        self.ledger.renders += 1
        self._image = (padding, picture)

    def _count_own(self) -> int:
        """Count the codes that this canvas drew itself, those behind gaps included."""
        in_order = self._raster.count_codes(self._inherited, self.length)
        return in_order + self._count_codes_at(self._out_of_order)

    def _count_codes_at(self, places: Iterable[int]) -> int:
        """Count the places of some that are not forced."""
        return sum(not self._raster.is_forced(place) for place in places)

    def _forget_derived(self) -> None:
        self.logits_depth = NO_LOGITS
        self._image = None
        self.verdict = None


def ledgers_of(rows: Sequence[Canvas]) -> list[Usage]:
    """Return the ledger that each row charges: rows of one job share theirs."""
    return [canvas.ledger for canvas in rows]
