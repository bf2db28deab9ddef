"""What LlamaGen and EditAR share: a GPT over codes that reads captions, and an image tokenizer.

Shapes: B rows, W positions, V codes, D width, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.models.captions import CaptionNetwork, Captions
from harness.models.kv_cache import KVCache
from harness.models.llamagen_network import GPT
from harness.models.trunk import Attend, TrunkSpec, prepare
from harness.models.vq import VQ
from harness.models.vq_model import VQModel


class CaptionedModel(VQModel):
    """A model as the engine draws it, but for its contexts, rotary positions and pixels.

    `rotary_table` is what those positions are looked up in. A parity fixture may have no tokenizer;
    then there is no `vq`, and nobody may ask for it.
    """

    gpt: GPT
    max_context: int

    def __init__(
        self,
        gpt: GPT,
        vq: VQ | None,
        captions: Captions,
        rotary_table: Tensor,
        *,
        name: str,
        revision: str,
        dtype: torch.dtype,
        render_dtype: torch.dtype,
        device: str | torch.device,
    ) -> None:
        self.name = name
        self.revision = revision
        self.dtype = dtype
        self.device = torch.device(device)

        self.gpt = gpt.eval().requires_grad_(False).to(self.device, dtype)
        prepare(self.gpt)
        if vq is not None:
            self.vq = vq.eval().requires_grad_(False).to(self.device, torch.float32)
            self.vq.for_rendering(render_dtype)
        self.captions = captions

        spec = gpt.spec
        self.grid = (spec.side, spec.side)
        self.vocab = spec.codes
        self.dim = spec.trunk.dim
        self._rotary = rotary_table.to(self.device)

    @property
    def trunk_spec(self) -> TrunkSpec:
        return self.gpt.spec.trunk

    # ------------------------------------------------------------------ texts

    def count_text_encoder_bytes(self) -> int:
        """Count the bytes that the texts' network takes of the device while it is there."""
        return self.captions.count_bytes() if isinstance(self.captions, CaptionNetwork) else 0

    def count_cut(self, text: str) -> int:
        """Count the tokens of a text that its encoder does not read."""
        return self.captions(text).cut

    def prepare_texts(self, texts: Sequence[str], *, stay: bool) -> None:
        """Encode texts on the device; the encoder then leaves it, unless it is to stay."""
        if isinstance(self.captions, CaptionNetwork):
            self.captions.prepare(texts, self.device, stay=stay)

    # ------------------------------------------------------------------ image tokens

    def embed(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        return self.gpt.tok_embeddings(token_BW)

    def forward(self, x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Attend) -> Tensor:
        return self.gpt.trunk(x_BWD, self.rotary(pos_BW, start_B), attend)

    def rotary(self, pos_BW: Tensor, start_B: Tensor) -> Tensor:
        """Look up (cosine, sine) of positions, [B, W, d/2, 2]."""
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        return self.gpt.output(hidden).float()

    def cache(self, slots: int, tree_capacity: int = 0) -> KVCache:
        length = self.max_context + self.num_tokens + tree_capacity
        return KVCache(self.trunk_spec, slots, length, self.dtype, self.device)
