"""Train the VQ tokenizer: `python -m harness.training.train_tokenizer --cpu-minutes 14`.

A plain autoencoder first, then a k-means codebook on its latents, then vector quantisation with an
EMA codebook whose dead rows are restarted from current latents. Attention layers stay switched off
(zero output projections): a patch's code then does not depend on far-away objects, which makes each
(class, colour, size) nearly the same token pattern everywhere.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.arguments import explain_mistakes, not_negative
from harness.models.pictogram import world
from harness.models.pictogram.grammar import TASKS
from harness.models.vq import MISSING, VQ, AttnBlock, VQSpec, to_uint8
from harness.training import loop as training

SPEC = VQSpec(codes=512, code_dim=8, width=32, multipliers=(1, 2, 3), blocks=1, latent=64, groups=8)
GRID = (12, 12)
BATCH = 32
PLAIN_STEPS = 150


@explain_mistakes
def main() -> None:
    parser = training.parser("train_tokenizer", __doc__ or "", cpu_minutes=9)
    parser.add_argument(
        "--decoder-minutes",
        type=not_negative,
        default=5,
        help="CPU time for the decoder alone, codes fixed",
    )
    arguments = parser.parse_args()
    options = training.options(arguments)
    train(options)
    train_decoder(options, arguments.decoder_minutes)


def train(options: training.Options) -> VQ:
    """Train encoder, codebook and decoder until the budget is spent."""
    vq = new_vq()
    path = options.checkpoint("tokenizer")
    progress, states = training.resume(path)
    optimisers = training.muon_adamw(vq, 0.02, 3e-3)
    codebook = Codebook(vq)
    if options.warm and not states:
        training.warm(options, "tokenizer", vq)
        codebook.adopt()
        progress.step = PLAIN_STEPS + 1
    if states:
        vq.load_state_dict(states["model"])
        if progress.share(options.cpu_minutes) < 1:
            training.restore(optimisers, states["optimisers"])
        codebook.count, codebook.total = states["codebook"]

    while (share := progress.share(options.cpu_minutes)) < 1:
        # 1. Draw fresh scenes.
        training.set_rate(optimisers, training.decay(share))
        rng = training.step_rng(options.seed, "tokenizer", progress.step)
        x = to_pixels(scenes(BATCH, options.classes, rng))

        # 2. Learn to reconstruct them, with codes after the plain steps.
        if progress.step == PLAIN_STEPS:
            codebook.start(options)
        loss = step(vq, codebook, x, quantised=progress.step >= PLAIN_STEPS)
        training.descend(loss, vq, optimisers)
        progress.tick(BATCH)

        # 3. Measure and save.
        if progress.step % 50 == 0:
            progress.note(
                loss=loss.item(),
                psnr_db=psnr(vq, options),
                codes_used=float((codebook.count > 0.1).sum()),
            )
            _save(path, progress, vq, optimisers, codebook)

    progress.note(psnr_db=psnr(vq, options))
    _save(path, progress, vq, optimisers, codebook)
    return vq


def train_decoder(options: training.Options, minutes: float) -> VQ:
    """Train the decoder alone for some minutes more: codes stay as they are.

    It learns to draw grey where codes are missing.
    """
    vq = new_vq()
    path = options.checkpoint("tokenizer")
    progress, states = training.resume(path)
    vq.load_state_dict(states["model"])
    vq.encoder.requires_grad_(False)
    vq.quant_conv.requires_grad_(False)
    optimisers = training.muon_adamw(vq, 0.01, 1.5e-3)

    while (spent := progress.cpu_s / 60 - options.cpu_minutes) < minutes:
        training.set_rate(optimisers, training.decay(spent / minutes))
        rng = training.step_rng(options.seed, "decoder", progress.step)
        x = to_pixels(scenes(BATCH, options.classes, rng))
        training.descend(decoder_step(vq, x, rng), vq, optimisers)
        progress.tick(BATCH)
        if progress.step % 50 == 0:
            progress.note(psnr_db=psnr(vq, options))
            training.save(path, progress, vq, [], codebook=states["codebook"])

    training.save(path, progress, vq, [], codebook=states["codebook"])
    return vq


def decoder_step(vq: VQ, x: Tensor, rng: random.Random) -> Tensor:
    """Return the loss of one batch in which every other picture is cut off at some token."""
    with torch.no_grad(), training.autocast():
        codes = vq.encode(x)
    num_tokens = codes.shape[1]
    known = [rng.randint(6, num_tokens) if i % 2 else num_tokens for i in range(len(x))]
    is_known = torch.arange(num_tokens) < torch.tensor(known).unsqueeze(-1)
    cells = is_known.unflatten(1, GRID).unsqueeze(1).float()
    with training.autocast():
        y = vq.decode(codes.masked_fill(~is_known, MISSING), GRID)
    wanted = x * F.interpolate(cells, size=x.shape[-2:])
    return picture_loss(y.float(), wanted)


def _save(
    path: Path,
    progress: training.Progress,
    vq: VQ,
    optimisers: Sequence[torch.optim.Optimizer],
    codebook: Codebook,
) -> None:
    training.save(path, progress, vq, optimisers, codebook=(codebook.count, codebook.total))


def new_vq(spec: VQSpec = SPEC) -> VQ:
    """Make a tokenizer without attention, in the memory layout that is fast on a CPU."""
    vq = VQ(spec)
    for module in vq.modules():
        if isinstance(module, AttnBlock):
            module.requires_grad_(False)
            for parameter in module.proj_out.parameters():
                torch.nn.init.zeros_(parameter)
    vq.quantize.embedding.requires_grad_(False)
    return vq.to(memory_format=torch.channels_last)


def scenes(count: int, classes: Sequence[str], rng: random.Random) -> np.ndarray:
    """Draw pictures of every task, [count, 48, 48, 3]; more of those with colours."""
    tasks = (*TASKS, "colors", "color_attr", "color_attr")
    pictures = []
    for _ in range(count):
        sample = world.draw_sample(rng, classes, tasks=tasks, style="geneval", layout_share=0.0)
        pictures.append(sample.pixels)
    return np.stack(pictures)


def to_pixels(pixels: np.ndarray) -> Tensor:
    """Convert uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)


@torch.no_grad()
def swap_for_near(code_BN: Tensor, vq: VQ, noise: np.random.Generator, mean: float) -> Tensor:
    """Replace some codes by one of their five nearest in the codebook; return codes [B, N].

    The share that is replaced is 0, `mean` or twice that, by picture.
    """
    rows = vq.quantize.rows().float()
    nearest = (rows @ rows.T).topk(6, dim=-1).indices
    rank = torch.from_numpy(noise.integers(1, 6, code_BN.shape))
    luck = noise.random(code_BN.shape)
    share = mean * noise.integers(0, 3, (len(code_BN), 1))
    return torch.where(torch.from_numpy(luck < share), nearest[code_BN, rank], code_BN)


def step(vq: VQ, codebook: Codebook, x: Tensor, *, quantised: bool) -> Tensor:
    """Return the loss of one batch.

    It is that of the pictures, and the squared distance of latents to their codes.
    """
    with training.autocast():
        z = F.normalize(vq.quant_conv(vq.encoder(x)).float(), dim=1)
        code, pull = codebook.quantise(z) if quantised else (z, z.new_zeros(()))
        y = vq.decode_latent(code)
    return picture_loss(y.float(), x) + 0.25 * pull


def picture_loss(y: Tensor, x: Tensor) -> Tensor:
    """Return L1 + 2 L2 + 0.5 L1 of the differences between neighbouring pixels."""
    edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    return (y - x).abs().mean() + 2 * (y - x).square().mean() + 0.5 * edges


class Codebook:
    """A codebook of unit-length rows that follows running means of the latents.

    Source: van den Oord et al. 2017, appendix A.
    """

    def __init__(self, vq: VQ, *, keep: float = 0.97) -> None:
        self.vq = vq
        self.keep = keep
        self.count = torch.zeros(vq.spec.codes)
        self.total = torch.zeros(vq.spec.codes, vq.spec.code_dim)

    def start(self, options: training.Options, *, iterations: int = 12) -> None:
        """Find the first rows by spherical k-means on the latents of some fresh scenes."""
        # 1. Latents of 384 scenes, and a random choice of them.
        rng = training.step_rng(options.seed, "k-means", 0)
        with torch.no_grad(), training.autocast():
            batches = [to_pixels(scenes(32, options.classes, rng)) for _ in range(12)]
            z = torch.cat([self._encode(batch) for batch in batches])
        rows = z[torch.randperm(len(z))[: self.vq.spec.codes]].clone()

        # 2. Move each row to the mean direction of the latents that are nearest to it.
        for _ in range(iterations):
            index = (z @ rows.T).argmax(-1)
            total = torch.zeros_like(rows).index_add_(0, index, z)
            empty = total.norm(dim=-1) < 1e-6
            total[empty] = z[torch.randperm(len(z))[: int(empty.sum())]]
            rows = F.normalize(total, dim=-1)

        # 3. Go on with them.
        self.vq.quantize.embedding.weight.data.copy_(rows)
        self.adopt()

    def adopt(self) -> None:
        """Go on with the rows that the tokenizer already has."""
        self.count.fill_(1.0)
        self.total.copy_(self.vq.quantize.embedding.weight)

    def _encode(self, x: Tensor) -> Tensor:
        """Return the unit-length latents of all cells, [cells, d]."""
        z = self.vq.quant_conv(self.vq.encoder(x)).float()
        z = z.permute(0, 2, 3, 1).reshape(-1, self.vq.spec.code_dim)
        return F.normalize(z, dim=-1)

    def quantise(self, z_Bdhw: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise latents, and update the rows.

        Returns straight-through code vectors, and the mean squared distance of the latents to them.
        """
        index = self.vq.quantize.nearest(z_Bdhw)
        code = self.vq.quantize.lookup(index)
        z_nd = z_Bdhw.detach().permute(0, 2, 3, 1).flatten(0, 2)
        self._update(z_nd, index.flatten())
        straight = z_Bdhw + (code - z_Bdhw).detach()
        distance = (z_Bdhw - code.detach()).square().sum(1).mean()
        return straight, distance

    @torch.no_grad()
    def _update(self, z_nd: Tensor, index_n: Tensor) -> None:
        # 1. Running means of how often each row is used, and of the latents nearest to it.
        ones_n = torch.ones_like(index_n, dtype=torch.float)
        used = torch.zeros_like(self.count).index_add_(0, index_n, ones_n)
        total = torch.zeros_like(self.total).index_add_(0, index_n, z_nd)
        self.count.lerp_(used, 1 - self.keep)
        self.total.lerp_(total, 1 - self.keep)

        # 2. Rows that are hardly used start again at random latents.
        dead = self.count < 0.05
        if dead.any():
            fresh = z_nd[torch.randperm(len(z_nd))[: int(dead.sum())]]
            self.total[dead] = fresh
            self.count[dead] = 1.0

        self.vq.quantize.embedding.weight.copy_(F.normalize(self.total, dim=-1))


def psnr(vq: VQ, options: training.Options, *, count: int = 32) -> float:
    """Measure the mean peak signal-to-noise ratio of held-out reconstructions, in dB."""
    pixels = scenes(count, options.classes, random.Random("held-out"))
    pairs = zip(pixels, reconstruct(vq, pixels), strict=True)
    return float(np.mean([decibel(picture, other) for picture, other in pairs]))


@torch.no_grad()
def reconstruct(vq: VQ, pixels: np.ndarray) -> np.ndarray:
    """Encode pictures uint8 [B, 48, 48, 3], and decode them again."""
    with training.autocast():
        return to_uint8(vq.decode(vq.encode(to_pixels(pixels)), GRID)).numpy()


def decibel(picture: np.ndarray, other: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of a picture, in dB."""
    error = np.square(picture.astype(np.float64) - other).mean()
    return float(10 * np.log10(255.0**2 / max(error, 1e-9)))


if __name__ == "__main__":
    sys.exit(main())
