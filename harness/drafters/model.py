"""Speculative decoding with an independent draft model, which has a sampler of its own.

The draft model is a smaller image model over the same image tokens. Shapes: R rows (canvases), A
rows whose trees still grow, F nodes fed at once, T places, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.engine.acceptance import Draft, Drafts
from harness.engine.canvas import Canvas
from harness.engine.draft_trees import Parents, Tree
from harness.engine.guidance import Sampling
from harness.engine.memory_need import SamplerShape, list_sampler_parts, rename_parts
from harness.engine.sampler import Sampler
from harness.kernels.noise import DRAFT, Noise
from harness.models import EditsImages, ImageModel
from harness.records import MemoryPart, Usage, UserError


@dataclass(slots=True)
class _DraftCanvas:
    """A canvas of the draft model's sampler that follows a canvas of the target's."""

    target: Canvas
    canvas: Canvas
    usage: Usage  # what the draft model has spent on it
    charged: Usage  # as much of that as the target's job has been charged


@dataclass(frozen=True, slots=True)
class _DraftSampler:
    """A sampler of the draft model, and its draft canvases by the id of the target's canvas."""

    sampler: Sampler
    canvases: dict[int, _DraftCanvas]


class DraftModel:
    """Draft chains and trees with a smaller model; each token comes with its distribution.

    `model` makes the draft model on a device. It runs in a sampler of its own, in which every
    canvas of the target has a draft canvas: the same committed tokens, contexts and guidance scale.
    Rejected tokens are rewound there as on any canvas, and nodes of a tree are forgotten once the
    tree is grown. `guided` drafts with the target's guidance (two branches), otherwise from the
    text alone; both are lossless under an exact rule. Positions that the draft model computes are
    charged to the canvas's job as `drafted_positions`. At temperature 0, trees are ranked by the
    distributions of temperature 1. Chains and trees that need forwards of another shape have a
    sampler each, so that no draft depends on what else was drafted.
    """

    trees = True  # `propose` also takes the shape of a tree

    def __init__(self, model: Callable[..., ImageModel], guided: bool = True) -> None:
        self._make_model = model
        self.guided = guided
        self._model: ImageModel | None = None
        self._target_sampler: Sampler | None = None
        # By the positions of a forward, and of a tree.
        self._draft_samplers: dict[tuple[int, int], _DraftSampler] = {}

    @property
    def id(self) -> str:
        """Name the weights, for records."""
        model = self._model or self._make_model()
        return f"{model.name}-{model.revision}"

    def expect_target(self, target: ImageModel) -> None:
        """Raise UserError unless the draft model draws the target's tokens on the same grid."""
        model = self._load_model(target.device)
        if isinstance(target, EditsImages):
            raise UserError(
                f"drafter {self.id} drafts from texts and sees no source image, as edits by "
                f"{target.name} have: choose a method without a draft model, such as method=sjd"
            )
        for what in ("vocab", "grid", "num_tokens"):
            mine = getattr(model, what)
            theirs = getattr(target, what)
            if mine != theirs:
                raise UserError(
                    f"drafter {self.id}: its {what} is {mine}, "
                    f"the model's is {theirs}; choose its drafter"
                )
        if not torch.equal(model.codebook.float(), target.codebook.float()):
            raise UserError(
                f"drafter {self.id} was made for another tokenizer than {target.name}'s; "
                "choose its drafter"
            )

    def memory_need(self, model: ImageModel, shape: SamplerShape) -> list[MemoryPart]:
        """List the draft model's weights, and what its own samplers take."""
        draft_model = self._load_model(model.device)
        parts: dict[str, list[MemoryPart]] = {}
        for tokens_per_step, tree_capacity in _list_draft_sizes(shape):
            draft_shape = SamplerShape(
                shape.device, tokens_per_step, shape.prefill, 1, tree_capacity
            )
            for part in list_sampler_parts(draft_model, draft_shape):
                parts.setdefault(part.name, []).append(part)
        parts["weights"] = parts["weights"][:1]  # its samplers share them
        parts["image decoder"] = []  # it shows no pictures
        kept = [part for alike in parts.values() for part in alike]
        return rename_parts(kept, draft_model.name)

    def release(self) -> None:
        """Forget the target's sampler, and all that was made beside it; the weights stay."""
        self._target_sampler = None
        self._draft_samplers.clear()

    def propose(
        self, sampler: Sampler, rows: Sequence[Canvas], n: int | Tree, sibling: int = 0
    ) -> list[Draft | None]:
        """Draft a chain of up to `n` tokens, or a tree of shape `n`, for every row.

        A draft ends early enough that one more token fits into the image; None if no draft fits.
        Each `sibling` draws with noise of its own.
        """
        # 1. Bring the draft canvases to the state of the rows.
        drafting = self._prepare_sampler(sampler, n)
        draft_sampler = drafting.sampler
        for one in self._draft_samplers.values():
            _close_unused(one)
        followers = [_follow(drafting, canvas) for canvas in rows]

        # 2. Draft on them.
        canvases = [follower.canvas for follower in followers]
        max_depth = [sampler.model.num_tokens - canvas.length - 1 for canvas in rows]
        if isinstance(n, int):
            lengths = [min(n, depth) for depth in max_depth]
            drafts = _draft_chains(draft_sampler, canvases, lengths, sibling)
        else:
            drafts = _draft_trees(draft_sampler, canvases, n, max_depth, sibling)

        # 3. Charge what this took.
        draft_sampler.settle()
        for follower in followers:
            _charge_what_is_new(sampler, follower)
        return drafts

    def _load_model(self, device: torch.device) -> ImageModel:
        if self._model is None or self._model.device != device:
            try:
                self._model = self._make_model(device=device)
            except UserError as error:  # it names the options of the run's own model
                message = re.sub(r"(?<![\w./])model\.(?=[a-z_.]+=)", "drafter.model.", str(error))
                raise UserError(message) from None
        return self._model

    def _prepare_sampler(self, sampler: Sampler, n: int | Tree) -> _DraftSampler:
        """Return the draft model's sampler for such drafts; another target drops the earlier ones.

        It has the shape that a draft needs: the same for chains of any length.
        """
        if self._target_sampler is not sampler:
            self._draft_samplers.clear()
            self._target_sampler = sampler
        sizes = _draft_sizes(n)
        if sizes in self._draft_samplers:
            return self._draft_samplers[sizes]

        tokens_per_step, tree_capacity = sizes
        sampling = sampler.sampling if self.guided else replace(sampler.sampling, scale=1.0)
        draft_sampler = Sampler(
            self._load_model(sampler.model.device),
            sampling,
            slots=sampler.slots,
            tokens_per_step=tokens_per_step,
            tree_capacity=tree_capacity,
            prefill=sampler.prefill,
            compact=sampler.compact,
        )
        self._draft_samplers[sizes] = _DraftSampler(draft_sampler, {})
        return self._draft_samplers[sizes]


def _draft_sizes(n: int | Tree) -> tuple[int, int]:
    """Return the positions of a forward, and of a tree, of the sampler for such drafts."""
    if isinstance(n, int):
        # Not cached after a verification: the last drafted token and the target's own.
        return 2, 0
    # Not cached after a verification: the whole accepted path.
    return max(2 + n.depth, 1 + n.fed), n.fed


def _list_draft_sizes(shape: SamplerShape) -> list[tuple[int, int]]:
    """List the sizes of the samplers for a method's drafts.

    Where the method drafts trees and does not hold their shapes, they are bounded by the target's.
    """
    if shape.trees:
        return sorted({_draft_sizes(tree) for tree in shape.trees})
    if shape.tree_capacity:
        return [(1 + shape.tokens_per_step, shape.tree_capacity)]
    return [_draft_sizes(shape.tokens_per_step - 1)]


def _close_unused(drafting: _DraftSampler) -> None:
    """Close the draft canvases of canvases that the target has closed."""
    for key, follower in list(drafting.canvases.items()):
        if follower.target.closed:
            drafting.sampler.close(follower.canvas)
            del drafting.canvases[key]


def _follow(drafting: _DraftSampler, target: Canvas) -> _DraftCanvas:
    """Return the draft canvas of a canvas, with its tokens, contexts and guidance scale."""
    draft_sampler = drafting.sampler

    # 1. Contexts: (null, text, ...) under guidance, (text,) without.
    text = target.contexts[:2][-1]
    contexts, guide = draft_sampler.contexts(text.like)
    if text.text != text.like:
        contexts[-1] = text

    # 2. Open a draft canvas with the target's noise, or change what it is conditioned on.
    follower = drafting.canvases.get(id(target))
    if follower is None:
        usage = Usage()
        canvas = draft_sampler.open(contexts, guide, target.key, usage)
        follower = _DraftCanvas(target, canvas, usage, charged=Usage())
        drafting.canvases[id(target)] = follower
    canvas = follower.canvas
    if list(canvas.contexts) != contexts:
        draft_sampler.condition(canvas, contexts, guide)

    # 3. Keep the tokens that agree, and take over the others.
    agreed = _common_prefix(target.tokens, canvas.tokens)
    if agreed < canvas.length:
        draft_sampler.truncate(canvas, agreed)
    if agreed < target.length:
        draft_sampler.commit(canvas, target.tokens[agreed:])
    canvas.scale = target.scale
    return follower


def _charge_what_is_new(sampler: Sampler, follower: _DraftCanvas) -> None:
    """Charge what was spent on a draft canvas, and not charged yet, to the job of its target."""
    spent = follower.usage
    charged = follower.charged
    target_positions = spent.target_positions - charged.target_positions
    text_positions = spent.text_positions - charged.text_positions
    device_s = spent.device_s - charged.device_s
    sampler.charge_drafted(follower.target, target_positions + text_positions, device_s)
    follower.charged = replace(spent)


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading tokens are equal."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


# ------------------------------------------------------------------ chains


def _draft_chains(
    sampler: Sampler, canvases: list[Canvas], lengths: list[int], sibling: int
) -> list[Draft | None]:
    """Draw chains token by token; a canvas drops out when its chain has its length."""
    tokens: list[list[Tensor]] = [[] for _ in canvases]
    probs: list[list[Tensor]] = [[] for _ in canvases]
    for depth in range(max(lengths, default=0)):
        # 1. One forward of the canvases whose chains still grow.
        active = [i for i, length in enumerate(lengths) if length > depth]
        growing = [canvases[i] for i in active]
        no_drafts = [None] * len(active)
        sampler.forward(growing, no_drafts)

        # 2. Draw and commit on the draft canvases, and record what was drawn from what.
        recorder = _Recorder(DRAFT + sibling)
        sampler.draw(growing, no_drafts, recorder)
        drawn = zip(active, recorder.token_R, recorder.probs_RV, strict=True)
        for i, token, probs_V in drawn:
            tokens[i].append(token)
            probs[i].append(probs_V)
    return [_stack_chain(*chain) for chain in zip(tokens, probs, strict=True)]


class _Recorder:
    """A rule that draws in a drafter's lane and records the tokens and their distributions."""

    token_R: Tensor
    probs_RV: Tensor

    def __init__(self, lane: int) -> None:
        self.lane = lane

    def __call__(self, probs_RTV: Tensor, drafts: Drafts, noise: Noise) -> tuple[Tensor, Tensor]:
        self.probs_RV = probs_RTV[:, 0]
        self.token_R = noise.race(self.lane, probs_RTV)[:, 0]
        return drafts.token_RG, self.token_R


def _stack_chain(tokens: list[Tensor], probs: list[Tensor]) -> Draft | None:
    return Draft(torch.stack(tokens), torch.stack(probs)) if tokens else None


# ------------------------------------------------------------------ trees


def _draft_trees(
    sampler: Sampler, canvases: list[Canvas], tree: Tree, max_depth: list[int], sibling: int
) -> list[Draft | None]:
    """Grow trees on the canvases that can take one; the canvases are left as they were."""
    drafts: list[Draft | None] = [None] * len(canvases)
    chosen = [i for i, depth in enumerate(max_depth) if depth > 0]
    if not chosen:
        return drafts
    rows = [canvases[i] for i in chosen]
    depths = [max_depth[i] for i in chosen]

    # 1. Greedy trees are the likeliest tokens: temperature 1 ranks them, and cuts none off.
    sampling = sampler.sampling
    greedy = sampling.temperature == 0
    if greedy:
        sampling = replace(sampling, temperature=1.0, top_k=0, top_p=1.0)

    # 2. The distributions at the roots.
    no_drafts = [None] * len(rows)
    sampler.forward(rows, no_drafts)
    probs_RV = sampler.target_probs(rows, no_drafts, sampling)[:, 0]

    # 3. Grow depth by depth, then forget what was computed for the nodes.
    feeder = _TreeFeeder(sampler, rows, sampling)
    noise = sampler.noise(rows, tree.depth)
    grown = tree.grow(probs_RV, feeder.feed, noise, depths, greedy, sibling)
    for canvas in rows:
        sampler.truncate(canvas, canvas.length)

    for i, one in zip(chosen, grown, strict=True):
        drafts[i] = Draft(one.token_G, one.probs_GV, one.parents)
    return drafts


class _TreeFeeder:
    """Feed the nodes of growing trees, depth by depth, and make the distributions behind them."""

    def __init__(self, sampler: Sampler, rows: list[Canvas], sampling: Sampling) -> None:
        self._sampler = sampler
        self._rows = rows
        self._sampling = sampling
        self._fed_tokens = [torch.empty(0, dtype=torch.int64) for _ in rows]
        self._fed_parents: list[Parents] = [() for _ in rows]

    def feed(self, active: Sequence[int], token_AF: Tensor, parent_AF: Tensor) -> Tensor:
        """Return the distributions [A, F, V] behind new nodes (`harness.engine.draft_trees.Feed`).

        `active` are the rows whose trees still grow.
        """
        # 1. Append the new nodes to the trees that were fed before.
        nodes = zip(active, token_AF.cpu(), parent_AF.tolist(), strict=True)
        for i, token_F, parents in nodes:
            self._fed_tokens[i] = torch.cat((self._fed_tokens[i], token_F))
            self._fed_parents[i] = (*self._fed_parents[i], *parents)

        # 2. The sampler computes what it has not computed yet: the new nodes.
        growing = [self._rows[i] for i in active]
        trees = [Draft(self._fed_tokens[i], None, self._fed_parents[i]) for i in active]
        self._sampler.forward(growing, trees)

        # 3. The new nodes are the last places.
        probs_ATV = self._sampler.target_probs(growing, trees, self._sampling)
        return probs_ATV[:, -token_AF.shape[1] :]
