"""Counter-based randomness: every draw is a pure function of (key, position, lane, index).

There is no generator state, so no result depends on company, order, interruption or batch;
truncating a canvas and drawing again gives the same tokens, and candidate i of one method shares
its noise with candidate i of another. Integer hashing is identical on CPU and CUDA. Shapes: R rows,
T positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

DRAW = 0
ACCEPT = 1
RESIDUAL = 2
DRAFT = 7
"""Lanes: independent streams at one position for drawing, accepting a draft, drawing a residual,
drafting.

A draft's siblings use the lanes that follow its own.
"""

_WORD = 0xFFFFFFFF
SPARSE = 4
"""On a CPU a race is run by the weights above zero alone where they are fewer than one in so
many.
"""


def derive(*parts: str | int) -> int:
    """A 64-bit key from names and numbers: (seed, prompt id, image, candidate), or a parent key and
    a reason.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def words(key: int) -> tuple[int, int]:
    """A 64-bit key as the two 32-bit words that `Noise` hashes."""
    return key >> 32, key & _WORD


def _mix(x: Tensor) -> Tensor:
    """The lowbias32 hash of 32-bit words held in int64 (Wellons, "hash-prospector")."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def _uniform(first: Tensor, second: Tensor, index: Tensor) -> Tensor:
    """Uniforms of two words and an index, float64."""
    high = _mix(_mix(index ^ first) ^ second)
    low = _mix(_mix(index ^ second) ^ _mix(first ^ 0xC2B2AE35))
    return ((high << 20 | low >> 12).double() + 0.5) * 2.0**-52


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of R rows at T consecutive positions each: `key_R2` two words per row,
    `position_RT` int64.
    """

    key_R2: Tensor
    position_RT: Tensor

    def uniform(self, lane: int, count: int) -> Tensor:
        """Uniforms in the open interval (0, 1) with 52 bits, float64 [R, T, count]."""
        first_RT, second_RT = self._words(lane)
        return _uniform(
            first_RT.unsqueeze(-1),
            second_RT.unsqueeze(-1),
            torch.arange(count, device=first_RT.device),
        )

    def _words(self, lane: int) -> tuple[Tensor, Tensor]:
        """What a lane's uniforms at every position are made of, two words, [R, T] each."""
        spot = _mix(_mix(self.position_RT) ^ (lane * 0x9E3779B9 & _WORD))
        return _mix(self.key_R2[:, :1] ^ spot), _mix(self.key_R2[:, 1:] ^ _mix(spot ^ 0x85EBCA6B))

    def salted(self, salt_R: Tensor) -> Noise:
        """Noise independent of this one at the same places, another for every salt: for what is
        drawn repeatedly.
        """
        return Noise(_mix(self.key_R2 ^ _mix(salt_R + 0x27D4EB2F).unsqueeze(1)), self.position_RT)

    def at(self, offset_R: Tensor) -> Noise:
        """The noise of one position a row: the `offset`-th of its T."""
        return Noise(self.key_R2, self.position_RT.gather(1, offset_R.unsqueeze(1)))

    def race(self, lane: int, weight_RTV: Tensor) -> Tensor:
        """Draw from laws given up to a factor: argmax of weight / -log u, int64 [R, T]. Zero
        weights never win.
        """
        if weight_RTV.device.type == "cpu":  # elsewhere counting them would wait for the device
            r, t, v = weight_RTV.nonzero(as_tuple=True)
            if SPARSE * len(v) < weight_RTV.numel():
                first_RT, second_RT = (
                    word.expand(weight_RTV.shape[:2]) for word in self._words(lane)
                )
                speed_RTV = torch.zeros_like(weight_RTV, dtype=torch.float64)
                speed_RTV[r, t, v] = (
                    weight_RTV[r, t, v].double()
                    / -_uniform(first_RT[r, t], second_RT[r, t], v).log()
                )
                return speed_RTV.argmax(-1)
        return (weight_RTV.double() / -self.uniform(lane, weight_RTV.shape[-1]).log()).argmax(-1)

    def order(self, lane: int, weight_RV: Tensor, count: int) -> Tensor:
        """The first `count` of a race at one position: draws without replacement, int64 [R, count];
        T is 1.
        """
        time_RV = weight_RV.double() / -self.uniform(lane, weight_RV.shape[-1])[:, 0].log()
        return time_RV.sort(dim=-1, descending=True, stable=True).indices[:, :count]
