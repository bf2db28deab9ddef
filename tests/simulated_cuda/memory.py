"""The allocator: which bytes are held, by what, and in which pool; and what runs out.

Freed memory stays reserved until `empty_cache`, or until an allocation would fail without it. A
graph's memory lies in a pool, which stays reserved for as long as a graph of it lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch

if TYPE_CHECKING:
    from simulated_cuda.machine import Device, Machine
    from simulated_cuda.timeline import Stream

ROUNDED_TO = 512
"""Bytes that allocations are rounded up to."""


class Pool:
    """Memory of one kind: `live` bytes are held by tensors, `reserved` bytes are not given back."""

    def __init__(self) -> None:
        self.live = 0
        self.reserved = 0
        self.graphs = 0  # that may still be replayed


class Block:
    """One allocation: who wrote and read it last, by stream, and where it came from.

    Tensors hold it; it is freed with the last of them.
    """

    __slots__ = ("__weakref__", "home", "memory", "nbytes", "pool", "reads", "storage", "write")

    def __init__(
        self,
        storage: torch.UntypedStorage,
        memory: DeviceMemory,
        pool: Pool,
        home: Stream,
        nbytes: int,
    ) -> None:
        self.storage = storage  # kept, so that its number stays its own
        self.memory = memory
        self.pool = pool
        self.home = home
        self.nbytes = nbytes
        self.write: tuple[int, int] | None = None  # stream and launch
        self.reads: dict[int, int] = {}

    @property
    def uses(self) -> list[tuple[int, int]]:
        """List the last launch of each stream that used the memory."""
        uses = list(self.reads.items())
        if self.write is not None:
            uses.append(self.write)
        return uses

    def __del__(self) -> None:
        self.memory.free(self)


class DeviceMemory:
    """The memory of one device. `limit` is how many bytes it has, and may be changed at any time.

    `refuse(n)` lets the next n allocations fail, `refuse(n, while_capturing=True)` those of
    captures.
    """

    def __init__(self, machine: Machine, device: Device, limit: int) -> None:
        self.device = device
        self.limit = limit
        self.allocated = 0
        self.most_allocated = 0
        self.most_reserved = 0
        self.general = Pool()
        self.pools: dict[int, Pool] = {}
        self.blocks: WeakValueDictionary[int, Block] = WeakValueDictionary()
        self._machine = machine
        self._refusals = 0
        self._capture_refusals = 0

    @property
    def reserved(self) -> int:
        """Count the bytes that the process keeps from others."""
        return self.general.reserved + sum(pool.reserved for pool in self.pools.values())

    def refuse(self, count: int, *, while_capturing: bool = False) -> None:
        """Let the next allocations fail."""
        if while_capturing:
            self._capture_refusals = count
        else:
            self._refusals = count

    def allocate(self, storage: torch.UntypedStorage, home: Stream) -> Block:
        """Enter new memory that work on a stream has made. Raises OutOfMemoryError."""
        capture = home.capture
        pool = self.general if capture is None else capture.pool
        nbytes = -(-storage.nbytes() // ROUNDED_TO) * ROUNDED_TO
        self._expect_allowed(nbytes, is_captured=capture is not None)
        if pool.live + nbytes > pool.reserved:
            self._grow(pool, nbytes)
        pool.live += nbytes
        self.allocated += nbytes
        self.most_allocated = max(self.most_allocated, self.allocated)
        block = Block(storage, self, pool, home, nbytes)
        self.blocks[storage._cdata] = block
        return block

    def free(self, block: Block) -> None:
        """Take memory back. Its own stream may use it at once, so no other may use it any more."""
        block.pool.live -= block.nbytes
        self.allocated -= block.nbytes
        if block.pool is not self.general:
            self._drop_if_unused(block.pool)
            return
        home = block.home
        for stream, number in block.uses:
            is_over = home.clock.knows(stream, number) or self._machine.host.knows(stream, number)
            if stream != home.id and not is_over:
                self._machine.report(
                    "FREED",
                    f"memory of stream {home.id} is freed while stream {stream} may use it",
                )

    def empty_cache(self) -> None:
        """Give back what no tensor holds, outside the pools of graphs."""
        self.general.reserved = self.general.live

    def reset_peaks(self) -> None:
        """Let the peaks begin at what is held now."""
        self.most_allocated = self.allocated
        self.most_reserved = self.reserved

    def add_graph(self, pool: Pool) -> None:
        """Keep a pool reserved for one more graph."""
        pool.graphs += 1

    def drop_graph(self, pool: Pool) -> None:
        """Note that a graph of a pool is gone."""
        pool.graphs -= 1
        self._drop_if_unused(pool)

    def _grow(self, pool: Pool, nbytes: int) -> None:
        """Reserve what an allocation needs; if that is too much, give back the cache before."""
        grown = pool.live + nbytes - pool.reserved
        if self.reserved + grown > self.limit and self._machine.capture is None:
            self.empty_cache()
            grown = pool.live + nbytes - pool.reserved
        if self.reserved + grown > self.limit:
            self._raise_out_of_memory(nbytes)
        pool.reserved += grown
        self.most_reserved = max(self.most_reserved, self.reserved)

    def _drop_if_unused(self, pool: Pool) -> None:
        if pool.graphs == 0 and pool.live == 0:
            for number, known in list(self.pools.items()):
                if known is pool:
                    del self.pools[number]

    def _expect_allowed(self, nbytes: int, *, is_captured: bool) -> None:
        if is_captured and self._capture_refusals:
            self._capture_refusals -= 1
            self._raise_out_of_memory(nbytes)
        if self._refusals:
            self._refusals -= 1
            self._raise_out_of_memory(nbytes)

    def _raise_out_of_memory(self, nbytes: int) -> None:
        raise torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {nbytes / 2**20:.2f} MiB. "
            f"GPU {self.device.index} has a total capacity of {self.limit / 2**30:.2f} GiB "
            f"of which {(self.limit - self.reserved) / 2**30:.2f} GiB is free."
        )
