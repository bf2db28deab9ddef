"""Image models: what the sampler needs to know of one, and nothing else."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from harness.models.kv_cache import KVCache
from harness.models.trunk import Attend


class ImageModel(Protocol):
    """A next-token image model over embeddings.

    A branch is a context of P positions followed by image tokens; position p of a branch is a
    context position when p < P, and image token p - P otherwise. Shapes: B rows, W positions, N
    image tokens, V vocabulary, D width.

    A model that computes the head of its contexts by itself also has `prefix(text, like) ->
    Prefix`, for the context of the same arguments: the prefix takes the first n < P positions of a
    branch, which are then never fed. One that feature drafters can follow has `rotary(pos_BW,
    start_B)`, the rotation table [B, W, d/2, 2] of its positions.
    """

    name: str
    revision: str  # identifies the weights (sha256 prefix, or "random")
    grid: tuple[int, int]
    vocab: int
    dim: int
    max_context: int  # longest context, in positions
    dtype: torch.dtype
    device: torch.device

    @property
    def num_tokens(self) -> int: ...

    @property
    def codebook(self) -> Tensor:
        """Code vectors [V, d]: what LANTERN's neighbours and VVS's scores are computed from."""
        ...

    def context(self, text: str | None, like: str) -> Tensor:
        """Context embeddings [P, D]. `None` is the null prompt, shaped as the context of `like`
        would be.
        """
        ...

    def embed(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        """Embeddings [B, W, D] of image tokens; `index` is their place in the raster, 0 .. N-1."""
        ...

    def forward(self, x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Attend) -> Tensor:
        """Hidden states [B, W, D] of positions `pos` in branches whose contexts have `start` = P
        positions.
        """
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Logits over image tokens, [..., V], at least float32."""
        ...

    def cache(self, slots: int, tree_capacity: int = 0) -> KVCache:
        """Static key/value storage for `slots` branches of `max_context` + N + `room` positions."""
        ...

    def decode(self, token_BN: Tensor) -> Tensor:
        """Pixels uint8 [B, H, W, 3] of a batch of images; -1 stands for a token that is not drawn
        yet.
        """
        ...
