"""Counter-based randomness: every draw is a pure function of (key, position, lane, index).

There is no generator state, so no result depends on order, interruption or what else is in the
batch; truncating a canvas and drawing again gives the same tokens, and candidate i of one method
shares its noise with candidate i of another. Integer hashing is identical on CPU and CUDA.

Shapes: R rows, T positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

DRAW = 0
ACCEPT = 1
RESIDUAL = 2
BRANCH = 3
DRAFT = 7
"""Lanes: independent numbers at one position for drawing a token, testing a draft token, drawing
from a residual, adding siblings to a drafted token, drafting. DRAFT is the last: siblings of a
draft use 7, 8 and so on; 4 to 6 are free.
"""

SPARSE = 4
"""On a CPU a race leaves zero weights out if fewer than one weight in so many is above zero."""

_WORD = 0xFFFFFFFF


def derive(*parts: str | int) -> int:
    """Hash names and numbers into a 64-bit key.

    The parts are (seed, prompt id, image, candidate), or a parent key and a reason.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def words(key: int) -> tuple[int, int]:
    """Split a 64-bit key into the two 32-bit words that `Noise` hashes."""
    return key >> 32, key & _WORD


def _mix(x: Tensor) -> Tensor:
    """Hash 32-bit words held in int64 with lowbias32 (Wellons, "hash-prospector")."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def _uniform(first: Tensor, second: Tensor, index: Tensor) -> Tensor:
    """Make uniforms of two words and an index, float64."""
    high = _mix(_mix(index ^ first) ^ second)
    low = _mix(_mix(index ^ second) ^ _mix(first ^ 0xC2B2AE35))
    return ((high << 20 | low >> 12).double() + 0.5) * 2.0**-52


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of R rows at T positions each: `key_R2` two words a row, `position_RT` int64.

    Where draft tokens are tested again and again at the same positions, `test_key_R2` takes the
    place of the key in the lanes ACCEPT and RESIDUAL.
    """

    key_R2: Tensor
    position_RT: Tensor
    test_key_R2: Tensor | None = None

    def uniform(self, lane: int, count: int) -> Tensor:
        """Compute uniforms in the open interval (0, 1) with 52 bits, float64 [R, T, count]."""
        first_RT, second_RT = self._words(lane)
        index = torch.arange(count, device=first_RT.device)
        return _uniform(first_RT.unsqueeze(-1), second_RT.unsqueeze(-1), index)

    def _words(self, lane: int) -> tuple[Tensor, Tensor]:
        """The two words of a lane at every position, [R, T] each, that its uniforms are made of."""
        spot_RT = _mix(_mix(self.position_RT) ^ (lane * 0x9E3779B9 & _WORD))
        key_R2 = self._tests() if lane in (ACCEPT, RESIDUAL) else self.key_R2
        first_RT = _mix(key_R2[:, :1] ^ spot_RT)
        second_RT = _mix(key_R2[:, 1:] ^ _mix(spot_RT ^ 0x85EBCA6B))
        return first_RT, second_RT

    def _tests(self) -> Tensor:
        """The key of the lanes that tests of draft tokens use, [R, 2]."""
        return self.key_R2 if self.test_key_R2 is None else self.test_key_R2

    def salted(self, salt_R: Tensor) -> Noise:
        """Return noise independent of this one at the same positions, different for every salt.

        For draws that are repeated at a position. It differs, too, from one retest to the next.
        """
        salt_R1 = _mix(salt_R + 0x27D4EB2F).unsqueeze(1)
        return Noise(_mix(self._tests() ^ salt_R1), self.position_RT)

    def retested(self, count_R: Tensor) -> Noise:
        """Return the same noise with tests of its own for every count, [R]; 0 changes nothing."""
        salted_R2 = self.salted(count_R).key_R2
        test_key_R2 = torch.where(count_R.unsqueeze(1) > 0, salted_R2, self.key_R2)
        return Noise(self.key_R2, self.position_RT, test_key_R2)

    def at(self, offset_R: Tensor) -> Noise:
        """Return the noise of one position a row: the `offset`-th of its T."""
        position_R1 = self.position_RT.gather(1, offset_R.unsqueeze(1))
        return Noise(self.key_R2, position_R1, self.test_key_R2)

    def race(self, lane: int, weight_RTV: Tensor) -> Tensor:
        """Draw tokens, int64 [R, T], by an exponential race: argmax of weight / -log u.

        Weights need not sum to one; zero weights never win.
        """
        if weight_RTV.device.type == "cpu":  # on a GPU, counting them would wait for the device
            r, t, v = weight_RTV.nonzero(as_tuple=True)
            if SPARSE * len(v) < weight_RTV.numel():
                return self._race_nonzero(lane, weight_RTV, r, t, v)
        uniform_RTV = self.uniform(lane, weight_RTV.shape[-1])
        return (weight_RTV.double() / -uniform_RTV.log()).argmax(-1)

    def _race_nonzero(
        self, lane: int, weight_RTV: Tensor, r: Tensor, t: Tensor, v: Tensor
    ) -> Tensor:
        """The same race among the entries (r, t, v) alone."""
        first_RT, second_RT = self._words(lane)
        first_RT = first_RT.expand(weight_RTV.shape[:2])
        second_RT = second_RT.expand(weight_RTV.shape[:2])
        uniform_n = _uniform(first_RT[r, t], second_RT[r, t], v)

        speed_RTV = torch.zeros_like(weight_RTV, dtype=torch.float64)
        speed_RTV[r, t, v] = weight_RTV[r, t, v].double() / -uniform_n.log()
        return speed_RTV.argmax(-1)

    def order(self, lane: int, weight_RV: Tensor, count: int) -> Tensor:
        """Draw `count` tokens without replacement, int64 [R, count]: the first of a race.

        Needs the noise of one position a row (T = 1).
        """
        uniform_RV = self.uniform(lane, weight_RV.shape[-1])[:, 0]
        speed_RV = weight_RV.double() / -uniform_RV.log()
        return speed_RV.sort(dim=-1, descending=True, stable=True).indices[:, :count]
