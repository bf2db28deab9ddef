"""Sample in plain loops of our own, where the code of others is not at hand (see `upstream`).

`StaticLoop` samples any model the way LlamaGen's own code does (FoundationVision/LlamaGen,
`generate.py` and `gpt.py`): padded prompts, a static cache that is attended over its whole length
under a boolean mask by the unfused backend, keys and values copied for every layer and step, one
multinomial draw. It is fed the sampler's tokens, so that both compute the same images from the same
weights; what it draws itself is thrown away. `LibraryJanus` and `LibraryQwen2` are the transformers
library's models, with random weights and draws of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.engine.guidance import Sampling
from harness.engine.memory_need import LOGIT_BYTES, PREFILL_COPIES, count_weights
from harness.models import FollowableModel, ImageModel
from harness.models.janus import Janus
from harness.models.language_model import LanguageModel
from harness.models.llamagen import LlamaGen
from harness.models.trunk import Attend


class StaticLoop:
    """A model sampled by a plain loop, one image for each of `texts`.

    The model's blocks are the sampler's, fused alike. Shapes: B images, Q rows (the text branches,
    then, under guidance, the null branches, as LlamaGen stacks them), C padded prompt positions
    (120 in LlamaGen, otherwise those of the longest prompt), N image tokens, L = C + N.
    """

    def __init__(self, model: ImageModel, sampling: Sampling, texts: Sequence[str]) -> None:
        self.model = model
        self.sampling = sampling
        self._prompts: list[tuple[str | None, str]] = [(text, text) for text in texts]
        if sampling.scale != 1:
            self._prompts += [(None, text) for text in texts]

        rows = self._embed_prompts()
        self.condition = max(map(len, rows))
        if isinstance(model, LlamaGen):
            self.condition = model.gpt.spec.condition
        self.length = self.condition + model.num_tokens

        layers, _, heads, _, head_dim = model.cache(1).keys.shape
        shape = (layers, len(rows), heads, self.length, head_dim)
        self.keys = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.values = torch.zeros_like(self.keys)

    @classmethod
    def count_bytes(cls, model: ImageModel, sampling: Sampling, texts: Sequence[str]) -> int:
        """Count the bytes that such a loop takes beside the model, while it feeds the prompts."""
        rows = len(texts) * (1 if sampling.scale == 1 else 2)
        condition = max(len(model.context(text, text)) for text in set(texts))
        if isinstance(model, LlamaGen):
            condition = model.gpt.spec.condition
        length = condition + model.num_tokens
        layers, _, heads, _, head_dim = model.cache(1).keys.shape
        layer_bytes = 2 * rows * length * heads * head_dim * model.dtype.itemsize
        scores = 8 * rows * heads * model_share(model) * condition * length
        activations = rows * condition * PREFILL_COPIES * model.dim * model.dtype.itemsize
        logits = LOGIT_BYTES * rows * model.vocab
        masks = 2 * rows * length**2
        repeated = layer_bytes * model_share(model)
        return layers * layer_bytes + repeated + scores + activations + logits + masks

    @torch.no_grad()
    def __call__(self, token_BN: Tensor) -> Tensor:
        """Sample all images, each token replaced by the given one.

        Returns the logits of the last step, [Q, V].
        """
        device = self.model.device

        # 1. Pad the prompts on the left, and forward them.
        rows = self._embed_prompts()
        start_Q = torch.tensor([len(row) for row in rows], device=device)
        prompt_QCD = torch.stack([F.pad(row, (0, 0, self.condition - len(row), 0)) for row in rows])
        mask_QLL = self._make_mask(start_Q)
        place_C = torch.arange(self.condition, device=device)
        hidden_QCD = self._forward(prompt_QCD, place_C, start_Q, mask_QLL)
        logits_QV = self._draw(hidden_QCD)

        # 2. Feed the given tokens one by one.
        for n in range(self.model.num_tokens - 1):
            token_Q1 = token_BN[:, n : n + 1].repeat(len(rows) // len(token_BN), 1)
            place_1 = torch.tensor([self.condition + n], device=device)
            x_Q1D = self.model.embed(token_Q1, torch.full_like(token_Q1, n))
            hidden_Q1D = self._forward(x_Q1D, place_1, start_Q, mask_QLL)
            logits_QV = self._draw(hidden_Q1D)
        return logits_QV

    def _embed_prompts(self) -> list[Tensor]:
        """Embed the prompt of every row, [P, D]; LlamaGen's prompts are not collapsed."""
        model = self.model
        if isinstance(model, LlamaGen):
            model = copy.copy(model)
            model.collapse = False
        return [model.context(text, like) for text, like in self._prompts]

    def _make_mask(self, start_Q: Tensor) -> Tensor:
        """Make a causal mask without padding, bool [Q, L, L]; every position sees itself."""
        device = self.model.device
        square = (self.length, self.length)
        causal_LL = torch.ones(square, dtype=torch.bool, device=device).tril()
        padding_Q1 = (self.condition - start_Q).unsqueeze(1)
        real_QL = torch.arange(self.length, device=device) >= padding_Q1
        self_LL = torch.eye(self.length, dtype=torch.bool, device=device)
        return (causal_LL & real_QL.unsqueeze(1)) | self_LL

    def _forward(self, x_QWD: Tensor, place_W: Tensor, start_Q: Tensor, mask_QLL: Tensor) -> Tensor:
        padding_Q1 = (self.condition - start_Q).unsqueeze(1)
        pos_QW = (place_W - padding_Q1).clamp(min=0)
        attend = self._attend_at(place_W, mask_QLL[:, place_W].unsqueeze(1))
        return self.model.forward(x_QWD, pos_QW, start_Q, attend)

    def _attend_at(self, place_W: Tensor, mask_Q1WL: Tensor) -> Attend:
        """Return attention that writes the cache at some places, and reads its whole length."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys = self.keys[layer]
            values = self.values[layer]
            keys[:, :, place_W] = k
            values[:, :, place_W] = v
            share = q.shape[1] // keys.shape[1]  # query heads of a key-value head
            keys = keys.repeat_interleave(share, dim=1)
            values = values.repeat_interleave(share, dim=1)
            with sdpa_kernel(SDPBackend.MATH):
                return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask_Q1WL)

        return attend

    def _draw(self, hidden_QWD: Tensor) -> Tensor:
        """Guide, cut to the top k, and draw a token at the last position, as LlamaGen's `sample`.

        Returns the logits before guidance, [Q, V].
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


def model_share(model: ImageModel) -> int:
    """Return the query heads that share a key-value head of a model."""
    if not isinstance(model, FollowableModel):
        return 1
    spec = model.trunk_spec
    return spec.heads // spec.kv_heads


class LibraryJanus:
    """The transformers library's Janus with random weights of the model's size, under guidance.

    Its weights are not the sampler's, which changes no cost. It runs the library's own loop and
    static cache, `generate`.
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
                "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "projection_dim": spec.trunk.dim, "image_size": 16 * spec.side, "patch_size": 16,
                "num_image_tokens": spec.side**2,
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

    @classmethod
    def count_bytes(cls, model: Janus, texts: Sequence[str]) -> int:
        """Count the bytes that it takes: weights that are made in float32, and its static cache."""
        weights = 4 * count_weights(model) // model.dtype.itemsize
        return weights + 2 * len(texts) * model.cache(1).slot_bytes

    @torch.no_grad()
    def __call__(self, _block: int = 0) -> Tensor:
        """Draw all images; return their token ids, [B, N]."""
        return self._net.generate(
            input_ids=self._words_BP,
            attention_mask=torch.ones_like(self._words_BP),
            generation_mode="image",
            do_sample=True,
            guidance_scale=5,
        )


class LibraryQwen2:
    """The transformers library's Qwen2 with random weights of the model's size, under guidance.

    Its weights are not the sampler's, which changes no cost. It runs the library's own loop,
    `generate`, as SimpleAR's code does: logits of all words, and the null prompt in a second pass.
    """

    def __init__(self, model: LanguageModel, sampling: Sampling, texts: Sequence[str]) -> None:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        spec = model.spec
        trunk = spec.trunk
        config = Qwen2Config(
            hidden_size=trunk.dim,
            intermediate_size=trunk.hidden,
            num_hidden_layers=trunk.layers,
            num_attention_heads=trunk.heads,
            num_key_value_heads=trunk.kv_heads,
            vocab_size=spec.words,
            max_position_embeddings=spec.positions,
            rms_norm_eps=trunk.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": spec.rope_base},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        with torch.device(model.device):
            net: Any = Qwen2ForCausalLM(config)
        self._net = net.to(model.dtype).eval()
        self._sampling = sampling
        self._tokens = model.num_tokens
        generator = torch.Generator().manual_seed(0)
        lengths = [len(model.context(text, text)) for text in texts]
        self._words_BP = self._random_words(len(texts), max(lengths), spec.words, generator)
        null_length = len(model.context(None, texts[0]))
        self._null_BP = self._random_words(len(texts), null_length, spec.words, generator)

    def _random_words(
        self, rows: int, length: int, words: int, generator: torch.Generator
    ) -> Tensor:
        ids = torch.randint(10, words - 10, (rows, length), generator=generator)
        return ids.to(self._net.device)

    @staticmethod
    def serves(model: ImageModel) -> bool:
        """Tell whether a model is a Qwen2: a language model with biases of queries and keys."""
        return isinstance(model, LanguageModel) and model.spec.trunk.bias

    @classmethod
    def count_bytes(cls, model: LanguageModel, texts: Sequence[str]) -> int:
        """Count the bytes that it takes: weights that are made in float32, its cache, logits."""
        trunk = count_weights(model.net.trunk) // model.dtype.itemsize
        weights = 4 * (trunk + model.spec.words * model.dim)
        logits = LOGIT_BYTES * 2 * len(texts) * model.spec.words
        return weights + 2 * len(texts) * model.cache(1).slot_bytes + logits

    @torch.no_grad()
    def __call__(self, _block: int = 0) -> Tensor:
        """Draw all images; return their words, [B, N]."""
        guidance: dict[str, Any] = {}
        if self._sampling.scale != 1:
            guidance = {
                "guidance_scale": self._sampling.scale,
                "negative_prompt_ids": self._null_BP,
            }
        ids_BL = self._net.generate(
            input_ids=self._words_BP,
            attention_mask=torch.ones_like(self._words_BP),
            do_sample=True,
            temperature=self._sampling.temperature,
            top_k=self._sampling.top_k,
            top_p=self._sampling.top_p,
            max_new_tokens=self._tokens,
            min_new_tokens=self._tokens,
            **guidance,
        )
        return ids_BL[:, self._words_BP.shape[1] :]
