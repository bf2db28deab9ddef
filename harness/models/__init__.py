"""Image models: the interface that the engine draws through, and its optional parts.

Every model implements `ImageModel`. What only some models have is a protocol of its own; ask for it
with `isinstance`, never by the member's name. The protocols and their members:

    HasPrefix         prefix               without it every position of a context is fed
    HasCollapse       collapse             without it the prompt counts as never collapsed
    HasRenderBytes    render_bytes         without it the image decoder counts as 0 bytes
    HasTextEncoder    count_text_encoder_bytes, prepare_texts
                                           without it prompts cost no memory
    HasClasses        classes              without it there are no prompts of "its own classes"
    HasForcedPlaces   forced, stride       without it a code is drawn at every place (`raster`)
    EditsImages       edit_context         without it prompts with a source image are refused
    ReadsContext      embed_in_context     without it `embed` knows a token and its place alone
    FollowableModel   trunk_spec, rotary   without it no feature drafter (EAGLE) can be chosen

Shapes: B rows, W positions, P context positions, N image tokens, V vocabulary, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from harness.models.kv_cache import KVCache, Prefix
from harness.models.trunk import Attend, TrunkSpec
from harness.records import SourceImage


class ImageModel(Protocol):
    """A next-token image model over embeddings.

    A branch is a context of P positions followed by image tokens: position p of a branch is a
    context position when p < P, and image token p - P otherwise.
    """

    name: str
    revision: str  # identifies the weights (sha256 prefix, or "random")
    grid: tuple[int, int]  # rows and columns of codes
    vocab: int
    dim: int
    max_context: int  # longest context, in positions
    dtype: torch.dtype
    device: torch.device

    @property
    def num_tokens(self) -> int:
        """Count the image tokens, N: a place of the raster for each, forced ones included."""
        ...

    @property
    def codebook(self) -> Tensor:
        """Return the code vectors [V, d]; LANTERN's neighbours and VVS's scores come from them."""
        ...

    def context(self, text: str | None, like: str) -> Tensor:
        """Embed a prompt, [P, D].

        `None` is the null prompt, shaped as the context of `like` would be.
        """
        ...

    def embed(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        """Embed image tokens, [B, W, D]; `index_BW` is their place in the raster, 0 .. N-1."""
        ...

    def forward(self, x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Attend) -> Tensor:
        """Compute hidden states [B, W, D] of the positions `pos_BW` of some branches.

        `start_B` is the number P of context positions of each branch. Positions are 0 to P + N - 1,
        those of padding included: tables need not reach further.
        """
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Compute logits over image tokens, [..., V], at least float32."""
        ...

    def cache(self, slots: int, tree_capacity: int = 0) -> KVCache:
        """Allocate static keys and values of `slots` branches.

        Each has `max_context` + N + `tree_capacity` positions; the last are for draft trees.
        """
        ...

    def decode(self, token_BN: Tensor) -> Tensor:
        """Render pixels, uint8 [B, H, W, 3]; the token -1 stands for one that is not drawn yet."""
        ...


@runtime_checkable
class HasPrefix(Protocol):
    """A model that computes the head of its contexts at once instead of having it fed."""

    def prefix(self, text: str | None, like: str) -> Prefix:
        """Compute the first n < P positions of the context that the same arguments give.

        The cache takes them as they are, and they are never fed.
        """
        ...


@runtime_checkable
class HasCollapse(Protocol):
    """A model that may merge the positions of its prompt into one cache entry.

    Merged positions have no hidden states that a drafter could continue.
    """

    @property
    def collapse(self) -> bool:
        """Tell whether this model does merge them."""
        ...


@runtime_checkable
class HasRenderBytes(Protocol):
    """A model that knows the working memory of its image decoder."""

    @property
    def render_bytes(self) -> int:
        """Count the bytes that decoding one image takes for a moment."""
        ...


@runtime_checkable
class HasTextEncoder(Protocol):
    """A model whose prompts pass through a network of its own, which need not stay on the device.

    A prompt that was not prepared is encoded on the CPU, unless the encoder stays.
    """

    def count_text_encoder_bytes(self) -> int:
        """Count the bytes that the encoder takes of the device while it is there."""
        ...

    def prepare_texts(self, texts: Sequence[str], *, stay: bool) -> None:
        """Encode texts on the device; the encoder then leaves it, unless it is to stay."""
        ...


@runtime_checkable
class HasPromptLimit(Protocol):
    """A model that reads only so much of a prompt, and draws from its beginning if it is longer."""

    def count_cut(self, text: str) -> int:
        """Count the positions of a prompt's end that the model does not read."""
        ...


@runtime_checkable
class EditsImages(Protocol):
    """A model that edits a source image as a prompt says.

    Its contexts hold the source, an empty one included, so that all branches of a canvas are of one
    shape: `context` is the empty image with a text, or without.
    """

    def edit_context(self, text: str | None, like: str, source: SourceImage) -> Tensor:
        """Embed a source image and a prompt, [P, D]; `text` and `like` are those of `context`."""
        ...


@runtime_checkable
class ReadsContext(Protocol):
    """A model whose token embeddings depend on the branch's context, such as its source image."""

    def embed_in_context(self, token_BW: Tensor, index_BW: Tensor, context_BPD: Tensor) -> Tensor:
        """Embed image tokens, [B, W, D], as `embed` does; `context_BPD` is each row's context.

        It is padded to `max_context` positions.
        """
        ...


@runtime_checkable
class HasClasses(Protocol):
    """A model that was taught a closed list of object classes."""

    @property
    def classes(self) -> Sequence[str]:
        """List the classes by name."""
        ...


@runtime_checkable
class FollowableModel(Protocol):
    """A model whose hidden states a feature drafter (EAGLE) can continue."""

    @property
    def trunk_spec(self) -> TrunkSpec:
        """Return the dimensions of the trunk that makes the hidden states."""
        ...

    def rotary(self, pos_BW: Tensor, start_B: Tensor) -> Tensor:
        """Look up the rotary table [B, W, d/2, 2] (cosine, sine) of some positions.

        `start_B` is the number P of context positions of each branch.
        """
        ...
