"""The peers that the sampler is measured against, computing the same images from the same weights.

`StaticLoop` samples any model the way LlamaGen's own code does (FoundationVision/LlamaGen,
`generate.py` and `gpt.py`): padded prompts, a static cache that is attended over its whole length
under a boolean mask by the unfused backend, keys and values copied for every layer and step, one
multinomial draw. It is fed the sampler's tokens, so that both compute the same images; what it
would have drawn is thrown away. `LibraryJanus` is the transformers library's Janus, with random
weights and draws of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.engine.guidance import Sampling
from harness.models import ImageModel
from harness.models.janus import Janus
from harness.models.llamagen import LlamaGen
from harness.models.trunk import Attend


class StaticLoop:
    """A model sampled by a plain loop, one image for each of `texts`. Its blocks are the sampler's,
    fused like those.

    Shapes: B images, Q rows (text first, then, under guidance, null, as LlamaGen stacks them), C
    padded prompt positions (LlamaGen's own 120, elsewhere the longest prompt's), N image tokens, L
    = C + N.
    """

    def __init__(self, model: ImageModel, sampling: Sampling, texts: Sequence[str]) -> None:
        self.model = model
        self.sampling = sampling
        asked: list[tuple[str | None, str]] = [(text, text) for text in texts]
        asked += [(None, text) for text in texts] if sampling.scale != 1 else []
        self._asked = asked
        rows = self._prompts()
        self.condition = (
            model.gpt.spec.condition if isinstance(model, LlamaGen) else max(map(len, rows))
        )
        self.length = self.condition + model.num_tokens
        layers, _, heads, _, head_dim = model.cache(1).keys.shape
        self.keys = torch.zeros(
            (layers, len(rows), heads, self.length, head_dim),
            dtype=model.dtype,
            device=model.device,
        )
        self.values = torch.zeros_like(self.keys)

    @torch.no_grad()
    def __call__(self, token_BN: Tensor) -> Tensor:
        """Sample all images, each token replaced by the given one; returns the last step's logits
        [Q, V].
        """
        rows = self._prompts()
        start_Q = torch.tensor([len(row) for row in rows], device=self.model.device)
        prompt_QCD = torch.stack([F.pad(row, (0, 0, self.condition - len(row), 0)) for row in rows])
        mask_QLL = self._mask(start_Q)
        place_C = torch.arange(self.condition, device=self.model.device)
        logits_QV = self._draw(self._forward(prompt_QCD, place_C, start_Q, mask_QLL))
        for n in range(self.model.num_tokens - 1):
            token_Q1 = token_BN[:, n : n + 1].repeat(len(rows) // len(token_BN), 1)
            place_1 = torch.tensor([self.condition + n], device=self.model.device)
            x_Q1D = self.model.embed(token_Q1, torch.full_like(token_Q1, n))
            logits_QV = self._draw(self._forward(x_Q1D, place_1, start_Q, mask_QLL))
        return logits_QV

    def _prompts(self) -> list[Tensor]:
        """Prompt embeddings [P, D] of every row, of LlamaGen's as they are before they are
        collapsed.
        """
        if isinstance(self.model, LlamaGen):
            return [self.model._prompt(*asked)[0] for asked in self._asked]
        return [self.model.context(*asked) for asked in self._asked]

    def _mask(self, start_Q: Tensor) -> Tensor:
        """Causal, without padding, but every position sees itself: bool [Q, L, L]."""
        whole_LL = torch.ones(
            (self.length, self.length), dtype=torch.bool, device=self.model.device
        ).tril()
        real_QL = torch.arange(self.length, device=self.model.device) >= (
            self.condition - start_Q
        ).unsqueeze(1)
        alone_LL = torch.eye(self.length, dtype=torch.bool, device=self.model.device)
        return (whole_LL & real_QL.unsqueeze(1)) | alone_LL

    def _forward(self, x_QWD: Tensor, place_W: Tensor, start_Q: Tensor, mask_QLL: Tensor) -> Tensor:
        pos_QW = (place_W - (self.condition - start_Q).unsqueeze(1)).clamp(min=0)
        return self.model.forward(
            x_QWD, pos_QW, start_Q, self._attend(place_W, mask_QLL[:, place_W].unsqueeze(1))
        )

    def _attend(self, place_W: Tensor, mask_Q1WL: Tensor) -> Attend:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys = self.keys[layer]
            values = self.values[layer]
            keys[:, :, place_W] = k
            values[:, :, place_W] = v
            keys = keys.repeat_interleave(1, dim=1)
            values = values.repeat_interleave(1, dim=1)
            with sdpa_kernel(SDPBackend.MATH):
                return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask_Q1WL)

        return attend

    def _draw(self, hidden_QWD: Tensor) -> Tensor:
        """Guidance, top-k, softmax and one draw on the last position, as LlamaGen's `sample`
        does.
        """
        logits_QV = self.model.head(hidden_QWD)[:, -1].float()
        guided_BV = logits_QV
        if self.sampling.scale != 1:
            text_BV, null_BV = logits_QV.chunk(2)
            guided_BV = null_BV + self.sampling.scale * (text_BV - null_BV)
        kept_BV = guided_BV / max(self.sampling.temperature, 1e-5)
        if self.sampling.top_k:
            least_B1 = kept_BV.topk(min(self.sampling.top_k, kept_BV.shape[1])).values[:, -1:]
            kept_BV = kept_BV.masked_fill(kept_BV < least_B1, -torch.inf)
        torch.multinomial(kept_BV.softmax(-1), 1)
        return logits_QV


class LibraryJanus:
    """The transformers library's Janus with random weights of the model's size, guided.

    Its weights are not the sampler's, which changes no cost. `generate` runs the library's own loop
    and static cache.
    """

    def __init__(self, model: Janus, texts: Sequence[str]) -> None:
        from transformers import JanusConfig, JanusForConditionalGeneration

        spec = model.spec
        config = JanusConfig(
            text_config={
                "hidden_size": spec.trunk.dim,
                "intermediate_size": spec.trunk.hidden,
                "num_hidden_layers": spec.trunk.layers,
                "num_attention_heads": spec.trunk.heads,
                "num_key_value_heads": spec.trunk.heads,
                "vocab_size": spec.words,
                "max_position_embeddings": spec.positions,
            },
            vision_config={
                "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": spec.trunk.dim,
                "image_size": 16 * spec.side, "patch_size": 16, "num_image_tokens": spec.side**2,
            },
            vq_config={
                "embed_dim": spec.vq.code_dim, "num_embeddings": spec.vq.codes, "base_channels": 32,
                "latent_channels": 32, "channel_multiplier": [1, 1, 1, 1, 1], "num_res_blocks": 1,
                "projection_dim": spec.trunk.dim, "image_token_embed_dim": spec.trunk.dim,
                "num_patches": spec.side,
            },
        )  # fmt: skip
        with torch.device(model.device):
            net: Any = JanusForConditionalGeneration(config)
        net.generation_config.generation_kwargs = {"boi_token_id": 0}  # ids that no prompt here has
        net.generation_config.bos_token_id = 1
        net.generation_config.pad_token_id = 2
        self._net = net.to(model.dtype).eval()
        generator = torch.Generator().manual_seed(0)
        length = max(len(text.split()) for text in texts) + 8
        words_BP = torch.randint(10, spec.words - 10, (len(texts), length), generator=generator)
        self._words_BP = words_BP.to(model.device)

    @torch.no_grad()
    def __call__(self, _block: int = 0) -> Tensor:
        """Token ids of all images, [B, N]."""
        return self._net.generate(
            input_ids=self._words_BP,
            attention_mask=torch.ones_like(self._words_BP),
            generation_mode="image",
            do_sample=True,
            guidance_scale=5,
        )
