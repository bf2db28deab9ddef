"""The shared batched sampler: opens and closes canvases, and puts them through forwards and draws.

Reading order: `canvas` (state of one image), `slots` (device tables), `forward` (pending positions
to logits), `draw` (logits to tokens); this file is the facade over them. `bursts`, `cuda_graphs`
and `out_of_order` are appendices. No method logic and no policy is here.

Four paths draw a token:

    draw, no draft         one token a row; one copy to the host a decode step
    draw, with drafts      a rule verifies a chain or tree and draws one more token
    burst                  up to 64 decode steps without the host, while all rows only draw
    step_at                drafts and tokens at chosen places out of raster order (ZipAR, PJD)

All take noise that is keyed by (canvas, place), so they draw the same tokens where they may be
exchanged for each other: a burst for single steps, an exact rule without drafts for a plain draw.

Shapes: S slots, R canvases, K branches of a canvas, W positions per forward, T = 1 + draft length,
P context length, N image tokens, V vocabulary, D model width, B rows of a drafter's forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from harness import kernels
from harness.engine.acceptance import Draft, DraftVerdict, Front, Rule, length_of_draft
from harness.engine.bursts import BurstDecode
from harness.engine.canvas import Canvas, Context, ledgers_of
from harness.engine.cuda_graphs import Graphs
from harness.engine.draw import TokenDraw, kernel_use
from harness.engine.forward import Forward
from harness.engine.guidance import Guide, ImageGuide, Sampling, cfg, unguided
from harness.engine.meter import Clock
from harness.engine.out_of_order import OutOfOrderDraw
from harness.engine.probes import Probe
from harness.engine.rendering import Image, Picture, Renderer
from harness.engine.slots import SlotTable
from harness.kernels.noise import Noise, derive
from harness.models import ImageModel
from harness.models.raster import FORCED_TOKEN, Raster
from harness.records import SourceImage, Stage, Usage, UserError


class Sampler:
    """Slots, cache, randomness and ledger for one model on one device.

    `slots` branches are alive at once. `tokens_per_step` positions of a branch fit into one decode
    forward: 1, or 1 + draft length. `tree_capacity` positions behind the image are for the nodes of
    draft trees. `prefill` is the constant [rows, positions] shape of prefill forwards,
    `render_batch` that of the image decoder. `compact` skips idle slots: faster, but results depend
    on how many branches are alive. With `hidden` the sampler keeps the hidden state of each
    position that it feeds, for drafters that continue them (`hidden_states`).

    Raises UserError for sizes that cannot be.
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
        self.table = SlotTable(
            model,
            slots,
            tokens_per_step=tokens_per_step,
            tree_capacity=tree_capacity,
            hidden=hidden,
        )
        self._clock = Clock(model.device)
        self._forward = Forward(
            model,
            self.table,
            self._clock,
            tokens_per_step=tokens_per_step,
            tree_capacity=tree_capacity,
            prefill=prefill,
            compact=compact,
        )
        self._draw = TokenDraw(sampling, self.table, self._clock)
        self._bursts = BurstDecode(sampling, self.table, self._forward, self._clock)
        self._out_of_order = OutOfOrderDraw(
            self.table,
            self._forward,
            self._draw,
            self._clock,
            num_tokens=model.num_tokens,
            stride=self.table.raster.stride,
            tokens_per_step=tokens_per_step,
        )
        self._renderer = Renderer(model, render_batch)
        self._kernel_uses = _examine_kernels(model, self.table, sampling)

    # ------------------------------------------------------------------ what it is and has done

    @property
    def free(self) -> int:
        """Count the slots that no branch holds."""
        return self.table.free

    @property
    def raster(self) -> Raster:
        """Return the places of an image."""
        return self.table.raster

    @property
    def positions(self) -> int:
        """Count the positions of a slot: context, image and tree capacity."""
        return self.table.cache.length

    @property
    def hidden(self) -> bool:
        """Tell whether hidden states are kept."""
        return self.table.hidden_SLD is not None

    @property
    def graphs(self) -> Graphs:
        """Return the captured forwards and bursts."""
        return self._forward.graphs

    @property
    def kernels_used(self) -> str:
        """Say which kernels serve, for records: "Triton", or what is left to torch, and why."""
        said = kernels.describe(self.model.device, self._kernel_uses)
        rule = self._forward.row_rule
        products = rule.describe() if rule else ""
        return "; ".join(part for part in (said, products) if part)

    def rows_alike(self) -> AbstractContextManager[object]:
        """Hold the products inside to treat all rows alike, if the sampler's shapes are constant.

        For drafters that compute on its slots.
        """
        return self._forward.rows_alike()

    @property
    def decode_steps(self) -> int:
        """Count the decode forwards so far."""
        return self._forward.decode_steps

    @property
    def active_branch_steps(self) -> int:
        """Count the live branches of all decode forwards so far.

        Over `decode_steps` times `slots` it is the slot utilisation.
        """
        return self._forward.active_branch_steps

    def working(self, rows: Sequence[Canvas], stage: Stage) -> AbstractContextManager[None]:
        """Charge the device time of the work inside to a stage, shared evenly among the rows."""
        return self._clock.measure(ledgers_of(rows), stage)

    def settle(self, usage: Usage | None = None) -> None:
        """Bring the device seconds of one job, or of all, up to date; wait for the device."""
        self._clock.settle(usage)

    # ------------------------------------------------------------------ lifecycle of a canvas

    def contexts(self, text: str, source: SourceImage | None = None) -> tuple[list[Context], Guide]:
        """Return contexts and guide of an ordinary canvas, which edits `source` if there is one.

        Under guidance they are the null prompt and the text, without it the text alone. Guided by
        the source, the empty image comes before them.
        """
        if self.sampling.scale == 1 and not self.sampling.guides_by_image:
            return [Context(text, text, source)], unguided
        contexts = [Context(None, text, source), Context(text, text, source)]
        return self.guide_by_image(contexts, cfg)

    def guide_by_image(self, contexts: list[Context], guide: Guide) -> tuple[list[Context], Guide]:
        """Add the empty image to the contexts of an edit, where sampling guides by the source."""
        if not self.sampling.guides_by_image:
            return contexts, guide
        empty = Context(None, contexts[0].like)
        return [empty, *contexts], ImageGuide(guide, self.sampling.image_scale)

    def open(self, contexts: Sequence[Context], guide: Guide, key: int, usage: Usage) -> Canvas:
        """Open a canvas with no tokens.

        Raises RuntimeError when slots run out: the scheduler reserves them.
        """
        canvas = Canvas(key, usage, self.raster, self.sampling.scale, guide)
        with self.working([canvas], "text"):
            canvas.branches = [self.table.open_branch(context) for context in contexts]
        self.table.set_key(canvas, key)
        self.table.register(canvas)
        return canvas

    def close(self, canvas: Canvas) -> None:
        """Give the slots of a canvas back; what it has drawn counts as discarded."""
        canvas.discard()
        self.table.release(canvas)

    def release(self, canvas: Canvas) -> None:
        """Give the slots of a canvas back that was delivered."""
        self.table.release(canvas)

    def fork(self, src: Canvas, over: Canvas) -> None:
        """Make `over` a copy of `src` with a new key: the same past, another future.

        Nothing is drawn.
        """
        src.expect_open()
        over.expect_open()
        src.expect_no_gap()
        self.table.resize(over, len(src.branches), src.branches[0].context)
        over.copy_from(src)
        self.table.copy(self.table.slots_of(src), self.table.slots_of(over))
        self.table.set_key(over, derive(over.key, "fork", over.version))

    def condition(self, canvas: Canvas, contexts: Sequence[Context], guide: Guide) -> None:
        """Change what the branches are conditioned on.

        Unchanged branches keep their cache, all others are fed anew.
        """
        canvas.expect_open()
        canvas.expect_no_gap()
        self.table.resize(canvas, min(len(canvas.branches), len(contexts)), contexts[0])
        with self.working([canvas], "text"):
            for k, context in enumerate(contexts):
                if k == len(canvas.branches):
                    canvas.branches.append(self.table.open_branch(context))
                elif canvas.branches[k].context != context:
                    slot = canvas.branches[k].slot
                    canvas.branches[k] = self.table.open_branch(context, slot)
        # Branches that were just added have no tokens in their slots yet.
        self.table.write_tokens(canvas, 0, canvas.tokens)
        canvas.condition(guide)

    def truncate(self, canvas: Canvas, length: int) -> None:
        """Keep the first `length` tokens, none behind a gap.

        Drawing again gives the same tokens, because noise is keyed by place. Raises ValueError if
        there are not so many.
        """
        canvas.expect_open()
        canvas.truncate(length)

    def commit(self, canvas: Canvas, tokens: Sequence[int]) -> None:
        """Append tokens that the target has not seen; the next forward caches them.

        Raises ValueError for tokens outside the vocabulary, for other tokens than 0 at forced
        places, and for more tokens than the image has left.
        """
        canvas.expect_open()
        canvas.expect_no_gap()
        if len(tokens) > canvas.left:
            raise ValueError(
                f"commit of {len(tokens)} tokens at {canvas.length}: "
                f"the image has {self.model.num_tokens}"
            )
        if not all(0 <= token < self.model.vocab for token in tokens):
            raise ValueError(f"commit of tokens outside 0..{self.model.vocab - 1}: {list(tokens)}")
        for place, token in enumerate(tokens, canvas.length):
            if self.raster.is_forced(place) and token != FORCED_TOKEN:
                raise ValueError(
                    f"commit of token {token} at the forced place {place}, which holds "
                    f"{FORCED_TOKEN}"
                )
        self.table.write_tokens(canvas, canvas.length, list(tokens))
        canvas.append_unseen(tokens)

    # ------------------------------------------------------------------ forwards and draws

    def ready(self, canvas: Canvas, draft: Draft | None = None) -> bool:
        """Tell whether the logits that a draw needs are at hand."""
        return canvas.is_ready(length_of_draft(draft))

    @torch.no_grad()
    def forward(self, rows: Sequence[Canvas], drafts: Sequence[Draft | None]) -> None:
        """Compute the logits at each frontier and behind each draft token, where they are missing.

        Branches with more pending positions than fit are prefilled first. Raises ValueError for a
        finished canvas, and for a draft of more than `tokens_per_step` - 1 tokens or reaching
        beyond the last token but one.
        """
        self._forward.bring_logits(rows, drafts)

    @torch.no_grad()
    def probe(
        self,
        rows: Sequence[Canvas],
        probe: Probe,
        drafts: Sequence[Draft | None] | None = None,
    ) -> list[list[dict[str, float]]]:
        """Measure signals at the frontiers of rows, and behind each draft token; draw nothing.

        The rows must be ready.
        """
        return self._draw.probe(rows, drafts or [None] * len(rows), probe)

    @torch.no_grad()
    def draw(self, rows: Sequence[Canvas], drafts: Sequence[Draft | None], rule: Rule) -> list[int]:
        """Verify drafts by a rule and draw one more token each; return accepted tokens per row."""
        if not rows:
            return []
        return self._draw.draw(rows, drafts, rule)

    @torch.no_grad()
    def burst(self, rows: Sequence[Canvas], most: int) -> int:
        """Draw up to `most` tokens of each row without the host in between; return how many.

        It is 0 if a row has something else to feed first. Tokens, log-probabilities and ledger are
        those of as many forwards and draws by `exact`.
        """
        return self._bursts.run(rows, most)

    @torch.no_grad()
    def step_at(
        self, rows: Sequence[Canvas], fronts: Sequence[Sequence[Front]], rule: Rule
    ) -> list[list[int]]:
        """Verify the drafts at the fronts of each row by a rule, and draw a token behind each.

        One forward serves all; see `out_of_order`. Returns how many tokens of each draft were
        accepted. Raises ValueError for places that have a token or lie beyond the image, for fronts
        that get in each other's way, and where more positions wait to be fed than
        `tokens_per_step`.
        """
        return self._out_of_order.step_at(rows, fronts, rule)

    # ------------------------------------------------------------------ pictures

    def render(
        self, rows: Sequence[Canvas], pads: Sequence[tuple[int, ...]] | None = None
    ) -> list[Image]:
        """Decode images of canvases, partial ones included, and wait for them."""
        return [picture.image() for picture in self.begin_render(rows, pads)]

    def begin_render(
        self, rows: Sequence[Canvas], pads: Sequence[tuple[int, ...]] | None = None
    ) -> list[Picture]:
        """Begin to decode images of canvases, partial ones included; later work goes on meanwhile.

        An unchanged canvas is decoded once. `pads` are codes to show behind each row's own, none
        for forced places; what is still missing then looks as the model shows it.
        """
        for canvas in rows:
            canvas.expect_open()
        wanted = list(zip(rows, pads or [()] * len(rows), strict=True))
        pictures: dict[tuple[Canvas, tuple[int, ...]], Picture] = {}
        todo: list[tuple[Canvas, tuple[int, ...]]] = []
        for canvas, pad in dict.fromkeys(wanted):
            known = canvas.picture_of(pad)
            if known is None:
                todo.append((canvas, pad))
            else:
                pictures[canvas, pad] = known
        for first in range(0, len(todo), self._renderer.chunk):
            chunk = todo[first : first + self._renderer.chunk]
            tokens = []
            for canvas, pad in chunk:
                tokens.append([*canvas.tokens, *self.raster.lay_out(pad, canvas.length)])
            with self._renderer.beside(), self.working([canvas for canvas, _ in chunk], "render"):
                decoded = self._renderer.decode(tokens)
            for (canvas, pad), picture in zip(chunk, decoded, strict=True):
                canvas.keep_picture(pad, picture)
                pictures[canvas, pad] = picture
        return [pictures[one] for one in wanted]

    # ------------------------------------------------------------------ for drafters

    def verdict(self, canvas: Canvas) -> DraftVerdict | None:
        """Return what the last draw said of its draft.

        None if the draft was not followed or the canvas has changed since.
        """
        return canvas.verdict

    def verdict_at(self, canvas: Canvas, place: int) -> DraftVerdict | None:
        """Return what the last step at a front said of its draft in the row of `place`.

        None if there was none, or the canvas was changed otherwise since.
        """
        return canvas.front_verdicts.get(place // self.raster.stride)

    def tokens(self, rows: Sequence[Canvas]) -> Tensor:
        """Return the tokens of the rows on the device, int64 [R, N].

        What stands behind a row's length means nothing.
        """
        return self.table.token_SN[self.table.first_slots(rows)]

    def noise(self, rows: Sequence[Canvas], width: int) -> Noise:
        """Return the noise of the next `width` places of each row."""
        return self._draw.noise(rows, width)

    def noise_at(self, rows: Sequence[Canvas], places: Sequence[int], width: int) -> Noise:
        """Return the noise of `width` places from a front of each row on, as `step_at` uses it."""
        return self._out_of_order.noise(rows, places, width)

    def branch_spans(self, canvas: Canvas) -> list[tuple[int, int, int]]:
        """Return slot, context length and cached positions of each branch of a canvas."""
        return [(branch.slot, branch.start, branch.cached) for branch in canvas.branches]

    def embed_positions(self, slot_B: Tensor, start_B: Tensor, pos_BW: Tensor) -> Tensor:
        """Embed what enters the model at some positions of branches, [B, W, D]."""
        return self.table.embed(slot_B, start_B, pos_BW)

    def tokens_at(self, slot_B: Tensor, start_B: Tensor, pos_BW: Tensor) -> Tensor:
        """Return image tokens at some positions of branches, [B, W].

        At context positions they mean nothing.
        """
        place_BW = (pos_BW - start_B.unsqueeze(1)).clamp(0, self.model.num_tokens - 1)
        return self.table.token_SN[slot_B.unsqueeze(1), place_BW]

    def hidden_states(self, slot_B: Tensor, pos_BW: Tensor) -> Tensor:
        """Return the hidden states of cached positions, [B, W, D].

        Those of other positions mean nothing. Raises RuntimeError if none are kept.
        """
        if self.table.hidden_SLD is None:
            raise RuntimeError("the sampler keeps no hidden states: make it with hidden=True")
        return self.table.hidden_SLD[slot_B.unsqueeze(1), pos_BW]

    @torch.no_grad()
    def target_probs(
        self,
        rows: Sequence[Canvas],
        drafts: Sequence[Draft | None],
        sampling: Sampling | None = None,
    ) -> Tensor:
        """Return the target's probs [R, T, V] at the frontiers and behind each draft token.

        The rows must be ready. `sampling` replaces the sampler's own. Columns that a row's draft
        does not have are zero. Draws nothing.
        """
        return self._draw.target_probs(rows, drafts, sampling)

    def guided_probs(
        self,
        rows: Sequence[Canvas],
        logits_STV: Tensor,
        ahead: int,
        sampling: Sampling | None = None,
    ) -> Tensor:
        """Make probs [R, T, V] of a drafter's logits of all slots, under the guides of the rows.

        All columns are `ahead` places behind the rows' frontiers; `sampling` replaces the sampler's
        own.
        """
        shape = (len(rows), logits_STV.shape[1])
        depth_RT = torch.full(shape, ahead, device=logits_STV.device)
        return self._draw.gather_probs(rows, depth_RT, sampling, logits_STV)

    def charge_drafted(self, canvas: Canvas, positions: int, device_s: float = 0.0) -> None:
        """Charge positions that a drafter computed for a canvas, and device seconds of its own."""
        canvas.ledger.drafted_positions += positions
        canvas.ledger.device_s += device_s
        canvas.ledger.draft_s += device_s


def _examine_kernels(model: ImageModel, table: SlotTable, sampling: Sampling) -> list[kernels.Use]:
    """List what kernels may be asked for; what every image needs is tried now, before the first."""
    keys = table.cache.keys
    logits_dtype = torch.promote_types(model.dtype, torch.float32)
    attention = kernels.Use("attention", keys.dtype, keys.shape[-1])
    uses = [attention]
    if not sampling.follows_entropy:  # no kernel measures entropies before it draws
        uses.append(kernel_use(sampling, logits_dtype, model.vocab))
    for use in uses:
        kernels.why_unused(model.device, use)
    return [*uses, kernels.Use("signals", logits_dtype, model.vocab)]
