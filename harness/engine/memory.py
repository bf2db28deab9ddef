"""How many branches fit into the memory there is, with the arithmetic in words.

A slot costs its keys and values over the full length, its context, and the laws of one draw;
besides slots there are the weights, the scratch slot, what a prefill gathers, and the image
decoder's maps for one batch of images.
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
from harness.models import ImageModel
from harness.records import UserError

log = logging.getLogger("harness")

MOST = 256
"""Slots that are taken at most where nobody says how many."""
LOGIT_BYTES = 96
"""Working memory per logit of a draw: float32 laws, and noise, which is hashed and raced in 64
bits.
"""
GB = 1e9


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a sampler needs: for each slot, and besides."""

    slot: int
    weights: int
    decoder: int
    besides: int  # scratch slot and prefill

    @property
    def fixed(self) -> int:
        return self.weights + self.decoder + self.besides

    def of(self, slots: int) -> int:
        return self.fixed + slots * self.slot

    def fitting(self, budget: float) -> int:
        """How many slots fit into so many bytes."""
        return max(0, int(budget - self.fixed) // self.slot)

    def sum(self, slots: int) -> str:
        """The arithmetic, as "64 slots x 0.191 GB + image decoder 8.6 GB + ... = 22.7 GB"."""
        parts = (
            ("weights", self.weights),
            ("image decoder", self.decoder),
            ("prefill", self.besides),
        )
        others = "".join(f" + {name} {size / GB:.3g} GB" for name, size in parts if size)
        return f"{slots} slots x {self.slot / GB:.3g} GB{others} = {self.of(slots) / GB:.3g} GB"


def needed(
    model: ImageModel,
    *,
    tokens_per_step: int,
    prefill: tuple[int, int],
    render_batch: int,
    tree_capacity: int = 0,
    hidden: bool = False,
) -> Need:
    """What a sampler of that shape over `model` takes, without its slots being there."""
    cache = model.cache(1, tree_capacity)
    modules = [part for part in vars(model).values() if isinstance(part, nn.Module)]
    stored = [
        t.untyped_storage() for module in modules for t in (*module.parameters(), *module.buffers())
    ]
    weights = {storage.data_ptr(): storage.nbytes() for storage in stored}
    context = model.max_context * model.dim * cache.keys.element_size() + 8 * model.num_tokens
    states = cache.length * model.dim * cache.keys.element_size() if hidden else 0
    rows, columns = prefill
    gathered = rows * cache.slot_bytes // len(cache.keys)
    between = rows * columns * model.dim * cache.keys.element_size() * 16
    return Need(
        slot=cache.slot_bytes + context + states + LOGIT_BYTES * tokens_per_step * model.vocab,
        weights=sum(weights.values()),
        decoder=images_at_once(model, render_batch) * int(getattr(model, "render_bytes", 0)),
        besides=cache.slot_bytes + context + gathered + between,
    )


def choose_slots(
    need: Need,
    device: torch.device,
    *,
    asked: int | None,
    one_job: int,
    most: int,
    memory_gb: float | None,
) -> int:
    """The number of slots of a run: what is asked for, or fewer where memory is short; without a
    wish, what fits.

    The memory is `memory_gb`, weights included, or nine tenths of what the device has free. On the
    CPU a number that is asked for is taken at its word unless `memory_gb` is set. A number that
    memory decides is a power of two times what one job needs, so that it stays the same when a
    little more or less is free. Raises UserError when not even one job fits.
    """
    if asked is not None and memory_gb is None and device.type == "cpu":
        return asked
    if memory_gb is None:
        budget = _free(device) + need.weights
        source = "free on the device, the weights' included"
    else:
        budget = memory_gb * GB
        source = "in sampler.memory_gb"
    fitting = need.fitting(budget)
    least = one_job if asked is None else min(asked, one_job)
    if fitting < least:
        raise UserError(
            f"too little memory for one image at a time: {need.sum(least)}, of {budget / GB:.3g} GB {source}, where "
            f"{fitting} slots fit: set sampler.memory_gb={need.of(least) / GB * 1.01:.3g} or more, a smaller "
            "sampler.render_batch, or fewer candidates"
        )
    slots = min(most, MOST) if asked is None else asked
    if slots > fitting:
        slots = one_job
        while 2 * slots <= fitting:
            slots *= 2
    log.info(
        "memory: %s, of %.3g GB %s (sampler.slots=%d keeps it so)",
        need.sum(slots),
        budget / GB,
        source,
        slots,
    )
    return slots


def expect_room(need: Need, device: torch.device, slots: int) -> None:
    """Raise UserError, with the arithmetic, for so many slots that the device has no memory for
    them.
    """
    budget = _free(device) + need.weights
    if need.of(slots) > budget:
        fitting = need.fitting(budget)
        raise UserError(
            f"too little memory: {need.sum(slots)}, of {budget / GB:.3g} GB free on the device, the weights' included, "
            f"where {fitting} slots fit: ask for fewer images at a time, or a smaller model"
        )


LESS_MEMORY = "set sampler.memory_gb, fewer sampler.slots, a smaller sampler.render_batch, or fewer candidates"


def short_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in main memory."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


@contextmanager
def capped() -> Iterator[None]:
    """Inside, an allocation beyond the main memory that is left fails, where it would end the
    process later on.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    own = _status("/proc/self/status", "VmData:")
    if own is not None and soft == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (own + _available(), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _available() -> int:
    """Bytes of main memory that processes can still get."""
    return _status("/proc/meminfo", "MemAvailable:") or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf(
        "SC_PAGE_SIZE"
    )


def _status(path: str, name: str) -> int | None:
    """Bytes that the system says of something; None where it does not."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), None)


def _free(device: torch.device) -> float:
    """Bytes that may still be used: nine tenths of a GPU's free memory, half of the main memory
    that is available.
    """
    if device.type != "cuda":
        return 0.5 * _available()
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return 0.9 * (free + kept)
