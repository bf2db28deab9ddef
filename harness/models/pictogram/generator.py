"""The embedded text-to-image model: a GPT over image codes, conditioned on 32 prompt positions.

It has LlamaGen's trunk and rotary table. Unlike LlamaGen's, its prompt keeps positions of its own
(word order counts), and always has exactly 32 of them, so there is no padding and no mask.

Shapes: B rows, W positions, P prompt positions (32), N image tokens, V codes, D width, d head
width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.kv_cache import KVCache
from harness.models.linear import Linear
from harness.models.pictogram import grammar
from harness.models.pictogram import weights as files
from harness.models.trunk import Attend, Trunk, TrunkSpec, axial_rotary, prepare
from harness.models.vq import VQ, VQSpec, to_uint8
from harness.models.vq_model import VQModel

PROMPT = grammar.PROMPT_POSITIONS
"""Prompt positions in front of the image tokens, P."""

_TOKENIZER_SIZES = ("codes", "code_dim", "width", "blocks", "latent", "groups")
"""Numbers of VQSpec that are stored beside the embedded tokenizer; its kind is VQSpec's own."""


@dataclass(frozen=True, slots=True)
class GPTSpec:
    """Dimensions of a generator or a draft model."""

    layers: int
    dim: int
    heads: int
    hidden: int
    codes: int = 512
    side: int = 12
    words: int = 257


class PictogramModel(VQModel):
    """What the engine draws of the embedded models, but for their contexts and rotary positions.

    The networks are a GPT, which computes in `dtype`, and the tokenizer.
    """

    name: str
    revision: str
    classes: tuple[str, ...]
    gpt: GPT

    def take_networks(
        self, gpt: GPT, vq: VQ, device: str | torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """Arrange loaded networks for inference on a device."""
        self.device = torch.device(device)
        self.dtype = dtype
        rotary = gpt.rotary  # stays float32, whatever the weights are rounded to
        self.gpt = gpt.eval().requires_grad_(False).to(self.device, dtype)
        self.gpt.rotary = rotary.to(self.device)
        prepare(self.gpt)
        self.vq = vq.eval().requires_grad_(False).to(self.device).for_rendering()
        self.vocab = gpt.spec.codes
        self.dim = gpt.spec.dim
        self.grid = (gpt.spec.side, gpt.spec.side)
        self.max_context = gpt.context_positions

    @property
    def trunk_spec(self) -> TrunkSpec:
        return self.gpt.trunk.spec

    def count_cut(self, text: str) -> int:
        return grammar.count_cut(text)

    def forward(self, x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Attend) -> Tensor:
        return self.gpt.trunk(x_BWD, self.rotary(pos_BW, start_B), attend)

    def rotary(self, pos_BW: Tensor, start_B: Tensor) -> Tensor:
        """Look up (cosine, sine) of positions, [B, W, d/2, 2]: all contexts are equally long."""
        return self.gpt.rotary[pos_BW]

    def head(self, hidden: Tensor) -> Tensor:
        return self.gpt.head(hidden).float()

    def cache(self, slots: int, tree_capacity: int = 0) -> KVCache:
        length = self.max_context + self.num_tokens + tree_capacity
        return KVCache(self.gpt.trunk.spec, slots, length, self.dtype, self.device)

    def decode(self, token_BN: Tensor) -> Tensor:
        return to_uint8(self.vq.decode(token_BN, self.grid))


class Pictogram(PictogramModel):
    """The embedded model as the engine draws it (`harness.models.ImageModel`).

    A GPT and the tokenizer of one weight set; `part` is "generator" or "draft". Raises WeightsError
    for weights that are missing, altered or of another shape.
    """

    def __init__(
        self,
        weights: str = grammar.DEFAULT,
        part: str = "generator",
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        gpt, self.classes, gpt_sha = load_gpt(weights, part)
        vq, vq_sha = load_tokenizer(weights)
        self.name = Path(weights).name
        self.revision = f"{gpt_sha[:12]}-{vq_sha[:12]}"
        chosen = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.take_networks(gpt, vq, device, chosen)

    def context(self, text: str | None, like: str) -> Tensor:
        word_B32 = torch.tensor([grammar.encode(text)], device=self.device)
        return self.gpt.embed_words(word_B32)[0]

    def embed(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        return self.gpt.embed_tokens(token_BW, index_BW)

    def rotary(self, pos_BW: Tensor, start_B: Tensor) -> Tensor:
        return self.gpt.rotary[pos_BW - start_B.unsqueeze(1) + PROMPT]


class GPT(nn.Module):
    """Word and place embeddings, the shared trunk, and a head over image codes."""

    rotary: Tensor

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__()
        self.spec = spec
        self.word_embeddings = nn.Embedding(spec.words, spec.dim)
        self.word_position_embeddings = nn.Embedding(PROMPT, spec.dim)
        self.tok_embeddings = nn.Embedding(spec.codes, spec.dim)
        self.tok_position_embeddings = nn.Embedding(spec.side**2, spec.dim)
        self.trunk = Trunk(TrunkSpec(spec.layers, spec.dim, spec.heads, spec.hidden))
        self.head = Linear(spec.dim, spec.codes, bias=False)
        self._initialise()
        self.register_buffer("rotary", _rotary_table(spec), persistent=False)

    def _initialise(self) -> None:
        """Random matrices; zero where a layer adds to its input, so that it starts as nothing."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = 0.02 if "embeddings" in name else parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=std)
            if name.endswith((".wo.weight", ".w2.weight")):
                nn.init.zeros_(parameter)

    @property
    def context_positions(self) -> int:
        """Count the positions of a context: a prompt."""
        return PROMPT

    def embed_words(self, word_B32: Tensor) -> Tensor:
        """Embed word ids of whole prompts, [B, 32, D]."""
        return self.word_embeddings(word_B32) + self.word_position_embeddings.weight

    def embed_tokens(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        """Embed image tokens at their places in the raster, [B, W, D]."""
        return self.tok_embeddings(token_BW) + self.tok_position_embeddings(index_BW)

    def forward_train(self, word_B32: Tensor, token_BN: Tensor, attend: Attend) -> Tensor:
        """Compute logits [B, N, V]: token n from the prompt and the tokens before n."""
        index_W = torch.arange(token_BN.shape[1] - 1, device=token_BN.device)
        words_BPD = self.embed_words(word_B32)
        tokens_BWD = self.embed_tokens(token_BN[:, :-1], index_W)
        x_BWD = torch.cat((words_BPD, tokens_BWD), 1)
        rotary_1W2 = self.rotary[: x_BWD.shape[1]].unsqueeze(0)
        hidden_BWD = self.trunk(x_BWD, rotary_1W2, attend)
        return self.head(hidden_BWD[:, PROMPT - 1 :])


def _rotary_table(spec: GPTSpec) -> Tensor:
    """(cosine, sine) of every position, [32 + N, d/2, 2].

    Prompt position p turns by row = column = p - 32.
    """
    prompt = torch.arange(-PROMPT, 0).unsqueeze(-1).expand(-1, 2)
    place = torch.arange(spec.side**2)
    image = torch.stack((place // spec.side, place % spec.side), -1)
    return axial_rotary(torch.cat((prompt, image)), spec.dim // spec.heads)


# --- shipped weights ------------------------------------------------------------------------------


def load_gpt(weights: str, part: str) -> tuple[GPT, tuple[str, ...], str]:
    """Load the GPT of a weight set, the classes it was trained on and the sha256 of its file.

    Raises WeightsError for weights that are missing, altered or of another vocabulary.
    """
    return load_network(GPT, weights, part, len(grammar.vocabulary()))


Network = TypeVar("Network", bound=GPT)


def load_network(
    kind: type[Network], weights: str, part: str, words: int
) -> tuple[Network, tuple[str, ...], str]:
    """Load a network of a weight set, its classes and the sha256 of its file.

    Raises WeightsError for weights that are missing, altered or of another number of words.
    """
    state, config, sha = files.read_part(weights, part)
    sizes: dict[str, Any] = {
        key: files.config_integer(config, key) for key in GPTSpec.__dataclass_fields__
    }
    spec = GPTSpec(**sizes)
    if spec.words != words:
        raise files.WeightsError(
            f"{part} of {weights!r} knows {spec.words} words, its texts have {words}: "
            "train it again"
        )
    network = kind(spec)
    files.fill_module(network, state, f"{part} of {weights!r}")
    return network, files.config_strings(config, "classes"), sha


def load_tokenizer(weights: str) -> tuple[VQ, str]:
    """Load the tokenizer of a weight set and the sha256 of its file.

    Raises WeightsError for weights that are missing or altered.
    """
    state, config, sha = files.read_part(weights, "tokenizer")
    multipliers = config["multipliers"]
    assert isinstance(multipliers, list)
    sizes: dict[str, Any] = {key: files.config_integer(config, key) for key in _TOKENIZER_SIZES}
    vq = VQ(VQSpec(**sizes, multipliers=tuple(map(int, multipliers))))
    files.fill_module(vq, state, f"tokenizer of {weights!r}")
    return vq.to(memory_format=torch.channels_last), sha


def spec_config(spec: GPTSpec | VQSpec) -> dict[str, object]:
    """Convert dimensions to what is stored beside the weights, without a tokenizer's kind."""
    config = {}
    for key, value in asdict(spec).items():
        if not isinstance(value, bool):
            config[key] = list(value) if isinstance(value, tuple) else value
    return config


# --- drawing without the engine -------------------------------------------------------------------


def draw_tokens(
    gpt: GPT,
    texts: list[str],
    *,
    scale: float,
    seed: int,
    prefix_BP: Tensor | None = None,
    swap: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Draw tokens [B, N] for some texts in one batch with guidance.

    `prefix_BP` are given first tokens; `swap` may replace the codes [B, 1] that were drawn, before
    the next ones are. For training and for studies of the model; methods are compared through the
    engine.
    """
    return draw_with_probs(gpt, texts, scale=scale, seed=seed, prefix_BP=prefix_BP, swap=swap)[0]


@torch.no_grad()
def draw_with_probs(
    gpt: GPT,
    texts: list[str],
    *,
    scale: float,
    seed: int,
    prefix_BP: Tensor | None = None,
    swap: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw like `draw_tokens`; return also the guided distribution at every place, [B, N, V]."""
    given = 0 if prefix_BP is None else prefix_BP.shape[1]
    rows = 2 * len(texts)
    count = gpt.spec.side**2
    cache = KVCache(gpt.trunk.spec, rows, PROMPT + count, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    token_BN = torch.empty(len(texts), 0, dtype=torch.long)
    probs_BNV = torch.empty(len(texts), count, gpt.spec.codes)

    # 1. All rows start with their prompts, the texts and as many null prompts.
    text_words = [grammar.encode(text) for text in texts]
    null_words = [grammar.encode(None)] * len(texts)
    x_RWD = gpt.embed_words(torch.tensor(text_words + null_words))
    pos_RW = torch.arange(PROMPT).expand(rows, -1)

    for n in range(count):
        # 2. Draw a token for each text, also where the given one is used instead.
        hidden_RD = gpt.trunk(x_RWD, gpt.rotary[pos_RW], cache.attend_all(pos_RW))[:, -1]
        text_BV, null_BV = gpt.head(hidden_RD).float().chunk(2)
        probs_BV = F.softmax(null_BV + scale * (text_BV - null_BV), -1)
        probs_BNV[:, n] = probs_BV
        next_B1 = torch.multinomial(probs_BV, 1, generator=generator)
        if prefix_BP is not None and n < given:
            next_B1 = prefix_BP[:, n : n + 1]
        elif swap is not None:
            next_B1 = swap(next_B1)
        token_BN = torch.cat((token_BN, next_B1), 1)

        # 3. Feed it to both rows of the text.
        index_R1 = torch.full((rows, 1), n)
        x_RWD = gpt.embed_tokens(next_B1.repeat(2, 1), index_R1)
        pos_RW = index_R1 + PROMPT
    return token_BN, probs_BNV
