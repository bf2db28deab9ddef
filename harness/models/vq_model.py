"""What models share that draw one code of a VQ tokenizer for each place of a grid."""

from __future__ import annotations

from torch import Tensor

from harness.models.vq import VQ


class VQModel:
    """Sizes that follow from the grid and the tokenizer, as the engine asks for them."""

    grid: tuple[int, int]
    vq: VQ

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def codebook(self) -> Tensor:
        return self.vq.quantize.rows()

    @property
    def render_bytes(self) -> int:
        return self.vq.decode_bytes(self.num_tokens)
