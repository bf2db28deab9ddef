"""Linear layers, whose weights a CPU multiplies by as fast as it reads them.

A product of few rows takes as long as its weight takes to be read. oneDNN, which multiplies
bfloat16 on a CPU, reads a weight in an order of its own; given a plain matrix, it reorders it in
every call, which takes as long again. So loaded weights are packed, once.

Shapes: N outer width, K inner width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer whose weight may be packed, and whose product is `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Compute `F.linear` by a plain or a packed weight: the same bits, but for a single row."""
    if weight_NK.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight_NK, bias_N, "none", [], "")
    return F.linear(x, weight_NK, bias_N)


def can_pack(weight: Tensor) -> bool:
    """Tell whether a weight is one that `pack` serves: bfloat16, on a CPU that multiplies it."""
    is_candidate = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    return is_candidate and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(module: nn.Module) -> None:
    """Pack the weights of the `Linear` layers of a module, where that can be.

    A packed weight takes the place of the plain one, has its shape, and gives it back by
    `to_dense`. Only for loaded weights that neither move to another device nor are trained. The
    operations are those that torch's compiler calls for the same end.
    """
    for part in module.modules():
        if isinstance(part, Linear) and can_pack(part.weight):
            packed_NK = torch.ops.mkldnn._reorder_linear_weight(part.weight.detach())
            part.weight = nn.Parameter(packed_NK, requires_grad=False)
