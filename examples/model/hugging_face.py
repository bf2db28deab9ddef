"""Draw images with a decoder of Hugging Face: here a small Llama with random weights.

Its vocabulary is 256 bytes of text, then 64 colors; an image is 8 x 8 tiles of these colors.
"""

import torch
from torch import Tensor
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from harness.models.kv_cache import KVCache
from harness.models.trunk import Attend, TrunkSpec

TEXT = 256  # tokens of the vocabulary before the image's
LEVELS = torch.tensor([0, 85, 170, 255])
TILE = 6  # pixels


def attend_through_harness(module, query, key, value, mask, attend: Attend, **_):  # type: ignore
    """Let the harness keep keys and values, and attend: its slots are batched and rewound."""
    return attend(module.layer_idx, query, key, value).transpose(1, 2), None


AttentionInterface.register("harness", attend_through_harness)


class HuggingFaceModel:
    name = "small_llama"
    revision = "random-0"  # of a checkpoint: its revision, or a hash of its weights
    grid = (8, 8)
    num_tokens = 64
    vocab = 64
    max_context = 48

    def __init__(self, device: str | torch.device = "cpu", seed: int = 0) -> None:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=TEXT + self.vocab, hidden_size=64, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3,
        )  # fmt: skip
        config._attn_implementation = "harness"
        self.llama = LlamaForCausalLM(config).eval().requires_grad_(False).to(device)
        self.device = torch.device(device)
        self.dtype = self.llama.dtype
        self.dim = config.hidden_size
        self.spec = TrunkSpec(config.num_hidden_layers, self.dim, config.num_attention_heads, 128)
        self.codebook = torch.cartesian_prod(LEVELS, LEVELS, LEVELS).float().to(device)

    def context(self, text: str | None, like: str) -> Tensor:
        shown = like.encode()[: self.max_context] if text is None else text.encode()
        ids = [0] * len(shown) if text is None else list(shown[: self.max_context])
        return self.llama.model.embed_tokens(torch.tensor(ids, device=self.device))

    def embed(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        return self.llama.model.embed_tokens(token_BW + TEXT)

    def forward(self, x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Attend) -> Tensor:
        made = self.llama.model(inputs_embeds=x_BWD, position_ids=pos_BW, attend=attend)
        return made.last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        return self.llama.lm_head(hidden)[..., TEXT:].float()

    def cache(self, slots: int, tree_capacity: int = 0) -> KVCache:
        length = self.max_context + self.num_tokens + tree_capacity
        return KVCache(self.spec, slots, length, self.dtype, self.device)

    def decode(self, token_BN: Tensor) -> Tensor:
        tiles_BN3 = self.codebook[token_BN.clamp(min=0)].to(torch.uint8)
        tiles_BHW3 = tiles_BN3.unflatten(1, self.grid)
        return tiles_BHW3.repeat_interleave(TILE, 1).repeat_interleave(TILE, 2)
