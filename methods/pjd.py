"""PJD: rows of the image side by side, each with a short window of Jacobi drafts.

The paper is arXiv 2606.05703.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness import (
    Canvas,
    Count,
    Draft,
    Front,
    FrontDrafter,
    Raster,
    Rule,
    Session,
    UserError,
    exact,
)
from methods.speculative import rule_facts, sum_signals
from methods.zipar import row_counts


class PJD:
    """Begin a row once the row above has `context` tokens; verify drafts of all open rows at once.

    One forward takes `window` positions of every open row, of at most `parallel` rows: its last
    token and its draft, which goes no further than the row above. A row sees its own draft and
    what is drawn of the others, as far as it lies before. The draft of the top row is verified as
    ever, and one token drawn behind it. Below it the accepted tokens alone are committed if
    `defer` (boyaliao/PJD): the next one is drafted and tested again, and may change with what the
    row above draws meanwhile. Without `defer` it is committed in every row (ours).

    A token of a lower row is drawn from a context that lacks the right part of the rows above, so
    that images lose the target's distribution, as ZipAR's. Where that part makes no difference,
    Jacobi's `maximal` coupling and the rule `exact` keep it, deferred or not; the coupling
    `threshold`, which is PJD's released one, and `none` do not (boyaliao/PJD's drafts behind a
    deferred rejection are biased). With `parallel=1`, or a `context` as wide as the image, rows
    are drawn one after another: SJD with windows that end with the row. With `window=1` and no
    `defer` there is nothing to draft: ZipAR.

    Notes `accepted`, which counts the forwards of a canvas that drew 1, 2, ... tokens, `fronts`,
    which counts those with 1, 2, ... open rows, and the rule's facts and signals. The class is also
    a decoding: other methods finish their candidates with it. Raises UserError for values below 1,
    and for a drafter that knows one place of an image only.
    """

    rows = 1
    branches = 2
    tree_capacity = 0

    def __init__(
        self,
        drafter: FrontDrafter,
        context: Count = 3,
        window: Count = 8,
        parallel: Count = 4,
        defer: bool = True,
        rule: Rule = exact,
    ) -> None:
        for name, value in (("context", context), ("window", window), ("parallel", parallel)):
            if value < 1:
                raise UserError(f"method.{name}={value}: must be at least 1")
        if not isinstance(drafter, FrontDrafter):
            raise UserError(
                f"drafter {type(drafter).__name__} drafts at one place of an image only: "
                "set method.drafter to harness.drafters.jacobi.Jacobi"
            )
        if defer and window < 2:
            raise UserError(
                "method.window=1 has no drafts, and method.defer commits drafts alone below the "
                "top row: set method.defer=false (ZipAR), or method.window=2"
            )
        self.drafter = drafter
        self.context = context
        self.window = window
        self.parallel = parallel
        self.defer = defer
        self.rule = rule
        # With rows side by side, the last token of a row that has just been finished is fed, too.
        self.tokens_per_step = parallel * window + (parallel > 1)
        expect_depth = getattr(rule, "expect_depth", None)
        if expect_depth is not None and window > 1:
            expect_depth(window - 1)

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        await self.finish([canvas], s)
        return canvas

    async def finish(self, rows: Sequence[Canvas], s: Session) -> None:
        """Draw the canvases to their end, each at its own pace."""
        stairs = {canvas: _Staircase(self, canvas.length, s.raster) for canvas in rows}
        while live := [canvas for canvas in rows if not canvas.done]:
            # 1. Draft at every open row that may grow.
            spans = [stairs[canvas].list_spans() for canvas in live]
            drafts = await s.draft_at(self.drafter, live, spans)

            # 2. Verify all drafts of a canvas in one target forward.
            fronts: list[list[Front]] = []
            for canvas, places, chains in zip(live, spans, drafts, strict=True):
                fronts.append(stairs[canvas].make_fronts(places, chains))
            accepted = await s.step_at(live, fronts, rule=self.rule)
            for canvas, some, counts in zip(live, fronts, accepted, strict=True):
                stairs[canvas].advance(some, counts)
        s.note(
            accepted=_add_up([stair.drawn for stair in stairs.values()]),
            fronts=_add_up([stair.fronts for stair in stairs.values()]),
            **rule_facts(self.rule),
            **sum_signals(rows),
        )


class _Staircase:
    """The open rows of one canvas: how many tokens each row has, and which may grow.

    `drawn` and `fronts` count the forwards that drew 1, 2, ... tokens, and had 1, 2, ... fronts.
    """

    def __init__(self, method: PJD, length: int, raster: Raster) -> None:
        self._width = raster.columns
        self._stride = raster.stride
        self._method = method
        self._counts = row_counts(length, raster)
        begun = sum(count > 0 for count in self._counts)
        self._open = max(1, begun)  # rows that have been opened, the finished ones included
        self.drawn = [0] * (method.parallel * method.window)
        self.fronts = [0] * method.parallel

    def list_spans(self) -> list[tuple[int, int]]:
        """List the next place of each row that may grow, and the length of its draft."""
        self._open_row()
        spans: list[tuple[int, int]] = []
        for row in self._open_rows():
            count = self._counts[row]
            reach = self._width if row == self._top else self._counts[row - 1]
            longest = min(self._method.window, reach - count) - 1
            commits_next = row == self._top or not self._method.defer
            if longest > 0 or (longest == 0 and commits_next):
                spans.append((row * self._stride + count, longest))
        return spans

    def make_fronts(
        self, spans: Sequence[tuple[int, int]], drafts: Sequence[Draft | None]
    ) -> list[Front]:
        """Say at each span whether the token behind its draft is committed, too."""
        fronts: list[Front] = []
        for (place, _), draft in zip(spans, drafts, strict=True):
            commits_next = place // self._stride == self._top or not self._method.defer
            fronts.append(Front(place, draft, commits_next))
        return fronts

    def advance(self, fronts: Sequence[Front], accepted: Sequence[int]) -> None:
        """Count what was committed at each front."""
        total = 0
        for front, count in zip(fronts, accepted, strict=True):
            committed = count + front.commits_next
            self._counts[front.place // self._stride] += committed
            total += committed
        self.drawn[total - 1] += 1
        self.fronts[len(fronts) - 1] += 1

    @property
    def _top(self) -> int:
        """Return the first row that is not finished."""
        return next(row for row, count in enumerate(self._counts) if count < self._width)

    def _open_rows(self) -> range:
        """Return the rows that are opened and not finished."""
        return range(self._top, max(self._open, self._top + 1))

    def _open_row(self) -> None:
        """Open the row below the lowest one when that has tokens enough."""
        self._open = max(self._open, self._top + 1)
        is_free = len(self._open_rows()) < self._method.parallel
        if self._open == len(self._counts) or not is_free:
            return
        above = self._counts[self._open - 1]
        if above >= min(self._method.context, self._width):
            self._open += 1


def _add_up(histograms: Sequence[Sequence[int]]) -> list[int]:
    """Add histograms of equal length up."""
    return [sum(counts) for counts in zip(*histograms, strict=True)]
