"""Find out whether a model's logits depend on the batch that a row is computed in.

Shapes: B rows of a forward, W positions per row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from harness.models import ImageModel
from harness.models.linear import RowRule
from harness.models.trunk import causal


@torch.no_grad()
def find_batch_dependence(model: ImageModel, counts: Sequence[int], width: int = 1) -> str:
    """Say on what else a row's logits depend than on the row; an empty string if on nothing.

    A row of `width` image tokens is put at the first, the middle and the last place of forwards of
    each of `counts` rows, among others that change. All its logits must have the same bits. More
    than one count answers whether as many slots may be exchanged for each other; one count, whether
    rows are treated alike. On CUDA the products are held to a `RowRule`, as a sampler's are. A row
    attends to its own positions by torch, without a cache: the attention kernel is not part of
    this. Takes the memory of such a forward without a cache.
    """
    rule = RowRule() if model.device.type == "cuda" else nullcontext()
    expected_WV: Tensor | None = None
    first_count = 0
    with rule:
        for count in counts:
            for place in sorted({0, count // 2, count - 1}):
                logits_WV = _logits_at(model, count, place, width)
                if expected_WV is None:
                    expected_WV = logits_WV
                    first_count = count
                elif not torch.equal(logits_WV, expected_WV):
                    if count == first_count:
                        return f"its place among {count} rows"
                    return f"the number of rows, {first_count} or {count}"
    return ""


def _logits_at(model: ImageModel, count: int, place: int, width: int) -> Tensor:
    """Compute the logits [W, V] of a fixed row at a place among others of a forward."""
    generator = torch.Generator().manual_seed(width)
    token_1W = torch.randint(model.vocab, (1, width), generator=generator)
    generator.manual_seed(1000 * count + place)
    token_BW = torch.randint(model.vocab, (count, width), generator=generator)
    token_BW[place] = token_1W

    index_BW = torch.arange(width, device=model.device).expand(count, -1)
    start_B = torch.ones(count, dtype=torch.int64, device=model.device)
    x_BWD = model.embed(token_BW.to(model.device), index_BW)
    hidden_BWD = model.forward(x_BWD, index_BW + 1, start_B, causal)
    return model.head(hidden_BWD)[place].clone()
