"""What a decode step launches is counted, and does not grow unseen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from harness.kernels.launches import count_launches
from harness.models.kv_cache import KVCache
from harness.models.trunk import Trunk, TrunkSpec, prepare, running_rotary

CPU = torch.device("cpu")
X = torch.ones(4, 6)

MOST_PER_LAYER = {torch.float32: 30, torch.bfloat16: 36}
"""Operators of a layer in a decode step by torch, on a CPU; kernels take the place of some."""


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda: X + 1, 1),
        (lambda: X.view(2, 12).transpose(0, 1)[0], 0),
        (lambda: torch.empty(3), 0),
        (lambda: (X @ X.T).relu_(), 2),
        (lambda: X.clone().copy_(X), 2),
        (lambda: None, 0),
    ],
)
def test_views_and_allocations_launch_nothing(work: Callable[[], object], expected: int) -> None:
    assert count_launches(work, CPU) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here to profile")
def test_the_profiler_counts_kernels_of_a_graph() -> None:
    device = torch.device("cuda")
    x = torch.ones(4, 6, device=device)
    assert count_launches(lambda: x.add_(1).mul_(2), device) == 2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.add_(1).mul_(2).sub_(3)
    assert count_launches(graph.replay, device) == 3


@torch.no_grad()
def count_step(layers: int, dtype: torch.dtype) -> int:
    """Operators of a decode step of a trunk, one position a row."""
    spec = TrunkSpec(layers=layers, dim=32, heads=2, hidden=64)
    trunk = Trunk(spec).eval().requires_grad_(False).to(dtype)
    prepare(trunk)
    cache = KVCache(spec, 4, 16, dtype, CPU)
    pos_BW = torch.full((4, 1), 3)
    rotary_BW2 = running_rotary(pos_BW, spec.head_dim)
    attend = cache.attend_all(pos_BW)
    x_BWD = torch.randn(4, 1, 32, dtype=dtype)
    return count_launches(lambda: trunk(x_BWD, rotary_BW2, attend), CPU)


@pytest.mark.parametrize("dtype", MOST_PER_LAYER)
def test_a_layer_launches_no_more_than_it_did(dtype: torch.dtype) -> None:
    per_layer = count_step(3, dtype) - count_step(2, dtype)
    assert 5 <= per_layer <= MOST_PER_LAYER[dtype]
    assert count_step(4, dtype) - count_step(3, dtype) == per_layer
