"""Slots, cache, randomness and ledger for one model on one device. No method logic and no policy.

The one state variable of a branch is *committed tokens against cached positions*:

    branch k of a canvas:  [ context: P positions ][ image tokens 0 .. n-1 ]
                            --- cached ---------------->|<- pending ->|<- draft ->      fed in one forward, width W

Prefill, decoding, speculative verification, skipping, rewinding and re-prompting are the same
forward with other numbers. Every forward has a constant shape, whoever is in flight: [S, W] for
decoding, [B, C] for prefill; positions that pad it are written to scratch and never read, so the
tokens of a job do not depend on its company. A `compact` sampler moves the branches that are alive
into the first slots and feeds these alone, in one of a few shapes [B, W] that it chooses by their
number: the tokens then depend on how many branches are alive beside the job's own, but on no more.

The nodes of a draft tree lie in the cache one behind the other, wherever in the image they would
be, and see only their ancestors; the accepted path is then moved to where a chain would lie.

Shapes: S slots, B of them in a forward, R canvases, K branches of a canvas, W positions per
forward, T = 1 + draft length, P context length, N image tokens, V vocabulary, D model width, Q
branches of some canvases.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from harness.engine import bursts
from harness.engine.acceptance import Draft, Drafts, Rule, Verdict, build_forest, exact
from harness.engine.bursts import Burst, Group
from harness.engine.canvas import Branch, Canvas, Context
from harness.engine.cuda_graphs import Graphs, Staging
from harness.engine.draft_trees import Forest
from harness.engine.draw import draw_one, guided_probs
from harness.engine.guidance import Guide, Sampling, cfg, unguided
from harness.engine.meter import Clock
from harness.engine.probes import Probe
from harness.engine.rendering import Image, Picture, Renderer
from harness.kernels.noise import DRAW, Noise, derive, words
from harness.models import ImageModel
from harness.models.kv_cache import GapMask, Mask, TreeMask
from harness.models.trunk import Attend
from harness.records import Stage, Usage, UserError


class Sampler:
    """The shared batched sampler.

    `slots` branches are alive at once; `tokens_per_step` positions per branch fit one decoding
    forward (1; speculative methods 1 + draft length), and `tree_capacity` positions behind the
    image are there for the nodes of draft trees. `prefill` is the constant [rows, positions] shape
    of prefill forwards, `render_batch` that of the image decoder. `compact` forwards feed only the
    branches that are alive (see above). With `hidden` it keeps the hidden state of every position
    it feeds, for drafters that continue them (`features`). Raises UserError when the model cannot
    do what is asked of it.
    """

    def __init__(
        self,
        model: ImageModel,
        sampling: Sampling,
        *,
        slots: int,
        tokens_per_step: int = 1,
        tree_capacity: int = 0,
        hidden: bool = False,
        prefill: tuple[int, int] = (8, 32),
        render_batch: int = 8,
        compact: bool = False,
    ) -> None:
        if slots < 1 or tokens_per_step < 1:
            raise UserError(
                f"sampler.slots={slots}, tokens_per_step={tokens_per_step}: both must be at least 1"
            )
        self.model = model
        self.sampling = sampling
        self.slots = slots
        self.tokens_per_step = tokens_per_step
        self.tree_capacity = tree_capacity
        self.prefill = prefill
        self.render_batch = render_batch
        self.compact = compact
        device = model.device
        self._cache = model.cache(slots, tree_capacity)
        self._context_SPD = torch.zeros(
            (slots + 1, model.max_context, model.dim), dtype=model.dtype, device=device
        )  # the last slot is scratch
        self._token_SN = torch.zeros(
            (slots + 1, model.num_tokens + tree_capacity), dtype=torch.int64, device=device
        )
        self._key_S2 = torch.zeros((slots + 1, 2), dtype=torch.int64, device=device)
        self._column_W = torch.arange(tokens_per_step, device=device)
        self._hidden_SLD: Tensor | None = None  # indexed as the cache
        if hidden:
            shape = (slots + 1, self._cache.length + 1, model.dim)
            self._hidden_SLD = torch.zeros(shape, dtype=model.dtype, device=device)
        self._frontier_SWV: Tensor | None = None
        self._embed = lru_cache(maxsize=4 * slots)(
            lambda context: model.context(context.text, context.like)
        )
        prefix = getattr(model, "prefix", None)
        self._prefix = prefix and lru_cache(maxsize=4 * slots)(
            lambda context: prefix(context.text, context.like)
        )
        self._free = list(range(slots))  # a heap: the lowest is taken first
        self._open: dict[int, Canvas] = {}
        self.graphs = Graphs(device)
        self._staging = Staging(device)
        self._slot_S = torch.arange(slots, device=device)
        self._bursts: dict[Hashable, Burst] = {}
        self._clock = Clock(device)
        self._renderer = Renderer(model, render_batch)
        self.decode_steps = 0  # decoding forwards so far
        self.active_branch_steps = (
            0  # branches fed by them: fed / (rounds * slots) is the slot utilisation
        )

    # ------------------------------------------------------------------ bookkeeping, no compute

    @property
    def free(self) -> int:
        """Slots that no branch holds."""
        return len(self._free)

    def contexts(self, text: str) -> tuple[list[Context], Guide]:
        """Streams and guide of an ordinary canvas: (null, text) under guidance, the text alone
        without.
        """
        if self.sampling.scale == 1:
            return [Context(text, text)], unguided
        return [Context(None, text), Context(text, text)], cfg

    def open(self, contexts: Sequence[Context], guide: Guide, key: int, usage: Usage) -> Canvas:
        """A canvas with no tokens. Raises RuntimeError when slots run out: the scheduler reserves
        them.
        """
        canvas = Canvas(key, usage, self.model.num_tokens, self.sampling.scale, guide)
        with self.working([canvas], "text"):
            canvas._branches = [self._branch(context) for context in contexts]
        self._set_key(canvas, key)
        self._open[id(canvas)] = canvas
        return canvas

    def close(self, canvas: Canvas) -> None:
        """Give the slots back; what the canvas had drawn counts as discarded."""
        canvas._usage.discarded += canvas.length + len(canvas._islands) - canvas._inherited
        self.release(canvas)

    def release(self, canvas: Canvas) -> None:
        """Give the slots back of a canvas that was delivered."""
        for branch in canvas._branches:
            heapq.heappush(self._free, branch.slot)
        canvas._branches = []
        self._open.pop(id(canvas), None)

    def fork(self, src: Canvas, over: Canvas) -> None:
        """`over` becomes a copy of `src` with a fresh key: same past, different future. Draws
        nothing.
        """
        _expect_open(src, over)
        _expect_whole(src)
        over._usage.discarded += over.length + len(over._islands) - over._inherited
        over._islands.clear()
        while len(over._branches) > len(src._branches):
            heapq.heappush(self._free, over._branches.pop().slot)
        while len(over._branches) < len(src._branches):
            over._branches.append(Branch(self._take_slot(), src._branches[0].context, 0))
        for mine, theirs in zip(over._branches, src._branches, strict=True):
            mine.context = theirs.context
            mine.start = theirs.start
            mine.cached = theirs.cached
            mine.beyond = set()
        self._copy(self._slots(src), self._slots(over))
        over._tokens = list(src._tokens)
        over._log_probs = list(src._log_probs)
        over._inherited = src.length
        over._ahead = src._ahead
        over._image = src._image
        over._verdict = None  # drafts that both made of it would not be independent
        over.scale = src.scale
        over._guide = src._guide
        over.signals = dict(src.signals)
        over.version += 1
        self._set_key(over, derive(over._key, "fork", over.version))

    def condition(self, canvas: Canvas, contexts: Sequence[Context], guide: Guide) -> None:
        """Change what the branches are conditioned on. Unchanged branches keep their cache, others
        start anew.
        """
        _expect_open(canvas)
        _expect_whole(canvas)
        while len(canvas._branches) > len(contexts):
            heapq.heappush(self._free, canvas._branches.pop().slot)
        with self.working([canvas], "text"):
            for k, context in enumerate(contexts):
                if k == len(canvas._branches):
                    canvas._branches.append(self._branch(context))
                elif canvas._branches[k].context != context:
                    canvas._branches[k] = self._branch(context, canvas._branches[k].slot)
        self._token_SN[self._slots(canvas), : canvas.length] = self._tensor(canvas._tokens)
        canvas._guide = guide
        canvas._ahead = -1
        canvas._verdict = None
        for branch in (
            canvas._branches
        ):  # the frontier is fed again, so that all branches have their logits there
            branch.cached = min(branch.cached, branch.start + canvas.length - 1)
        canvas.version += 1

    def truncate(self, canvas: Canvas, length: int) -> None:
        """Keep the first `length` tokens, none behind a gap. Drawing again gives the same: noise is
        keyed by place.
        """
        _expect_open(canvas)
        if not 0 <= length <= canvas.length:
            raise ValueError(f"truncate to {length}: the canvas has {canvas.length} tokens")
        kept = min(canvas._inherited, length)
        canvas._usage.discarded += (canvas.length + len(canvas._islands) - canvas._inherited) - (
            length - kept
        )
        canvas._inherited = kept
        canvas._islands.clear()
        del canvas._tokens[length:], canvas._log_probs[length:]
        self._rewind(canvas)
        canvas.version += 1

    def commit(self, canvas: Canvas, tokens: Sequence[int]) -> None:
        """Append tokens that the target has not seen; the cache lags behind until the next
        forward.
        """
        _expect_open(canvas)
        _expect_whole(canvas)
        if canvas.length + len(tokens) > self.model.num_tokens:
            raise ValueError(
                f"commit of {len(tokens)} tokens at {canvas.length}: the image has {self.model.num_tokens}"
            )
        if not all(0 <= token < self.model.vocab for token in tokens):
            raise ValueError(f"commit of tokens outside 0..{self.model.vocab - 1}: {list(tokens)}")
        place = slice(canvas.length, canvas.length + len(tokens))
        self._token_SN[self._slots(canvas), place] = self._tensor(list(tokens))
        canvas._tokens.extend(tokens)
        canvas._log_probs.extend(math.nan for _ in tokens)
        canvas._usage.skipped += len(tokens)
        self._rewind(canvas)

    # ------------------------------------------------------------------ compute

    def ready(self, canvas: Canvas, draft: Draft | None = None) -> bool:
        """Whether the logits that a draw needs are at hand."""
        return canvas._ahead >= (len(draft) if draft else 0)

    @torch.no_grad()
    def forward(self, rows: Sequence[Canvas], drafts: Sequence[Draft | None]) -> None:
        """Bring the logits at every frontier (and behind every draft token) to hand, in one
        constant-shape forward.

        Streams with more pending positions than `tokens_per_step` are prefilled first. Raises
        ValueError for a finished canvas, and for a draft of more than `tokens_per_step` - 1 tokens
        or reaching past the last token but one.
        """
        waiting = [(c, d) for c, d in zip(rows, drafts, strict=True) if not self.ready(c, d)]
        if not waiting:
            return
        lengths = [0 if draft is None else len(draft) for _, draft in waiting]
        trees = build_forest([draft for _, draft in waiting], max(lengths))
        for i, ((canvas, draft), length) in enumerate(zip(waiting, lengths, strict=True)):
            _expect_open(canvas)
            _expect_whole(canvas)
            if canvas.done:
                raise ValueError("the canvas is finished: nothing is left to draw")
            depth = length if trees is None else int(trees.depth_RT[i].max())
            left = self.model.num_tokens - canvas.length
            if (
                length > self.tokens_per_step - 1
                or depth > left - 1
                or length > left + self.tree_capacity
            ):
                fit = min(self.tokens_per_step, left) - 1
                raise ValueError(
                    f"draft of {length} tokens, {depth} deep, at {canvas.length}: at most {fit} fit"
                )
            if draft:
                place = slice(canvas.length, canvas.length + length)
                self._token_SN[self._slots(canvas), place] = draft.tokens.to(self.model.device)
        self._begin([canvas for canvas, _ in waiting])
        self._prefill([(c, g) for (c, _), g in zip(waiting, lengths, strict=True)])
        self._decode([c for c, _ in waiting], lengths, trees)

    def verdict(self, canvas: Canvas) -> Verdict | None:
        """What the last draw said of its draft, for drafters; None if that was not followed or the
        canvas changed.
        """
        return canvas._verdict

    def tokens(self, rows: Sequence[Canvas]) -> Tensor:
        """Tokens of the rows on the device, int64 [R, N]; what stands behind a row's length means
        nothing.
        """
        return self._token_SN[self._firsts(rows)]

    def noise(self, rows: Sequence[Canvas], width: int) -> Noise:
        """The noise of the next `tokens_per_step` places of every row."""
        column_T = torch.arange(width, device=self.model.device)
        place_R1 = self._tensor([canvas.length for canvas in rows]).unsqueeze(1)
        return Noise(self._key_S2[self._firsts(rows)], place_R1 + column_T)

    def spans(self, canvas: Canvas) -> list[tuple[int, int, int]]:
        """Slot, context length and cached positions of every branch of a canvas, for drafters that
        follow them.
        """
        return [(branch.slot, branch.start, branch.cached) for branch in canvas._branches]

    def entering(self, slot_B: Tensor, start_B: Tensor, pos_BW: Tensor) -> Tensor:
        """What enters the model at some positions of branches, [B, W, D]."""
        return self._embed_at(slot_B, start_B, pos_BW, pos_BW)

    def tokens_at(self, slot_B: Tensor, start_B: Tensor, pos_BW: Tensor) -> Tensor:
        """Image tokens at some positions of branches, [B, W]; at context positions they mean
        nothing.
        """
        return self._token_SN[
            slot_B.unsqueeze(1), (pos_BW - start_B.unsqueeze(1)).clamp(0, self.model.num_tokens - 1)
        ]

    def features(self, slot_B: Tensor, pos_BW: Tensor) -> Tensor:
        """Hidden states, [B, W, D], of cached positions; of others they mean nothing."""
        if self._hidden_SLD is None:
            raise RuntimeError("the sampler keeps no hidden states: make it with hidden=True")
        return self._hidden_SLD[slot_B.unsqueeze(1), pos_BW]

    @property
    def hidden(self) -> bool:
        return self._hidden_SLD is not None

    @property
    def positions(self) -> int:
        """Positions of a branch, context, image and room."""
        return self._cache.length

    def guided_probs(
        self,
        rows: Sequence[Canvas],
        logits_STV: Tensor,
        ahead: int,
        sampling: Sampling | None = None,
    ) -> Tensor:
        """Laws [R, T, V] that a drafter's logits of all slots make under the guides of `rows`.

        All are `ahead` places behind the rows' frontiers; `sampling` replaces the sampler's own.
        """
        depth_RT = torch.full((len(rows), logits_STV.shape[1]), ahead, device=logits_STV.device)
        return self._gathered(rows, depth_RT, sampling, logits_STV)

    def charge_drafted(self, canvas: Canvas, positions: int) -> None:
        """Add positions that a drafter computed for a canvas to the ledger of its job."""
        canvas._usage.drafted_positions += positions

    def working(self, rows: Sequence[Canvas], stage: Stage) -> AbstractContextManager[None]:
        """Books the device time of what is done inside, shared evenly among the rows."""
        return self._clock.measure([canvas._usage for canvas in rows], stage)

    @torch.no_grad()
    def probe(self, rows: Sequence[Canvas], probe: Probe) -> list[dict[str, float]]:
        """Signals of the laws at the frontiers of `rows`, which must be ready. Draws nothing."""
        signals: list[dict[str, float]] = [{} for _ in rows]
        with self.working(rows, "decode"):
            for places, logits_RKTV, probs in self._guided_probs(
                rows, 1, self._column_W[:1].expand(len(rows), 1)
            ):
                named = probe(logits_RKTV, probs)
                table = torch.stack([value.double() for value in named.values()], 1).tolist()
                for place, values in zip(places, table, strict=True):
                    signals[place] = dict(zip(named, values, strict=True))
        return signals

    @torch.no_grad()
    def probs(
        self,
        rows: Sequence[Canvas],
        drafts: Sequence[Draft | None],
        sampling: Sampling | None = None,
    ) -> Tensor:
        """Laws [R, T, V] at the frontiers and behind the draft tokens of `rows`, which must be
        ready. Draws nothing.

        For drafters; `sampling` replaces the sampler's own. Places that a row's draft does not have
        are zero.
        """
        width = 1 + max((len(draft) for draft in drafts if draft), default=0)
        if not all(map(self.ready, rows, drafts)):
            raise RuntimeError("a law was asked for before its forward")
        with self.working(rows, "draft"):
            return self._gathered(rows, self._depths(drafts, width), sampling, self._frontier_SWV)

    def _gathered(
        self,
        rows: Sequence[Canvas],
        depth_RT: Tensor,
        sampling: Sampling | None,
        logits_STV: Tensor | None,
    ) -> Tensor:
        """Laws in the order of `rows`, [R, T, V]."""
        assert logits_STV is not None
        table = torch.zeros(
            (len(rows), depth_RT.shape[1], logits_STV.shape[2]), device=logits_STV.device
        )
        for places, _, probs in self._guided_probs(
            rows, depth_RT.shape[1], depth_RT, sampling, logits_STV
        ):
            probs_RTV = probs()
            table = table.to(probs_RTV.dtype)
            table[self._tensor(places)] = probs_RTV
        return table

    @torch.no_grad()
    def draw(self, rows: Sequence[Canvas], drafts: Sequence[Draft | None], rule: Rule) -> list[int]:
        """Apply guide, warp and rule at the frontiers of `rows` and commit; returns accepted draft
        tokens per row.
        """
        if not rows:
            return []
        plain = [i for i, draft in enumerate(drafts) if rule is exact and not draft]
        drafted = [i for i, draft in enumerate(drafts) if rule is not exact or draft]
        if plain:
            self._draw_plain([rows[i] for i in plain])
        accepted = dict.fromkeys(plain, 0)
        if drafted:
            counts = self._verify([rows[i] for i in drafted], [drafts[i] for i in drafted], rule)
            accepted |= zip(drafted, counts, strict=True)
        return [accepted[i] for i in range(len(rows))]

    def _verify(
        self, rows: Sequence[Canvas], drafts: Sequence[Draft | None], rule: Rule
    ) -> list[int]:
        accepted = [0] * len(rows)
        width = 1 + max((0 if draft is None else len(draft) for draft in drafts), default=0)
        with self.working(rows, "decode"):
            packed = []
            order: list[int] = []
            guided_probs: dict[int, Tensor] = {}
            for places, _, probs in self._guided_probs(rows, width, self._depths(drafts, width)):
                probs_RTV = probs()
                guided_probs.update(
                    {i: probs_RTV[r] for r, i in enumerate(places) if _followed(drafts[i])}
                )
                names, values_RX = self._apply(
                    rule, [rows[i] for i in places], [drafts[i] for i in places], probs_RTV
                )
                packed.append(values_RX)
                order.extend(places)
            table = torch.cat(packed).tolist()  # the round's one device-to-host copy
        for place, (count, *values) in zip(order, table, strict=True):
            accepted[place] = int(count)
            self._commit_drawn(
                rows[place], int(count) + 1, values[:width], values[width : 2 * width]
            )
            if (draft := _followed(drafts[place])) is not None:
                rows[place]._verdict = Verdict(
                    draft, guided_probs[place][: 1 + len(draft)], int(count)
                )
            summed = rows[place].signals
            for name, value in zip(names, values[2 * width :], strict=True):
                summed[name] = summed.get(name, 0.0) + value
        return accepted

    def _draw_plain(self, rows: Sequence[Canvas]) -> None:
        """One token for each of `rows`: what `exact` draws without a draft."""
        if not all(map(self.ready, rows)):
            raise RuntimeError("a token was to be drawn before its forward")
        assert self._frontier_SWV is not None
        tables = []
        order = []
        with self.working(rows, "decode"):
            for (guide, _), places in _groups(rows).items():
                some = [rows[i] for i in places]
                slot_RK = self._tensor([self._list(c) for c in some])
                place_R = self._tensor([c.length for c in some])
                scale_R = torch.tensor(
                    [c.scale for c in some], dtype=torch.float64, device=self.model.device
                )
                logits_SV = self._frontier_SWV[:, 0]
                key_R2 = self._key_S2[slot_RK[:, 0]]
                token_R, log_prob_R = draw_one(
                    guide, self.sampling, logits_SV, slot_RK, scale_R, key_R2, place_R
                )
                self._token_SN[slot_RK, place_R.unsqueeze(1)] = token_R.unsqueeze(1)
                tables.append(torch.stack((token_R.double(), log_prob_R), 1))
                order.extend(places)
            table = torch.cat(tables).tolist()  # the round's one device-to-host copy
        for place, (token, log_prob) in zip(order, table, strict=True):
            self._commit_drawn(rows[place], 1, [token], [log_prob])

    def steady(self, canvas: Canvas) -> bool:
        """Whether nothing but the last token waits to be fed, so that rounds of a burst may
        follow.
        """
        pending = {branch.start + canvas.length - branch.cached for branch in canvas._branches}
        return pending == {1} and canvas._ahead < 0 and not canvas._islands and not canvas.done

    @torch.no_grad()
    def burst(self, rows: Sequence[Canvas], most: int) -> int:
        """Draw up to `most` tokens of every row, as forward and draw by `exact` do, without the
        host in between.

        Returns how many: 0 if something else must be fed first, and no more than the shortest rest
        of an image. Tokens, log-probabilities and ledger are those of as many single rounds.
        """
        if not rows or not all(map(self.steady, rows)):
            return 0
        count = min(most, bursts.BURST, *(canvas._total - canvas.length for canvas in rows))
        if count < 1:
            return 0
        shape = self._shape(1)
        grouped = _groups(rows)
        groups = [
            Group(
                guide,
                [self._list(rows[i]) for i in places],
                [rows[i].scale for i in places],
                [rows[i].length for i in places],
            )
            for (guide, _), places in grouped.items()
        ]
        branches = [(canvas, branch) for canvas in rows for branch in canvas._branches]
        at_BW = np.full(shape, self._cache.length)
        start_B = np.zeros(shape[0], dtype=np.int64)
        for _, branch in branches:
            at_BW[branch.slot, 0] = branch.cached
            start_B[branch.slot] = branch.start
        with self.working([canvas for canvas, _ in branches], "decode"):
            name, burst = self._burst(shape, groups)
            burst.load(torch.from_numpy(at_BW), torch.from_numpy(start_B), groups)
            for _ in range(count):
                self.graphs.run(name, burst.round)
            drawn = burst.read(count, groups)
        self._book(branches, [count] * len(branches))
        self._passed(rows, count)
        for places, some in zip(grouped.values(), drawn, strict=True):
            for i, (tokens, log_probs) in zip(places, some, strict=True):
                self._commit_drawn(rows[i], count, tokens, log_probs)
        return count

    def _burst(self, shape: tuple[int, int], groups: Sequence[Group]) -> tuple[Hashable, Burst]:
        """The static tensors of bursts of some shape; on CUDA padded, so that there are few, and
        captured.
        """
        kinds = tuple((group.guide, len(group.slots[0])) for group in groups)
        padded = self.graphs.state == "on"
        name = (shape, kinds)
        if padded and name in self._bursts:
            return name, self._bursts[name]
        most = [shape[0] // len(group.slots[0]) if padded else len(group.slots) for group in groups]
        burst = Burst(
            self._forward,
            self.sampling,
            shape,
            [(*kind, rows) for kind, rows in zip(kinds, most, strict=True)],
            token_SN=self._token_SN,
            key_S2=self._key_S2,
            end=self._cache.length,
        )
        if padded:
            self.graphs.prepare(name, burst.round, burst.idle)
            self._bursts[name] = burst
        return name, burst

    def _forward(self, at_BW: Tensor, start_B: Tensor) -> Tensor:
        """Logits [B, W, V] of rows in the first B slots, fed at cache positions `at`."""
        slot_B = self._slot_S[: len(at_BW)]
        return self.model.head(
            self._feed(slot_B, start_B, at_BW, at_BW, self._cache.attend_all(at_BW))
        )

    @torch.no_grad()
    def draw_at(self, rows: Sequence[Canvas], places: Sequence[Sequence[int]]) -> None:
        """Draw the tokens of `places` of every row in one forward, whatever else is missing.

        Each is drawn from the law that the tokens before it in the raster give, as far as there are
        any. Where the one right before it is missing, the nearest before that stands in for it,
        unseen by all others. A token is fed once, with what there was when it was drawn. Raises
        ValueError for places that have a token or lie beyond the image, and where more positions
        wait to be fed than `tokens_per_step`.
        """
        for canvas, at in zip(rows, places, strict=True):
            _expect_open(canvas)
            bad = [
                t
                for t in at
                if t in canvas._islands or not canvas.length <= t < self.model.num_tokens
            ]
            if bad or not at:
                raise ValueError(
                    f"places {bad} are drawn or beyond the image's {self.model.num_tokens} tokens"
                )
        fed = [self._stand_in(canvas, at) for canvas, at in zip(rows, places, strict=True)]
        self._begin(list(rows))
        pieced = {
            id(canvas) for canvas in rows for branch in canvas._branches if branch.beyond
        }  # feed nothing twice
        self._prefill(
            [(c, len(extra)) for c, extra in zip(rows, fed, strict=True) if id(c) not in pieced]
        )
        self._feed_at(rows, places, fed)
        width = max(len(at) for at in places)
        place_RT = self._tensor([[*at, *[at[0]] * (width - len(at))] for at in places])
        with self.working(rows, "decode"):
            order = []
            tables = []
            depth_RT = place_RT - self._tensor([canvas.length for canvas in rows]).unsqueeze(1)
            for chosen, _, probs in self._guided_probs(rows, width, depth_RT):
                at_RT = place_RT[self._tensor(chosen)]
                probs_RTV = probs()
                drawn_RT = Noise(self._key_S2[self._firsts([rows[i] for i in chosen])], at_RT).race(
                    DRAW, probs_RTV
                )
                log_prob_RT = (
                    probs_RTV.gather(-1, drawn_RT.unsqueeze(-1)).squeeze(-1).double().log()
                )
                tables.append(torch.cat((drawn_RT.double(), log_prob_RT), 1))
                order.extend(chosen)
            table = torch.cat(tables).tolist()
        for i, values in zip(order, table, strict=True):
            self._land(rows[i], places[i], [int(token) for token in values[:width]], values[width:])

    def render(
        self, rows: Sequence[Canvas], pads: Sequence[tuple[int, ...]] | None = None
    ) -> list[Image]:
        """Images of canvases, partial ones included; waits for them."""
        return [picture.image() for picture in self.begin_render(rows, pads)]

    def begin_render(
        self, rows: Sequence[Canvas], pads: Sequence[tuple[int, ...]] | None = None
    ) -> list[Picture]:
        """Pictures of canvases, partial ones included, decoded beside what follows; an unchanged
        canvas only once.

        `pads` are tokens to show behind each row's own; what is still missing then looks as the
        model shows it.
        """
        _expect_open(*rows)
        wanted = list(zip(rows, pads or [()] * len(rows), strict=True))
        shown = {
            (c, pad): c._image[1]
            for c, pad in wanted
            if c._image is not None and c._image[0] == pad
        }
        todo = [one for one in dict.fromkeys(wanted) if one not in shown]
        for first in range(0, len(todo), self._renderer.chunk):
            chunk = todo[first : first + self._renderer.chunk]
            with self._renderer.beside(), self.working([canvas for canvas, _ in chunk], "render"):
                pictures = self._renderer.decode([[*canvas._tokens, *pad] for canvas, pad in chunk])
            for (canvas, pad), picture in zip(chunk, pictures, strict=True):
                canvas._usage.renders += 1
                canvas._image = pad, picture
                shown[canvas, pad] = picture
        return [shown[one] for one in wanted]

    def settle(self, usage: Usage | None = None) -> None:
        """Bring device seconds up to date, those of one job or of all (waits for the device to do
        their work).
        """
        self._clock.settle(usage)

    # ------------------------------------------------------------------ one forward

    def _begin(self, rows: list[Canvas]) -> None:
        """Put the prefixes of models that have them into the slots where nothing is cached.

        Streams of one prompt share the computation. Each is charged with its positions, and its job
        with one pass, as if it had been alone: what a job costs must not depend on its company.
        """
        if self._prefix is None:
            return
        fresh = [
            (canvas, branch) for canvas in rows for branch in canvas._branches if branch.cached == 0
        ]
        depth: dict[int, Usage] = {}
        for canvas, branch in fresh:
            with self.working([canvas], "prefill"):
                prefix = self._prefix(branch.context)
                self._cache.load_prefix(branch.slot, prefix)
            branch.cached = len(prefix)
            canvas._usage.text_positions += prefix.positions
            if prefix.positions:
                depth[id(canvas._usage)] = canvas._usage
        for usage in depth.values():
            usage.target_passes += 1

    def _prefill(self, waiting: list[tuple[Canvas, int]]) -> None:
        """Feed all but the last pending position of every branch whose pending positions and draft
        exceed `tokens_per_step`.
        """
        todo = [
            (canvas, branch)
            for canvas, draft in waiting
            for branch in canvas._branches
            if branch.start + canvas.length - branch.cached + draft > self.tokens_per_step
        ]
        batch_size, chunk = self.prefill
        depth = {
            id(canvas._usage): (canvas._usage, 0) for canvas, _ in todo
        }  # how branches are batched must not count
        for canvas, branch in todo:
            usage, chunks = depth[id(canvas._usage)]
            own = -(-(branch.start + canvas.length - 1 - branch.cached) // chunk)
            depth[id(usage)] = usage, max(chunks, own)
        for usage, chunks in depth.values():
            usage.target_passes += chunks
        while todo:
            batch = todo[:batch_size]
            todo = todo[batch_size:]
            ends = [min(s.cached + chunk, s.start + c.length - 1) for c, s in batch]
            counts = [end - s.cached for (_, s), end in zip(batch, ends, strict=True)]
            padding = [0] * (batch_size - len(batch))
            slot_B = self._tensor([s.slot for _, s in batch] + [self.slots for _ in padding])
            start_B = self._tensor([s.start for _, s in batch] + padding)
            pos_BW = self._tensor(
                self._places([s.cached for _, s in batch] + padding, counts + padding, chunk)
            )
            with self.working([canvas for canvas, _ in batch], "prefill"):
                self._feed(slot_B, start_B, pos_BW, pos_BW, self._cache.attend_some(slot_B, pos_BW))
            self._book(batch, counts)
            todo += [(c, s) for c, s in batch if s.cached < s.start + c.length - 1]

    def _decode(self, rows: list[Canvas], drafts: list[int], trees: Forest | None) -> None:
        """One [B, W] forward; the logits behind the last pending position and every draft token
        reach the frontier.
        """
        branches = [(canvas, branch) for canvas in rows for branch in canvas._branches]
        draft_of = {id(canvas): draft for canvas, draft in zip(rows, drafts, strict=True)}
        counts = [s.start + c.length - s.cached + draft_of[id(c)] for c, s in branches]
        shape = self._shape(max(counts))
        begin, count, start = np.zeros((3, shape[0]), dtype=np.int64)
        column = np.zeros(shape, dtype=np.int64)
        fresh = np.zeros(shape, dtype=bool)
        for (canvas, branch), fed in zip(branches, counts, strict=True):
            draft = draft_of[id(canvas)]
            begin[branch.slot] = branch.cached
            count[branch.slot] = fed
            start[branch.slot] = branch.start
            for t in range(
                canvas._ahead + 1, draft + 1
            ):  # after a look nothing is pending: the frontier is cached
                column[branch.slot, t] = fed - draft - 1 + t
                fresh[branch.slot, t] = True
        at_BW = self._places(begin, count, shape[1])
        pos_BW, mask = (
            (None, None) if trees is None else self._arrange(rows, trees, self._tensor(at_BW))
        )
        self._compute(rows, start, at_BW, column, fresh, pos_BW, mask)
        self._book(branches, counts)
        for canvas, draft in zip(rows, drafts, strict=True):
            canvas._ahead = draft

    def _compute(
        self,
        rows: Sequence[Canvas],
        start: np.ndarray,
        at: np.ndarray,
        column: np.ndarray,
        fresh: np.ndarray,
        pos_BW: Tensor | None = None,
        mask: Mask | None = None,
    ) -> None:
        """The forward itself: logits of the columns `column` [B, W] reach the frontier where
        `fresh`; books a pass.

        `at` are places in the cache; where trees or gaps lie there, `pos` are places in the branch,
        and `mask` says what is seen.
        """
        table = torch.from_numpy(
            np.concatenate((start[:, None], at, column, fresh), 1, dtype=np.int64)
        )
        with self.working([canvas for canvas in rows for _ in canvas._branches], "decode"):
            if self._frontier_SWV is None:
                shape = (self.slots, self.tokens_per_step, self.model.vocab)
                dtype = torch.promote_types(self.model.dtype, torch.float32)
                self._frontier_SWV = torch.zeros(shape, dtype=dtype, device=self.model.device)
            if mask is None and self.graphs.state == "on":
                work = partial(self._advance, self._staging.put(at.shape, table))
                self.graphs.prepare(at.shape, work, partial(self._idle, at.shape))
                self._staging.put(at.shape, table)
                self.graphs.run(at.shape, work)
            else:
                self._advance(table.to(self.model.device), pos_BW, mask)
        self._passed(rows, 1)

    def _advance(
        self, table_BX: Tensor, pos_BW: Tensor | None = None, mask: Mask | None = None
    ) -> None:
        """Embed, blocks, head, frontier; the table's columns are those of `_compute`."""
        width = table_BX.shape[1] // 3
        start_B = table_BX[:, 0]
        (at_BW, column_BW, fresh_BW) = table_BX[:, 1:].split(width, 1)
        if pos_BW is None:
            logits_BWV = self._forward(at_BW, start_B)
        else:
            slot_B = self._slot_S[: len(table_BX)]
            attend = self._cache.attend_all(at_BW, mask)
            logits_BWV = self.model.head(self._feed(slot_B, start_B, pos_BW, at_BW, attend))
        assert self._frontier_SWV is not None
        frontier_BWV = self._frontier_SWV[: len(table_BX), :width]
        behind_BWV = logits_BWV.gather(1, column_BW.unsqueeze(-1).expand_as(logits_BWV))
        frontier_BWV.copy_(torch.where(fresh_BW.bool().unsqueeze(-1), behind_BWV, frontier_BWV))

    def _idle(self, shape: tuple[int, int]) -> None:
        """Put a table in which no row is live into the static inputs of forwards."""
        table = torch.zeros((shape[0], 1 + 3 * shape[1]), dtype=torch.int64)
        table[:, 1 : 1 + shape[1]] = self._cache.length
        self._staging.put(shape, table)

    def _passed(self, rows: Sequence[Canvas], count: int) -> None:
        """Book decoding forwards that some canvases took part in."""
        for usage in {id(canvas._usage): canvas._usage for canvas in rows}.values():
            usage.target_passes += count
        self.decode_steps += count
        self.active_branch_steps += count * sum(len(canvas._branches) for canvas in rows)

    def _shape(self, columns: int) -> tuple[int, int]:
        """Rows and columns of a decoding forward in which some branch is fed so many positions.

        A compact sampler moves the branches that are alive into the first slots, where they are not
        there yet.
        """
        if not self.compact:
            return self.slots, self.tokens_per_step
        alive = [branch for canvas in self._open.values() for branch in canvas._branches]
        rows = min(self.slots, 1 << (len(alive) - 1).bit_length())
        moved = [branch for branch in alive if branch.slot >= rows]
        if moved:
            holes = [heapq.heappop(self._free) for _ in moved]
            source = self._tensor([branch.slot for branch in moved])
            target = self._tensor(holes)
            self._copy(source, target)
            self._key_S2[target] = self._key_S2[source]
            for branch, hole in zip(moved, holes, strict=True):
                heapq.heappush(self._free, branch.slot)
                branch.slot = hole
        return rows, 1 if columns == 1 else self.tokens_per_step

    def _stand_in(self, canvas: Canvas, at: Sequence[int]) -> list[int]:
        """Puts stand-ins before places that have nothing there; returns where."""
        missing = [t - 1 for t in at if t > canvas.length and t - 1 not in canvas._islands]
        for place in missing:
            behind = [island for island in canvas._islands if island < place]
            token = (
                canvas._islands[max(behind)][0]
                if behind
                else canvas._tokens[-1]
                if canvas._tokens
                else 0
            )
            self._token_SN[self._slots(canvas), place] = token
        return missing

    def _feed_at(
        self, rows: Sequence[Canvas], places: Sequence[Sequence[int]], stand_ins: list[list[int]]
    ) -> None:
        """One [B, W] forward of all tokens not fed yet, and stand-ins; the logits of `places` reach
        the frontier.
        """
        shape = self._shape(self.tokens_per_step)
        at = np.full(shape, self._cache.length, dtype=np.int64)
        gap = np.zeros((shape[0], self._cache.length + 1), dtype=bool)
        column = np.zeros_like(at)
        start = np.zeros(shape[0], dtype=np.int64)
        fresh = np.zeros(at.shape, dtype=bool)
        for canvas, wanted, extra in zip(rows, places, stand_ins, strict=True):
            there = np.zeros(self.model.num_tokens, dtype=bool)
            there[[*range(canvas.length), *canvas._islands]] = True
            for branch in canvas._branches:
                known = [*range(branch.cached - branch.start, canvas.length), *canvas._islands]
                fed = sorted({*known, *extra} - branch.beyond)
                if len(fed) > self.tokens_per_step:
                    raise ValueError(
                        f"{len(fed)} positions wait to be fed: at most {self.tokens_per_step} fit"
                    )
                at[branch.slot, : len(fed)] = branch.start + np.asarray(fed)
                start[branch.slot] = branch.start
                gap[branch.slot, branch.start : branch.start + len(there)] = ~there
                column[branch.slot, : len(wanted)] = [fed.index(place - 1) for place in wanted]
                fresh[branch.slot, : len(wanted)] = True
                canvas._usage.text_positions += sum(place < 0 for place in fed)
                canvas._usage.target_positions += sum(place >= 0 for place in fed)
                branch.beyond |= {place for place in fed if place not in extra and place >= 0}
                branch.cached = max(branch.cached, branch.start)
                while branch.cached - branch.start in branch.beyond:
                    branch.beyond.remove(branch.cached - branch.start)
                    branch.cached += 1
        mask = GapMask(torch.from_numpy(gap).to(self.model.device))
        self._compute(rows, start, at, column, fresh, self._tensor(at), mask)
        for canvas in rows:
            canvas._ahead = self.tokens_per_step - 1

    def _land(
        self, canvas: Canvas, at: Sequence[int], tokens: list[int], log_probs: list[float]
    ) -> None:
        """Commit tokens drawn at chosen places; what has no gap before it joins the others."""
        self._token_SN[self._slots(canvas).unsqueeze(1), self._tensor(list(at))] = self._tensor(
            tokens[: len(at)]
        )
        canvas._islands.update(zip(at, zip(tokens, log_probs, strict=True), strict=False))
        canvas._usage.sampled += len(at)
        while canvas.length in canvas._islands:
            token, log_prob = canvas._islands.pop(canvas.length)
            canvas._tokens.append(token)
            canvas._log_probs.append(log_prob)
        canvas._ahead = -1
        canvas._image = None
        canvas._verdict = None

    def _arrange(self, rows: list[Canvas], trees: Forest, at_BW: Tensor) -> tuple[Tensor, TreeMask]:
        """Where in their branches the columns of a forward are, [B, W], and which draft nodes they
        see.

        A column is known by its place in the cache `at_BW`; a node is as many positions behind the
        root as it is deep.
        """
        base = np.full(len(at_BW), self._cache.length + 1)
        tree = np.zeros(len(at_BW), dtype=np.int64)
        for r, canvas in enumerate(rows):
            for branch in canvas._branches:
                base[branch.slot] = branch.start + canvas.length
                tree[branch.slot] = r
        base_B = self._tensor(base)
        tree_B1 = self._tensor(tree).unsqueeze(1)
        depth_RT = self._tensor(trees.depth_RT)
        sees_RTG = torch.from_numpy(trees.sees_RTG).to(self.model.device)
        place_BW = (at_BW - base_B.unsqueeze(1) + 1).clamp(
            0, depth_RT.shape[1] - 1
        )  # 0 for what is no node
        node_BW = (place_BW > 0) & (at_BW < self._cache.length)
        pos_BW = torch.where(node_BW, base_B.unsqueeze(1) - 1 + depth_RT[tree_B1, place_BW], at_BW)
        return pos_BW, TreeMask(base_B, sees_RTG[tree_B1, place_BW])

    def _feed(
        self, slot_B: Tensor, start_B: Tensor, pos_BW: Tensor, at_BW: Tensor, attend: Attend
    ) -> Tensor:
        """Hidden states [B, W, D]: embeds contexts and tokens at `pos`, kept at `at`; writes the
        cache, attends.
        """
        x_BWD = self._embed_at(slot_B, start_B, pos_BW, at_BW)
        hidden_BWD = self.model.forward(x_BWD, pos_BW, start_B, attend)
        if self._hidden_SLD is not None:
            self._hidden_SLD[slot_B.unsqueeze(1), at_BW] = hidden_BWD
        return hidden_BWD

    def _embed_at(self, slot_B: Tensor, start_B: Tensor, pos_BW: Tensor, at_BW: Tensor) -> Tensor:
        text_BW1 = pos_BW.clamp(max=self.model.max_context - 1).unsqueeze(-1)
        index_BW = (pos_BW - start_B.unsqueeze(1)).clamp(0, self.model.num_tokens - 1)
        kept_BW = (at_BW - start_B.unsqueeze(1)).clamp(0, self._token_SN.shape[1] - 1)
        context_BWD = self._context_SPD[slot_B].gather(1, text_BW1.expand(-1, -1, self.model.dim))
        image_BWD = self.model.embed(self._token_SN[slot_B.unsqueeze(1), kept_BW], index_BW)
        in_text_BW1 = (pos_BW < start_B.unsqueeze(1)).unsqueeze(-1)
        return torch.where(in_text_BW1, context_BWD, image_BWD)

    def _places(
        self, begin: Sequence[int] | np.ndarray, count: Sequence[int] | np.ndarray, width: int
    ) -> np.ndarray:
        """Cache positions [B, W] of a feed; columns past `count` point at the scratch position."""
        column = np.arange(width)
        place = np.asarray(begin)[:, None] + column
        return np.where(column < np.asarray(count)[:, None], place, self._cache.length)

    def _book(self, branches: list[tuple[Canvas, Branch]], counts: list[int]) -> None:
        """Advance `cached` and write the ledger after a forward."""
        for (canvas, branch), count in zip(branches, counts, strict=True):
            text = max(0, min(branch.start - branch.cached, count))
            canvas._usage.text_positions += text
            canvas._usage.target_positions += count - text
            branch.cached += count

    # ------------------------------------------------------------------ one draw

    def _depths(self, drafts: Sequence[Draft | None], width: int) -> Tensor:
        """How far behind the frontiers of some rows `tokens_per_step` laws are, [R, T]."""
        trees = build_forest(drafts, width - 1)
        if trees is None:
            return torch.arange(width, device=self.model.device).expand(len(drafts), -1)
        return self._tensor(trees.depth_RT)

    def _guided_probs(
        self,
        rows: Sequence[Canvas],
        width: int,
        depth_RT: Tensor,
        sampling: Sampling | None = None,
        logits_STV: Tensor | None = None,
    ) -> Iterator[tuple[list[int], Tensor, Callable[[], Tensor]]]:
        """Places in `rows`, logits [R, K, T, V] and what makes the laws [R, T, V] of them, for one
        guide after another.

        The logits of all slots are those at the frontiers unless others are given.
        """
        sampling = sampling or self.sampling
        if logits_STV is None:
            if not all(map(self.ready, rows)):
                raise RuntimeError("a law was asked for before its forward")
            logits_STV = self._frontier_SWV
        assert logits_STV is not None
        for (guide, _), places in _groups(rows).items():
            slot_RK = self._tensor([self._list(rows[i]) for i in places])
            scale_R = torch.tensor(
                [rows[i].scale for i in places], dtype=torch.float64, device=self.model.device
            )
            logits_RKTV = logits_STV[slot_RK, :width]
            place_RT = None
            if sampling.interval >= 0:
                place_RT = (
                    self._tensor([rows[i].length for i in places])[:, None]
                    + depth_RT[self._tensor(places)]
                )
            yield (
                places,
                logits_RKTV,
                partial(guided_probs, guide, sampling, logits_RKTV, scale_R, place_RT),
            )

    def _apply(
        self, rule: Rule, rows: list[Canvas], drafts: list[Draft | None], probs_RTV: Tensor
    ) -> tuple[list[str], Tensor]:
        """Rule and device-side commit of one group.

        Returns [R, 1 + 2T + signals]: count, committed tokens, their log-probabilities, and the
        rule's signals, named.
        """
        proposal = Drafts.stack(drafts, probs_RTV)
        noise = self.noise(rows, probs_RTV.shape[1])
        path_RG, next_R = rule(probs_RTV, proposal, noise)
        measure = getattr(rule, "signals", None)
        signals = measure(probs_RTV, proposal, noise, path_RG) if measure is not None else {}
        count_R1 = (path_RG >= 0).sum(1, keepdim=True)
        token_RT = proposal.token_RG.gather(1, path_RG.clamp(min=0))
        token_RT = torch.cat((token_RT, next_R.unsqueeze(1)), 1).scatter(
            1, count_R1, next_R.unsqueeze(1)
        )
        row_R1 = torch.arange(len(rows), device=probs_RTV.device).unsqueeze(1)
        log_prob_RT = (
            probs_RTV[row_R1, torch.nn.functional.pad(path_RG + 1, (1, 0)), token_RT].double().log()
        )
        self._keep(rows, proposal.forest, path_RG, token_RT, noise.position_RT)
        measured = [value_R.double().unsqueeze(1) for value_R in signals.values()]
        return list(signals), torch.cat(
            (count_R1.double(), token_RT.double(), log_prob_RT, *measured), 1
        )

    def _keep(
        self,
        rows: list[Canvas],
        trees: Forest | None,
        path_RG: Tensor,
        token_RT: Tensor,
        place_RT: Tensor,
    ) -> None:
        """Put the drawn token, and of a tree the accepted path's tokens, keys and values, to where
        a chain has them.
        """
        branches = [
            (r, branch.slot, branch.start)
            for r, canvas in enumerate(rows)
            for branch in canvas._branches
        ]
        row_Q, slot_Q, start_Q = self._tensor(branches).unbind(1)
        if trees is None:
            last_R1 = (path_RG >= 0).sum(1, keepdim=True)
            where_Q = place_RT.gather(1, last_R1)[row_Q, 0]
            self._token_SN[slot_Q, where_Q] = token_RT.gather(1, last_R1)[row_Q, 0]
            return
        place_QD = place_RT[row_Q, : trees.depth + 1]
        path_QD = path_RG[row_Q, : trees.depth]
        self._token_SN[slot_Q[:, None], place_QD] = token_RT[row_Q, : trees.depth + 1]
        base_Q1 = (start_Q + place_QD[:, 0]).unsqueeze(1)
        end = self._cache.length
        target_QD = base_Q1 + torch.arange(trees.depth, device=base_Q1.device)
        source_QD = torch.where(path_QD >= 0, base_Q1 + path_QD, end)
        target_QD = torch.where(path_QD >= 0, target_QD, end)
        self._cache.move_positions(slot_Q, source_QD, target_QD)
        if self._hidden_SLD is not None:
            self._hidden_SLD[slot_Q[:, None], target_QD] = self._hidden_SLD[
                slot_Q[:, None], source_QD
            ]

    def _commit_drawn(
        self, canvas: Canvas, count: int, tokens: Sequence[float], log_probs: Sequence[float]
    ) -> None:
        canvas._tokens.extend(int(token) for token in tokens[:count])
        canvas._log_probs.extend(log_probs[:count])
        canvas._usage.sampled += count
        self._rewind(canvas)

    # ------------------------------------------------------------------ slots

    def _branch(self, context: Context, slot: int | None = None) -> Branch:
        """A branch with nothing cached; its context embeddings are put into the slot."""
        context_PD = self._embed(context)
        if not 1 <= len(context_PD) <= self.model.max_context:
            raise ValueError(
                f"context of {len(context_PD)} positions: 1 to {self.model.max_context} fit"
            )
        slot = self._take_slot() if slot is None else slot
        self._context_SPD[slot, : len(context_PD)] = context_PD
        return Branch(slot, context, len(context_PD))

    def _take_slot(self) -> int:
        if not self._free:
            raise RuntimeError(f"all {self.slots} slots are taken")
        return heapq.heappop(self._free)

    def _set_key(self, canvas: Canvas, key: int) -> None:
        canvas._key = key
        self._key_S2[canvas._branches[0].slot] = self._tensor(list(words(key)))

    def _rewind(self, canvas: Canvas) -> None:
        """After the tokens changed: the last one is not cached yet, and no logits are at hand."""
        for branch in canvas._branches:
            branch.cached = max(0, min(branch.cached, branch.start + canvas.length - 1))
            branch.beyond.clear()
        canvas._ahead = -1
        canvas._image = None
        canvas._verdict = None

    def _firsts(self, rows: Sequence[Canvas]) -> Tensor:
        """The slot of every row's first branch, which holds its tokens and key."""
        return self._tensor([canvas._branches[0].slot for canvas in rows])

    def _slots(self, canvas: Canvas) -> Tensor:
        return self._tensor(self._list(canvas))

    @staticmethod
    def _list(canvas: Canvas) -> list[int]:
        return [branch.slot for branch in canvas._branches]

    def _copy(self, source: Tensor, target: Tensor) -> None:
        """Copy all that slots hold but their keys."""
        self._cache.copy_slots(source, target)
        for static in (self._context_SPD, self._token_SN, *self._frontiers()):
            static[target] = static[source]

    def _frontiers(self) -> list[Tensor]:
        return [table for table in (self._frontier_SWV, self._hidden_SLD) if table is not None]

    def _tensor(self, values: Sequence[object] | np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int64).to(self.model.device, non_blocking=True)


def _expect_whole(canvas: Canvas) -> None:
    if canvas._islands:
        raise ValueError(
            "tokens were drawn out of order: go on with draw_at until the gaps are filled, or truncate"
        )


def _groups(rows: Sequence[Canvas]) -> dict[tuple[Guide, int], list[int]]:
    """Which of the canvases share a guide and a number of branches, by their places in `rows`."""
    groups: dict[tuple[Guide, int], list[int]] = {}
    for place, canvas in enumerate(rows):
        groups.setdefault((canvas._guide, len(canvas._branches)), []).append(place)
    return groups


def _followed(draft: Draft | None) -> Draft | None:
    return draft if draft is not None and draft.followed else None


def _expect_open(*canvases: Canvas) -> None:
    if any(canvas.closed for canvas in canvases):
        raise ValueError("the canvas is closed")
