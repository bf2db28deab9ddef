"""Language models that draw image tokens in their own vocabulary: SimpleAR, Lumina-mGPT, Emu3.

The trunk is the shared one. An image's codes are a run of the vocabulary: head and word table are
cut to it, so that a forward neither computes nor reads the rest of the head. For a model that masks
all other words while it draws an image, the distribution is the original one; for one that does
not, it is the original one given that an image token is drawn. The whole word table is kept on the
CPU, for contexts only.

Positions are ordinary running ones, so a branch may have any context length, and the null prompt
has a length of its own. Models that are fed a token behind each row have forced places.

Shapes: B rows, W positions, P context length, N image tokens, V codes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.kv_cache import KVCache
from harness.models.linear import Linear
from harness.models.raster import is_forced_at, raster_of, with_row_ends
from harness.models.trunk import Attend, Trunk, TrunkSpec, prepare, running_rotary
from harness.records import Count, UserError


@dataclass(frozen=True, slots=True)
class LanguageSpec:
    """Dimensions of a language model: trunk, words, rotary base, and positions that it is for."""

    trunk: TrunkSpec
    words: int
    rope_base: float
    positions: int

    @property
    def summary(self) -> str:
        trunk = self.trunk
        return (
            f"{trunk.layers} layers of width {trunk.dim} with {trunk.heads} heads, "
            f"{trunk.kv_heads} of keys and values, and {self.words} words"
        )


@dataclass(frozen=True, slots=True)
class ImageWords:
    """Where an image's tokens are in the vocabulary: code c is word `first` + c.

    `line` is the word that is fed behind each row but the last; None if nothing is.
    """

    first: int
    codes: int
    line: int | None = None


class Prompts(Protocol):
    """Turns a prompt into the words of a context; None is the null prompt."""

    def __call__(self, text: str | None) -> Sequence[int]: ...


class ImageDecoder(Protocol):
    """The half of an image tokenizer that decodes; a module, whose weights count as the model's."""

    def decode(self, codes_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode codes to pixels [B, 3, H, W]; -1 stands for a code that is not drawn yet."""
        ...

    def decode_bytes(self, codes: int) -> int:
        """Count the bytes that decoding one image of so many codes takes for a moment."""
        ...


@dataclass(frozen=True, slots=True)
class ImageTokenizer:
    """What turns codes into a picture.

    `codebook` has the vectors of all codes [V, d], `to_uint8` rounds pixels [B, 3, H, W] to uint8
    [B, H, W, 3].
    """

    decoder: ImageDecoder
    codebook: Tensor
    to_uint8: Callable[[Tensor], Tensor]


class LanguageNet(nn.Module):
    """The weights that forwards read: words of the image, trunk, and the head's rows of codes.

    The last of `image_words` is the line's, where there is one.
    """

    def __init__(self, spec: LanguageSpec, image: ImageWords) -> None:
        super().__init__()
        dim = spec.trunk.dim
        has_line = image.line is not None
        self.image_words = nn.Embedding(image.codes + has_line, dim)
        self.trunk = Trunk(spec.trunk)
        self.head = Linear(dim, image.codes, bias=False)


class LanguageModel:
    """A language model as the engine draws its images (`harness.models.ImageModel`).

    `words` is the whole word table, on the CPU. `max_context` is the longest prompt in words, the
    null prompt included. Raises UserError for a grid and prompts that do not fit into the positions
    that the model is for.
    """

    def __init__(
        self,
        net: LanguageNet,
        words: nn.Embedding,
        tokenizer: ImageTokenizer,
        prompts: Prompts,
        *,
        spec: LanguageSpec,
        image: ImageWords,
        grid: tuple[int, int],
        name: str,
        revision: str,
        max_context: Count,
        dtype: torch.dtype,
        device: str | torch.device,
    ) -> None:
        self.name = name
        self.revision = revision
        self.device = torch.device(device)
        self.dtype = dtype
        self.spec = spec
        self.grid = grid
        self.vocab = image.codes
        self.dim = spec.trunk.dim
        self.max_context = max_context

        # 1. Places, and what is fed at them.
        rows, columns = grid
        has_line = image.line is not None
        self.stride = columns + has_line
        self.forced = with_row_ends(rows, columns) if has_line else (False,) * (rows * columns)
        self._line = image.codes  # the line's row of the image words
        raster = raster_of(self)
        self._forced_N = raster.forced_mask(self.device)
        drawn = [place for place in range(raster.places) if not raster.is_forced(place)]
        self._drawn_places = torch.tensor(drawn, device=self.device)
        most = spec.positions - self.num_tokens
        if not 1 <= max_context <= most:
            raise UserError(
                f"model.max_context={max_context}: 1 to {most} fit, as {name} is for "
                f"{spec.positions} positions, of which an image takes {self.num_tokens}"
            )

        # 2. Weights, and the table of positions that every forward reads.
        self.net = net.eval().requires_grad_(False)
        prepare(self.net)
        self.words = words.requires_grad_(False)
        self.decoder = tokenizer.decoder
        self.codebook = tokenizer.codebook
        self._to_uint8 = tokenizer.to_uint8
        self._prompts = prompts
        positions = torch.arange(max_context + self.num_tokens)
        table = running_rotary(positions, spec.trunk.head_dim, spec.rope_base)
        self._rotary = table.to(self.device)

    @property
    def num_tokens(self) -> int:
        return len(self.forced)

    @property
    def trunk_spec(self) -> TrunkSpec:
        return self.spec.trunk

    @property
    def render_bytes(self) -> int:
        return self.decoder.decode_bytes(self.grid[0] * self.grid[1])

    # ------------------------------------------------------------------ prompts

    def context(self, text: str | None, like: str) -> Tensor:
        """Embed a prompt's words, [P, D]; the null prompt is the same for all prompts."""
        ids = self._prompts(text)
        if len(ids) > self.max_context:
            which = "the null prompt" if text is None else "a prompt"
            raise UserError(
                f"{which} has {len(ids)} positions: set model.max_context to {len(ids)} or more"
            )
        return self.embed_words(ids)

    def embed_words(self, ids: Sequence[int]) -> Tensor:
        """Embed words, [P, D], on the model's device."""
        return self.words(torch.tensor(ids)).to(self.device)

    # ------------------------------------------------------------------ image tokens

    def embed(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        if self._forced_N is not None:
            is_forced_BW = is_forced_at(index_BW, self._forced_N)
            token_BW = token_BW.masked_fill(is_forced_BW, self._line)
        return F.embedding(token_BW, self.net.image_words.weight)

    def forward(self, x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Attend) -> Tensor:
        return self.net.trunk(x_BWD, self.rotary(pos_BW, start_B), attend)

    def rotary(self, pos_BW: Tensor, start_B: Tensor) -> Tensor:
        return self._rotary[pos_BW]

    def head(self, hidden: Tensor) -> Tensor:
        return self.net.head(hidden).float()

    def cache(self, slots: int, tree_capacity: int = 0) -> KVCache:
        length = self.max_context + self.num_tokens + tree_capacity
        return KVCache(self.spec.trunk, slots, length, self.dtype, self.device)

    # ------------------------------------------------------------------ pixels

    def decode(self, token_BN: Tensor) -> Tensor:
        codes_BM = token_BN.to(self.device)[:, self._drawn_places]
        return self._to_uint8(self.decoder.decode(codes_BM, self.grid))
