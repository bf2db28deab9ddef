"""LANTERN's rule: what it borrows and leaves; it is exact where nothing is borrowed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batch_invariance import costs
from test_speculative import drafter
from toy import TEXTS, ToyModel, draw, jobs

from harness.engine.acceptance import (
    Draft,
    Drafts,
    MeasuredRule,
    exact,
    residual_probs,
)
from harness.engine.acceptance import (
    tested_against as choose_tested,
)
from harness.engine.guidance import Sampling
from harness.engine.scheduler import Delivery
from harness.kernels.noise import ACCEPT, Noise
from harness.records import UserError
from methods.conformance.acceptance import conformance
from methods.lantern import RESIDUALS, Lantern, neighbours
from methods.speculative import Speculative

VECTORS = Path(__file__).parent.parent.parent / "shared/data/methods/acceptance.jsonl"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def ready(rule: Lantern, vocab: int, seed: int = 0) -> Lantern:
    """The rule with a random neighbour table, as after `expect_target`."""
    generator = torch.Generator().manual_seed(seed)
    distance_VV = torch.rand(vocab, vocab, generator=generator).fill_diagonal_(2)
    rule.table = distance_VV.argsort(1)[:, : min(rule.k + 1, vocab - 1)]
    return rule


def draw_probs(seed: int) -> torch.Tensor:
    """A random distribution over eight codes, most of its mass on a few."""
    torch.manual_seed(seed)
    return torch.distributions.Dirichlet(torch.full((8,), 0.4, dtype=torch.float64)).sample()


probs = st.integers(0, 2**31).map(draw_probs)


@pytest.mark.skipif(
    not VECTORS.exists(), reason="the conformance vectors are not beside this checkout"
)
def test_conformance_vectors() -> None:
    passed, failed, messages = conformance(VECTORS)
    assert (failed, messages) == (0, [])
    assert passed == 155


def test_worked_values() -> None:
    """p, neighbours and numbers worked out by hand from the definitions."""
    probs = torch.tensor([[0.10, 0.25, 0.05, 0.30, 0.20, 0.10]])
    table = torch.tensor([[2, 1, 4, 5, 3]]).repeat(6, 1)
    x = torch.tensor([0])
    one_hot = torch.eye(6)[:1]

    additive = Lantern(2, delta=0.2, residual="code_dynamic")
    additive.table = table[:, :3]
    assert additive.acceptance_prob(probs, x).item() == pytest.approx(0.15)
    left = additive.residual(probs, one_hot, x)[0]
    assert (left / left.sum()).tolist() == pytest.approx([0, 0, 0, 0.75, 0, 0.25])

    for multiplier, count, acceptance_prob in ((4.5, 2, 0.40), (1.4, 0, 0.10)):
        rule = Lantern(3, multiplier=multiplier)
        rule.table = table[:, :4]
        assert rule.borrow(probs, x).count_R.item() == count
        assert rule.acceptance_prob(probs, x).item() == pytest.approx(acceptance_prob)


@settings(max_examples=60, deadline=None)
@given(probs=probs, token=st.integers(0, 7), k=st.integers(0, 7), delta=st.floats(0, 1))
def test_the_bound_is_a_bound_on_total_variation(
    probs: torch.Tensor, token: int, k: int, delta: float
) -> None:
    rule = ready(Lantern(k, delta=delta), 8)
    x = torch.tensor([token])
    surrogate = rule.surrogate(probs[None], x)[0]
    borrowed = rule.borrow(probs[None], x).mass_R.item()
    acceptance_prob = rule.acceptance_prob(probs[None], x).item()

    distance = 0.5 * (surrogate - probs).abs().sum().item()
    assert distance == pytest.approx(borrowed, abs=1e-12)
    assert distance <= delta + 1e-12
    assert surrogate.sum().item() == pytest.approx(1)
    assert surrogate[token].item() == pytest.approx(acceptance_prob)

    # At zero nothing is borrowed, and the code's prefix may still count neighbours without mass.
    if delta > 0:
        wider = ready(Lantern(k, delta=min(1.0, delta * 1.5)), 8)
        assert wider.acceptance_prob(probs[None], x).item() >= acceptance_prob - 1e-12


@settings(max_examples=40, deadline=None)
@given(
    probs=probs,
    token=st.integers(0, 7),
    delta=st.floats(0, 1),
    residual=st.sampled_from(["optimal", "aggregated"]),
)
def test_output_stays_within_delta_of_the_target(
    probs: torch.Tensor, token: int, delta: float, residual: str
) -> None:
    """One chosen candidate, accepted or replaced from the residual: the output by enumeration."""
    rule = ready(Lantern(5, delta=delta, residual=residual), 8)
    x = torch.tensor([token])
    one_hot = torch.eye(8).double()[token]
    acceptance_prob = rule.acceptance_prob(probs[None], x).clamp(max=1).item()
    left = rule.residual(probs[None], one_hot[None], x)[0]
    output = acceptance_prob * one_hot + (1 - acceptance_prob) * left / left.sum()
    assert 0.5 * (output - probs).abs().sum().item() <= delta + 1e-9


@pytest.mark.parametrize("residual", ["optimal", "aggregated"])
@pytest.mark.parametrize(
    "bound", [{"delta": 0.0, "k": 9}, {"multiplier": 1.0, "k": 9}, {"delta": 0.5, "k": 0}]
)
def test_where_nothing_is_borrowed_it_is_exact_token_for_token(
    residual: str, bound: dict[str, float]
) -> None:
    sampling = Sampling(scale=2.0, top_k=6)
    rule = Lantern(residual=residual, **bound)  # type: ignore[arg-type]
    relaxed = Speculative(drafter(), 3, rule)
    strict = draw(Speculative(drafter(), 3, exact), jobs(TEXTS, 2), sampling=sampling)
    for key, delivery in draw(relaxed, jobs(TEXTS, 2), sampling=sampling).items():
        assert delivery.tokens == strict[key].tokens
        assert costs(delivery.usage) == costs(strict[key].usage)


def test_the_released_residual_is_not_lossless_even_at_zero() -> None:
    """Neighbours without mass pass a bound of zero, so the code clears their codes."""
    probs = torch.tensor([[0.5, 0.3, 0.2, 0.0]])
    rule = Lantern(1, delta=0.0, residual="code_dynamic")
    rule.table = torch.tensor([[3, 1], [3, 2], [0, 3], [0, 1]])
    x = torch.tensor([0])
    one_hot = torch.eye(4)[:1]
    left = rule.residual(probs, one_hot, x)[0]
    output = 0.5 * one_hot[0] + 0.5 * left / left.sum()
    assert 0.5 * (output - probs[0]).abs().sum() == pytest.approx(0.3)


def count_steps(deliveries: Mapping[object, Delivery]) -> int:
    """Decode steps of all images together."""
    steps = 0
    for delivery in deliveries.values():
        steps += sum(delivery.notes["accepted"])  # type: ignore[arg-type]
    return steps


@pytest.mark.parametrize("residual", list(RESIDUALS))
def test_more_is_accepted_and_the_rule_is_batch_invariant(residual: str) -> None:
    def method() -> Speculative:
        return Speculative(drafter(), 3, Lantern(8, delta=0.4, residual=residual))

    strict = draw(Speculative(drafter(), 3, exact), jobs(TEXTS, 4))
    relaxed = draw(method(), jobs(TEXTS, 4))
    assert count_steps(relaxed) < count_steps(strict)
    for key, delivery in draw(method(), jobs(TEXTS, 4)[::-1]).items():
        assert not delivery.error
        assert delivery.tokens == relaxed[key].tokens


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_neighbours_are_the_nearest_other_codes(metric: str, own_cache: Path) -> None:
    codebook = torch.randn(1500, 3, generator=torch.Generator().manual_seed(1))
    table = neighbours(codebook, 20, metric)

    codes = codebook
    if metric == "cosine":
        codes = codebook / codebook.norm(dim=1, keepdim=True)
    difference = codes.numpy()[:, None].astype(np.float64) - codes.numpy()[None]
    distance = np.linalg.norm(difference, axis=-1)
    np.fill_diagonal(distance, np.inf)
    expected = distance.argsort(axis=1, kind="stable")[:, :20]
    assert (table.numpy() == expected).mean() > 0.999
    assert not (table == torch.arange(1500)[:, None]).any()

    (file,) = (own_cache / "visual-ar-tts").iterdir()
    stamp = file.stat().st_mtime_ns
    assert torch.equal(neighbours(codebook, 20, metric), table)
    assert file.stat().st_mtime_ns == stamp  # read, not made again
    assert neighbours(codebook[:5], 50, metric).shape == (5, 4)


def test_a_table_of_another_codebook_is_refused(own_cache: Path) -> None:
    neighbours(torch.randn(20, 3), 4, "l2")
    (file,) = (own_cache / "visual-ar-tts").iterdir()
    other = ToyModel().codebook
    neighbours(other, 4, "l2")
    (wanted,) = set((own_cache / "visual-ar-tts").iterdir()) - {file}
    wanted.write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"belongs to codebook .* delete it"):
        neighbours(other, 4, "l2")
    wanted.write_bytes(b"rubbish")
    with pytest.raises(UserError, match="no neighbour table"):
        neighbours(other, 4, "l2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": -1, "delta": 0.1}, "rule.k=-1"),
        ({"k": 5}, "give one of the two bounds"),
        ({"k": 5, "delta": 0.1, "multiplier": 2.0}, "give one of the two bounds"),
        ({"k": 5, "delta": 1.5}, "rule.delta=1.5"),
        ({"k": 5, "multiplier": 0.5}, "rule.multiplier=0.5"),
        ({"k": 5, "delta": 0.1, "residual": "best"}, "rule.residual=best"),
        ({"k": 5, "delta": 0.1, "metric": "l3"}, "rule.metric=l3"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Lantern(**options)  # type: ignore[arg-type]


def test_signals_measure_what_was_borrowed() -> None:
    """Two accepted tokens and one rejected: neighbours lent, mass, what only borrowing saved."""
    probs = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).double().expand(4, 4)[None]
    rule = Lantern(2, delta=0.35)
    rule.table = torch.tensor([[1, 2, 3], [0, 2, 3], [3, 1, 0], [2, 1, 0]])
    token_RG = torch.tensor([[0, 1, 3]])
    drafts = Drafts(token_RG, torch.eye(4).double()[token_RG], torch.tensor([3]))
    noise = Noise(torch.tensor([[3, 4]]), torch.arange(4)[None])
    path_RG = torch.tensor([[0, 1, -1]])
    uniform = noise.uniform(ACCEPT, 1)[0, :2, 0]
    rescued = int(uniform[0] >= 0.1) + int(uniform[1] >= 0.2)

    assert isinstance(rule, MeasuredRule)
    signals = rule.signals(probs, drafts, noise, path_RG)
    measured = {name: value_R.item() for name, value_R in signals.items()}
    assert measured == pytest.approx({"lent": 1 + 1, "lent_mass": 0.2 + 0.1, "rescued": rescued})


def test_trees_without_a_node_were_tested_against_nothing() -> None:
    probs_RTV = torch.full((2, 1, 4), 0.25).double()
    empty = Draft(torch.zeros(0, dtype=torch.int64), None, ())
    drafts = Drafts.stack([empty, None], probs_RTV)
    noise = Noise(torch.tensor([[3, 4], [5, 6]]), torch.zeros((2, 1), dtype=torch.int64))
    assert drafts.forest is not None
    path_RG, _ = exact(probs_RTV, drafts, noise)
    tested_RDV, token_RD, threshold_RD = choose_tested(
        probs_RTV, drafts, noise, path_RG, residual_probs
    )
    assert tested_RDV.shape == (2, 0, 4)
    assert token_RD.shape == threshold_RD.shape == (2, 0)


def test_only_rules_with_signals_are_measured() -> None:
    assert isinstance(Lantern(4, delta=0.3), MeasuredRule)
    assert not isinstance(exact, MeasuredRule)


def test_the_journal_says_what_was_borrowed() -> None:
    for delivery in draw(Speculative(drafter(), 3, Lantern(8, delta=0.4)), jobs(TEXTS, 2)).values():
        accepted: list[int] = delivery.notes["accepted"]  # type: ignore[assignment]
        tokens = sum(a * count for a, count in enumerate(accepted))
        assert 0 <= delivery.notes["rescued"] <= tokens  # type: ignore[operator]
        assert 0 <= delivery.notes["lent_mass"] <= 0.4 * tokens  # type: ignore[operator]
    strict = draw(Speculative(drafter(), 3, Lantern(0, delta=0.4)), jobs(TEXTS[:1]))
    assert all(d.notes["lent"] == d.notes["rescued"] == 0 for d in strict.values())
