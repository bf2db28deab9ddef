"""EAGLE: a drafter that continues the target's own features by one decoder layer (arXiv 2401.15077,
2406.16858).

A feature is the target's hidden state after its final norm, what its head reads. Pair j of a branch
is the embedding that enters the target at position j + 1 and the feature of position j; from it the
layer guesses the feature of position j + 1, and the target's head makes a law of the guess. A pair
has the rotary phase of position j + 1 and lies in the drafter's cache at j; the nodes of a tree lie
behind the pairs of what is committed, and a node's feature is the guess at its parent.

Where tokens were committed that the target has not seen (VVS), their features are those of as many
positions before (HyattDD/VVS, policy `reuse_prev`), and the pairs made of them stay.

Shapes: B rows, W columns, D width of the target, R canvases, A of them, Q branches of theirs, S
slots, F nodes fed at once, G nodes, V codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from harness.engine.acceptance import Draft
from harness.engine.canvas import Canvas
from harness.engine.draft_trees import GrownTree, Static, Tree
from harness.engine.sampler import Sampler
from harness.models import ImageModel
from harness.models import checkpoint as files
from harness.models.kv_cache import KVCache, TreeMask
from harness.models.pictogram import weights as embedded_files
from harness.models.pictogram.grammar import DEFAULT
from harness.models.trunk import Attend, Attention, FeedForward, RMSNorm, TrunkSpec
from harness.records import UserError


class Layer(nn.Module):
    """Pairs to guessed features: a projection, then attention without a norm before it, then a
    gated feed-forward.

    With `codes` it brings a token embedding of its own, which then enters it instead of the
    target's (and token 0 for every prompt position), as in the published LlamaGen drafters.
    """

    def __init__(self, spec: TrunkSpec, codes: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.tokens = nn.Embedding(codes, spec.dim) if codes else None
        self.fc = nn.Linear(2 * spec.dim, spec.dim)
        self.attention = Attention(spec)
        self.ffn_norm = RMSNorm(spec.dim, spec.norm_eps)
        self.feed_forward = FeedForward(spec)

    def forward(
        self, x_BWD: Tensor, feature_BWD: Tensor, rotary_BW2: Tensor, attend: Attend
    ) -> Tensor:
        z_BWD = self.fc(torch.cat((x_BWD, feature_BWD), -1))
        u_BWD = z_BWD + self.attention(z_BWD, rotary_BW2, 0, attend)
        return u_BWD + self.feed_forward(self.ffn_norm(u_BWD))


@dataclass(frozen=True, slots=True)
class Trained:
    """A layer's weights, where they came from, and the target they were trained for ("" where
    nobody says).
    """

    state: Mapping[str, Tensor]
    source: str
    id: str
    target: str = ""


def embedded(weights: str = DEFAULT) -> Trained:
    """The layer that is shipped with a set of the embedded model's weights."""
    state, config, sha = embedded_files.read(weights, "eagle")
    return Trained(state, f"{weights} (eagle)", sha[:12], str(config["target"]))


def published(
    checkpoint: str | None = None, hub: str | None = None, revision: str | None = None
) -> Trained:
    """A checkpoint of `harness.training.train_eagle`, or one in the layout of the published
    drafters (EAGLE, LANTERN).

    Raises UserError for a file that is neither.
    """
    found = files.locate(hub, revision, ["*"], checkpoint)
    if found.suffix == ".pt":
        content = files.unpickle(found)
        if "average" in content and "target" in content:
            return Trained(
                content["average"], str(found), files.revision_of(found), str(content["target"])
            )
    state = files.read_weights(found)
    try:
        return Trained(_renamed(state), str(found), files.revision_of(found))
    except KeyError as error:
        raise UserError(f"{found} lacks {error}: it is no EAGLE drafter's checkpoint") from None


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published names as ours: queries, keys and values are one matrix, the feed-forward's are
    w1, w3, w2.
    """
    named = {
        name.removeprefix("model.").replace("layers.0.", ""): tensor
        for name, tensor in state.items()
    }
    ours = {
        "fc.weight": named["fc.weight"],
        "fc.bias": named.get("fc.bias", torch.zeros(len(named["fc.weight"]))),
        "attention.wqkv.weight": torch.cat(
            [named[f"self_attn.{part}_proj.weight"] for part in "qkv"]
        ),
        "attention.wo.weight": named["self_attn.o_proj.weight"],
        "ffn_norm.weight": named["post_attention_layernorm.weight"],
        "feed_forward.w1.weight": named["mlp.gate_proj.weight"],
        "feed_forward.w3.weight": named["mlp.up_proj.weight"],
        "feed_forward.w2.weight": named["mlp.down_proj.weight"],
    }
    return ours | (
        {"tokens.weight": named["embed_tokens.weight"]} if "embed_tokens.weight" in named else {}
    )


@dataclass(slots=True)
class _Trail:
    """How far the drafter has followed a canvas."""

    canvas: Canvas
    version: int
    pairs: list[int] = field(default_factory=list)  # made and cached, by branch
    slots: list[int] = field(default_factory=list)  # of its branches


class Eagle:
    """Drafts chains and trees from the target's features; every branch of a canvas is followed with
    its own.

    `trained` finds the layer's weights. What it computes is booked as `drafted_positions` of the
    canvas's job. There is no draft before the first token. At temperature 0 drafts are the
    likeliest tokens, ranked at temperature 1. Raises UserError for a target that the layer does not
    fit.
    """

    trees = True
    hidden = True

    def __init__(self, trained: Callable[[], Trained]) -> None:
        self._find = trained
        self._engine: _Engine | None = None
        self._layer: Layer | None = None
        self._trained: Trained | None = None

    @property
    def id(self) -> str:
        """Names the weights."""
        return f"eagle-{self._weights().id}"

    def _weights(self) -> Trained:
        if self._trained is None:
            self._trained = self._find()
        return self._trained

    def expect_target(self, target: ImageModel) -> None:
        """Load the layer for a target. Raises UserError where it was made for another."""
        trained = self._weights()
        spec = target_spec(target)
        if trained.target and trained.target != target.revision:
            raise UserError(
                f"drafter {self.id} was trained for weights {trained.target}, the model's are {target.revision}: "
                "train it again with `python -m harness.training.train_eagle`"
            )
        codes = trained.state.get("tokens.weight")
        if codes is not None and len(codes) != target.vocab:
            raise UserError(
                f"drafter {self.id} is for {len(codes)} codes, the model has {target.vocab}: choose its drafter"
            )
        layer = Layer(spec, 0 if codes is None else target.vocab)
        own = layer.state_dict()
        for name in sorted(own.keys() | trained.state.keys()):
            have = tuple(trained.state[name].shape) if name in trained.state else "nothing"
            want = tuple(own[name].shape) if name in own else "nothing"
            if have != want:
                raise UserError(
                    f"{trained.source}: tensor {name} is {have}, {target.name} needs {want}: it is another model's"
                )
        layer.load_state_dict(dict(trained.state))
        self._layer = layer.eval().requires_grad_(False).to(target.device, target.dtype)
        self._layer.feed_forward.fuse()

    def propose(
        self, sampler: Sampler, rows: Sequence[Canvas], n: int | Tree, sibling: int = 0
    ) -> list[Draft | None]:
        """Chains of up to `n` tokens, or trees, cut at the image's end so that one more token fits;
        None if none does.

        Siblings draw in lanes of their own.
        """
        if self._layer is None:
            self.expect_target(sampler.model)
        if self._engine is None or self._engine.sampler is not sampler or self._engine.shape != n:
            self._engine = _Engine(sampler, cast(Layer, self._layer), n)
        left = [sampler.model.num_tokens - canvas.length - 1 for canvas in rows]
        seen = [
            min(cached - start for _, start, cached in sampler.spans(canvas)) for canvas in rows
        ]
        at = [i for i, most in enumerate(left) if most > 0 and rows[i].length > 0 and seen[i] >= 0]
        drafts: list[Draft | None] = [None] * len(rows)
        if at:
            some = [rows[i] for i in at]
            with sampler.working(some, "draft"):
                for i, one in zip(
                    at, self._engine.grow(some, [left[i] for i in at], sibling), strict=True
                ):
                    drafts[i] = Draft(
                        one.token_G, one.probs_GV, None if isinstance(n, int) else one.parents
                    )
        return drafts


def target_spec(model: ImageModel) -> TrunkSpec:
    """Dimensions of the model's trunk. Raises UserError for a model whose features cannot be
    followed.
    """
    trunk = getattr(model, "trunk", None) or getattr(getattr(model, "gpt", None), "trunk", None)
    found: TrunkSpec | None = getattr(trunk, "spec", None)
    if found is None or not hasattr(model, "rotary"):
        raise UserError(
            f"{model.name} has no rotary table for a feature drafter: choose drafter=pictogram_draft or its own"
        )
    if getattr(model, "collapse", False):
        raise UserError(
            f"{model.name} collapses its prompt, whose features the drafter needs: set +model.collapse=false"
        )
    return found


class _Engine:
    """The layer over one sampler's slots: its cache, and how far it has followed each canvas.

    Every forward has one of two constant shapes: [S, W], or the sampler's prefill shape for long
    stretches.
    """

    def __init__(self, sampler: Sampler, layer: Layer, shape: int | Tree) -> None:
        model = sampler.model
        tree = (
            Static({"0" * depth: 1 for depth in range(shape)}) if isinstance(shape, int) else shape
        )
        self.sampler = sampler
        self.layer = layer
        self.shape = shape
        self.tree = tree
        self.width = max(tree.widest, tree.depth + 2)
        self.cache = KVCache(
            replace(layer.spec, layers=1),
            sampler.slots,
            sampler.positions + tree.fed,
            model.dtype,
            model.device,
        )
        self._trails: dict[int, _Trail] = {}
        self.sampling = sampler.sampling
        self.greedy = sampler.sampling.temperature == 0
        if self.greedy:
            self.sampling = replace(self.sampling, temperature=1.0, top_k=0, top_p=1.0)
        places = (sampler.slots + 1, 1 + tree.fed)
        self._guess_SPD = torch.zeros((*places, model.dim), dtype=model.dtype, device=model.device)
        self._sees_SPG = torch.zeros(
            (*places, max(1, tree.fed)), dtype=torch.bool, device=model.device
        )

    def grow(self, rows: list[Canvas], left: list[int], sibling: int) -> list[GrownTree]:
        """Drafts of `rows`, which the target has seen up to their first token at least."""
        self._follow(rows)
        fed = depth = 0

        def feed(active: Sequence[int], token_AF: Tensor, parent_AF: Tensor) -> Tensor:
            nonlocal fed, depth
            some = [rows[i] for i in active]
            depth = depth + 1
            logits_SFV = self._nodes(some, token_AF, parent_AF, fed, depth)
            fed += token_AF.shape[1]
            return self.sampler.guided_probs(some, logits_SFV, depth, self.sampling)

        root_S1V = self.sampler.model.head(self._guess_SPD[: self.sampler.slots, :1])
        probs_RV = self.sampler.guided_probs(rows, root_S1V, 0, self.sampling)[:, 0]
        return self.tree.grow(
            probs_RV, feed, self.sampler.noise(rows, self.tree.depth), left, self.greedy, sibling
        )

    # ------------------------------------------------------------------ committed tokens

    def _follow(self, rows: list[Canvas]) -> None:
        """Make the pairs of all committed tokens; the guesses at the last ones are the roots'
        features.
        """
        for number, trail in list(self._trails.items()):
            if trail.canvas.closed:
                del self._trails[number]
        todo = []  # slot, context length, cached positions, pairs made, pairs wanted
        for canvas in rows:
            spans = self.sampler.spans(canvas)
            trail = self._trails.setdefault(
                id(canvas), _Trail(canvas, canvas.version, [0] * len(spans))
            )
            slots = [slot for slot, _, _ in spans]
            if (trail.version, trail.slots) != (canvas.version, slots):
                trail.version = canvas.version
                trail.slots = slots
                trail.pairs = [0] * len(spans)
            for k, (slot, start, cached) in enumerate(spans):
                wanted = start + canvas.length - 1
                made = min(
                    trail.pairs[k], wanted - 1
                )  # the last is made again where nothing is new, for its guess
                canvas._usage.drafted_positions += wanted - made
                todo.append((slot, start, cached, made, wanted))
                trail.pairs[k] = wanted
        batch_size, chunk = self.sampler.prefill
        long = [one for one in todo if one[4] - one[3] > self.width]
        ends = {slot: made for slot, _, _, made, _ in todo}
        while long:
            batch = long[:batch_size]
            long = long[batch_size:]
            counts = [min(chunk, wanted - 1 - ends[slot]) for slot, _, _, _, wanted in batch]
            padding = [0] * (batch_size - len(batch))
            slot_B = self._tensor([one[0] for one in batch] + [self.sampler.slots for _ in padding])
            begin = [ends[one[0]] for one in batch] + padding
            self._pairs(slot_B, batch, begin, counts + padding, chunk, whole=False)
            for one, count in zip(batch, counts, strict=True):
                ends[one[0]] += count
            long += [one for one in batch if one[4] - ends[one[0]] > self.width]
        begin = [0] * self.sampler.slots
        counts = [0] * self.sampler.slots
        for slot, _, _, _, wanted in todo:
            begin[slot] = ends[slot]
            counts[slot] = wanted - ends[slot]
        order: list[tuple[int, ...]] = [(0, 0, 0, 0, 0)] * self.sampler.slots
        for one in todo:
            order[one[0]] = one
        slot_S = torch.arange(self.sampler.slots, device=self.cache.keys.device)
        guess_SWD = self._pairs(slot_S, order, begin, counts, self.width, whole=True)
        slot_Q = self._tensor([one[0] for one in todo])
        last_Q = self._tensor([counts[one[0]] - 1 for one in todo])
        self._guess_SPD[slot_Q, 0] = guess_SWD[slot_Q, last_Q]

    def _pairs(
        self,
        slot_B: Tensor,
        branches: Sequence[tuple[int, ...]],
        begin: list[int],
        counts: list[int],
        width: int,
        whole: bool,
    ) -> Tensor:
        """Feed pairs `begin`, `begin` + 1, ... of some branches; returns the guesses [B, W, D]."""
        padding = [(0, 0, 0, 0, 0)] * (len(begin) - len(branches))
        start_B, cached_B, wanted_B = (
            self._tensor([one[i] for one in [*branches, *padding]]) for i in (1, 2, 4)
        )
        column_W = torch.arange(width, device=slot_B.device)
        pair_BW = self._tensor(begin).unsqueeze(1) + column_W
        live_BW = column_W < self._tensor(counts).unsqueeze(1)
        late_BW = pair_BW - (wanted_B - cached_B).clamp(min=0).unsqueeze(
            1
        )  # features the target has not made yet:
        late_BW = torch.where(
            late_BW >= start_B.unsqueeze(1), late_BW, cached_B.unsqueeze(1) - 1
        )  # those m before
        source_BW = torch.where(pair_BW < cached_B.unsqueeze(1), pair_BW, late_BW)
        feature_BWD = self.sampler.features(slot_B, torch.where(live_BW, source_BW, 0))
        pos_BW = torch.where(live_BW, pair_BW + 1, 0)
        x_BWD = self.sampler.entering(slot_B, start_B, pos_BW)
        if self.layer.tokens is not None:
            token_BW = self.sampler.tokens_at(slot_B, start_B, pos_BW)
            x_BWD = self.layer.tokens(torch.where(pos_BW < start_B.unsqueeze(1), 0, token_BW))
        rotary_BW2 = self.sampler.model.rotary(pos_BW, start_B)  # type: ignore[attr-defined]
        at_BW = torch.where(live_BW, pair_BW, self.cache.length)
        attend = self.cache.attend_all(at_BW) if whole else self.cache.attend_some(slot_B, at_BW)
        return self.layer(x_BWD, feature_BWD, rotary_BW2, attend)

    # ------------------------------------------------------------------ drafted tokens

    def _nodes(
        self, rows: list[Canvas], token_AF: Tensor, parent_AF: Tensor, fed: int, depth: int
    ) -> Tensor:
        """Feed new nodes of the rows' trees, `depth` places behind the roots; returns the head's
        logits [S, F, V].
        """
        model = self.sampler.model
        width = self.width
        count = token_AF.shape[1]
        spans = [
            (a, slot, start)
            for a, canvas in enumerate(rows)
            for slot, start, _ in self.sampler.spans(canvas)
        ]
        row_Q, slot_Q, start_Q = self._tensor(spans).unbind(1)
        length_Q = self._tensor([canvas.length for canvas in rows])[row_Q]
        above_QF = parent_AF.to(slot_Q.device)[row_Q] + 1
        place_F = torch.arange(fed, fed + count, device=slot_Q.device)
        sees_QFG = self._sees_SPG[slot_Q[:, None], above_QF]
        sees_QFG[:, torch.arange(count, device=slot_Q.device), place_F] = True
        self._sees_SPG[slot_Q[:, None], place_F + 1] = sees_QFG

        slots = self.sampler.slots
        base_Q = start_Q + length_Q - 1
        base_S = torch.full((slots,), self.cache.length + 1, device=slot_Q.device).index_copy(
            0, slot_Q, base_Q
        )
        start_S = torch.zeros_like(base_S).index_copy(0, slot_Q, start_Q)
        at_SW = torch.full((slots, width), self.cache.length, device=slot_Q.device)
        at_SW[slot_Q, :count] = base_Q[:, None] + place_F
        pos_SW = torch.zeros_like(at_SW)
        pos_SW[slot_Q] = (base_Q + depth).unsqueeze(1)
        token_SW = torch.zeros_like(at_SW)
        token_SW[slot_Q, :count] = token_AF.to(slot_Q.device)[row_Q]
        sees_SWG = torch.zeros(
            (slots, width, self._sees_SPG.shape[2]), dtype=torch.bool, device=slot_Q.device
        )
        sees_SWG[slot_Q, :count] = sees_QFG
        feature_SWD = torch.zeros(
            (slots, width, model.dim), dtype=model.dtype, device=slot_Q.device
        )
        feature_SWD[slot_Q, :count] = self._guess_SPD[slot_Q[:, None], above_QF]
        index_SW = (pos_SW - start_S.unsqueeze(1)).clamp(0, model.num_tokens - 1)
        x_SWD = (
            model.embed(token_SW, index_SW)
            if self.layer.tokens is None
            else self.layer.tokens(token_SW)
        )
        rotary_SW2 = model.rotary(pos_SW, start_S)  # type: ignore[attr-defined]
        attend = self.cache.attend_all(at_SW, TreeMask(base_S, sees_SWG))
        guess_SWD = self.layer(x_SWD, feature_SWD, rotary_SW2, attend)
        self._guess_SPD[slot_Q[:, None], place_F + 1] = guess_SWD[slot_Q, :count]
        for canvas in rows:
            canvas._usage.drafted_positions += count * len(self.sampler.spans(canvas))
        return model.head(guess_SWD)[:, :count]

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.cache.keys.device)
