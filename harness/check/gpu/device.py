"""Step 1: what the device is, whether kernels are used on it, and whether it captures a graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.check.gpu.finding import Finding, NotRunError, Part, Setting
from harness.engine.meter import describe
from harness.kernels import why_unused

REPLAYS = 5


def list_parts(_setting: Setting) -> Sequence[Part]:
    """List the parts of the step."""
    return [
        Part("facts", describe_device, 30),
        Part("kernels", find_obstacle, 60),
        Part("capture", replay_graph, 30),
    ]


def describe_device(setting: Setting) -> Finding:
    """Read memory, processors, clocks and limits."""
    device = setting.torch_device
    facts = describe(device)
    if device.type != "cuda":
        return Finding(facts["device"], dict(facts))

    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    capability = f"{properties.major}.{properties.minor}"
    figures = {
        **facts,
        "capability": capability,
        "processors": properties.multi_processor_count,
        "memory_gb": round(total / 1e9, 2),
        "free_gb": round(free / 1e9, 2),
    }
    headline = (
        f"capability {capability}, {total / 1e9:.1f} GB ({free / 1e9:.1f} free), "
        f"{properties.multi_processor_count} processors"
    )
    return Finding(headline, figures)


def find_obstacle(setting: Setting) -> Finding:
    """Ask whether the device uses the kernels; where it does not, say why."""
    reason = why_unused(setting.torch_device)
    headline = "Triton" if not reason else "torch's own operations"
    return Finding(headline, {"why_unused": reason}, [reason] if reason else [])


def replay_graph(setting: Setting) -> Finding:
    """Capture a sum of static tensors, change its input, and replay it."""
    device = setting.torch_device
    if device.type != "cuda":
        raise NotRunError(f"{device.type} captures no graphs")

    added = torch.ones(1024, device=device)
    total = torch.zeros_like(added)
    total.add_(added).zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total.add_(added)
    added.fill_(2.0)
    for _ in range(REPLAYS):
        graph.replay()
    got = float(total[0])
    wanted = 2.0 * REPLAYS
    is_right = bool((total == wanted).all())
    failures = [] if is_right else [f"{REPLAYS} replays made {got:g} instead of {wanted:g}"]
    return Finding(f"{REPLAYS} replays", {"sum": got}, failures)
