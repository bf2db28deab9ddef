"""ZipAR: several rows of the image are drawn at once, each a little behind the one above (arXiv
2412.04062).
"""

from __future__ import annotations

from collections.abc import Sequence

from harness import Canvas, Session, UserError


class ZipAR:
    """Begins a row as soon as the one above has `window` tokens, and draws one token of every open
    row per forward.

    The place (i, j) is drawn once row i - 1 reaches to j + `window` - 1 or is complete; `parallel`
    rows are open at most. What is drawn sees all tokens before it in the raster that exist, and no
    others; for the first of a row the nearest one before stands in for its missing predecessor
    (ThisisBillhe/ZipAR, fixed window; that what is missing is masked, and that the first row is not
    drawn alone, is our choice). The image loses the target's law, unless the window is as wide as
    the image: then it is plain sampling. It also serves other methods as their `decoding`. Raises
    UserError for values below 1.
    """

    rows = 1
    branches = 2

    def __init__(self, window: int = 4, parallel: int = 4) -> None:
        for name, value in (("window", window), ("parallel", parallel)):
            if value < 1:
                raise UserError(f"method.{name}={value}: must be at least 1")
        self.window = window
        self.parallel = parallel
        self.tokens_per_step = (
            1 + parallel
        )  # the open rows' last tokens, and what stands in where a row begins

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        await self.finish([canvas], s)
        return canvas

    async def finish(self, rows: Sequence[Canvas], s: Session) -> None:
        """Draw the rows to their end."""
        height, wide = s.grid
        drawn = {
            canvas: [min(max(canvas.length - wide * i, 0), wide) for i in range(height)]
            for canvas in rows
        }
        while live := [canvas for canvas in rows if not canvas.done]:
            places = []
            for canvas in live:
                counts = drawn[canvas]
                chosen = self._next(counts, wide)
                places.append([i * wide + counts[i] for i in chosen])
                for i in chosen:
                    counts[i] += 1
            await s.draw_at(live, places)

    def _next(self, drawn: Sequence[int], wide: int) -> list[int]:
        """The rows of the image that get a token now, given how many each has."""
        above = zip([wide, *drawn], drawn, strict=False)
        ready = [
            i for i, (up, n) in enumerate(above) if n < wide and up >= min(wide, n + self.window)
        ]
        return ready[: self.parallel]
