"""The draw keeps its law: chi-square tests whose power is shown by a sampler that is 2 % wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from toy import ToyModel, draw, jobs

from harness.engine.acceptance import Drafts, Rule, coupled, exact, residual_probs, verify_chain
from harness.engine.guidance import Sampling, warp
from harness.kernels.noise import DRAFT, DRAW, Noise, derive, words
from methods.plain import Plain

DRAWS = 1_000_000


def keys(count: int, name: str) -> torch.Tensor:
    return torch.tensor([words(derive(name, i)) for i in range(count)])


def p_value(drawn: torch.Tensor, probs: torch.Tensor) -> float:
    counts = np.bincount(drawn.numpy(), minlength=len(probs))
    expected = probs.double().numpy()
    return float(chisquare(counts, expected / expected.sum() * len(drawn)).pvalue)


def noise(count: int, columns: int = 1) -> Noise:
    key_R2 = keys(1000, "exactness").repeat_interleave(count // 1000, 0)
    place_R = torch.arange(count // 1000).repeat(1000) * 7
    return Noise(key_R2, place_R[:, None] + torch.arange(columns))


LAW = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05, 0.0])


def test_a_race_draws_from_the_law() -> None:
    drawn = noise(DRAWS).race(DRAW, LAW.expand(DRAWS, 1, -1))[:, 0]
    assert p_value(drawn[drawn < 5], LAW[:5]) > 1e-3
    assert not (drawn == 5).any()


@pytest.mark.parametrize("top_k", [1, 3, 50, 99])
def test_top_k_keeps_what_a_sort_would_ties_included(top_k: int) -> None:
    logits_RV = (
        torch.randn(20, 100, generator=torch.Generator().manual_seed(0)).mul(2).round() * 0.5
    )
    logits_RV[:, 90:] = -torch.inf
    logits_RV[0] = 0.0
    kth_R1 = logits_RV.sort(dim=-1, descending=True).values[:, top_k - 1 : top_k]
    expected_RV = torch.where(logits_RV < kth_R1, -torch.inf, logits_RV).softmax(-1)
    assert (expected_RV > 0).sum(1).max() > top_k
    assert torch.equal(warp(logits_RV, Sampling(top_k=top_k)), expected_RV)


def test_the_test_sees_a_bug_of_two_percent() -> None:
    wrong = LAW.clone()
    wrong[0] = 0.49
    wrong[1] = 0.21
    drawn = noise(DRAWS).race(DRAW, wrong.expand(DRAWS, 1, -1))[:, 0]
    assert p_value(drawn, LAW[:5]) < 1e-6


def generous(
    probs_RTV: torch.Tensor, drafts: Drafts, noise: Noise
) -> tuple[torch.Tensor, torch.Tensor]:
    """A rule with a bug: it credits every draft token with two percentage points too much."""
    acceptance_prob_RG = probs_RTV[:, :-1].gather(-1, drafts.token_RG.unsqueeze(-1)).squeeze(-1)
    return verify_chain(probs_RTV, drafts, noise, acceptance_prob_RG + 0.02, residual_probs)


class Joint:
    """Every law of some tokens from four codes, by prefix: P(a), P(b | a), P(c | a, b), ...; some
    zero, some tied.
    """

    def __init__(self, seed: int, tokens: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.probs = [
            torch.rand(*[4] * (place + 1), generator=generator).double() ** 2
            for place in range(tokens)
        ]
        self.probs[1][0, 2] = self.probs[2][1, :, 3] = 0.0
        self.probs[2][2] = 1.0
        self.probs = [probs / probs.sum(-1, keepdim=True) for probs in self.probs]

    def after(self, place: int, prefix_RP: torch.Tensor) -> torch.Tensor:
        """Laws [R, 4] of the token at `place`."""
        probs = self.probs[place]
        return (
            probs[tuple(prefix_RP[:, :place].unbind(1))]
            if place
            else probs.expand(len(prefix_RP), -1)
        )

    def whole(self) -> torch.Tensor:
        """The law of all tokens at once, numbered in base four."""
        whole = self.probs[0]
        for probs in self.probs[1:]:
            whole = whole.unsqueeze(-1) * probs
        return whole.flatten()


def speculated(rule: Rule, target: Joint, draft: Joint) -> torch.Tensor:
    """Codes of DRAWS triples: two drafted tokens, one verification, then plain draws to the end."""
    rows = noise(DRAWS, 3)
    at = [Noise(rows.key_R2, rows.position_RT[:, place : place + 1]) for place in range(3)]
    token_R3 = torch.zeros((DRAWS, 3), dtype=torch.int64)
    for place in range(2):
        token_R3[:, place] = at[place].race(DRAFT, draft.after(place, token_R3).unsqueeze(1))[:, 0]
    probs_RTV = torch.stack([target.after(place, token_R3) for place in range(3)], 1)
    draft_probs_RGV = torch.stack([draft.after(place, token_R3) for place in range(2)], 1)
    drafts = Drafts(token_R3[:, :2].clone(), draft_probs_RGV, torch.full((DRAWS,), 2))
    path_RG, next_R = rule(probs_RTV, drafts, rows)
    count_R = (path_RG >= 0).sum(1)
    token_R3.scatter_(1, count_R[:, None], next_R[:, None])
    for place in range(1, 3):
        drawn_R = at[place].race(DRAW, target.after(place, token_R3).unsqueeze(1))[:, 0]
        token_R3[:, place] = torch.where(place > count_R, drawn_R, token_R3[:, place])
    return token_R3 @ torch.tensor([16, 4, 1])


def test_speculation_keeps_the_joint_law_and_a_bug_of_two_percent_shows() -> None:
    target = Joint(1)
    draft = Joint(2)
    joint = target.whole()
    kept = joint > 0
    number = torch.cumsum(kept, 0) - 1
    for rule in (exact, coupled):
        drawn = speculated(rule, target, draft)
        assert kept[drawn].all()
        assert p_value(number[drawn], joint[kept]) > 1e-3
    drawn = speculated(generous, target, draft)
    assert not kept[drawn].all() or p_value(number[drawn], joint[kept]) < 1e-6
    assert p_value(number[drawn[kept[drawn]]], joint[kept]) < 1e-6


def test_the_acceptance_rate_is_the_overlap_of_the_laws() -> None:
    target = Joint(1)
    draft = Joint(2)
    rows = noise(DRAWS, 2)
    q_V = draft.probs[0]
    token_R1 = Noise(rows.key_R2, rows.position_RT[:, :1]).race(DRAFT, q_V.expand(DRAWS, 1, -1))
    probs_RTV = torch.stack([target.after(place, token_R1) for place in range(2)], 1)
    path_RG, _ = exact(
        probs_RTV, Drafts(token_R1, q_V.expand(DRAWS, 1, -1), torch.ones(DRAWS).long()), rows
    )
    overlap = float(torch.minimum(target.probs[0], q_V).sum())
    assert (path_RG == 0).double().mean().item() == pytest.approx(overlap, abs=2e-3)


def test_uniforms_are_uniform_and_independent_of_place_lane_and_index() -> None:
    table = Noise(keys(64, "u"), torch.arange(64).expand(64, 64)).uniform(DRAW, 16)
    assert table.min() > 0
    assert table.max() < 1
    counts = torch.histc(table, 50, 0, 1).numpy()
    assert chisquare(counts).pvalue > 1e-3
    for shifted in (table.roll(1, 0), table.roll(1, 1), table.roll(1, 2)):
        assert abs(np.corrcoef(table.flatten(), shifted.flatten())[0, 1]) < 0.02
    assert table.unique().numel() == table.numel()


def test_the_whole_sampler_draws_the_models_law() -> None:
    """First two tokens of a one-prompt model over 20,000 images against the exhaustive joint
    law.
    """
    model = ToyModel(grid=(1, 2), vocab=5, seed=4)
    sampling = Sampling(scale=2.0, top_k=4)
    deliveries = draw(
        Plain(), jobs(["a cat"], images=20_000), model=model, sampling=sampling, slots=512
    )
    drawn = torch.tensor([d.tokens[0] * 5 + d.tokens[1] for d in deliveries.values()])
    joint = joint_probs(model, sampling)
    kept = joint > 0
    assert not (~kept)[drawn].any()
    code = torch.cumsum(kept, 0) - 1
    assert p_value(code[drawn], joint[kept]) > 1e-3
    assert p_value(code[drawn], joint_probs(model, Sampling(scale=2.4, top_k=4))[kept]) < 1e-6


def joint_probs(model: ToyModel, sampling: Sampling) -> torch.Tensor:
    """P(first, second), by whole-sequence forwards without a cache."""
    from harness.models.trunk import causal

    def probs(prefix: list[int]) -> torch.Tensor:
        logits = []
        for text in (None, "a cat"):
            context = model.context(text, "a cat")
            x = torch.cat((context, model.tokens(torch.tensor(prefix, dtype=torch.int64))))[None]
            pos = torch.arange(x.shape[1])[None]
            hidden = model.forward(x, pos, torch.tensor([len(context)]), causal)
            logits.append(model.head(hidden)[0, -1])
        return warp(logits[0] + sampling.scale * (logits[1] - logits[0]), sampling)

    first = probs([])
    return torch.cat([first[token] * probs([token]) for token in range(model.vocab)]).detach()
