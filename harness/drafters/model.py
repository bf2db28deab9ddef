"""An independent draft model over the same image tokens, with a cache of its own (speculative
decoding).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from harness.engine.acceptance import Draft, Drafts
from harness.engine.canvas import Canvas
from harness.engine.draft_trees import Parents, Tree
from harness.engine.sampler import Sampler
from harness.kernels.noise import DRAFT, Noise
from harness.models import ImageModel
from harness.records import Usage, UserError


class DraftModel:
    """Proposes chains, or trees, of a smaller model, each token with the law it was drawn from.

    `model` makes the draft model on a device. It runs in a sampler of its own, in which every
    canvas has a shadow that follows the canvas's committed tokens; rejected tokens are rewound
    there like anywhere else. `guided` drafts with the target's guidance (two branches), otherwise
    from the text alone: both are lossless under an exact rule. Its computed positions are booked as
    `drafted_positions` of the canvas's job. What it computed in a tree is forgotten after the
    round. At temperature 0 trees are ranked by the laws of temperature 1.
    """

    trees = True

    def __init__(self, model: Callable[..., ImageModel], guided: bool = True) -> None:
        self._make = model
        self.guided = guided
        self._model: ImageModel | None = None
        self._target: Sampler | None = None
        self._draft: Sampler | None = None
        self._shadows: dict[int, tuple[Canvas, Canvas]] = {}

    @property
    def id(self) -> str:
        """Names the weights."""
        model = self._model or self._make()
        return f"{model.name}-{model.revision}"

    def expect_target(self, target: ImageModel) -> None:
        """Raise UserError unless the draft model draws the same tokens on the same grid as
        `target`.
        """
        model = self._loaded(target.device)
        for what in ("vocab", "grid"):
            mine = getattr(model, what)
            theirs = getattr(target, what)
            if mine != theirs:
                raise UserError(
                    f"drafter {self.id}: its {what} is {mine}, the model's is {theirs}; choose its drafter"
                )
        if not torch.equal(model.codebook.float(), target.codebook.float()):
            raise UserError(
                f"drafter {self.id} was made for another tokenizer than {target.name}'s; choose its drafter"
            )

    def propose(
        self, sampler: Sampler, rows: Sequence[Canvas], n: int | Tree, sibling: int = 0
    ) -> list[Draft | None]:
        """Chains of up to `n` tokens, or trees, cut at the image's end so that one more token fits;
        None if none does.

        Siblings draw in lanes of their own.
        """
        shadows = self._follow(sampler, rows, n)
        assert self._draft is not None
        before = [replace(shadow.ledger) for shadow in shadows]
        left = [sampler.model.num_tokens - canvas.length - 1 for canvas in rows]
        if isinstance(n, int):
            drafts = self._chains(shadows, n, left, sibling)
        else:
            drafts = self._trees(shadows, n, left, sibling)
        self._draft.settle()
        for canvas, shadow, old in zip(rows, shadows, before, strict=True):
            positions = shadow.ledger.target_positions + shadow.ledger.text_positions
            canvas.ledger.drafted_positions += positions - old.target_positions - old.text_positions
            canvas.ledger.device_s += shadow.ledger.device_s - old.device_s
            canvas.ledger.draft_s += shadow.ledger.device_s - old.device_s
        return drafts

    def _chains(
        self, shadows: list[Canvas], n: int, left: list[int], sibling: int
    ) -> list[Draft | None]:
        assert self._draft is not None
        drawn: list[list[tuple[Tensor, Tensor]]] = [[] for _ in shadows]
        for depth in range(max((min(n, most) for most in left), default=0)):
            active = [i for i, most in enumerate(left) if min(n, most) > depth]
            nothing = [None] * len(active)
            self._draft.forward([shadows[i] for i in active], nothing)
            recorder = _Recorder(DRAFT + sibling)
            self._draft.draw([shadows[i] for i in active], nothing, recorder)
            for i, token, probs_V in zip(active, recorder.token_R, recorder.probs_RV, strict=True):
                drawn[i].append((token, probs_V))
        return [_chain(pairs) if pairs else None for pairs in drawn]

    def _trees(
        self, shadows: list[Canvas], tree: Tree, left: list[int], sibling: int
    ) -> list[Draft | None]:
        draft = cast(Sampler, self._draft)
        at = [i for i, most in enumerate(left) if most > 0]
        if not at:
            return [None] * len(left)
        rows = [shadows[i] for i in at]
        greedy = draft.sampling.temperature == 0
        sampling = (
            replace(draft.sampling, temperature=1.0, top_k=0, top_p=1.0)
            if greedy
            else draft.sampling
        )
        fed: list[Draft] = [Draft(torch.empty(0, dtype=torch.int64), None, ()) for _ in rows]

        def feed(active: Sequence[int], token_AF: Tensor, parent_AF: Tensor) -> Tensor:
            for i, tokens, parents in zip(active, token_AF.cpu(), parent_AF.tolist(), strict=True):
                fed[i] = Draft(
                    torch.cat((fed[i].tokens, tokens)),
                    None,
                    (*cast(Parents, fed[i].parents), *parents),
                )
            some = [rows[i] for i in active]
            trees = [fed[i] for i in active]
            draft.forward(some, trees)
            return draft.target_probs(some, trees, sampling)[:, -token_AF.shape[1] :]

        nothing = [None] * len(rows)
        draft.forward(rows, nothing)
        probs_RV = draft.target_probs(rows, nothing, sampling)[:, 0]
        tree_capacity = [left[i] for i in at]
        grown = tree.grow(
            probs_RV, feed, draft.noise(rows, tree.depth), tree_capacity, greedy, sibling
        )
        for shadow in rows:
            draft.truncate(shadow, shadow.length)
        drafts: list[Draft | None] = [None] * len(left)
        for i, one in zip(at, grown, strict=True):
            drafts[i] = Draft(one.token_G, one.probs_GV, one.parents)
        return drafts

    def _loaded(self, device: torch.device) -> ImageModel:
        if self._model is None or self._model.device != device:
            self._model = self._make(device=device)
        return self._model

    def _follow(self, sampler: Sampler, rows: Sequence[Canvas], n: int | Tree) -> list[Canvas]:
        """Shadows of `rows`, each with exactly the canvas's tokens, contexts and guidance scale."""
        if self._target is not sampler:
            sampling = sampler.sampling if self.guided else replace(sampler.sampling, scale=1.0)
            self._target = sampler
            self._shadows = {}
            self._draft = Sampler(
                self._loaded(sampler.model.device),
                sampling,
                slots=sampler.slots,
                # not cached after a round: the last drafted token and the target's own; or, of a
                # tree, the whole path
                tokens_per_step=2 if isinstance(n, int) else max(2 + n.depth, 1 + n.fed),
                tree_capacity=0 if isinstance(n, int) else n.fed,
                prefill=sampler.prefill,
                compact=sampler.compact,
            )
        draft = cast(Sampler, self._draft)
        for number, (canvas, shadow) in list(self._shadows.items()):
            if canvas.closed:
                draft.close(shadow)
                del self._shadows[number]
        return [self._shadow(draft, canvas) for canvas in rows]

    def _shadow(self, draft: Sampler, canvas: Canvas) -> Canvas:
        text = canvas.contexts[:2][-1]  # (null, text, ...) under guidance, (text,) without
        contexts, guide = draft.contexts(text.like)
        if text.text != text.like:
            contexts[-1] = text
        if id(canvas) not in self._shadows:
            self._shadows[id(canvas)] = canvas, draft.open(contexts, guide, canvas.key, Usage())
        _, shadow = self._shadows[id(canvas)]
        if list(shadow.contexts) != contexts:
            draft.condition(shadow, contexts, guide)
        agreed = _agreement(canvas.tokens, shadow.tokens)
        if agreed < shadow.length:
            draft.truncate(shadow, agreed)
        if agreed < canvas.length:
            draft.commit(shadow, canvas.tokens[agreed:])
        shadow.scale = canvas.scale
        return shadow


class _Recorder:
    """A rule that draws in the drafter's lane and remembers what it drew, and from which laws."""

    token_R: Tensor
    probs_RV: Tensor

    def __init__(self, lane: int) -> None:
        self.lane = lane

    def __call__(self, probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
        self.probs_RV = probs_RTV[:, 0]
        self.token_R = noise.race(self.lane, probs_RTV)[:, 0]
        return drafts.token_RG, self.token_R


def _chain(pairs: list[tuple[Tensor, Tensor]]) -> Draft:
    return Draft(
        torch.stack([token for token, _ in pairs]), torch.stack([probs_V for _, probs_V in pairs])
    )


def _agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
