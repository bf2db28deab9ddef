"""Linear layers, whose products are as fast and as even as their device allows.

On a CPU a product of few rows takes as long as its weight takes to be read. oneDNN, which
multiplies bfloat16 there, reads a weight in an order of its own; given a plain matrix, it reorders
it in every call, which takes as long again. So loaded weights are packed once (`Linear.pack`).

A job's rows stand at other indices of a forward each time that it is drawn, among other rows. So
that its tokens are the same bits nevertheless, every product must treat its rows alike, which no
library promises. On CUDA a sampler of constant shapes therefore computes inside a `RowRule`: at the
first product of a shape it tries the library's, and where rows differ, all products of the shape go
through the kernel `products.multiply`. Elsewhere the library's products are used as they are.

`linear` is where either happens: a packed weight is on a CPU, where no rule has a say.

Shapes: R rows, N outer width, K inner width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness import kernels
from harness.kernels.rows import find_row_dependence

log = logging.getLogger("harness")

_rule: RowRule | None = None  # the innermost that is entered


class Linear(nn.Linear):
    """A linear layer whose weight may be packed, and whose product is `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def pack(self) -> None:
        """Pack the weight, which `can_pack`, for a CPU's products.

        The packed weight takes the place of the plain one, has its shape, and gives it back by
        `to_dense`. Only for a loaded weight that neither moves to another device nor is trained.
        """
        packed_NK = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        self.weight = nn.Parameter(packed_NK, requires_grad=False)


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Compute `F.linear` by a packed weight, or as the `RowRule` says that is entered, if one is.

    A packed weight gives the same bits as the plain one, but for a single row.
    """
    if weight_NK.is_mkldnn:
        # The operator that torch's compiler calls for the same end.
        return torch.ops.mkldnn._linear_pointwise(x, weight_NK, bias_N, "none", [], "")
    if _rule is None:
        return F.linear(x, weight_NK, bias_N)
    return _rule.multiply(x, weight_NK, bias_N)


def can_pack(weight: Tensor) -> bool:
    """Tell whether a weight can be packed: bfloat16, on a CPU whose oneDNN multiplies it."""
    is_candidate = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    return is_candidate and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


# ------------------------------------------------------------------ rows treated alike


class ProductShape(NamedTuple):
    """What a library chooses its way to multiply by."""

    device: torch.device
    dtype: torch.dtype
    rows: int
    outer: int
    inner: int
    biased: bool

    def describe(self) -> str:
        """Describe the shape, for records."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"[{self.rows} x {self.inner}] x [{self.inner} x {self.outer}] in {dtype}"


class Verdict(NamedTuple):
    """What the products of a shape do: whose they are, and what is wrong with the library's."""

    multiply: Callable[..., Tensor]
    dependence: str  # what else a row's result depends on in the library's product
    obstacle: str  # why the kernel does not serve instead


_verdicts: dict[ProductShape, Verdict] = {}  # of this process: a shape is tried once


class RowRule:
    """Products that treat all rows alike, inside `with rule`.

    `verdicts` are those of the shapes that were met, in the order in which they were.
    """

    def __init__(self) -> None:
        self.verdicts: dict[ProductShape, Verdict] = {}
        self._outer: list[RowRule | None] = []

    def __enter__(self) -> RowRule:
        global _rule
        self._outer.append(_rule)
        _rule = self
        return self

    def __exit__(self, *_: object) -> None:
        global _rule
        _rule = self._outer.pop()

    def multiply(self, x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        """Compute the product by the library or by the kernel; the first of a shape is tried."""
        outer, inner = weight_NK.shape
        rows = x.shape[:-1].numel()
        shape = ProductShape(x.device, x.dtype, rows, outer, inner, bias_N is not None)
        verdict = self.verdicts.get(shape)
        if verdict is None:
            if shape not in _verdicts:
                _verdicts[shape] = judge(shape, weight_NK, bias_N)
            verdict = self.verdicts[shape] = _verdicts[shape]
        return verdict.multiply(x, weight_NK, bias_N)

    def replaced(self) -> Sequence[ProductShape]:
        """List the shapes whose products go through the kernel."""
        return [shape for shape, it in self.verdicts.items() if it.dependence and not it.obstacle]

    def uneven(self) -> Sequence[ProductShape]:
        """List the shapes whose rows are not treated alike, as no kernel serves them."""
        return [shape for shape, it in self.verdicts.items() if it.obstacle]

    def describe(self) -> str:
        """Say for records which products are not the library's, or depend on the batch."""
        parts = []
        if replaced := self.replaced():
            parts.append(f"products by Triton, as the library's rows differ: {_list(replaced)}")
        for shape in self.uneven():
            verdict = self.verdicts[shape]
            parts.append(
                f"rows of {shape.describe()} depend on {verdict.dependence} ({verdict.obstacle})"
            )
        return "; ".join(parts)


def judge(shape: ProductShape, weight_NK: Tensor, bias_N: Tensor | None) -> Verdict:
    """Try the library's product of a shape on a weight, and choose what multiplies from now on."""
    dependence = ""
    if shape.rows > 1:
        dependence = find_row_dependence(F.linear, shape.rows, weight_NK, bias_N)
    if not dependence:
        return Verdict(F.linear, "", "")

    use = kernels.Use("products", shape.dtype, shape.inner)
    obstacle = kernels.why_unused(shape.device, use)
    kernel = kernels.even_product(shape.device, shape.dtype, shape.inner)
    if kernel is None:
        log.warning(
            "results depend on the batch: rows of %s depend on %s, and no kernel serves: %s",
            shape.describe(),
            dependence,
            obstacle,
        )
        return Verdict(F.linear, dependence, obstacle)
    log.info(
        "rows of %s depend on %s: these products go through a kernel", shape.describe(), dependence
    )
    return Verdict(kernel, dependence, "")


def forget() -> None:
    """Try all shapes anew when they are met next."""
    _verdicts.clear()


def _list(shapes: Sequence[ProductShape]) -> str:
    return ", ".join(shape.describe() for shape in shapes)
