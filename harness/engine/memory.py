"""How many slots fit into the memory there is, with the arithmetic in words.

A slot costs its keys and values over the full length, its context, and the distributions of one
draw. Besides slots there are the weights, the scratch slot, what a prefill gathers, and the feature
maps of the image decoder for one batch of images. All sizes are in bytes; a GB is 10^9 of them.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from harness.engine.rendering import images_at_once
from harness.models import HasRenderBytes, ImageModel
from harness.records import UserError

log = logging.getLogger("harness")

MAX_DEFAULT_SLOTS = 256
"""Slots that are taken at most where the user gives no number."""
LOGIT_BYTES = 96
"""Working memory per logit of a draw: float32 probabilities, and noise in 64-bit words."""
PREFILL_COPIES = 16
"""Working memory of a prefill, in multiples of its hidden states."""
GB = 1e9

LESS_MEMORY = (
    "set sampler.memory_gb, fewer sampler.slots, a smaller sampler.render_batch, "
    "or fewer candidates"
)
"""The remedy where memory ran out."""


# ------------------------------------------------------------------ what a sampler needs


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that a sampler needs: for each slot, and whatever the number of slots."""

    per_slot: int
    weights: int
    decoder: int
    prefill: int  # and the scratch slot

    @property
    def fixed(self) -> int:
        """Count the bytes that do not depend on the number of slots."""
        return self.weights + self.decoder + self.prefill

    def total(self, slots: int) -> int:
        """Compute the bytes of a sampler with so many slots."""
        return self.fixed + slots * self.per_slot

    def slots_within(self, budget: float) -> int:
        """Compute how many slots fit into so many bytes."""
        return max(0, int(budget - self.fixed) // self.per_slot)

    def describe(self, slots: int) -> str:
        """Write the arithmetic: "64 slots x 0.191 GB + image decoder 8.6 GB + ... = 22.7 GB"."""
        fixed_parts = {
            "weights": self.weights,
            "image decoder": self.decoder,
            "prefill": self.prefill,
        }
        terms = [f"{slots} slots x {self.per_slot / GB:.3g} GB"]
        terms += [f"{name} {size / GB:.3g} GB" for name, size in fixed_parts.items() if size]
        return f"{' + '.join(terms)} = {self.total(slots) / GB:.3g} GB"


def estimate_need(
    model: ImageModel,
    *,
    tokens_per_step: int,
    prefill: tuple[int, int],
    render_batch: int,
    tree_capacity: int = 0,
    hidden: bool = False,
) -> MemoryNeed:
    """Estimate what a sampler of that shape over `model` needs, without making it.

    The arguments are those of `Sampler`.
    """
    # 1. One slot: keys and values, context, tokens, hidden states, and the logits of a draw.
    cache = model.cache(1, tree_capacity)
    number_bytes = cache.keys.element_size()
    token_bytes = 8 * model.num_tokens
    context = model.max_context * model.dim * number_bytes + token_bytes
    states = cache.length * model.dim * number_bytes if hidden else 0
    draw = LOGIT_BYTES * tokens_per_step * model.vocab

    # 2. One prefill: the keys and values of one layer, gathered, and hidden states.
    rows, columns = prefill
    gathered = rows * cache.slot_bytes // len(cache.keys)
    activations = rows * columns * model.dim * number_bytes * PREFILL_COPIES

    # 3. One batch of the image decoder.
    image_bytes = model.render_bytes if isinstance(model, HasRenderBytes) else 0

    return MemoryNeed(
        per_slot=cache.slot_bytes + context + states + draw,
        weights=_weight_bytes(model),
        decoder=images_at_once(model, render_batch) * image_bytes,
        prefill=cache.slot_bytes + context + gathered + activations,
    )


def _weight_bytes(model: ImageModel) -> int:
    """Sum up a model's parameters and buffers, storage that they share counted once."""
    modules = [part for part in vars(model).values() if isinstance(part, nn.Module)]
    size_of_storage: dict[int, int] = {}
    packed_bytes = 0
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_mkldnn:  # packed: torch knows no storage of it, and it shares none
                packed_bytes += tensor.nbytes
                continue
            storage = tensor.untyped_storage()
            size_of_storage[storage.data_ptr()] = storage.nbytes()
    return packed_bytes + sum(size_of_storage.values())


# ------------------------------------------------------------------ slots of a run


def choose_slots(
    need: MemoryNeed,
    device: torch.device,
    *,
    asked: int | None,
    one_job: int,
    most: int,
    memory_gb: float | None,
) -> int:
    """Choose the number of slots of a run: the number asked for, or fewer if memory is short.

    `asked` is the user's number, `one_job` what one job reserves, `most` what all jobs together
    can use; without a number, as many are taken as fit. The memory is `memory_gb`, weights
    included, or nine tenths of what a GPU has free (of main memory, half). On a CPU a number that
    is asked for is taken at its word unless `memory_gb` is set. A number that memory decides is a
    power of two times `one_job`, so that it stays the same when a little more or less is free.
    Raises UserError when not even one job fits.
    """
    if asked is not None and memory_gb is None and device.type == "cpu":
        return asked

    # 1. How much memory there is, and whether one job fits.
    if memory_gb is None:
        budget = _free_bytes(device) + need.weights
        source = "free on the device, the weights' included"
    else:
        budget = memory_gb * GB
        source = "in sampler.memory_gb"
    _expect_one_job(need, one_job if asked is None else min(asked, one_job), budget, source)

    # 2. The number that is wanted, or the largest stable one that fits.
    fitting = need.slots_within(budget)
    slots = min(most, MAX_DEFAULT_SLOTS) if asked is None else asked
    if slots > fitting:
        slots = _doubled_within(one_job, fitting)
    log.info(
        "memory: %s, of %.3g GB %s (sampler.slots=%d keeps it so)",
        need.describe(slots),
        budget / GB,
        source,
        slots,
    )
    return slots


def _expect_one_job(need: MemoryNeed, slots: int, budget: float, source: str) -> None:
    """Raise UserError, with the arithmetic and a sufficient budget, if a job's slots do not fit."""
    fitting = need.slots_within(budget)
    if fitting < slots:
        raise UserError(
            f"too little memory for one image at a time: {need.describe(slots)}, "
            f"of {budget / GB:.3g} GB {source}, where {fitting} slots fit: "
            f"set sampler.memory_gb={need.total(slots) / GB * 1.01:.3g} or more, a smaller "
            "sampler.render_batch, or fewer candidates"
        )


def _doubled_within(start: int, limit: int) -> int:
    """Double a number as often as the limit allows."""
    while 2 * start <= limit:
        start *= 2
    return start


def expect_memory(need: MemoryNeed, device: torch.device, slots: int) -> None:
    """Raise UserError, with the arithmetic, if the device has no memory for so many slots."""
    budget = _free_bytes(device) + need.weights
    if need.total(slots) > budget:
        raise UserError(
            f"too little memory: {need.describe(slots)}, of {budget / GB:.3g} GB free on the "
            f"device, the weights' included, where {need.slots_within(budget)} slots fit: "
            "ask for fewer images at a time, or a smaller model"
        )


# ------------------------------------------------------------------ memory that runs out


def short_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that an allocation failed, on a GPU or in main memory."""
    if isinstance(error, MemoryError):
        return True
    phrases = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)


@contextmanager
def cap_memory() -> Iterator[None]:
    """Let allocations inside fail if they exceed the main memory that is left.

    Without a cap they succeed, and the system kills the process once it uses what it was given.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = _read_size("/proc/self/status", "VmData:")
    if used is not None and soft == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (used + _available_bytes(), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


# ------------------------------------------------------------------ memory of the machine


def _free_bytes(device: torch.device) -> float:
    """Compute what may still be used: 0.9 of a GPU's free memory, 0.5 of available main memory."""
    if device.type != "cuda":
        return 0.5 * _available_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    kept_for_reuse = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return 0.9 * (free + kept_for_reuse)


def _available_bytes() -> int:
    """Read the bytes of main memory that processes can still get."""
    available = _read_size("/proc/meminfo", "MemAvailable:")
    if available:
        return available
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read_size(path: str, name: str) -> int | None:
    """Read a line such as "VmData:  123 kB" of a system file, in bytes; None if it is not there."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    return None
