"""A toy image model with an invertible decoder: whole runs in milliseconds, without weights."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image as Pillow
from torch import Tensor, nn

from harness.engine.canvas import Canvas
from harness.engine.guidance import Sampling
from harness.engine.method_spec import MethodSpec
from harness.engine.rendering import Image
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Method, Session
from harness.kernels.noise import derive
from harness.models.kv_cache import KVCache
from harness.models.trunk import Attend, Trunk, TrunkSpec, axial_rotary
from harness.records import Job, Prompt, Score

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


class ToyModel:
    """Two layers of random weights in float64.

    A prompt's words are hashed into 8 embeddings, so that prompts differ in length. An image shows
    its tokens as levels of grey: from the pixels one can tell the tokens.
    """

    name = "toy"
    revision = "random"

    def __init__(
        self,
        grid: tuple[int, int] = (4, 4),
        vocab: int = 32,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        grid = (int(grid[0]), int(grid[1]))
        self.grid = grid
        self.vocab = vocab
        self.dim = 32
        self.max_context = 9
        self.dtype = dtype
        self.device = torch.device(device)
        generator = torch.Generator().manual_seed(seed)
        self.trunk = Trunk(TrunkSpec(layers=2, dim=32, heads=2, hidden=64))
        self.tokens = nn.Embedding(vocab, 32)
        self.words = nn.Embedding(8, 32)
        self.output = nn.Linear(32, vocab, bias=False)
        for module in (self.trunk, self.tokens, self.words, self.output):
            for parameter in module.parameters():
                values = torch.randn(parameter.shape, generator=generator)
                parameter.data = values.to(dtype) * 0.3
            module.to(self.device)
        self.codebook = self.tokens.weight.detach()
        place_L = torch.arange(-self.max_context, self.num_tokens)
        coords_L2 = place_L.unsqueeze(-1).expand(-1, 2)
        self._rotary = axial_rotary(coords_L2, 16).to(self.device)
        self.forwards = 0

    @property
    def trunk_spec(self) -> TrunkSpec:
        return self.trunk.spec

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def context(self, text: str | None, like: str) -> Tensor:
        shown = like if text is None else text
        words = ["<start>", *shown.split()][: self.max_context]
        ids = [0 if text is None else 1 + derive(word) % 7 for word in words]
        return self.words(torch.tensor(ids, device=self.device)).detach()

    def embed(self, token_BW: Tensor, index_BW: Tensor) -> Tensor:
        return self.tokens(token_BW)

    def forward(self, x_BWD: Tensor, pos_BW: Tensor, start_B: Tensor, attend: Attend) -> Tensor:
        self.forwards += 1
        return self.trunk(x_BWD, self.rotary(pos_BW, start_B), attend)

    def rotary(self, pos_BW: Tensor, start_B: Tensor) -> Tensor:
        return self._rotary[pos_BW - start_B[:, None] + self.max_context]

    def head(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)

    def cache(self, slots: int, tree_capacity: int = 0) -> KVCache:
        length = self.max_context + self.num_tokens + tree_capacity
        return KVCache(self.trunk.spec, slots, length, self.dtype, self.device)

    def decode(self, token_BN: Tensor) -> Tensor:
        pixels = (token_BN + 1).clamp(0, 255).to(torch.uint8).unflatten(1, self.grid)
        return pixels.unsqueeze(-1).expand(-1, -1, -1, 3).contiguous()


def jobs(texts: Iterable[str], images: int = 1) -> list[Job]:
    """Jobs for so many images of each text; the i-th prompt is `toy/<i>`."""
    prompts = [Prompt(f"toy/{i:05d}", text, "any") for i, text in enumerate(texts)]
    return [Job(prompt, image) for prompt in prompts for image in range(images)]


TEXTS = ["a cat", "two dogs left of a car", "a red bird", "one", "a b c d e f g h", "three cups"]
"""Prompts of different lengths."""


def draw(
    method: Method,
    some: Sequence[Job],
    *,
    model: ToyModel | None = None,
    sampling: Sampling | None = None,
    slots: int = 12,
    prefill: tuple[int, int] = (3, 4),
    render_batch: int = 8,
    tokens_per_step: int | None = None,
    seed: int = 0,
    concurrency: int | None = None,
) -> dict[tuple[str, int], Delivery]:
    """All deliveries of a run, by job; asserts that every slot is free afterwards."""
    sizes = MethodSpec.of(method).sampler_sizes()
    if tokens_per_step:
        sizes["tokens_per_step"] = tokens_per_step
    sampler = Sampler(
        model or ToyModel(),
        sampling or Sampling(scale=2.0),
        slots=slots,
        prefill=prefill,
        render_batch=render_batch,
        **sizes,
    )
    scheduler = Scheduler(method, sampler, seed=seed, concurrency=concurrency)
    done: dict[tuple[str, int], Delivery] = {}

    def keep(delivery: Delivery) -> None:
        done[delivery.job.key] = delivery

    scheduler.run(some, keep)
    assert sampler.free == slots
    return done


def draw_pairs(method: Method, images: int, model: ToyModel, sampling: Sampling) -> Tensor:
    """The first two tokens of images of one prompt, each pair as one number.

    Batches are as large as they can be: no token depends on that, and small ones take minutes.
    """
    deliveries = draw(
        method,
        jobs(["a cat"], images=images),
        model=model,
        sampling=sampling,
        slots=512,
        prefill=(512, 4),
        render_batch=256,
    )
    return torch.tensor([d.tokens[0] * model.vocab + d.tokens[1] for d in deliveries.values()])


class PixelSum:
    """A reward that reads only the image: its mean brightness."""

    id = "pixel-sum"

    def __call__(self, texts: Sequence[str], images: Sequence[Image]) -> list[float]:
        return [float(np.mean(image)) for image in images]


class ToyBenchmark:
    """Prompts of two categories; an image is right when it is bright.

    `pause` makes scoring slow: seconds for each image.
    """

    name = "toy"
    version = "1"

    def __init__(self, prompts: int | None = None, images: int = 2, pause: float = 0.0) -> None:
        self.images = images
        self.pause = pause
        self.judge = PixelSum()
        texts = [f"{text} {number}" for number in range(4) for text in TEXTS]
        self._prompts = []
        for i, text in enumerate(texts[:prompts]):
            category = ("even", "odd")[i % 2]
            self._prompts.append(Prompt(f"toy/{i:05d}", text, category, {"answer": i}))

    def prompts(self) -> list[Prompt]:
        return self._prompts

    def score(self, items: Iterable[tuple[Prompt, Path]]) -> Iterator[Score]:
        for prompt, path in items:
            time.sleep(self.pause)
            with Pillow.open(path) as picture:
                bright = float(np.asarray(picture).mean())
            yield Score(
                prompt.id,
                image=int(path.stem),
                judge=self.judge.id,
                value=float(bright > 16.5),
                detail={"bright": round(bright, 3)},
            )

    def summary(self, table: pd.DataFrame) -> dict[str, float]:
        return dict(table.groupby("category")["value"].mean())


class Faulty:
    """Plain sampling that fails on every second prompt until the working folder has `mended`."""

    rows = 1
    branches = 2
    tokens_per_step = 1

    async def generate(self, prompt: str, s: Session) -> Canvas:
        if prompt.endswith(("1", "3")) and not Path("mended").exists():
            raise ConnectionError("the judge is down")
        (canvas,) = s.open()
        await s.run([canvas])
        return canvas
