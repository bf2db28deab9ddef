"""The draw keeps its law: chi-square tests whose power is shown by a sampler that is 2 % wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from toy import ToyModel, draw, jobs

from harness.hooks import Drafts, Sampling, coupled, exact, warp
from harness.noise import DRAW, Noise, derive, words
from methods.plain import Plain

DRAWS = 400_000


def keys(count: int, name: str) -> torch.Tensor:
    return torch.tensor([words(derive(name, i)) for i in range(count)])


def p_value(drawn: torch.Tensor, law: torch.Tensor) -> float:
    counts = np.bincount(drawn.numpy(), minlength=len(law))
    expected = law.double().numpy()
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


def test_the_test_sees_a_bug_of_two_percent() -> None:
    wrong = LAW.clone()
    wrong[0], wrong[1] = 0.49, 0.21
    drawn = noise(DRAWS).race(DRAW, wrong.expand(DRAWS, 1, -1))[:, 0]
    assert p_value(drawn, LAW[:5]) < 1e-6


@pytest.mark.parametrize("rule", [exact, coupled])
def test_speculation_keeps_the_first_token_law(rule: object) -> None:
    """Draft from another law; first token, and second token given the first was accepted, follow the target."""
    target = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]])
    draft = torch.tensor([[0.2, 0.3, 0.4, 0.1]])
    rows = noise(DRAWS, 2)
    token_R = Noise(rows.key_R2, rows.position_RT[:, :1]).race(7, draft.expand(DRAWS, 1, -1))
    drafts = Drafts(token_R, draft.expand(DRAWS, 1, -1), torch.ones(DRAWS, dtype=torch.int64))
    path_RG, next_R = rule(target.expand(DRAWS, 2, -1), drafts, rows)  # type: ignore[operator]
    accepted = path_RG[:, 0] == 0
    first = torch.where(accepted, token_R[:, 0], next_R)
    assert p_value(first, target[0, :3]) > 1e-3
    assert p_value(next_R[accepted], target[1]) > 1e-3
    if rule is exact:
        assert accepted.double().mean().item() == pytest.approx(
            float(torch.minimum(target[0], draft[0]).sum()), abs=3e-3
        )


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
    """First two tokens of a one-prompt model over 20,000 images against the exhaustive joint law."""
    model = ToyModel(grid=(1, 2), vocab=5, seed=4)
    sampling = Sampling(scale=2.0, top_k=4)
    deliveries = draw(Plain(), jobs(["a cat"], images=20_000), model=model, sampling=sampling, slots=512)
    drawn = torch.tensor([d.tokens[0] * 5 + d.tokens[1] for d in deliveries.values()])
    joint = joint_law(model, sampling)
    kept = joint > 0
    assert not (~kept)[drawn].any()
    code = torch.cumsum(kept, 0) - 1
    assert p_value(code[drawn], joint[kept]) > 1e-3
    assert p_value(code[drawn], joint_law(model, Sampling(scale=2.4, top_k=4))[kept]) < 1e-6


def joint_law(model: ToyModel, sampling: Sampling) -> torch.Tensor:
    """P(first, second), by whole-sequence forwards without a cache."""
    from harness.models.trunk import causal

    def law(prefix: list[int]) -> torch.Tensor:
        logits = []
        for text in (None, "a cat"):
            context = model.context(text, "a cat")
            x = torch.cat((context, model.tokens(torch.tensor(prefix, dtype=torch.int64))))[None]
            pos = torch.arange(x.shape[1])[None]
            hidden = model.forward(x, pos, torch.tensor([len(context)]), causal)
            logits.append(model.head(hidden)[0, -1])
        return warp(logits[0] + sampling.scale * (logits[1] - logits[0]), sampling)

    first = law([])
    return torch.cat([first[token] * law([token]) for token in range(model.vocab)]).detach()
