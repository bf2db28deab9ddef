"""GSD's rule: what a group is, what it lends, and that a group of one is exact."""

from __future__ import annotations

import pytest
import torch
from test_batch_invariance import costs
from test_exactness import Joint
from test_sjd import TOKENS, decoded, fits
from toy import TEXTS, draw, jobs

from harness.drafters.jacobi import Jacobi
from harness.engine.acceptance import Draft, Drafts, exact
from harness.kernels.noise import Noise
from harness.records import UserError
from methods.gsd import Grouped
from methods.sjd import SJD


def ready(rule: Grouped, code_Vd: torch.Tensor) -> Grouped:
    rule.code_Vd = torch.nn.functional.normalize(code_Vd, dim=-1)
    return rule


LAW = torch.tensor([[0.30, 0.05, 0.20, 0.10, 0.25, 0.10]]).double()
SAME = torch.ones(6, 2)


def members(rule: Grouped, token: int) -> set[int]:
    group_RC, member_RC = rule.group(LAW, torch.tensor([token]))
    return set(group_RC[0][member_RC[0]].tolist())


def test_worked_values() -> None:
    """Ascending order of LAW: 1, 3, 5, 2, 4, 0 (3 and 5 tie, by index)."""
    assert members(ready(Grouped(4, law_gap=1.0), SAME), 2) == {
        3,
        5,
        2,
        4,
    }  # two below, itself, one above
    assert members(ready(Grouped(4, law_gap=1.0), SAME), 1) == {
        1,
        3,
    }  # the order's ends cut it short
    assert members(ready(Grouped(4, law_gap=1.0), SAME), 0) == {2, 4, 0}
    assert members(ready(Grouped(4, law_gap=0.08), SAME), 2) == {2, 4}
    apart = SAME.clone()
    apart[4] = torch.tensor([1.0, -1.0])
    assert members(ready(Grouped(4, law_gap=1.0), apart), 2) == {3, 5, 2}
    draft_probs = torch.tensor([[0.1, 0.1, 0.4, 0.1, 0.2, 0.1]]).double()
    acceptance_prob = ready(Grouped(4, law_gap=1.0), SAME).acceptance_prob(
        LAW, draft_probs, torch.tensor([2])
    )
    assert acceptance_prob.item() == pytest.approx(0.4 * 0.65 / 0.8)
    point = torch.eye(6).double()[2:3]
    assert ready(Grouped(4, law_gap=1.0), SAME).acceptance_prob(
        LAW, point, torch.tensor([2])
    ).item() == pytest.approx(0.65)


def test_a_group_of_one_is_exact_token_for_token() -> None:
    def images(rule: object) -> dict[tuple[str, int], object]:
        done = draw(SJD(Jacobi("uniform"), 6, rule), jobs(TEXTS, 2))  # type: ignore[arg-type]
        return {key: (d.tokens, costs(d.usage)) for key, d in done.items()}

    strict = images(exact)
    assert images(Grouped(1)) == strict
    assert images(Grouped(14, law_gap=0)) == strict
    assert images(Grouped(14, law_gap=1.0, code_gap=5.0)) != strict


def test_groups_shorten_the_decoding_and_company_changes_nothing() -> None:
    def method(size: int) -> SJD:
        return SJD(Jacobi("uniform"), 6, Grouped(size, law_gap=1.0, code_gap=5.0))

    single, grouped = (draw(method(size), jobs(TEXTS, 3)) for size in (1, 16))
    rounds = [sum(sum(d.notes["accepted"]) for d in run.values()) for run in (grouped, single)]
    assert rounds[0] < rounds[1]
    for key, delivery in draw(method(16), jobs(TEXTS, 3)[::-1]).items():
        assert not delivery.error
        assert delivery.tokens == grouped[key].tokens


def test_the_groups_law_is_not_the_targets() -> None:
    target = Joint(3, TOKENS)
    rule = ready(Grouped(3, law_gap=0.3), torch.ones(4, 2))
    assert fits(decoded(Jacobi("uniform"), rule, target), target) < 1e-6
    assert (
        fits(decoded(Jacobi("uniform"), ready(Grouped(1), torch.ones(4, 2)), target), target) > 1e-3
    )


def test_trees_are_refused() -> None:
    probs = torch.ones(1, 3, 6).double() / 6
    tree = Drafts.stack([Draft(torch.tensor([1, 2]), parents=(-1, -1))], probs)
    with pytest.raises(UserError, match="tests chains: give a number of draft tokens, not a tree"):
        ready(Grouped(), SAME)(probs, tree, Noise(torch.tensor([[1, 2]]), torch.arange(3)[None]))


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
