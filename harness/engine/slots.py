"""Device tables of S branches: contexts, tokens, noise keys, cache, hidden states and logits.

A slot holds one branch. Each table has one more row, and each row of the cache one more position,
as scratch space: what pads a forward of constant shape is written there and never read.

Shapes: S slots, B of them in a forward, W positions per forward, P context length, N image tokens,
V vocabulary, D model width, Q branches of some canvases, T places of a draft.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from harness.engine.canvas import Branch, Canvas, Context
from harness.kernels.noise import words
from harness.models import EditsImages, ImageModel, ReadsContext
from harness.models.kv_cache import KVCache
from harness.models.raster import raster_of

COPIED_AT_ONCE = 8
"""Slots that are copied together."""


def _embed(model: ImageModel, context: Context) -> Tensor:
    """Embed a context, [P, D]. Raises TypeError for a source that the model cannot edit."""
    if context.source is None:
        return model.context(context.text, context.like)
    if not isinstance(model, EditsImages):
        raise TypeError(f"model {model.name} edits no image")
    return model.edit_context(context.text, context.like, context.source)


class SlotTable:
    """The slots of one sampler.

    Each context has at most `model.max_context` positions, each image `tree_capacity` more than its
    tokens, for the nodes of draft trees. With `hidden` the table keeps the hidden state of every
    position that is fed.
    """

    def __init__(
        self,
        model: ImageModel,
        slots: int,
        *,
        tokens_per_step: int,
        tree_capacity: int,
        hidden: bool,
    ) -> None:
        self._model = model
        self._context_reader = model if isinstance(model, ReadsContext) else None
        self.device = model.device
        self.raster = raster_of(model)
        self.forced_N = self.raster.forced_mask(model.device)  # None: every place is drawn
        self.count = slots
        self.scratch = slots  # the row that padding is written to
        self.cache: KVCache = model.cache(slots, tree_capacity)
        self.slot_S = torch.arange(slots, device=self.device)
        self.context_SPD = torch.zeros(
            (slots + 1, model.max_context, model.dim), dtype=model.dtype, device=self.device
        )
        self.token_SN = torch.zeros(
            (slots + 1, model.num_tokens + tree_capacity), dtype=torch.int64, device=self.device
        )
        self.key_S2 = torch.zeros((slots + 1, 2), dtype=torch.int64, device=self.device)
        self.hidden_SLD: Tensor | None = None  # indexed as the cache
        if hidden:
            self.hidden_SLD = torch.zeros(
                (slots + 1, self.cache.length + 1, model.dim),
                dtype=model.dtype,
                device=self.device,
            )
        self.frontier_SWV: Tensor | None = None  # logits, made by the first forward
        self._tokens_per_step = tokens_per_step
        self._free = list(range(slots))  # a heap: the lowest slot is taken first
        self._canvases: dict[int, Canvas] = {}  # that hold slots

        @lru_cache(maxsize=4 * slots)
        def embed_context(context: Context) -> Tensor:
            return _embed(model, context)

        self._embed_context = embed_context

    # ------------------------------------------------------------------ who holds which slot

    @property
    def free(self) -> int:
        """Count the slots that no branch holds."""
        return len(self._free)

    def open_branch(self, context: Context, slot: int | None = None) -> Branch:
        """Put a context into a slot, a free one if none is named, with nothing cached.

        Raises ValueError for a context that does not fit, RuntimeError if no slot is free.
        """
        context_PD = self._embed_context(context)
        if not 1 <= len(context_PD) <= self._model.max_context:
            raise ValueError(
                f"context of {len(context_PD)} positions: 1 to {self._model.max_context} fit"
            )
        if slot is None:
            slot = self.take()
        self.context_SPD[slot, : len(context_PD)] = context_PD
        return Branch(slot, context, len(context_PD))

    def take(self) -> int:
        """Take the lowest free slot. Raises RuntimeError if there is none."""
        if not self._free:
            raise RuntimeError(f"all {self.count} slots are taken")
        return heapq.heappop(self._free)

    def give_back(self, branch: Branch) -> None:
        """Free the slot of a branch."""
        heapq.heappush(self._free, branch.slot)

    def register(self, canvas: Canvas) -> None:
        """Enter a canvas whose branches hold slots."""
        self._canvases[id(canvas)] = canvas

    def release(self, canvas: Canvas) -> None:
        """Free all slots of a canvas, which is closed by that.

        Slots that hold numbers which are not finite are emptied for whoever comes next.
        """
        if canvas.fault_at is not None:
            self._empty(self.slots_of(canvas))
        for branch in canvas.branches:
            self.give_back(branch)
        canvas.branches = []
        self._canvases.pop(id(canvas), None)

    def _empty(self, slot_n: Tensor) -> None:
        """Put zeros into all that a forward may read of slots."""
        self.cache.clear_slots(slot_n)
        for table in (self.frontier_SWV, self.hidden_SLD):
            if table is not None:
                table[slot_n] = 0

    def resize(self, canvas: Canvas, count: int, context: Context) -> None:
        """Give a canvas `count` branches: free its last ones, or add empty ones of a context."""
        while len(canvas.branches) > count:
            self.give_back(canvas.branches.pop())
        while len(canvas.branches) < count:
            canvas.branches.append(Branch(self.take(), context, 0))

    def compact(self) -> int:
        """Move the branches that are alive into the first slots.

        Returns how many of the first slots a forward must feed: a power of two, so that few shapes
        occur.
        """
        alive = [branch for canvas in self._canvases.values() for branch in canvas.branches]
        rows = min(self.count, 1 << (len(alive) - 1).bit_length())
        moved = [branch for branch in alive if branch.slot >= rows]
        if not moved:
            return rows
        holes = [heapq.heappop(self._free) for _ in moved]
        source_n = self.index([branch.slot for branch in moved])
        target_n = self.index(holes)
        self.copy(source_n, target_n)
        self.key_S2[target_n] = self.key_S2[source_n]
        for branch, hole in zip(moved, holes, strict=True):
            heapq.heappush(self._free, branch.slot)
            branch.slot = hole
        return rows

    # ------------------------------------------------------------------ contents

    def index(self, values: Sequence[object] | np.ndarray) -> Tensor:
        """Copy whole numbers to the device, int64; the host does not wait for the copy."""
        return torch.as_tensor(values, dtype=torch.int64).to(self.device, non_blocking=True)

    def slots_of(self, canvas: Canvas) -> Tensor:
        """Return the slots of a canvas's branches, int64 [K]."""
        return self.index(canvas.slots)

    def first_slots(self, rows: Sequence[Canvas]) -> Tensor:
        """Return the slot of each canvas's first branch, int64 [R]; it holds tokens and key."""
        return self.index([canvas.branches[0].slot for canvas in rows])

    def set_key(self, canvas: Canvas, key: int) -> None:
        """Give a canvas the noise of a key."""
        canvas.key = key
        self.key_S2[canvas.branches[0].slot] = self.index(list(words(key)))

    def write_tokens(self, canvas: Canvas, first: int, tokens: Sequence[int] | Tensor) -> None:
        """Write tokens at consecutive image places of all branches of a canvas."""
        if not isinstance(tokens, Tensor):
            tokens = self.index(tokens)
        place = slice(first, first + len(tokens))
        self.token_SN[self.slots_of(canvas), place] = tokens.to(self.device)

    def copy(self, source_n: Tensor, target_n: Tensor) -> None:
        """Copy all that slots hold but their keys; a few at a time, as copies need memory."""
        tables = (self.context_SPD, self.token_SN, self.frontier_SWV, self.hidden_SLD)
        pieces = zip(source_n.split(COPIED_AT_ONCE), target_n.split(COPIED_AT_ONCE), strict=True)
        for source, target in pieces:
            self.cache.copy_slots(source, target)
            for table in tables:
                if table is not None:
                    table[target] = table[source]

    def move_accepted_kv(self, slot_Q: Tensor, source_QT: Tensor, target_QT: Tensor) -> None:
        """Move keys, values and hidden states of an accepted path to where a chain has them."""
        self.cache.move_positions(slot_Q, source_QT, target_QT)
        if self.hidden_SLD is not None:
            kept_QTD = self.hidden_SLD[slot_Q[:, None], source_QT]
            self.hidden_SLD[slot_Q[:, None], target_QT] = kept_QTD

    def make_frontier(self) -> Tensor:
        """Return the logits at all frontiers, [S, W, V]; the first call makes the table."""
        if self.frontier_SWV is None:
            self.frontier_SWV = torch.zeros(
                (self.count, self._tokens_per_step, self._model.vocab),
                dtype=torch.promote_types(self._model.dtype, torch.float32),
                device=self.device,
            )
        return self.frontier_SWV

    def embed(
        self, slot_B: Tensor, start_B: Tensor, pos_BW: Tensor, stored_BW: Tensor | None = None
    ) -> Tensor:
        """Embed what enters the model at some positions of branches, [B, W, D].

        Positions below `start_B` are context, all others image tokens. `stored_BW` says where in
        the slot the tokens are stored, if that is another place than their position.
        """
        if stored_BW is None:
            stored_BW = pos_BW
        start_B1 = start_B.unsqueeze(1)
        # 1. context embeddings, read at positions that are clamped into the context
        text_BW1 = pos_BW.clamp(max=self._model.max_context - 1).unsqueeze(-1)
        context_BPD = self.context_SPD[slot_B]
        context_BWD = context_BPD.gather(1, text_BW1.expand(-1, -1, self._model.dim))
        # 2. token embeddings, which may depend on the place in the image
        place_BW = (pos_BW - start_B1).clamp(0, self._model.num_tokens - 1)
        column_BW = (stored_BW - start_B1).clamp(0, self.token_SN.shape[1] - 1)
        token_BW = self.token_SN[slot_B.unsqueeze(1), column_BW]
        if self._context_reader is not None:
            image_BWD = self._context_reader.embed_in_context(token_BW, place_BW, context_BPD)
        else:
            image_BWD = self._model.embed(token_BW, place_BW)
        # 3. each position takes the one that it is
        is_text_BW1 = (pos_BW < start_B1).unsqueeze(-1)
        return torch.where(is_text_BW1, context_BWD, image_BWD)
