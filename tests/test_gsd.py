"""GSD's rule: what a group is, what it lends, and that a group of one is exact."""

from __future__ import annotations

import pytest
import torch
from test_batch_invariance import costs
from test_exactness import Joint
from test_lantern import count_steps
from test_sjd import TOKENS, decoded, fits
from toy import TEXTS, draw, jobs

from harness.drafters.jacobi import Jacobi
from harness.engine.acceptance import Draft, Drafts, Rule, exact
from harness.kernels.noise import Noise
from harness.records import UserError
from methods.gsd import Grouped
from methods.sjd import SJD

PROBS = torch.tensor([[0.30, 0.05, 0.20, 0.10, 0.25, 0.10]]).double()
SAME = torch.ones(6, 2)
"""Codes of six tokens that all look alike."""


def ready(rule: Grouped, code_Vd: torch.Tensor) -> Grouped:
    """The rule with a codebook, as after `expect_target`."""
    rule.code_Vd = torch.nn.functional.normalize(code_Vd, dim=-1)
    return rule


def members(rule: Grouped, token: int) -> set[int]:
    group_RC, member_RC = rule.group(PROBS, torch.tensor([token]))
    return set(group_RC[0][member_RC[0]].tolist())


def test_worked_groups() -> None:
    """Ascending order of PROBS: 1, 3, 5, 2, 4, 0 (3 and 5 tie, by index)."""
    wide = ready(Grouped(4, law_gap=1.0), SAME)
    assert members(wide, 2) == {3, 5, 2, 4}  # two below, itself, one above
    assert members(wide, 1) == {1, 3}  # the order's ends cut it short
    assert members(wide, 0) == {2, 4, 0}

    near = ready(Grouped(4, law_gap=0.08), SAME)
    assert members(near, 2) == {2, 4}

    apart = SAME.clone()
    apart[4] = torch.tensor([1.0, -1.0])
    assert members(ready(Grouped(4, law_gap=1.0), apart), 2) == {3, 5, 2}


def test_worked_acceptance_probabilities() -> None:
    rule = ready(Grouped(4, law_gap=1.0), SAME)
    token_R = torch.tensor([2])
    drawn_RV = torch.tensor([[0.1, 0.1, 0.4, 0.1, 0.2, 0.1]]).double()
    lent = rule.acceptance_prob(PROBS, drawn_RV, token_R)
    assert lent.item() == pytest.approx(0.4 * 0.65 / 0.8)

    chosen_RV = torch.eye(6).double()[2:3]
    lent = rule.acceptance_prob(PROBS, chosen_RV, token_R)
    assert lent.item() == pytest.approx(0.65)


def test_a_group_of_one_is_exact_token_for_token() -> None:
    def images(rule: Rule) -> dict[tuple[str, int], object]:
        done = draw(SJD(Jacobi("uniform"), 6, rule), jobs(TEXTS, 2))
        return {key: (d.tokens, costs(d.usage)) for key, d in done.items()}

    strict = images(exact)
    assert images(Grouped(1)) == strict
    assert images(Grouped(14, law_gap=0)) == strict
    assert images(Grouped(14, law_gap=1.0, code_gap=5.0)) != strict


def test_groups_shorten_the_decoding_and_are_batch_invariant() -> None:
    def method(size: int) -> SJD:
        return SJD(Jacobi("uniform"), 6, Grouped(size, law_gap=1.0, code_gap=5.0))

    single = draw(method(1), jobs(TEXTS, 3))
    grouped = draw(method(16), jobs(TEXTS, 3))
    assert count_steps(grouped) < count_steps(single)
    for key, delivery in draw(method(16), jobs(TEXTS, 3)[::-1]).items():
        assert not delivery.error
        assert delivery.tokens == grouped[key].tokens


def test_the_groups_distribution_is_not_the_targets() -> None:
    target = Joint(3, TOKENS)
    codes = torch.ones(4, 2)
    groups = ready(Grouped(3, law_gap=0.3), codes)
    assert fits(decoded(Jacobi("uniform"), groups, target), target) < 1e-6
    singles = ready(Grouped(1), codes)
    assert fits(decoded(Jacobi("uniform"), singles, target), target) > 1e-3


def test_trees_are_refused() -> None:
    probs_RTV = torch.ones(1, 3, 6).double() / 6
    tree = Drafts.stack([Draft(torch.tensor([1, 2]), parents=(-1, -1))], probs_RTV)
    noise = Noise(torch.tensor([[1, 2]]), torch.arange(3)[None])
    rule = ready(Grouped(), SAME)
    with pytest.raises(UserError, match="tests chains: give a number of draft tokens, not a tree"):
        rule(probs_RTV, tree, noise)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "rule.size=0"),
        ({"law_gap": -0.1}, "rule.law_gap=-0.1"),
        ({"code_gap": -1}, "rule.code_gap=-1"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Grouped(**options)  # type: ignore[arg-type]
