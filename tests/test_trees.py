"""Draft trees give what chains and plain sampling give, whatever the shape, drafter and batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest
import torch
from test_batch_invariance import costs
from test_exactness import (
    Joint,
    expect_draws_from,
    joint_probs,
    make_noise,
    p_value_of_possible,
)
from test_lantern import own_cache as own_cache
from test_speculative import drafter
from toy import TEXTS, ToyModel, draw, draw_pairs, jobs

from harness.engine.acceptance import (
    Draft,
    Drafts,
    Rule,
    coupled,
    exact,
    residual_probs,
    token_prob,
    verify,
)
from harness.engine.canvas import Canvas
from harness.engine.draft_trees import (
    PUBLISHED_TREES,
    Dynamic,
    Forest,
    GrownTree,
    Static,
    Tree,
    chain_parents,
    index_trees,
    paths,
    without_replacement,
)
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery
from harness.kernels.noise import DRAFT, DRAW, Noise
from harness.models.trunk import causal
from harness.records import Usage, UserError
from methods.lantern import Lantern
from methods.plain import Plain
from methods.speculative import Speculative
from methods.vvs import VVS, Uniform
from methods.vvs import Dynamic as DynamicSkips

BRANCH = Static({"": 1, "0": 1, "00": 1})
BUSHY = Static({"": 3, "0": 2, "1": 1, "00": 2, "000": 1})
GROWING = Dynamic(nodes=9, depth=3, top_k=3)


def longest_acceptance(deliveries: Mapping[object, Delivery]) -> int:
    """The most draft tokens that any decode step accepted."""
    longest = 0
    for delivery in deliveries.values():
        for accepted, steps in enumerate(delivery.notes["accepted"]):  # type: ignore[arg-type]
            if steps:
                longest = max(longest, accepted)
    return longest


@pytest.mark.parametrize("tree", [BUSHY, GROWING, Static("mc_sim_7b_63")])
@pytest.mark.parametrize("seed", [0, 9])
def test_coupled_over_trees_is_plain_token_for_token(tree: Tree, seed: int) -> None:
    """Drafted by the target's own text branch, and by a model that has nothing to do with it."""
    plain = draw(Plain(), jobs(TEXTS, images=2))
    method = Speculative(drafter(seed, guided=False), tree, coupled)
    drawn = draw(method, jobs(TEXTS, images=2))
    if seed == 0:
        assert longest_acceptance(drawn) >= 2
    for key, delivery in drawn.items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens


@pytest.mark.parametrize("tree", [BUSHY, GROWING])
@pytest.mark.parametrize("rule", [exact, Lantern(4, delta=0.3)])
def test_greedy_trees_are_greedy_plain(tree: Tree, rule: Rule) -> None:
    greedy = Sampling(scale=2.0, temperature=0.0)
    plain = draw(Plain(), jobs(TEXTS), sampling=greedy)
    chain_method = Speculative(drafter(0, guided=False), tree.depth, rule)
    chains = draw(chain_method, jobs(TEXTS), sampling=greedy)
    tree_method = Speculative(drafter(0, guided=False), tree, rule)
    drawn = draw(tree_method, jobs(TEXTS), sampling=greedy)
    for key, delivery in drawn.items():
        assert delivery.tokens == plain[key].tokens

    # The likeliest child is among the tree's.
    tree_passes = sum(delivery.usage.target_passes for delivery in drawn.values())
    chain_passes = sum(delivery.usage.target_passes for delivery in chains.values())
    assert tree_passes < chain_passes


@pytest.mark.parametrize("rule", [exact, coupled, Lantern(5, delta=0.3, residual="code_static")])
@pytest.mark.parametrize("sampling", [Sampling(scale=2.0), Sampling(scale=1.0, top_k=5)])
def test_a_tree_of_one_branch_is_the_chain_token_for_token(rule: Rule, sampling: Sampling) -> None:
    chains = draw(Speculative(drafter(), 3, rule), jobs(TEXTS, 2), sampling=sampling)
    trees = draw(Speculative(drafter(), BRANCH, rule), jobs(TEXTS, 2), sampling=sampling)
    for key, delivery in trees.items():
        chain = chains[key]
        assert not delivery.error
        assert delivery.tokens == chain.tokens
        assert delivery.notes["accepted"] == chain.notes["accepted"]
        assert delivery.usage.target_positions == chain.usage.target_positions
        if rule is not exact and rule is not coupled:
            assert delivery.notes["rescued"] == chain.notes["rescued"]
            lent_mass = pytest.approx(chain.notes["lent_mass"], abs=2e-6)
            assert delivery.notes["lent_mass"] == lent_mass


def test_a_chosen_tree_of_one_branch_is_the_greedy_chain() -> None:
    tree = Dynamic(nodes=3, depth=3, top_k=1)
    greedy = Sampling(scale=2.0, temperature=0.0)
    chains = draw(Speculative(drafter(), 3), jobs(TEXTS), sampling=greedy)
    trees = draw(Speculative(drafter(), tree), jobs(TEXTS), sampling=greedy)
    for key, delivery in trees.items():
        assert delivery.notes["accepted"] == chains[key].notes["accepted"]


@pytest.mark.parametrize("tree", [BUSHY, GROWING])
def test_ragged_rows_change_no_other_row(tree: Tree) -> None:
    some = jobs(TEXTS, images=2)

    def method() -> Speculative:
        return Speculative(drafter(), tree, Lantern(5, delta=0.3))

    together = draw(method(), some)
    histograms = {tuple(d.notes["accepted"]) for d in together.values()}  # type: ignore[arg-type]
    assert len(histograms) > 1
    shuffled = random.Random(1).sample(some, len(some))
    for others in (shuffled, some[3:4]):
        for key, delivery in draw(method(), others).items():
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


# ------------------------------------------------------------------ the ledger and the cache


def test_the_ledger_counts_every_node() -> None:
    for delivery in draw(Speculative(drafter(), BUSHY), jobs(TEXTS)).values():
        usage = delivery.usage
        accepted = delivery.notes["accepted"]
        assert usage.sampled == 16 == sum((a + 1) * count for a, count in enumerate(accepted))
        assert usage.skipped == usage.discarded == 0
        steps = sum(accepted)
        # Every token but the last, and every node, in two branches.
        most = 2 * (16 - 1 + steps * BUSHY.nodes)
        assert 2 * steps <= usage.target_positions < most
        assert usage.drafted_positions > 0


def test_the_whole_tree_is_counted_while_it_fits() -> None:
    """A decode step by hand: the last committed position and all nodes, in both branches."""
    sampler = Sampler(
        ToyModel(),
        Sampling(scale=2.0),
        slots=2,
        tokens_per_step=10,
        tree_capacity=9,
        prefill=(3, 4),
    )
    usage = Usage()
    contexts, guide = sampler.contexts("a cat")
    canvas = sampler.open(contexts, guide, 5, usage)
    sampler.forward([canvas], [None])
    sampler.draw([canvas], [None], exact)
    before = usage.target_positions
    sampler.forward([canvas], [Draft(torch.arange(9), None, (-1, -1, 0, 0, 1, 2, 5, 6, 6))])
    assert usage.target_positions - before == 2 * 10


class Seen:
    """Causal attention that records each layer's keys and values."""

    def __init__(self) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        self.layers.append((k[0], v[0]))
        return causal(layer, q, k, v)


CACHE_SHAPE = (-1, -1, -1, 0, 0, 1, 3, 3, 6, 6, 4)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_accepted_paths_cache_is_that_of_a_fresh_prefill(scale: float) -> None:
    """Keys and values after each decode step, against one forward without a cache."""
    model = ToyModel()
    sampler = Sampler(
        model, Sampling(scale=scale), slots=4, tokens_per_step=12, tree_capacity=11, prefill=(3, 4)
    )
    contexts, guide = sampler.contexts("two dogs left of a car")
    canvas = sampler.open(contexts, guide, 7, Usage())
    other = sampler.open(*sampler.contexts("one"), 8, Usage())
    generator = torch.Generator().manual_seed(0)
    depths = []
    moved = 0
    while model.num_tokens - canvas.length > 5:
        # 1. Draft a tree whose first node is not the likeliest.
        fresh = torch.randint(model.vocab, (11,), generator=generator)
        sampler.forward([canvas], [None])
        (probs_V,) = sampler.target_probs([canvas], [None])[:, 0]
        fresh[[0, 1, 2]] = probs_V.topk(3).indices[[2, 0, 1]]
        drafts = [Draft(fresh, None, CACHE_SHAPE), None]

        # 2. Verify it beside a row without a draft.
        sampler.forward([canvas, other], drafts)
        before = canvas.length
        accepted = sampler.draw([canvas, other], drafts, generous)
        depths.append(accepted[0])
        moved += accepted[0] > 0 and canvas.tokens[before] != int(fresh[0])

        # 3. Compare the cache.
        expect_cache_of_fresh_prefill(sampler, canvas)
    assert max(depths) >= 2
    assert moved  # some path did not begin with the first node


def expect_cache_of_fresh_prefill(sampler: Sampler, canvas: Canvas) -> None:
    model = sampler.model
    tokens = torch.tensor(canvas.tokens)
    spans = sampler.branch_spans(canvas)
    for (slot, start, cached), context in zip(spans, canvas.contexts, strict=True):
        assert cached == start + canvas.length - 1
        context_PD = model.context(context.text, context.like)
        x = torch.cat((context_PD, model.embed(tokens, tokens)))[None]
        seen = Seen()
        model.forward(x, torch.arange(x.shape[1])[None], torch.tensor([start]), seen)
        for layer, (k, v) in enumerate(seen.layers):
            keys = sampler.table.cache.keys[layer, slot, :, :cached]
            values = sampler.table.cache.values[layer, slot, :, :cached]
            torch.testing.assert_close(keys, k[:, :cached])
            torch.testing.assert_close(values, v[:, :cached])


def generous(
    probs_RTV: torch.Tensor, drafts: Drafts, noise: Noise
) -> tuple[torch.Tensor, torch.Tensor]:
    """Accepts most children, so that paths are long."""

    def more_by_far(probs_RV: torch.Tensor, token_R: torch.Tensor) -> torch.Tensor:
        return token_prob(probs_RV, token_R) + 0.6

    return verify(probs_RTV, drafts, noise, more_by_far, residual_probs)


# ------------------------------------------------------------------ the rules keep the law


DRAWS = 150_000
SHAPE = (-1, -1, -1, 0, 0, 1, 2)
"""Three children of the root; two below the first, one below each other."""


def make_trees(target: Joint, draft: Joint, chosen: bool) -> tuple[torch.Tensor, Drafts, Noise]:
    """The target's distributions, drafts and noise of DRAWS trees of two depths.

    Children are drawn without replacement, or the likeliest are chosen.
    """
    rows = make_noise(DRAWS, 8)
    token_RG = torch.zeros((DRAWS, len(SHAPE)), dtype=torch.int64)
    draft_probs_RGV = torch.zeros((DRAWS, len(SHAPE), 4)).double()

    # 1. Draft the children of the root, then those of its three children.
    for place in (-1, 0, 1, 2):
        nodes = [g for g, parent in enumerate(SHAPE) if parent == place]
        prefix_RP = token_RG[:, [place]] if place >= 0 else token_RG[:, :0]
        probs_RV = draft.after(0 if place < 0 else 1, prefix_RP)
        if chosen:
            token_RG[:, nodes] = probs_RV.topk(len(nodes)).indices
            one_hot_RcV = torch.nn.functional.one_hot(token_RG[:, nodes], 4)
            draft_probs_RGV[:, nodes] = one_hot_RcV.double()
        else:
            noise_here = Noise(rows.key_R2, rows.position_RT[:, :1] + (place >= 0))
            token_RG[:, nodes] = noise_here.order(DRAFT + max(0, place), probs_RV, len(nodes))
            draft_probs_RGV[:, nodes] = without_replacement(probs_RV, token_RG[:, nodes])

    # 2. Look up the target's distributions at the root and behind every node.
    probs_RTV = torch.zeros((DRAWS, 8, 4)).double()
    probs_RTV[:, 0] = target.probs[0]
    for g, parent in enumerate(SHAPE):
        prefix_RP = token_RG[:, [g]] if parent < 0 else token_RG[:, [parent, g]]
        probs_RTV[:, g + 1] = target.after(prefix_RP.shape[1], prefix_RP)

    # 3. Give every row the same tree.
    trees = index_trees((SHAPE,), len(SHAPE))
    many = Forest(
        trees.depth_RT.repeat(DRAWS, 0),
        trees.sees_RTG.repeat(DRAWS, 0),
        trees.child_RTC.repeat(DRAWS, 0),
    )
    length_R = torch.full((DRAWS,), len(SHAPE))
    return probs_RTV, Drafts(token_RG, draft_probs_RGV, length_R, many), rows


def draw_triples(
    rule: Rule, target: Joint, probs_RTV: torch.Tensor, drafts: Drafts, rows: Noise
) -> torch.Tensor:
    """Codes of triples: one verification, then plain draws to the end."""
    path_RG, next_R = rule(probs_RTV, drafts, rows)
    count_R = (path_RG >= 0).sum(1)
    token_R3 = torch.zeros((DRAWS, 3), dtype=torch.int64)
    token_R3[:, :2] = drafts.token_RG.gather(1, path_RG[:, :2].clamp(min=0))
    token_R3.scatter_(1, count_R[:, None], next_R[:, None])
    for place in range(1, 3):
        noise_here = Noise(rows.key_R2, rows.position_RT[:, place : place + 1])
        probs_RV = target.after(place, token_R3)
        drawn_R = noise_here.race(DRAW, probs_RV.unsqueeze(1))[:, 0]
        token_R3[:, place] = torch.where(place > count_R, drawn_R, token_R3[:, place])
    return token_R3 @ torch.tensor([16, 4, 1])


def slightly(
    probs_RTV: torch.Tensor, drafts: Drafts, noise: Noise
) -> tuple[torch.Tensor, torch.Tensor]:
    """A rule with a bug: it grants every draft token two percentage points too much."""

    def slightly_more(probs_RV: torch.Tensor, token_R: torch.Tensor) -> torch.Tensor:
        return token_prob(probs_RV, token_R) + 0.02

    return verify(probs_RTV, drafts, noise, slightly_more, residual_probs)


@pytest.mark.parametrize("chosen", [False, True], ids=["sampled", "top-k"])
def test_trees_keep_the_joint_law_and_a_bug_of_two_percent_shows(chosen: bool) -> None:
    target = Joint(1)
    draft = Joint(2)
    joint = target.whole()
    given = make_trees(target, draft, chosen)
    for rule in (exact, coupled):
        expect_draws_from(draw_triples(rule, target, *given), joint)

    drawn = draw_triples(slightly, target, *given)
    assert p_value_of_possible(drawn, joint) < 1e-6


def test_sampled_trees_and_chosen_ones_need_rules_of_their_own() -> None:
    """Chosen children tested as if drawn, and drawn ones as if with replacement, break the law.

    (Drawn children tested as if chosen do not: any set of candidates keeps the law, only less of it
    is accepted.)
    """
    target = Joint(1)
    draft = Joint(2)
    joint = target.whole()
    for chosen in (True, False):
        probs_RTV, drafts, rows = make_trees(target, draft, chosen)
        wrong_R3V = draft.after(0, drafts.token_RG)[:, None].expand(-1, 3, -1)
        if chosen:
            wrong_R3V = without_replacement(wrong_R3V[:, 0], drafts.token_RG[:, :3])
        wrong_probs_RGV = torch.cat((wrong_R3V, drafts.probs_RGV[:, 3:]), 1)
        wrong = Drafts(drafts.token_RG, wrong_probs_RGV, drafts.length_R, drafts.forest)
        drawn = draw_triples(exact, target, probs_RTV, wrong, rows)
        assert p_value_of_possible(drawn, joint) < 1e-6


@pytest.mark.parametrize(
    "tree", [Static({"": 2}), Dynamic(nodes=3, depth=1, top_k=3)], ids=["sampled", "top-k"]
)
def test_trees_keep_the_joint_law_through_the_whole_sampler(tree: Tree) -> None:
    tiny = ToyModel(grid=(1, 3), vocab=5, seed=4)
    sampling = Sampling(scale=2.0, top_k=4)
    method = Speculative(drafter(like=tiny), tree)
    pairs = draw_pairs(method, 2_500, tiny, sampling)
    expect_draws_from(pairs, joint_probs(tiny, sampling))


# ------------------------------------------------------------------ shapes


def test_the_published_trees_have_their_nodes() -> None:
    for name, per_depth in (
        ("naive_extend_57", [5, 13, 16, 14, 9]),
        ("mc_sim_7b_63", [4, 8, 8, 3, 2]),
    ):
        tree = Static(name)
        depth_G = index_trees((tree.parents,), tree.nodes).depth_RT[0, 1:]
        assert [int((depth_G == d + 1).sum()) for d in range(tree.depth)] == per_depth
        assert tree.nodes == sum(per_depth) == sum(PUBLISHED_TREES[name].values())
        leaves = set(range(tree.nodes)) - set(tree.parents)
        assert len(paths(tree.parents)) == len(leaves)
    assert Static("naive_extend_57").widest == 7


class JointFeed:
    """Distributions behind the nodes of one tree of two depths, after a `Joint`."""

    def __init__(self, probs: list[torch.Tensor]) -> None:
        self.probs = probs
        self.first: torch.Tensor | None = None  # the nodes that were fed first, below the root

    def __call__(
        self, _rows: object, token_AF: torch.Tensor, parent_AF: torch.Tensor
    ) -> torch.Tensor:
        if self.first is None:
            self.first = token_AF[0]
        probs = []
        for token, parent in zip(token_AF[0].tolist(), parent_AF[0].tolist(), strict=True):
            prefix = (token,) if parent < 0 else (int(self.first[parent]), token)
            probs.append(self.probs[len(prefix)][prefix])
        return torch.stack(probs)[None]


def test_a_dynamic_tree_keeps_the_likeliest_paths() -> None:
    """Against every path of the distribution, enumerated."""
    probs = Joint(3).probs
    tree = Dynamic(nodes=11, depth=3, top_k=4)
    (grown,) = tree.grow(probs[0][None], JointFeed(probs), make_noise(1000, 3), [3])

    # 1. Score the paths that the tree may propose.
    score: dict[tuple[int, ...], torch.Tensor] = {}
    for a in range(4):
        score[a,] = probs[0][a]
    for a in range(4):
        for b in range(4):
            score[a, b] = probs[0][a] * probs[1][a, b]
    pairs = [path for path in score if len(path) == 2]
    frontier = sorted(pairs, key=lambda path: -score[path])[:4]
    for path in frontier:
        for c in range(4):
            score[*path, c] = score[path] * probs[2][*path, c]

    # 2. The tree has the eleven likeliest.
    best = sorted(score, key=lambda path: -float(score[path]))[:11]
    found = list_token_paths(grown)
    assert set(found) == set(best)
    assert len(set(found)) == 11
    assert grown.probs_GV is None


def list_token_paths(grown: GrownTree) -> list[tuple[int, ...]]:
    """The tokens from the root to every node."""
    tokens = grown.token_G.tolist()
    found = []
    for node in range(len(tokens)):
        path = []
        at = node
        while at >= 0:
            path.append(tokens[at])
            at = grown.parents[at]
        found.append(tuple(path[::-1]))
    return found


def test_trees_end_where_the_image_ends() -> None:
    for tree in (BUSHY, GROWING):
        for delivery in draw(Speculative(drafter(seed=0), tree), jobs(TEXTS)).values():
            assert not delivery.error
            assert len(delivery.tokens) == delivery.usage.sampled == 16


def test_children_drawn_without_replacement_differ_and_are_told_what_they_were_drawn_from() -> None:
    probs_RV = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).double().expand(1000, -1)
    token_Rc = make_noise(1000).order(DRAFT, probs_RV, 3)
    assert (token_Rc.sort(1).values == torch.tensor([0, 1, 2])).all()
    drawn_from_RcV = without_replacement(probs_RV, token_Rc)
    torch.testing.assert_close(drawn_from_RcV.sum(2), torch.ones(1000, 3).double())
    last_prob_R = token_prob(drawn_from_RcV[:, 2], token_Rc[:, 2])
    assert last_prob_R.allclose(torch.ones(1000).double())

    # Nothing is left to draw for the fourth.
    assert not without_replacement(probs_RV[:1], torch.tensor([[0, 1, 2, 3]]))[0, 3].any()


def test_a_repeated_sibling_is_tested_once() -> None:
    probs_RTV = torch.tensor([[0.5, 0.5], [1, 0], [1, 0]]).double().expand(1000, -1, -1)
    twice = Draft(torch.tensor([0, 0]), None, (-1, -1))
    drafts = Drafts.stack([twice] * 1000, probs_RTV)
    assert drafts.probs_RGV[0].tolist() == [[1, 0], [0, 0]]

    def even_odds(_probs_RV: torch.Tensor, _token_R: torch.Tensor) -> torch.Tensor:
        return torch.full((1000,), 0.5)

    path_RG, next_R = verify(probs_RTV, drafts, make_noise(1000, 3), even_odds, residual_probs)
    assert ((path_RG[:, 0] == 0) | (next_R == 1)).all()
    assert 400 < (path_RG[:, 0] == 0).sum() < 600


def test_chains_are_trees_of_one_branch() -> None:
    assert chain_parents(3) == (-1, 0, 1)
    assert paths(chain_parents(3)) == [[0, 1, 2]]
    assert paths((-1, -1, 0, 0)) == [[1], [0, 2], [0, 3]]


# ------------------------------------------------------------------ VVS over trees


@pytest.mark.parametrize("tree", [BUSHY, GROWING])
@pytest.mark.parametrize("schedule", [Uniform(2), DynamicSkips(-1.0, stride=2)])
def test_vvs_over_trees_skips_and_counts(tree: Tree, schedule: object) -> None:
    method = VVS(drafter(), schedule, tree, Lantern(5, delta=0.3))  # type: ignore[arg-type]
    some = jobs(TEXTS, 2)
    together = draw(method, some)
    assert sum(delivery.usage.skipped for delivery in together.values()) > 6
    for key, delivery in draw(method, some[::-1]).items():
        assert not delivery.error
        usage = delivery.usage
        skips = delivery.notes["skips"]
        accepted = delivery.notes["accepted"]
        assert usage.skipped == sum(m * count for m, count in enumerate(skips))
        sampled = sum((a + 1) * count for a, count in enumerate(accepted))
        assert usage.sampled == sampled == 16 - usage.skipped
        assert delivery.tokens == together[key].tokens
        assert costs(usage) == costs(together[key].usage)


def test_vvs_over_trees_that_takes_skips_back_is_lossless_under_the_coupled_rule() -> None:
    plain = draw(Plain(), jobs(TEXTS, 2))
    method = VVS(drafter(), Uniform(2), BUSHY, coupled, post="reject")
    for key, delivery in draw(method, jobs(TEXTS, 2)).items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens
        assert delivery.usage.skipped > 0


def test_never_skipping_over_trees_is_the_rule() -> None:
    strict = draw(Speculative(drafter(), BUSHY), jobs(TEXTS))
    for key, delivery in draw(VVS(drafter(), Uniform(1), BUSHY), jobs(TEXTS)).items():
        assert delivery.tokens == strict[key].tokens


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Static("oak"), r"tree\.children=oak: choose naive_extend_57"),
        (lambda: Static({"": 2, "3": 1}), r"tree\.children\['3'\]=1"),
        (lambda: Static({"": 11}), r"tree\.children\[''\]=11"),
        (lambda: Static({}), "tree.children is empty"),
        (lambda: Dynamic(depth=0), r"tree\.nodes=58, depth=0"),
        (
            lambda: Dynamic(nodes=99, depth=1, top_k=4),
            r"tree\.nodes=99: depth 1 and top_k 4 propose 4",
        ),
        (
            lambda: VVS(drafter(), Uniform(2), GROWING, select="confidence"),
            r"method\.select=confidence: a dynamic tree",
        ),
        (
            lambda: Speculative(object(), BUSHY),  # type: ignore[arg-type]
            r"method\.gamma is a tree, and the drafter drafts chains",
        ),
    ],
)
def test_bad_shapes_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_a_tree_that_the_sampler_has_no_place_for_is_refused() -> None:
    model = ToyModel()
    too_small = r"sampler\.tokens_per_step=4 is too small: the method needs 10"
    with pytest.raises(UserError, match=too_small):
        draw(Speculative(drafter(), BUSHY), jobs(TEXTS), model=model, tokens_per_step=4)
    assert model.forwards == 0
    sampler = Sampler(model, Sampling(), slots=2, tokens_per_step=3, tree_capacity=2)
    canvas = sampler.open(*sampler.contexts("one"), 1, Usage())
    with pytest.raises(ValueError, match="at most 2 fit"):
        sampler.forward([canvas], [Draft(torch.arange(3), None, (-1, -1, -1))])
    with pytest.raises(ValueError, match="no earlier node"):
        sampler.forward([canvas], [Draft(torch.arange(2), None, (1, -1))])
