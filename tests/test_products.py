"""Products treat all rows alike: what a library does to them is found out, and mended.

Shapes: R rows, N outer width, K inner width.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy import TEXTS, ToyModel

from harness import kernels
from harness.engine.acceptance import exact
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.kernels.rows import find_row_dependence
from harness.models import linear as linears
from harness.models.invariance import find_batch_dependence
from harness.models.linear import Linear, RowRule, linear
from harness.records import Usage

WEIGHT_NK = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
EXACT = F.linear


def row_by_row(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """A product that treats rows alike: each is computed alone."""
    rows = [EXACT(x_1K, weight_NK, bias_N) for x_1K in x.reshape(-1, x.shape[-1]).split(1)]
    return torch.cat(rows).view(*x.shape[:-1], len(weight_NK))


def last_row_otherwise(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """A product that sums the last row in another order, as a library does at an edge of tiles."""
    out = row_by_row(x, weight_NK, bias_N)
    last = out.view(-1, len(weight_NK))[-1]
    order_K = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(1))
    last_1K = x.reshape(-1, x.shape[-1])[-1:]
    last.copy_(EXACT(last_1K[:, order_K], weight_NK[:, order_K], bias_N)[0])
    return out


def others_matter(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """A product whose rows share a scale, as in a format of blocks."""
    scale = x.nan_to_num().abs().amax().clamp(min=1e-3)
    return row_by_row(x / scale, weight_NK, bias_N) * scale


@pytest.fixture(autouse=True)
def forget_verdicts() -> Iterator[None]:
    linears.forget()
    yield
    linears.forget()


# ------------------------------------------------------------------ the trial


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [2, 3, 16, 61])
def test_the_trial_tells_products_apart(rows: int, dtype: torch.dtype) -> None:
    weight_NK = WEIGHT_NK.to(dtype)
    assert find_row_dependence(row_by_row, rows, weight_NK) == ""
    assert find_row_dependence(last_row_otherwise, rows, weight_NK) == "the row's index"
    assert find_row_dependence(others_matter, rows, weight_NK) == "the other rows"


def test_every_index_is_tried() -> None:
    """A product that fails at one index alone is seen, whichever it is."""
    rows = 9
    for bad in range(rows):

        def one_row_off(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
            out_RN = row_by_row(x, weight_NK, bias_N)
            out_RN[bad] = out_RN[bad].nextafter(torch.tensor(torch.inf))  # noqa: B023
            return out_RN

        assert find_row_dependence(one_row_off, rows, WEIGHT_NK)


def test_a_neighbour_that_is_no_number_is_seen() -> None:
    def leaks(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        return row_by_row(x, weight_NK, bias_N) + 0 * x.sum()

    assert find_row_dependence(leaks, 8, WEIGHT_NK) == "the other rows"


def test_the_trial_draws_no_number_of_anybody_else() -> None:
    before = torch.get_rng_state()
    find_row_dependence(row_by_row, 5, WEIGHT_NK)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------ what is switched


def test_without_a_rule_the_library_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried, and a layer's result is torch's own, bit by bit."""
    monkeypatch.setattr(linears, "judge", None)
    layer = Linear(40, 24)
    x_BWK = torch.randn(2, 3, 40)
    assert torch.equal(layer(x_BWK), F.linear(x_BWK, layer.weight, layer.bias))
    assert torch.equal(linear(x_BWK, WEIGHT_NK), F.linear(x_BWK, WEIGHT_NK))


def test_on_a_cpu_nothing_is_switched() -> None:
    sampler = Sampler(ToyModel(), Sampling(), slots=2)
    with sampler.rows_alike():
        assert linears._rule is None
    assert sampler.kernels_used == "cpu is no CUDA device"


def test_a_shape_whose_rows_differ_goes_through_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """It alone: a shape that is found even stays with the library, and both are tried once."""
    tried = []

    def library(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
        tried.append(1)
        product = last_row_otherwise if len(weight_NK) == 24 else row_by_row
        return product(x, weight_NK, bias_N)

    monkeypatch.setattr(F, "linear", library)
    monkeypatch.setattr(kernels, "even_product", lambda *_: row_by_row)
    other_NK = torch.randn(16, 40)
    x_BWK = torch.randn(4, 1, 40)
    with RowRule() as rule:
        first = linear(x_BWK, WEIGHT_NK)
        linear(x_BWK, other_NK)
        count = len(tried)
        again = linear(x_BWK, WEIGHT_NK)
        linear(x_BWK, other_NK)
        linear(x_BWK[:1], WEIGHT_NK)
    assert torch.equal(first, row_by_row(x_BWK, WEIGHT_NK))
    assert torch.equal(first, again)
    assert len(tried) == count + 2  # the even shape, and the single row that needs no trial
    assert [(it.rows, it.outer) for it in rule.replaced()] == [(4, 24)]
    assert rule.describe() == (
        "products by Triton, as the library's rows differ: [4 x 40] x [40 x 24] in float32"
    )

    with RowRule() as another:
        linear(x_BWK, WEIGHT_NK)
    assert len(tried) == count + 2, "a shape is tried once a process"
    assert another.describe() == rule.describe()


def test_rows_that_no_kernel_mends_are_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(F, "linear", last_row_otherwise)
    with RowRule() as rule, caplog.at_level("WARNING", "harness"):
        got = linear(torch.ones(3, 40), WEIGHT_NK)
    assert torch.equal(got, last_row_otherwise(torch.ones(3, 40), WEIGHT_NK))
    assert rule.describe() == (
        "rows of [3 x 40] x [40 x 24] in float32 depend on the row's index (cpu is no CUDA device)"
    )
    assert "results depend on the batch" in caplog.text


def test_a_rule_ends_where_it_was_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = RowRule()
    with RowRule() as outer:
        with inner:
            linear(torch.ones(2, 40), WEIGHT_NK)
        with pytest.raises(ValueError, match="planted"), inner:
            raise ValueError("planted")
        assert linears._rule is outer
    assert linears._rule is None
    assert len(inner.verdicts) == 1
    assert not outer.verdicts


# ------------------------------------------------------------------ the law that it serves


class EvenSampler(Sampler):
    """A sampler that holds its products to the rule, as one on CUDA does."""

    def __init__(self, *args: object, **sizes: object) -> None:
        super().__init__(*args, **sizes)
        self._forward.row_rule = RowRule()


def test_a_planted_library_breaks_batch_invariance_and_the_rule_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A canvas in the last slot gets other bits than in the first, unless the rule is entered."""
    monkeypatch.setattr(F, "linear", last_row_otherwise)
    model = make_toy()
    assert log_probs_differ(model, Sampler)

    monkeypatch.setattr(kernels, "even_product", lambda *_: row_by_row)
    assert not log_probs_differ(model, EvenSampler)


def make_toy() -> ToyModel:
    """A toy whose head is a layer of the harness, as those of all models are."""
    model = ToyModel(dtype=torch.float32)
    head = Linear(model.dim, model.vocab, bias=False)
    head.weight = model.output.weight
    model.output = head
    return model


def log_probs_differ(model: ToyModel, kind: type[Sampler]) -> bool:
    """Whether a prompt's log-probabilities depend on who was drawn in the slots before it."""
    text = TEXTS[0]
    seen = []
    for before in (0, 3):
        sampler = kind(model, Sampling(scale=1.0), slots=4)
        rows = []
        for i in range(before + 1):
            contexts, guide = sampler.contexts(text if i == before else TEXTS[1 + i])
            key = 5 if i == before else 100 + i
            rows.append(sampler.open(contexts, guide, key, Usage()))
        sampler.forward(rows, [None] * len(rows))
        sampler.draw(rows, [None] * len(rows), exact)
        assert sampler.burst(rows, 6) == 6
        seen.append(rows[-1].log_probs)
    return seen[0] != seen[1]


def test_a_planted_dependence_on_the_batch_is_found_in_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_toy()
    monkeypatch.setattr(F, "linear", row_by_row)
    assert find_batch_dependence(model, (8, 4), width=2) == ""

    monkeypatch.setattr(F, "linear", last_row_otherwise)
    assert find_batch_dependence(model, (8,), width=2) == "its place among 8 rows"
    assert find_batch_dependence(model, (1, 8)) == "the number of rows, 1 or 8"
