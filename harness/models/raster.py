"""The raster of an image: the places that a model is fed in their order, and which hold a code.

Most models have a place for each code and no other. Some are fed more, such as a token behind each
row: these places are *forced*, as nothing is drawn there. A forced place holds token 0, and its
distribution is all on 0; the model embeds what belongs there and leaves such places out of the
picture. Nothing is fed behind the last code, so an image never ends in a forced place.

Shapes: N places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from harness.records import UserError

FORCED_TOKEN = 0
"""What a forced place holds."""


@runtime_checkable
class HasForcedPlaces(Protocol):
    """A model with places that are fed and never drawn.

    Its `embed` ignores the token of such a place and returns the embedding of what belongs there;
    its `num_tokens` counts these places, and its `decode` drops them.
    """

    @property
    def forced(self) -> tuple[bool, ...]:
        """Tell of each of the N places whether it is forced."""
        ...

    @property
    def stride(self) -> int:
        """Count the places from a code to the one below it: a row with its forced places."""
        ...


class Drawable(Protocol):
    """What a raster is made of, of an image model."""

    name: str
    grid: tuple[int, int]

    @property
    def num_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Raster:
    """Rows and columns of codes, the places that they lie at, and the forced places between them.

    `forced` is empty where no place is forced. `codes_before` counts the codes before each place.
    """

    rows: int
    columns: int
    stride: int
    forced: tuple[bool, ...] = ()
    codes_before: tuple[int, ...] = ()

    @property
    def codes(self) -> int:
        """Count the codes of a whole image."""
        return self.rows * self.columns

    @property
    def places(self) -> int:
        """Count the places of a whole image, N."""
        return len(self.forced) or self.codes

    def is_forced(self, place: int) -> bool:
        """Tell whether nothing is drawn at a place."""
        return bool(self.forced) and self.forced[place]

    def places_of_rows(self, rows: int) -> int:
        """Count the places of the first rows, with the forced places behind each of them."""
        return min(rows * self.stride, self.places)

    def count_codes(self, first: int, end: int) -> int:
        """Count the codes at the places from `first` to before `end`."""
        if not self.forced:
            return end - first
        return self.codes_before[end] - self.codes_before[first]

    def pick_codes(self, tokens: Sequence[int]) -> Sequence[int]:
        """Pick the codes out of the tokens at the first places."""
        if not self.forced:
            return tokens
        pairs = zip(tokens, self.forced, strict=False)
        return [token for token, is_forced in pairs if not is_forced]

    def lay_out(self, codes: Sequence[int], first: int) -> list[int]:
        """Lay codes out at the places from `first` on, with what the forced ones between hold."""
        if not self.forced:
            return list(codes)
        tokens: list[int] = []
        for code in codes:
            while first + len(tokens) < self.places and self.forced[first + len(tokens)]:
                tokens.append(FORCED_TOKEN)
            tokens.append(code)
        return tokens

    def forced_places(self) -> frozenset[int]:
        """Return the forced places."""
        return frozenset(place for place, is_forced in enumerate(self.forced) if is_forced)

    def forced_mask(self, device: torch.device) -> Tensor | None:
        """Make a table of the forced places, bool [N]; None if there are none."""
        if not self.forced:
            return None
        return torch.tensor(self.forced, device=device)


def raster_of(model: Drawable) -> Raster:
    """Describe the raster of a model. Raises UserError where its grid does not hold its places."""
    rows, columns = model.grid
    forced: tuple[bool, ...] = ()
    stride = columns
    if isinstance(model, HasForcedPlaces) and any(model.forced):
        forced = model.forced
        stride = model.stride
    codes = model.num_tokens - sum(forced)
    if codes != rows * columns or (forced and len(forced) != model.num_tokens):
        raise UserError(
            f"model {model.name}: its grid of {rows} x {columns} does not hold "
            f"num_tokens={model.num_tokens} with {sum(forced)} forced places"
        )
    before = tuple(accumulate((not one for one in forced), initial=0)) if forced else ()
    return Raster(rows, columns, stride, forced, before)


def with_row_ends(rows: int, columns: int) -> tuple[bool, ...]:
    """Tell of each place whether it is the end of a row, which is forced; the last row has none."""
    one_row = [False] * columns + [True]
    return tuple((one_row * rows)[:-1])


def hold_forced_probs(probs_RTV: Tensor, is_forced_RT: Tensor) -> Tensor:
    """Put all mass on `FORCED_TOKEN` where a place is forced; other places stay as they are."""
    certain_V = torch.zeros_like(probs_RTV[0, 0])
    certain_V[FORCED_TOKEN] = 1
    return torch.where(is_forced_RT.unsqueeze(-1), certain_V, probs_RTV)


def is_forced_at(place: Tensor, forced_N: Tensor) -> Tensor:
    """Look up whether places are forced, bool of their shape; none behind the image is."""
    return forced_N[place.clamp(max=len(forced_N) - 1)]
