"""ZipAR: several rows of the image are drawn side by side, each a window behind the one above.

The paper is arXiv 2412.04062.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness import Canvas, Count, Raster, Session, UserError


class ZipAR:
    """Begin a row once the row above has `window` tokens; draw a token of every open row at once.

    Place (row i, column j) is ready when row i - 1 reaches column j + `window` - 1, or is complete.
    One forward draws the next place of every ready row, of at most `parallel` rows.

    A token sees the tokens before it in raster order that exist, and no others. For the first token
    of a row the nearest token before it stands in for its missing predecessor (ThisisBillhe/ZipAR,
    fixed window; that missing tokens are masked, and that the first row is not drawn alone, is our
    choice). The image loses the target's distribution, unless the window is as wide as the image:
    then this is plain sampling.

    The class is also a decoding: other methods finish their candidates with it. Raises UserError
    for values below 1.
    """

    rows = 1
    branches = 2
    tree_capacity = 0

    def __init__(self, window: Count = 4, parallel: Count = 4) -> None:
        for name, value in (("window", window), ("parallel", parallel)):
            if value < 1:
                raise UserError(f"method.{name}={value}: must be at least 1")
        self.window = window
        self.parallel = parallel
        # The last token of every open row, and the stand-in of a row that begins.
        self.tokens_per_step = parallel + 1

    async def generate(self, prompt: str, s: Session) -> Canvas:
        (canvas,) = s.open()
        await self.finish([canvas], s)
        return canvas

    async def finish(self, rows: Sequence[Canvas], s: Session) -> None:
        """Draw the canvases to their end."""
        raster = s.raster
        drawn = {canvas: row_counts(canvas.length, raster) for canvas in rows}
        while live := [canvas for canvas in rows if not canvas.done]:
            # 1. Choose the next place of every ready row.
            places = [self._take_places(drawn[canvas], raster) for canvas in live]

            # 2. Draw them all in one forward.
            await s.draw_at(live, places)

    def _take_places(self, counts: list[int], raster: Raster) -> list[int]:
        """Choose the places to draw now, and add them to the rows' `counts` of drawn tokens."""
        width = raster.columns
        above = [width, *counts]  # the count of the row above each row; the first is never held up
        places: list[int] = []
        for row, count in enumerate(above[1:]):
            is_ready = count < width and above[row] >= min(width, count + self.window)
            if is_ready and len(places) < self.parallel:
                places.append(row * raster.stride + count)
                counts[row] += 1
        return places


def row_counts(length: int, raster: Raster) -> list[int]:
    """Return how many codes of each row are among the first `length` places."""
    counts = []
    for row in range(raster.rows):
        counts.append(min(max(length - raster.stride * row, 0), raster.columns))
    return counts
