"""The embedded text-to-image model: a GPT over the tokenizer's codes, conditioned on 32 prompt
positions.

LlamaGen's trunk and rotary table; unlike LlamaGen the prompt keeps positions of its own (word order
counts), and it always has exactly 32 of them, so there is no padding and no mask. Shapes: B rows, W
positions, N image tokens, V codes, D width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.kv_cache import KVCache
from harness.models.pictogram import grammar
from harness.models.pictogram import weights as files
from harness.models.trunk import Attend, Trunk, TrunkSpec, axial_rotary
from harness.models.vq import VQ, VQSpec, to_uint8

PROMPT = grammar.PROMPT_POSITIONS


@dataclass(frozen=True, slots=True)
class GPTSpec:
    """Dimensions of a generator or a draft."""

    layers: int
    dim: int
    heads: int
    hidden: int
    codes: int = 512
    side: int = 12
    words: int = 257


class GPT(nn.Module):
    """Word and place embeddings, the shared trunk, and a head over image codes."""

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__()
        self.spec = spec
        self.word_embeddings = nn.Embedding(spec.words, spec.dim)
        self.word_position_embeddings = nn.Embedding(PROMPT, spec.dim)
        self.tok_embeddings = nn.Embedding(spec.codes, spec.dim)
        self.tok_position_embeddings = nn.Embedding(spec.side**2, spec.dim)
        self.trunk = Trunk(TrunkSpec(spec.layers, spec.dim, spec.heads, spec.hidden))
        self.head = nn.Linear(spec.dim, spec.codes, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(
                    parameter, std=0.02 if "embeddings" in name else parameter.shape[1] ** -0.5
                )
            if name.endswith((".wo.weight", ".w2.weight")):
                nn.init.zeros_(parameter)
        self.register_buffer("rotary", _rotary_table(spec), persistent=False)

    rotary: Tensor

    def embed_words(self, word_B32: Tensor) -> Tensor:
        return self.word_embeddings(word_B32) + self.word_position_embeddings.weight

    def embed_tokens(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        return self.tok_embeddings(token_BW) + self.tok_position_embeddings(index_BW)

    def forward_train(self, word_B32: Tensor, token_BN: Tensor, attend: Attend) -> Tensor:
        """Logits [B, N, V]: token n from the prompt and the tokens before n."""
        places = torch.arange(token_BN.shape[1] - 1, device=token_BN.device)
        x_BWD = torch.cat(
            (self.embed_words(word_B32), self.embed_tokens(token_BN[:, :-1], places)), 1
        )
        hidden_BWD = self.trunk(x_BWD, self.rotary[: x_BWD.shape[1]].unsqueeze(0), attend)
        return self.head(hidden_BWD[:, PROMPT - 1 :])


def _rotary_table(spec: GPTSpec) -> Tensor:
    """(cos, sin) of every position, [32 + N, d/2, 2]: prompt position p turns by row = column = p -
    32.
    """
    prompt = torch.arange(-PROMPT, 0).unsqueeze(-1).expand(-1, 2)
    place = torch.arange(spec.side**2)
    image = torch.stack((place // spec.side, place % spec.side), -1)
    return axial_rotary(torch.cat((prompt, image)), spec.dim // spec.heads)


class Pictogram:
    """The embedded model as the sampler sees it (harness.models.ImageModel): a GPT and the
    tokenizer of one weight set.

    `part` is "generator" or "draft". Raises ValueError when the weights are missing, altered or of
    another shape.
    """

    max_context = PROMPT

    def __init__(
        self,
        weights: str = grammar.DEFAULT,
        part: str = "generator",
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        self.name = Path(weights).name
        self.device = torch.device(device)
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.gpt, self.classes, sha = load_gpt(weights, part)
        self.vq, vq_sha = load_tokenizer(weights)
        self.gpt.eval().requires_grad_(False).to(self.device, self.dtype)
        self.gpt.trunk.fuse()
        self.gpt.rotary = self.gpt.rotary.float()
        self.vq.eval().requires_grad_(False).to(self.device).for_rendering()
        self.revision = f"{sha[:12]}-{vq_sha[:12]}"
        self.vocab = self.gpt.spec.codes
        self.dim = self.gpt.spec.dim
        side = self.gpt.spec.side
        self.grid = (side, side)

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def codebook(self) -> Tensor:
        return self.vq.quantize.rows()

    def context(self, text: str | None, like: str) -> Tensor:
        return self.gpt.embed_words(torch.tensor([grammar.encode(text)], device=self.device))[0]

    def embed(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        return self.gpt.embed_tokens(token_BW, index_BW)

    def forward(self, x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Attend) -> Tensor:
        return self.gpt.trunk(x_BWD, self.rotary(pos_BW, start_B), attend)

    def rotary(self, pos_BW: Tensor, start_B: Tensor) -> Tensor:
        return self.gpt.rotary[
            (pos_BW - start_B.unsqueeze(1) + PROMPT).clamp(0, len(self.gpt.rotary) - 1)
        ]

    def head(self, hidden: Tensor) -> Tensor:
        return self.gpt.head(hidden).float()

    def cache(self, slots: int, tree_capacity: int = 0) -> KVCache:
        return KVCache(
            self.gpt.trunk.spec,
            slots,
            self.max_context + self.num_tokens + tree_capacity,
            self.dtype,
            self.device,
        )

    def decode(self, token_BN: Tensor) -> Tensor:
        return to_uint8(self.vq.decode(token_BN, self.grid))


def load_gpt(weights: str, part: str) -> tuple[GPT, tuple[str, ...], str]:
    """The GPT of a weight set, the classes it was trained on and the sha256 of its file."""
    state, config, sha = files.read(weights, part)
    spec = GPTSpec(**{key: files.integer(config, key) for key in GPTSpec.__dataclass_fields__})
    if spec.words != len(grammar.vocabulary()):
        known = len(grammar.vocabulary())
        raise files.WeightsError(
            f"{part} of {weights!r} knows {spec.words} words, the grammar has {known}: train it again"
        )
    gpt = GPT(spec)
    files.fill(gpt, state, f"{part} of {weights!r}")
    return gpt, files.strings(config, "classes"), sha


def load_tokenizer(weights: str) -> tuple[VQ, str]:
    """The tokenizer of a weight set and the sha256 of its file."""
    state, config, sha = files.read(weights, "tokenizer")
    multipliers = config["multipliers"]
    assert isinstance(multipliers, list)
    sizes = {
        key: files.integer(config, key)
        for key in VQSpec.__dataclass_fields__
        if key != "multipliers"
    }
    vq = VQ(VQSpec(**sizes, multipliers=tuple(map(int, multipliers))))
    files.fill(vq, state, f"tokenizer of {weights!r}")
    return vq.to(memory_format=torch.channels_last), sha


def spec_config(spec: GPTSpec | VQSpec) -> dict[str, object]:
    """Dimensions as they are stored beside the weights."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(spec).items()
    }


@torch.no_grad()
def draw(
    gpt: GPT, texts: list[str], *, scale: float, seed: int, prefix_BP: Tensor | None = None
) -> Tensor:
    """Tokens [B, N] for some texts, drawn in one batch with guidance, perhaps after given first
    tokens.

    For training and for studies of the model; methods are compared through the harness's sampler.
    """
    given = 0 if prefix_BP is None else prefix_BP.shape[1]
    rows = 2 * len(texts)
    count = gpt.spec.side**2
    cache = KVCache(gpt.trunk.spec, rows, PROMPT + count, torch.float32, torch.device("cpu"))
    words = torch.tensor(
        [grammar.encode(text) for text in texts] + [grammar.encode(None)] * len(texts)
    )
    x = gpt.embed_words(words)
    pos = torch.arange(PROMPT).expand(rows, -1)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.empty(len(texts), 0, dtype=torch.long)
    for n in range(count):
        hidden = gpt.trunk(x, gpt.rotary[pos], cache.attend_all(pos))[:, -1]
        text, null = gpt.head(hidden).float().chunk(2)
        probs = F.softmax(null + scale * (text - null), -1)
        drawn = torch.multinomial(probs, 1, generator=generator)
        tokens = torch.cat(
            (tokens, prefix_BP[:, n : n + 1] if prefix_BP is not None and n < given else drawn), 1
        )
        at = torch.full((rows, 1), n)
        x = gpt.embed_tokens(tokens[:, -1:].repeat(2, 1), at)
        pos = at + PROMPT
    return tokens
