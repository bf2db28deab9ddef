"""The peers that the sampler is measured against, computing the same images from the same weights.

`StaticLoop` samples the way LlamaGen's own code does (FoundationVision/LlamaGen, `generate.py` and `gpt.py`): padded
prompts, a static cache that is attended over its whole length under a boolean mask by the unfused backend, keys and
values copied for every layer and step, one multinomial draw. `LibraryJanus` is the transformers library's Janus.
Both are fed the sampler's tokens, so that all compute the same images; what they would have drawn is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.hooks import Sampling
from harness.models.janus import Janus
from harness.models.llamagen import LlamaGen
from harness.models.trunk import Attend


class StaticLoop:
    """LlamaGen sampled by a plain loop, `images` prompts at once under guidance.

    Shapes: B images, 2B rows (text first, as LlamaGen stacks them), C = 120 padded prompt positions, N image tokens.
    """

    def __init__(self, model: LlamaGen, sampling: Sampling, texts: Sequence[str]) -> None:
        self.model, self.sampling, self.texts = model, sampling, list(texts)
        spec = model.gpt.spec
        self.length = spec.condition + model.num_tokens
        shape = (spec.trunk.layers, 2 * len(texts), spec.trunk.heads, self.length, spec.trunk.head_dim)
        self.keys = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.values = torch.zeros_like(self.keys)

    @torch.no_grad()
    def __call__(self, token_BN: Tensor) -> Tensor:
        """Sample all images, each token replaced by the given one; returns the last step's logits [2B, V]."""
        condition = self.model.gpt.spec.condition
        prompt_QCD, seen_QC = self._prompts()
        mask_QLL = self._mask(seen_QC)
        place_C = torch.arange(condition, device=self.model.device)
        hidden_QWD = self._forward(prompt_QCD, place_C, mask_QLL)
        logits_QV = self._draw(hidden_QWD)
        for n in range(self.model.num_tokens - 1):
            token_Q1 = token_BN[:, n : n + 1].repeat(2, 1)
            place_1 = torch.tensor([condition + n], device=self.model.device)
            hidden_QWD = self._forward(self.model.gpt.tok_embeddings(token_Q1), place_1, mask_QLL)
            logits_QV = self._draw(hidden_QWD)
        return logits_QV

    def _prompts(self) -> tuple[Tensor, Tensor]:
        """Left-padded prompt embeddings [2B, C, D], and which positions are real."""
        condition = self.model.gpt.spec.condition
        rows = [self.model._prompt(text, text)[0] for text in self.texts]
        rows += [self.model._prompt(None, text)[0] for text in self.texts]
        padded = [F.pad(row, (0, 0, condition - len(row), 0)) for row in rows]
        place_C = torch.arange(condition, device=self.model.device)
        seen_QC = torch.stack([place_C >= condition - len(row) for row in rows])
        return torch.stack(padded), seen_QC

    def _mask(self, seen_QC: Tensor) -> Tensor:
        """Causal, without padding, but every position sees itself: bool [2B, L, L]."""
        whole = torch.ones((self.length, self.length), dtype=torch.bool, device=self.model.device).tril()
        real_QL = F.pad(seen_QC, (0, self.length - seen_QC.shape[1]), value=True)
        return (whole & real_QL.unsqueeze(1)) | torch.eye(self.length, dtype=torch.bool, device=self.model.device)

    def _forward(self, x_QWD: Tensor, place_W: Tensor, mask_QLL: Tensor) -> Tensor:
        at_W = (place_W - self.model.gpt.spec.condition + 1).clamp(min=0)  # place 0 of the table turns nothing
        rotary = self.model._rotary[at_W].unsqueeze(0)
        return self.model.gpt.trunk(x_QWD, rotary, self._attend(place_W, mask_QLL[:, place_W].unsqueeze(1)))

    def _attend(self, place_W: Tensor, mask_Q1WL: Tensor) -> Attend:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.keys[layer], self.values[layer]
            keys[:, :, place_W], values[:, :, place_W] = k, v
            keys, values = keys.repeat_interleave(1, dim=1), values.repeat_interleave(1, dim=1)
            with sdpa_kernel(SDPBackend.MATH):
                return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask_Q1WL)

        return attend

    def _draw(self, hidden_QWD: Tensor) -> Tensor:
        """Guidance, top-k, softmax and one draw on the last position, as LlamaGen's `sample` does."""
        logits_QV = self.model.gpt.output(hidden_QWD)[:, -1].float()
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

    Its weights are not the sampler's, which changes no cost. `generate` runs the library's own loop and static cache.
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
        net.generation_config.bos_token_id, net.generation_config.pad_token_id = 1, 2
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
