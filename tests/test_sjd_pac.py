"""SJD-PAC: a tree of Jacobi drafts keeps the target's law; what was released does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import chi2
from test_batch_invariance import costs
from test_exactness import Joint
from test_sjd import Rows, open_canvas
from test_trees import slightly
from torch import Tensor
from toy import TEXTS, PixelSum, ToyModel, draw, jobs

from harness.drafters.jacobi import Jacobi
from harness.engine.acceptance import Drafts, Rule, coupled, exact
from harness.engine.draft_trees import (
    Dynamic,
    Forest,
    Proactive,
    Static,
    continue_tree,
    index_trees,
)
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.kernels.noise import Noise
from harness.records import UserError
from methods.best_of_n import BestOfN
from methods.conformance.sjd_pac import conformance
from methods.plain import Plain
from methods.sjd import SJD
from methods.sjd_pac import longest
from methods.speculative import Speculative

VECTORS = Path("../shared/data/methods/sjd_pac.jsonl")
TOKENS = 4
WIDE = Proactive(3, 2, 7)
DEEP = Proactive(2, 3, 8)


@pytest.mark.skipif(
    not VECTORS.exists(), reason="the conformance vectors are not beside this checkout"
)
def test_conformance_vectors() -> None:
    passed, failed, messages = conformance(VECTORS)
    assert (failed, messages) == (0, [])
    assert passed == 74


# --- the joint law of a whole image ---------------------------------------------------------------


def decoded(drafter: Jacobi, rule: Rule, target: Joint, tree: Proactive) -> Tensor:
    """Numbers of images of four tokens, decoded by the drafter's own arithmetic and the rule."""
    rows = Rows()
    for place in range(TOKENS):
        verify_at(place, rows, drafter, rule, target, tree)
    return rows.token_RN @ torch.tensor([64, 16, 4, 1])


def verify_at(
    place: int, rows: Rows, drafter: Jacobi, rule: Rule, target: Joint, tree: Proactive
) -> None:
    """Draft and verify a tree for all rows that stand at a place."""
    (row,) = torch.where(rows.at_R == place)
    depth = min(tree.depth, TOKENS - place - 1)
    noise = Noise(rows.key_R2[row], (place + torch.arange(1 + TOKENS)).expand(len(row), -1))
    token_RN = rows.token_RN[row]
    if depth == 0:
        drawn_R = noise.race(0, target.after(place, token_RN).unsqueeze(1))[:, 0]
        rows.token_RN[row, place] = drawn_R
        return

    # 1. Draft.
    here = slice(place, place + depth)
    window_noise = Noise(noise.key_R2, noise.position_RT[:, :depth])
    token_RG, draft_probs_RGV = drafter.fill_tree(rows.window(row, here), window_noise, 2, tree)

    # 2. Look up the target's distributions behind every node, and verify.
    nodes = tree.count_nodes(depth)
    parents = tree.parents[:nodes]
    probs_RTV = torch.stack(
        [target.after(place, token_RN)]
        + [behind(target, place, token_RN, token_RG, parents, g) for g in range(nodes)],
        1,
    )
    one = index_trees((parents,), nodes)
    forest = Forest(
        *(table.repeat(len(row), 0) for table in (one.depth_RT, one.sees_RTG, one.child_RTC))
    )
    drafts = Drafts(token_RG, draft_probs_RGV, torch.full((len(row),), nodes), forest)
    path_RG, next_R = rule(probs_RTV, drafts, noise)

    # 3. Commit, and record what the next window is made of.
    count_R = (path_RG >= 0).sum(1)
    accepted_RG = token_RG.gather(1, path_RG[:, :depth].clamp(min=0))
    new_RN = token_RN.clone()
    new_RN[:, here] = torch.where(path_RG[:, :depth] >= 0, accepted_RG, new_RN[:, here])
    rows.token_RN[row] = new_RN.scatter(1, place + count_R[:, None], next_R[:, None])
    rows.at_R[row] = place + count_R + 1
    end_R = torch.where(
        count_R > 0, path_RG.gather(1, (count_R - 1).clamp(min=0)[:, None])[:, 0] + 1, 0
    )
    record(rows, row, end_R, parents, probs_RTV, drafts)


def behind(
    target: Joint, place: int, token_RN: Tensor, token_RG: Tensor, parents: tuple[int, ...], g: int
) -> Tensor:
    """The target's distributions behind node g."""
    way = [g]
    while parents[way[0]] >= 0:
        way.insert(0, parents[way[0]])
    prefix_RN = token_RN.clone()
    prefix_RN[:, place : place + len(way)] = token_RG[:, way]
    return target.after(place + len(way), prefix_RN)


def record(
    rows: Rows,
    row: Tensor,
    end_R: Tensor,
    parents: tuple[int, ...],
    probs_RTV: Tensor,
    drafts: Drafts,
) -> None:
    """Keep what the verification says of the places behind each row's new token."""
    known = continue_tree(parents)
    law_RG = torch.from_numpy(known.source_TG)[end_R]
    old_RG = torch.from_numpy(known.old_TG)[end_R]
    index = torch.arange(len(row))
    rows.verified_R[row] = (law_RG >= 0).sum(1)
    rows.probs_RNV[row] = 0
    rows.old_probs_RNV[row] = 0
    for column in range(law_RG.shape[1]):
        at_R = rows.at_R[row] + column
        has_law_R = (law_RG[:, column] >= 0) & (at_R < TOKENS)
        has_old_R = (old_RG[:, column] >= 0) & (at_R < TOKENS)
        rows.probs_RNV[row[has_law_R], at_R[has_law_R]] = probs_RTV[
            index[has_law_R], 1 + law_RG[has_law_R, column]
        ]
        old = old_RG[has_old_R, column]
        rows.old_RN[row[has_old_R], at_R[has_old_R]] = drafts.token_RG[index[has_old_R], old]
        rows.old_probs_RNV[row[has_old_R], at_R[has_old_R]] = drafts.probs_RGV[
            index[has_old_R], old
        ]


def misfit(number_R: Tensor, target: Joint) -> tuple[float, float]:
    """Chi-square and p-value of images; those expected less than five times count together."""
    expected = target.whole() * len(number_R)
    rare = expected < 5
    cell = torch.where(rare, 0, (~rare).cumsum(0))
    cells = int(cell.max()) + 1
    expected_n = torch.zeros(cells).double().index_add(0, cell, expected)
    counts_n = torch.bincount(cell[number_R], minlength=cells).double()
    statistic = float(((counts_n - expected_n).square() / expected_n).sum())
    return statistic, float(chi2.sf(statistic, cells - 1))


@pytest.mark.parametrize("tree", [WIDE, DEEP], ids=["wide", "deep"])
def test_it_keeps_the_joint_law_and_a_bug_of_two_percent_shows(tree: Proactive) -> None:
    target = Joint(4, TOKENS)
    for drafter in (Jacobi("uniform", "maximal"), Jacobi("random", "none")):
        drawn = decoded(drafter, exact, target, tree)
        assert (target.whole() > 0)[drawn].all()
        assert misfit(drawn, target)[1] > 1e-3
    planted = decoded(Jacobi("uniform", "maximal"), slightly, target, tree)
    possible = planted[(target.whole() > 0)[planted]]
    assert misfit(possible, target)[1] < 1e-6


@pytest.mark.parametrize(
    ("siblings", "rule", "tree"),
    [
        ("target", longest, DEEP),
        ("residual", exact, DEEP),
        ("residual", longest, DEEP),
        ("residual", exact, WIDE),
        ("residual", longest, WIDE),
    ],
)
def test_what_was_released_does_not(siblings: str, rule: Rule, tree: Proactive) -> None:
    """Each choice alone, and both, are told from the target's law by chi-square.

    (Where only eldest children have children, the longest branch is that of the first child that
    passes: alone, that choice is lossless there.)
    """
    target = Joint(4, TOKENS)
    statistic, p = misfit(
        decoded(Jacobi("uniform", "maximal", siblings), rule, target, tree), target
    )
    print(f"chi-square {statistic:.1f}")
    assert p < 1e-5


def test_a_chain_as_released_is_lossless() -> None:
    target = Joint(4, TOKENS)
    chain = Proactive(1, 2, 5)
    drawn = decoded(Jacobi("uniform", "maximal", "residual"), longest, target, chain)
    assert misfit(drawn, target)[1] > 1e-3


# --- reductions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["uniform", "random"])
def test_a_tree_of_width_one_is_sjd_token_for_token(init: str) -> None:
    drafter = Jacobi(init, "maximal")
    chains = draw(SJD(drafter, 6), jobs(TEXTS, images=2))
    trees = draw(Speculative(drafter, Proactive(1, 2, 6)), jobs(TEXTS, images=2))
    for key, delivery in trees.items():
        assert not delivery.error
        assert delivery.tokens == chains[key].tokens
        assert delivery.notes["accepted"] == chains[key].notes["accepted"]


@pytest.mark.parametrize("tree", [WIDE, DEEP, Static({"": 2, "1": 2})])
@pytest.mark.parametrize("coupling", ["none", "maximal", "gumbel"])
def test_coupled_trees_are_plain_token_for_token(tree: Static, coupling: str) -> None:
    plain = draw(Plain(), jobs(TEXTS, images=2))
    method = Speculative(Jacobi("uniform", coupling), tree, coupled)
    for key, delivery in draw(method, jobs(TEXTS, images=2)).items():
        assert not delivery.error
        assert delivery.tokens == plain[key].tokens


def test_greedy_trees_are_greedy_plain() -> None:
    greedy = Sampling(scale=2.0, temperature=0.0)
    plain = draw(Plain(), jobs(TEXTS), sampling=greedy)
    for rule in (exact, longest):
        method = Speculative(Jacobi("uniform", "maximal"), DEEP, rule)
        for key, delivery in draw(method, jobs(TEXTS), sampling=greedy).items():
            assert delivery.tokens == plain[key].tokens


def test_it_draws_the_candidates_of_best_of_n() -> None:
    best = draw(BestOfN(2, PixelSum()), jobs(TEXTS))
    decoding = Speculative(Jacobi("uniform", "gumbel"), WIDE, coupled)
    for key, delivery in draw(BestOfN(2, PixelSum(), decoding), jobs(TEXTS)).items():
        assert delivery.tokens == best[key].tokens


# --- what a walk leaves, what else is in the batch ------------------------------------------------


def test_laws_that_do_not_change_are_accepted_along_the_main_branch() -> None:
    """Where a law does not depend on what was drawn before, old drafts are all accepted."""
    model = ToyModel()
    model.output.weight.data.zero_()
    sampler = Sampler(
        model, Sampling(scale=2.0), slots=8, tokens_per_step=8, tree_capacity=7, prefill=(2, 4)
    )
    canvas = open_canvas(sampler, key=1)
    drafter = Jacobi("uniform", "maximal")
    rounds = 0
    while not canvas.done:
        drafts = drafter.propose(sampler, [canvas], DEEP)
        draft = drafts[0]
        most = 0 if draft is None else min(DEEP.depth, 16 - canvas.length - 1)
        sampler.forward([canvas], drafts)
        (accepted,) = sampler.draw([canvas], drafts, exact)
        assert accepted == most  # all laws are uniform, so that of made-up tokens fits, too
        rounds += 1
    assert rounds == 4


@pytest.mark.parametrize("rule", [exact, longest])
@pytest.mark.parametrize("tree", [WIDE, DEEP], ids=["wide", "deep"])
def test_what_else_is_in_the_batch_changes_nothing(tree: Proactive, rule: Rule) -> None:
    def method() -> Speculative:
        return Speculative(Jacobi("uniform", "maximal"), tree, rule)

    some = jobs(TEXTS, images=2)
    model = ToyModel(grid=(3, 5), vocab=31, dtype=torch.float32)
    together = draw(method(), some, model=model)
    assert len({tuple(d.notes["accepted"]) for d in together.values()}) > 1  # type: ignore[arg-type]
    for others in (some[::-1], some[3:4]):
        for key, delivery in draw(method(), others, model=model).items():
            assert not delivery.error
            assert delivery.tokens == together[key].tokens
            assert delivery.notes == together[key].notes
            assert costs(delivery.usage) == costs(together[key].usage)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((0, 3, 64), r"tree\.width=0"),
        ((11, 2, 64), r"tree\.width=11"),
        ((3, 1, 64), r"tree\.levels=1"),
        ((4, 3, 20), r"tree\.window=20: .* take 21 positions: set tree\.window=21"),
    ],
)
def test_shapes_that_cannot_be_are_refused(options: tuple[int, int, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Proactive(*options)


def test_what_jacobi_cannot_draft_is_refused_before_any_compute() -> None:
    with pytest.raises(UserError, match=r"a tree of kind Dynamic, and Jacobi drafts have no"):
        Speculative(Jacobi(), Dynamic(nodes=3, depth=1, top_k=3))
    with pytest.raises(UserError, match=r"drafter\.siblings=any: choose from target, residual"):
        Jacobi(siblings="any")
