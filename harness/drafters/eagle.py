"""EAGLE: a drafter that continues the target's own features with one decoder layer.

Papers: EAGLE (arXiv 2401.15077) and EAGLE-2 (arXiv 2406.16858).

A *feature* is the target's hidden state after its final norm: the input of the target's head.
Pair j of a branch joins the embedding that enters the target at position j + 1 with the feature of
position j. From a pair the layer guesses the feature of position j + 1, and the target's head turns
the guess into a distribution over tokens. A pair has the rotary phase of position j + 1 and lies in
the drafter's cache at j. The nodes of a draft tree lie in that cache after the pairs of the
committed tokens; the feature in the pair of a node is the guess made at its parent.

Tokens may be committed that the target has not seen (VVS skips verification). Until the target has
computed m such positions, they borrow the features of the m positions before them (HyattDD/VVS,
policy `reuse_prev`), and the pairs made of borrowed features stay in the cache.

Shapes: B rows of a forward, W columns, D model width, R canvases, A canvases whose trees still
grow, Q branches of those, S slots, F nodes fed at once, G all nodes that are fed, P = 1 + G places
of a tree (the root, then the nodes), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from harness.engine.acceptance import Draft
from harness.engine.canvas import Canvas
from harness.engine.draft_trees import GrownTree, Static, Tree
from harness.engine.memory_need import (
    CAPTURED_LOGIT_BYTES,
    PREFILL_COPIES,
    SamplerShape,
    count_weights,
)
from harness.engine.sampler import Sampler
from harness.models import FollowableModel, HasCollapse, ImageModel
from harness.models import checkpoint as checkpoint_files
from harness.models.kv_cache import KVCache, TreeMask
from harness.models.linear import Linear
from harness.models.pictogram import weights as embedded_files
from harness.models.pictogram.grammar import DEFAULT
from harness.models.trunk import (
    Attend,
    Attention,
    FeedForward,
    RMSNorm,
    Rotation,
    TrunkSpec,
    prepare,
)
from harness.records import MemoryPart, UserError


class Layer(nn.Module):
    """The layer that turns pairs into guessed features.

    It is a projection, attention without a norm before it, and a gated feed-forward. With `codes`
    it has a token embedding of its own, which replaces the target's (prompt positions then enter as
    token 0), as in the published LlamaGen drafters.
    """

    def __init__(self, spec: TrunkSpec, codes: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.tokens = nn.Embedding(codes, spec.dim) if codes else None
        self.fc = Linear(2 * spec.dim, spec.dim)
        self.attention = Attention(spec)
        self.ffn_norm = RMSNorm(spec.dim, spec.norm_eps)
        self.feed_forward = FeedForward(spec)

    def forward(
        self, x_BWD: Tensor, feature_BWD: Tensor, rotary_BW2: Tensor, attend: Attend
    ) -> Tensor:
        z_BWD = self.fc(torch.cat((x_BWD, feature_BWD), -1))
        u_BWD = z_BWD + self.attention(z_BWD, Rotation.of(rotary_BW2), 0, attend)
        return u_BWD + self.feed_forward(self.ffn_norm(u_BWD))


# ------------------------------------------------------------------ where weights come from


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of a layer, and what is known about them."""

    state: Mapping[str, Tensor]
    source: str  # file or set, for error messages
    id: str
    target: str = ""  # revision of the target that they were trained for; "" if unknown


def embedded(weights: str = DEFAULT) -> LayerWeights:
    """Read the layer that is shipped with a set of the embedded model's weights."""
    state, config, sha = embedded_files.read_part(weights, "eagle")
    return LayerWeights(state, f"{weights} (eagle)", sha[:12], str(config["target"]))


def published(
    checkpoint: str | None = None, hub: str | None = None, revision: str | None = None
) -> LayerWeights:
    """Read a layer from a checkpoint on disk or on the hub.

    It is one of `harness.training.train_eagle`, or has the layout of the published drafters (EAGLE,
    LANTERN). Raises UserError for a file that is neither.
    """
    option = "drafter.trained.checkpoint"
    path = checkpoint_files.locate(hub, revision, ["*"], checkpoint, option)
    found_revision = checkpoint_files.revision_of(path)

    if path.suffix == ".pt":
        content = checkpoint_files.unpickle(path)
        if "average" in content and "target" in content:
            target = str(content["target"])
            return LayerWeights(content["average"], str(path), found_revision, target)

    state = checkpoint_files.read_weights(path)
    try:
        renamed = _rename_published(state)
    except KeyError as error:
        raise UserError(f"{path} lacks {error}: it is no EAGLE drafter's checkpoint") from None
    return LayerWeights(renamed, str(path), found_revision)


def _rename_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the published tensor names into those of `Layer`.

    Queries, keys and values become one matrix. Raises KeyError naming a tensor that is missing.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        theirs[name.removeprefix("model.").replace("layers.0.", "")] = tensor

    projection = theirs["fc.weight"]
    no_bias = torch.zeros(len(projection))
    ours = {
        "fc.weight": projection,
        "fc.bias": theirs.get("fc.bias", no_bias),
        "attention.wqkv.weight": torch.cat(
            [theirs[f"self_attn.{part}_proj.weight"] for part in "qkv"]
        ),
        "attention.wo.weight": theirs["self_attn.o_proj.weight"],
        "ffn_norm.weight": theirs["post_attention_layernorm.weight"],
        "feed_forward.w1.weight": theirs["mlp.gate_proj.weight"],
        "feed_forward.w3.weight": theirs["mlp.up_proj.weight"],
        "feed_forward.w2.weight": theirs["mlp.down_proj.weight"],
    }
    if "embed_tokens.weight" in theirs:
        ours["tokens.weight"] = theirs["embed_tokens.weight"]
    return ours


# ------------------------------------------------------------------ the drafter


class Eagle:
    """Draft chains and trees from the target's features; each branch of a canvas has its own pairs.

    `trained` reads the weights of the layer. Every position that the layer computes is charged to
    the canvas's job as `drafted_positions`. A canvas without tokens gets no draft. At temperature 0
    drafts are the likeliest tokens, ranked at temperature 1. `expect_target` raises UserError for a
    target that the layer does not fit.
    """

    trees = True  # `propose` also takes the shape of a tree
    hidden = True  # the sampler must keep hidden states

    def __init__(self, trained: Callable[[], LayerWeights]) -> None:
        self.engines: dict[tuple[int, int], EagleEngine] = {}  # by width and nodes that are fed
        self._sampler: Sampler | None = None  # whose engines they are
        self._read_weights = trained
        self._weights: LayerWeights | None = None
        self._layer: Layer | None = None
        self._target: ImageModel | None = None  # that the layer was loaded for

    @property
    def id(self) -> str:
        """Name the weights, for records."""
        return f"eagle-{self._load_weights().id}"

    def expect_target(self, target: ImageModel) -> None:
        """Load the layer for a target. Raises UserError if it was made for another one."""
        weights = self._load_weights()
        spec = target_spec(target)
        if weights.target and weights.target != target.revision:
            raise UserError(
                f"drafter {self.id} was trained for weights {weights.target}, "
                f"the model's are {target.revision}: "
                "train it again with `python -m harness.training.train_eagle`"
            )

        codes = weights.state.get("tokens.weight")
        if codes is not None and len(codes) != target.vocab:
            raise UserError(
                f"drafter {self.id} is for {len(codes)} codes, "
                f"the model has {target.vocab}: choose its drafter"
            )

        if self._target is target:
            return  # the layer is there
        layer = Layer(spec, 0 if codes is None else target.vocab)
        _expect_shapes(weights, layer.state_dict(), target.name)
        layer.load_state_dict(dict(weights.state))
        self._layer = layer.eval().requires_grad_(False).to(target.device, target.dtype)
        prepare(self._layer)
        self._target = target

    def memory_need(self, model: ImageModel, shape: SamplerShape) -> list[MemoryPart]:
        """List the layer's weights, and its cache, guesses and masks for each slot.

        The sampler's hidden states are the sampler's own. A layer that is not loaded counts with
        a token embedding, the most that it can have.
        """
        spec = target_spec(model)
        layer = self._layer
        if layer is None:
            with torch.device("meta"):
                layer = Layer(spec, model.vocab).to(model.dtype)
        weights = count_weights(layer)
        held = 0 if self._layer is None else weights

        number_bytes = model.dtype.itemsize
        drafts = _list_draft_sizes(shape)
        kept = 0  # by an engine for each size
        for draft in drafts:
            places = 1 + draft.fed
            positions = model.cache(1, shape.tree_capacity).length + places
            cache = positions * 2 * spec.dim * number_bytes
            kept += cache + places * (spec.dim * number_bytes + max(1, draft.fed))
        columns = max(draft.columns for draft in drafts)
        nodes = max(draft.nodes for draft in drafts)
        column = PREFILL_COPIES * spec.dim * number_bytes + CAPTURED_LOGIT_BYTES * model.vocab
        probs = 4 * nodes * model.vocab
        return [
            MemoryPart("EAGLE's weights", fixed=weights, held=held),
            MemoryPart("EAGLE's cache", per_slot=kept),
            MemoryPart("EAGLE's drafts", per_slot=columns * column + probs),
        ]

    def release(self) -> None:
        """Forget the sampler that was last drafted for, and what the layer keeps beside it."""
        self.engines.clear()
        self._sampler = None

    @torch.no_grad()
    def propose(
        self, sampler: Sampler, rows: Sequence[Canvas], n: int | Tree, sibling: int = 0
    ) -> list[Draft | None]:
        """Draft a chain of up to `n` tokens, or a tree of shape `n`, for every row.

        A draft ends early enough that one more token fits into the image; None if no draft fits.
        Each `sibling` draws with noise of its own.
        """
        # 1. Prepare the layer for this shape of draft; a chain is a tree without siblings.
        shape = _chain_tree(n) if isinstance(n, int) else n
        engine = self._prepare_engine(sampler, shape)

        # 2. Choose the rows that can have a draft.
        drafts: list[Draft | None] = [None] * len(rows)
        depths = [_max_depth(sampler, canvas) for canvas in rows]
        chosen = [i for i, depth in enumerate(depths) if depth > 0]
        if not chosen:
            return drafts

        # 3. Grow a tree for each of them.
        growing = [rows[i] for i in chosen]
        with sampler.working(growing, "draft"), sampler.rows_alike():
            grown = engine.grow(growing, shape, [depths[i] for i in chosen], sibling)

        # 4. Hand the trees over as drafts, in the order of the rows.
        for i, tree in zip(chosen, grown, strict=True):
            parents = None if isinstance(n, int) else tree.parents
            drafts[i] = Draft(tree.token_G, tree.probs_GV, parents)
        return drafts

    def _load_weights(self) -> LayerWeights:
        if self._weights is None:
            self._weights = self._read_weights()
        return self._weights

    def _prepare_engine(self, sampler: Sampler, shape: Tree) -> EagleEngine:
        """Return the engine of a sampler for a draft shape; another sampler drops the earlier ones.

        Shapes of one size share an engine: costs of a job depend on no other job's drafts.
        """
        if self._layer is None:
            self.expect_target(sampler.model)
        assert self._layer is not None

        if self._sampler is not sampler:
            self.engines.clear()
            self._sampler = sampler
        sizes = (_count_columns(shape), shape.fed)
        if sizes not in self.engines:
            self.engines[sizes] = EagleEngine(sampler, self._layer, *sizes)
        return self.engines[sizes]


@dataclass(frozen=True, slots=True)
class _DraftSizes:
    """The sizes of a draft."""

    nodes: int  # drafted tokens
    fed: int  # of them those that the layer is fed with
    columns: int  # of a forward of the layer


def _list_draft_sizes(shape: SamplerShape) -> list[_DraftSizes]:
    """List the different sizes of a method's drafts.

    They are read off the trees that the method holds; without any they are the target's.
    """
    nodes = max(shape.tree_capacity, shape.tokens_per_step - 1)
    if not shape.trees:
        return [_DraftSizes(nodes, nodes, nodes + 2)]
    sizes = {_DraftSizes(nodes, tree.fed, _count_columns(tree)) for tree in shape.trees}
    return sorted(sizes, key=lambda draft: (draft.columns, draft.fed))


def _count_columns(tree: Tree) -> int:
    """Count the columns of the layer's forwards.

    A verification commits depth + 1 tokens at most, so that the pairs they add fit as well.
    """
    return max(tree.widest, tree.depth + 2)


def target_spec(model: ImageModel) -> TrunkSpec:
    """Return the dimensions of a model's trunk.

    Raises UserError for a model whose features cannot be followed.
    """
    if not isinstance(model, FollowableModel):
        raise UserError(
            f"{model.name} has no rotary table for a feature drafter: "
            "choose drafter@method.drafter=pictogram_draft or its own"
        )
    if isinstance(model, HasCollapse) and model.collapse:
        raise UserError(
            f"{model.name} collapses its prompt, whose features the drafter needs: "
            "set +model.collapse=false"
        )
    return model.trunk_spec


def _expect_shapes(weights: LayerWeights, expected: Mapping[str, Tensor], target: str) -> None:
    """Raise UserError if tensors are missing, left over, or of another shape than expected."""
    for name in sorted(expected.keys() | weights.state.keys()):
        have = _shape_of(weights.state, name)
        want = _shape_of(expected, name)
        if have != want:
            raise UserError(
                f"{weights.source}: tensor {name} is {have}, "
                f"{target} needs {want}: it is another model's"
            )


def _shape_of(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(state[name].shape) if name in state else "nothing"


def _max_depth(sampler: Sampler, canvas: Canvas) -> int:
    """Return how deep a draft of a canvas may be; 0 or less if it can have none.

    The target must have seen the whole context of every branch, and one token must be committed.
    """
    cached_tokens = [cached - start for _, start, cached in sampler.branch_spans(canvas)]
    if canvas.length == 0 or min(cached_tokens) < 0:
        return 0
    return sampler.model.num_tokens - canvas.length - 1


# ------------------------------------------------------------------ the layer over a sampler


@dataclass(slots=True)
class _FollowedCanvas:
    """A canvas, and how many pairs of each of its branches are in the drafter's cache."""

    canvas: Canvas
    version: int = -1
    slots: list[int] = field(default_factory=list)  # by branch
    pairs: list[int] = field(default_factory=list)  # by branch

    def restart_if_changed(self, slots: list[int]) -> None:
        """Forget the pairs after a change of tokens, contexts or slots."""
        if self.version != self.canvas.version or self.slots != slots:
            self.version = self.canvas.version
            self.slots = slots
            self.pairs = [0] * len(slots)


@dataclass(slots=True)
class _BranchPairs:
    """The pairs of one branch that are to be made now; the defaults are those of an idle slot."""

    slot: int
    start: int = 0  # length of the context
    cached: int = 0  # positions that the target has computed
    made: int = 0  # pairs in the drafter's cache
    wanted: int = 0  # pairs of all committed tokens

    @property
    def missing(self) -> int:
        """Count the pairs that are to be made."""
        return self.wanted - self.made

    @property
    def lag(self) -> int:
        """Count the positions with a pair that the target has not computed."""
        return max(0, self.wanted - self.cached)


class EagleEngine:
    """The layer over the slots of one sampler: its cache, and how far it has followed each canvas.

    Every forward has one of two constant shapes: [S, W], or the sampler's prefill shape for
    branches that miss more than W pairs. `guess_SPD` holds the guesses of the current drafts: place
    0 is the root's, place 1 + g that of node g. `width` is W, and `fed` the most nodes of a tree
    that the layer is fed with.
    """

    def __init__(self, sampler: Sampler, layer: Layer, width: int, fed: int) -> None:
        model = sampler.model
        self.sampler = sampler
        self.layer = layer
        self.width = width
        self.cache = KVCache(
            replace(layer.spec, layers=1),
            sampler.slots,
            sampler.positions + fed,
            model.dtype,
            model.device,
        )

        # Greedy drafts are the likeliest tokens: temperature 1 ranks them, and cuts none off.
        self.sampling = sampler.sampling
        self.greedy = sampler.sampling.temperature == 0
        if self.greedy:
            self.sampling = replace(self.sampling, temperature=1.0, top_k=0, top_p=1.0)

        self._followed: dict[int, _FollowedCanvas] = {}  # by the id of the canvas
        places = (sampler.slots + 1, 1 + fed)
        self.guess_SPD = torch.zeros((*places, model.dim), dtype=model.dtype, device=model.device)
        # Which nodes each place sees: itself and its ancestors.
        self._sees_SPG = torch.zeros((*places, max(1, fed)), dtype=torch.bool, device=model.device)

    def grow(
        self, rows: list[Canvas], tree: Tree, max_depth: list[int], sibling: int
    ) -> list[GrownTree]:
        """Grow a tree for each of `rows`, none deeper than its `max_depth`.

        The target must have seen the context of every row, and every row must have a token.
        """
        sampler = self.sampler

        # 1. Follow the tokens that were committed since the last draft.
        self._follow_canvases(rows)

        # 2. The guesses at the last tokens make the distributions of the first drafted ones.
        root_S1V = sampler.model.head(self.guess_SPD[: sampler.slots, :1])
        probs_RV = sampler.guided_probs(rows, root_S1V, 0, self.sampling)[:, 0]

        # 3. Grow the trees depth by depth; the feeder makes the distributions behind each depth.
        feeder = _TreeFeeder(self, rows)
        noise = sampler.noise(rows, tree.depth)
        return tree.grow(probs_RV, feeder.feed, noise, max_depth, self.greedy, sibling)

    # ------------------------------------------------------------------ committed tokens

    def _follow_canvases(self, rows: list[Canvas]) -> None:
        """Make the missing pairs of all committed tokens; keep the guesses at the last ones.

        These guesses are the features of the roots.
        """
        # 1. Forget closed canvases.
        for key, followed in list(self._followed.items()):
            if followed.canvas.closed:
                del self._followed[key]

        # 2. List the pairs that are missing, and charge them.
        branches: list[_BranchPairs] = []
        for canvas in rows:
            branches += self._list_missing_pairs(canvas)

        # 3. Shorten long stretches until one [S, W] forward takes what is left.
        self._prefill_pairs(branches)

        # 4. Make the last pairs of all branches at once.
        self._finish_pairs(branches)

    def _list_missing_pairs(self, canvas: Canvas) -> list[_BranchPairs]:
        """List what each branch of a canvas lacks, as if it were made already, and charge it."""
        followed = self._followed.setdefault(id(canvas), _FollowedCanvas(canvas))
        spans = self.sampler.branch_spans(canvas)
        followed.restart_if_changed([slot for slot, _, _ in spans])

        branches = []
        for k, (slot, start, cached) in enumerate(spans):
            wanted = start + canvas.length - 1
            # Where nothing is new the last pair is made again, because its guess is needed.
            made = min(followed.pairs[k], wanted - 1)
            branch = _BranchPairs(slot, start, cached, made, wanted)
            self.sampler.charge_drafted(canvas, branch.missing)
            followed.pairs[k] = wanted
            branches.append(branch)
        return branches

    def _prefill_pairs(self, branches: Sequence[_BranchPairs]) -> None:
        """Feed branches that miss more than W pairs in chunks, until W or fewer are missing.

        The last pair of a branch is always left to `_finish_pairs`, which keeps its guess.
        """
        batch_size, chunk = self.sampler.prefill
        scratch = _BranchPairs(self.sampler.slots)
        waiting = [branch for branch in branches if branch.missing > self.width]
        while waiting:
            batch = waiting[:batch_size]
            waiting = waiting[batch_size:]
            counts = [min(chunk, branch.missing - 1) for branch in batch]

            padding = batch_size - len(batch)
            padded_batch = batch + [scratch] * padding
            padded_counts = counts + [0] * padding
            self._feed_pairs(padded_batch, padded_counts, chunk, all_slots=False)

            for branch, count in zip(batch, counts, strict=True):
                branch.made += count
            waiting += [branch for branch in batch if branch.missing > self.width]

    def _finish_pairs(self, branches: Sequence[_BranchPairs]) -> None:
        """Make the W or fewer pairs that each branch still misses; keep the guess at the last."""
        by_slot = [_BranchPairs(slot) for slot in range(self.sampler.slots)]
        for branch in branches:
            by_slot[branch.slot] = branch
        counts = [branch.missing for branch in by_slot]
        guess_SWD = self._feed_pairs(by_slot, counts, self.width, all_slots=True)

        slot_Q, last_Q = self._columns((branch.slot, branch.missing - 1) for branch in branches)
        self.guess_SPD[slot_Q, 0] = guess_SWD[slot_Q, last_Q]

    def _feed_pairs(
        self, branches: Sequence[_BranchPairs], counts: list[int], width: int, all_slots: bool
    ) -> Tensor:
        """Feed the next `counts` pairs of every branch; return the guesses [B, W, D].

        `all_slots` states that the branches are those of slots 0, 1, ..., S - 1.
        """
        # 1. Which pair each column makes; columns past a branch's count are padding.
        slot_B, start_B, made_B, count_B = self._columns(
            (branch.slot, branch.start, branch.made, count)
            for branch, count in zip(branches, counts, strict=True)
        )
        column_W = torch.arange(width, device=slot_B.device)
        pair_BW = made_B.unsqueeze(1) + column_W
        live_BW = column_W < count_B.unsqueeze(1)

        # 2. Each pair joins a feature with what enters the target one position later.
        source_BW = self._choose_features(branches, pair_BW)
        source_BW = torch.where(live_BW, source_BW, 0)
        feature_BWD = self.sampler.hidden_states(slot_B, source_BW)
        pos_BW = torch.where(live_BW, pair_BW + 1, 0)
        x_BWD = self._embed_pairs(slot_B, start_B, pos_BW)

        # 3. Padding is written to the cache's scratch position.
        rotary_BW2 = self.sampler.model.rotary(pos_BW, start_B)  # type: ignore[attr-defined]
        at_BW = torch.where(live_BW, pair_BW, self.cache.length)
        if all_slots:
            attend = self.cache.attend_all(at_BW)
        else:
            attend = self.cache.attend_some(slot_B, at_BW)
        return self.layer(x_BWD, feature_BWD, rotary_BW2, attend)

    def _choose_features(self, branches: Sequence[_BranchPairs], pair_BW: Tensor) -> Tensor:
        """Return the position whose feature each pair takes, [B, W].

        It is the pair's own position where the target has computed that. Otherwise, with m
        committed positions not computed yet, it is the one m before; or the last computed position
        where that would lie in the context.
        """
        start_B, cached_B, lag_B = self._columns(
            (branch.start, branch.cached, branch.lag) for branch in branches
        )
        start_B1 = start_B.unsqueeze(1)
        cached_B1 = cached_B.unsqueeze(1)
        earlier_BW = pair_BW - lag_B.unsqueeze(1)
        in_image_BW = earlier_BW >= start_B1
        borrowed_BW = torch.where(in_image_BW, earlier_BW, cached_B1 - 1)
        return torch.where(pair_BW < cached_B1, pair_BW, borrowed_BW)

    def _embed_pairs(self, slot_B: Tensor, start_B: Tensor, pos_BW: Tensor) -> Tensor:
        """Embed the positions `pos` of branches as they enter the layer, [B, W, D]."""
        if self.layer.tokens is None:
            return self.sampler.embed_positions(slot_B, start_B, pos_BW)
        token_BW = self.sampler.tokens_at(slot_B, start_B, pos_BW)
        in_context_BW = pos_BW < start_B.unsqueeze(1)
        return self.layer.tokens(torch.where(in_context_BW, 0, token_BW))

    # ------------------------------------------------------------------ drafted tokens

    def feed_nodes(
        self, rows: list[Canvas], token_AF: Tensor, parent_AF: Tensor, fed: int, depth: int
    ) -> Tensor:
        """Feed new nodes of the rows' trees; return the head's logits behind them, [S, F, V].

        The nodes are `depth` below the roots, `parent` names nodes fed before (-1 the root), and
        `fed` nodes were fed so far.
        """
        model = self.sampler.model
        device = self.cache.keys.device
        count = token_AF.shape[1]

        # 1. The branches of the rows. A root's position is also the first cache place of its nodes.
        row_Q, slot_Q, start_Q, root_Q = self._list_branches(rows)
        place_QF = 1 + parent_AF.to(device)[row_Q]
        node_F = torch.arange(fed, fed + count, device=device)

        # 2. Inputs of the branches: a node joins its token with the guess made at its parent.
        slot_Q1 = slot_Q.unsqueeze(1)
        root_Q1 = root_Q.unsqueeze(1)
        at_QF = root_Q1 + node_F
        pos_QW = (root_Q1 + depth).expand(-1, self.width)
        token_QF = token_AF.to(device)[row_Q]
        feature_QFD = self.guess_SPD[slot_Q1, place_QF]

        # 3. Inputs of constant shape: idle slots and columns past `count` are padding.
        at_SW = self._fill_slot_columns(slot_Q, at_QF, self.cache.length)
        pos_SW = self._fill_slot_columns(slot_Q, pos_QW)
        token_SW = self._fill_slot_columns(slot_Q, token_QF)
        feature_SWD = self._fill_slot_columns(slot_Q, feature_QFD)
        start_S = self._fill_slot_values(slot_Q, start_Q, 0)
        mask = self._mask_nodes(slot_Q, root_Q, place_QF, node_F)

        # 4. One forward of the layer.
        index_SW = pos_SW - start_S.unsqueeze(1)
        x_SWD = self._embed_nodes(token_SW, index_SW)
        rotary_SW2 = model.rotary(pos_SW, start_S)  # type: ignore[attr-defined]
        attend = self.cache.attend_all(at_SW, mask)
        guess_SWD = self.layer(x_SWD, feature_SWD, rotary_SW2, attend)

        # 5. Keep the guesses for the nodes' children, and charge the work.
        self.guess_SPD[slot_Q1, 1 + node_F] = guess_SWD[slot_Q, :count]
        for canvas in rows:
            branches = len(self.sampler.branch_spans(canvas))
            self.sampler.charge_drafted(canvas, count * branches)
        return model.head(guess_SWD)[:, :count]

    def _list_branches(self, rows: list[Canvas]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the row, slot, context length and root position of every branch, [Q] each."""
        table: list[tuple[int, int, int, int]] = []
        for row, canvas in enumerate(rows):
            for slot, start, _ in self.sampler.branch_spans(canvas):
                table.append((row, slot, start, start + canvas.length - 1))
        row_Q, slot_Q, start_Q, root_Q = self._columns(table)
        return row_Q, slot_Q, start_Q, root_Q

    def _mask_nodes(
        self, slot_Q: Tensor, root_Q: Tensor, place_QF: Tensor, node_F: Tensor
    ) -> TreeMask:
        """Let new nodes see what their parents' places see, and themselves; remember it."""
        slot_Q1 = slot_Q.unsqueeze(1)
        sees_QFG = self._sees_SPG[slot_Q1, place_QF]
        column_F = torch.arange(len(node_F), device=node_F.device)
        sees_QFG[:, column_F, node_F] = True
        self._sees_SPG[slot_Q1, 1 + node_F] = sees_QFG

        # A slot without a tree has its base behind the cache.
        base_S = self._fill_slot_values(slot_Q, root_Q, self.cache.length + 1)
        return TreeMask(base_S, self._fill_slot_columns(slot_Q, sees_QFG))

    def _embed_nodes(self, token_SW: Tensor, index_SW: Tensor) -> Tensor:
        """Embed nodes as they enter the layer, [S, W, D]; `index` is their place in the image."""
        if self.layer.tokens is not None:
            return self.layer.tokens(token_SW)
        model = self.sampler.model
        return model.embed(token_SW, index_SW.clamp(0, model.num_tokens - 1))

    def _fill_slot_columns(self, slot_Q: Tensor, value_QF: Tensor, padding: int = 0) -> Tensor:
        """Put values [Q, F, ...] of branches into the first columns of their slots, [S, W, ...]."""
        shape = (self.sampler.slots, self.width, *value_QF.shape[2:])
        value_SW = value_QF.new_full(shape, padding)
        value_SW[slot_Q, : value_QF.shape[1]] = value_QF
        return value_SW

    def _fill_slot_values(self, slot_Q: Tensor, value_Q: Tensor, padding: int) -> Tensor:
        """Put one value of each branch into its slot, [S]."""
        padding_S = value_Q.new_full((self.sampler.slots,), padding)
        return padding_S.index_copy(0, slot_Q, value_Q)

    def _columns(self, rows: Iterable[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """Put a table of integers on the device; return its columns."""
        columns = list(zip(*rows, strict=True))
        device = self.cache.keys.device
        return torch.tensor(columns, dtype=torch.int64, device=device).unbind()


class _TreeFeeder:
    """Feed the nodes of growing trees, depth by depth, and make the distributions behind them."""

    def __init__(self, engine: EagleEngine, rows: list[Canvas]) -> None:
        self._engine = engine
        self._rows = rows
        self._fed = 0
        self._depth = 0

    def feed(self, active: Sequence[int], token_AF: Tensor, parent_AF: Tensor) -> Tensor:
        """Return the distributions [A, F, V] behind new nodes (`harness.engine.draft_trees.Feed`).

        `active` are the rows whose trees still grow.
        """
        engine = self._engine
        growing = [self._rows[i] for i in active]
        self._depth += 1
        logits_SFV = engine.feed_nodes(growing, token_AF, parent_AF, self._fed, self._depth)
        self._fed += token_AF.shape[1]
        return engine.sampler.guided_probs(growing, logits_SFV, self._depth, engine.sampling)


@lru_cache(maxsize=16)
def _chain_tree(length: int) -> Tree:
    """Return the tree whose every place has one child."""
    children = {"0" * depth: 1 for depth in range(length)}
    return Static(children)
