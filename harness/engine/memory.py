"""How many slots fit into the memory there is, and what to do when it runs out.

What a slot costs, and what lies beside the slots, is in `memory_need`.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from harness.engine.memory_need import GB, MemoryNeed
from harness.records import UserError

log = logging.getLogger("harness")

MAX_DEFAULT_SLOTS = 256
"""Slots that are taken at most where the user gives no number."""
SHARE = 0.9
"""Share of a GPU's free memory that is used: the rest is for the driver and for fragments."""

LESS_MEMORY = (
    "set sampler.memory_gb, fewer sampler.slots, a smaller sampler.render_batch, "
    "or fewer candidates"
)
"""The remedy where memory ran out."""


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
    if asked is not None and is_taken_at_its_word(device, memory_gb):
        return asked

    # 1. How much memory there is, and whether one job fits.
    if memory_gb is None:
        budget = _free_bytes(device) + need.held
        source = "free on the device, with what is loaded already"
    else:
        budget = memory_gb * GB
        source = "in sampler.memory_gb"
    _expect_one_job(need, one_job if asked is None else min(asked, one_job), budget, source)

    # 2. The number that is wanted, or the largest stable one that fits.
    wanted = min(most, MAX_DEFAULT_SLOTS) if asked is None else asked
    slots = count_fitting_slots(need, budget, one_job, wanted)
    log.info(
        "memory: %s, of %.3g GB %s (sampler.slots=%d keeps it so)",
        need.describe(slots),
        budget / GB,
        source,
        slots,
    )
    return slots


def count_fitting_slots(
    need: MemoryNeed, budget: float, one_job: int, wanted: int | None = None
) -> int:
    """Return the slots that are wanted, or the largest stable number that fits into a budget.

    0 if one job's slots do not fit; None wants as many as are taken at most by default.
    """
    fitting = need.slots_within(budget)
    slots = MAX_DEFAULT_SLOTS if wanted is None else wanted
    if slots <= fitting:
        return slots
    return _doubled_within(one_job, fitting) if one_job <= fitting else 0


def is_taken_at_its_word(device: torch.device, memory_gb: float | None) -> bool:
    """Tell whether a number of slots that is asked for is taken whatever the memory."""
    return memory_gb is None and device.type == "cpu"


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
    budget = _free_bytes(device) + need.held
    if need.total(slots) > budget:
        raise UserError(
            f"too little memory: {need.describe(slots)}, of {budget / GB:.3g} GB free on the "
            f"device, with what is loaded already, where {need.slots_within(budget)} slots fit: "
            "ask for fewer images at a time, or a smaller model"
        )


# ------------------------------------------------------------------ memory that runs out


def short_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that an allocation failed, on a GPU or in main memory."""
    if isinstance(error, MemoryError):
        return True
    phrases = ("out of memory", "not enough memory", "can't allocate memory", "_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)


def find_shortage(error: BaseException) -> BaseException | None:
    """Return the lack of memory that an error is, or came from; None if there was none.

    A failed allocation spoils the CUDA capture around it, whose end then raises another error.
    """
    found: BaseException | None = error
    while found is not None and not short_of_memory(found):
        found = found.__cause__ or found.__context__
    return found


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
    """Compute what may still be used: SHARE of a GPU's free memory, half of the main memory."""
    if device.type != "cuda":
        return 0.5 * _available_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    kept_for_reuse = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return SHARE * (free + kept_for_reuse)


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
