"""Train the VQ tokenizer: `python -m harness.training.train_tokenizer --set pictogram_16
--cpu-minutes 14`.

Plain autoencoder first, then a k-means codebook on its latents, then vector quantisation with an
EMA codebook whose dead rows are restarted from current latents. Attention layers stay switched off
(zero output projections): a patch's code then does not depend on far-away objects, which makes each
(class, colour, size) nearly the same token pattern everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.pictogram import world
from harness.models.pictogram.grammar import TASKS
from harness.models.vq import MISSING, VQ, AttnBlock, VQSpec, to_uint8
from harness.training import loop as training

SPEC = VQSpec(codes=512, code_dim=8, width=32, multipliers=(1, 2, 3), blocks=1, latent=64, groups=8)
GRID = (12, 12)
BATCH = 32
PLAIN_STEPS = 150


def main() -> None:
    parser = training.parser(__doc__ or "", cpu_minutes=9)
    parser.add_argument(
        "--decoder-minutes",
        type=float,
        default=5,
        help="CPU time for the decoder alone, codes fixed",
    )
    arguments = parser.parse_args()
    options = training.options(arguments)
    train(options)
    train_decoder(options, arguments.decoder_minutes)


def train(options: training.Options) -> VQ:
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
        training.set_rate(optimisers, training.decay(share))
        x = to_pixels(
            scenes(
                BATCH, options.classes, training.stream(options.seed, "tokenizer", progress.step)
            )
        )
        if progress.step == PLAIN_STEPS:
            codebook.start(options)
        loss = step(vq, codebook, x, quantised=progress.step >= PLAIN_STEPS)
        training.descend(loss, vq, optimisers)
        progress.tick(BATCH)
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
    """Go on with the decoder alone: codes stay as they are, and pictures become grey where codes
    are missing.
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
        rng = training.stream(options.seed, "decoder", progress.step)
        x = to_pixels(scenes(BATCH, options.classes, rng))
        training.descend(decoder_step(vq, x, rng), vq, optimisers)
        progress.tick(BATCH)
        if progress.step % 50 == 0:
            progress.note(psnr_db=psnr(vq, options))
            training.save(path, progress, vq, [], codebook=states["codebook"])
    training.save(path, progress, vq, [], codebook=states["codebook"])
    return vq


def decoder_step(vq: VQ, x: Tensor, rng: random.Random) -> Tensor:
    """Reconstruction loss of one batch in which every other picture is cut off at some token."""
    with torch.no_grad(), training.autocast():
        codes = vq.encode(x)
    known = torch.tensor(
        [rng.randint(6, codes.shape[1]) if i % 2 else codes.shape[1] for i in range(len(x))]
    )
    drawn = torch.arange(codes.shape[1]) < known.unsqueeze(-1)
    seen = drawn.unflatten(1, GRID).unsqueeze(1).float()
    with training.autocast():
        y = vq.decode(codes.masked_fill(~drawn, MISSING), GRID)
    return picture_loss(y.float(), x * F.interpolate(seen, size=x.shape[-2:]))


def _save(
    path: Path,
    progress: training.Progress,
    vq: VQ,
    optimisers: Sequence[torch.optim.Optimizer],
    codebook: Codebook,
) -> None:
    training.save(path, progress, vq, optimisers, codebook=(codebook.count, codebook.total))


def new_vq(spec: VQSpec = SPEC) -> VQ:
    """A tokenizer with its attention switched off, in the memory layout CPU convolutions like."""
    vq = VQ(spec)
    for module in vq.modules():
        if isinstance(module, AttnBlock):
            module.requires_grad_(False)
            for parameter in module.proj_out.parameters():
                torch.nn.init.zeros_(parameter)
    vq.quantize.embedding.requires_grad_(False)
    return vq.to(memory_format=torch.channels_last)


def scenes(count: int, classes: Sequence[str], rng: random.Random) -> np.ndarray:
    """Pictures [count, 48, 48, 3] of every task; those with colours twice as often."""
    tasks = (*TASKS, "colors", "color_attr", "color_attr")
    return np.stack(
        [
            world.draw_sample(rng, classes, tasks=tasks, style="geneval", layout_share=0.0).pixels
            for _ in range(count)
        ]
    )


def to_pixels(pixels: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def step(vq: VQ, codebook: Codebook, x: Tensor, *, quantised: bool) -> Tensor:
    """Loss of one batch: L1 + L2 + differences of neighbouring pixels, and the pull of latents
    towards their codes.
    """
    with training.autocast():
        z = F.normalize(vq.quant_conv(vq.encoder(x)).float(), dim=1)
        code, pull = codebook.quantise(z) if quantised else (z, z.new_zeros(()))
        y = vq.decode_latent(code)
    return picture_loss(y.float(), x) + 0.25 * pull


def picture_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1, L2, and L1 of the differences between neighbouring pixels."""
    edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    return (y - x).abs().mean() + 2 * (y - x).square().mean() + 0.5 * edges


class Codebook:
    """EMA statistics of a tokenizer's codebook (van den Oord et al. 2017, appendix A), with
    unit-length rows.
    """

    def __init__(self, vq: VQ, *, keep: float = 0.97) -> None:
        self.vq = vq
        self.keep = keep
        self.count = torch.zeros(vq.spec.codes)
        self.total = torch.zeros(vq.spec.codes, vq.spec.code_dim)

    def start(self, options: training.Options, *, rounds: int = 12) -> None:
        """Spherical k-means on the latents of some fresh scenes."""
        rng = training.stream(options.seed, "k-means", 0)
        with torch.no_grad(), training.autocast():
            z = torch.cat(
                [self._latents(to_pixels(scenes(32, options.classes, rng))) for _ in range(12)]
            )
        rows = z[torch.randperm(len(z))[: self.vq.spec.codes]].clone()
        for _ in range(rounds):
            index = (z @ rows.T).argmax(-1)
            total = torch.zeros_like(rows).index_add_(0, index, z)
            empty = total.norm(dim=-1) < 1e-6
            total[empty] = z[torch.randperm(len(z))[: int(empty.sum())]]
            rows = F.normalize(total, dim=-1)
        self.vq.quantize.embedding.weight.data.copy_(rows)
        self.adopt()

    def adopt(self) -> None:
        """Go on with the rows the tokenizer already has."""
        self.count.fill_(1.0)
        self.total.copy_(self.vq.quantize.embedding.weight)

    def _latents(self, x: Tensor) -> Tensor:
        z = self.vq.quant_conv(self.vq.encoder(x)).float()
        return F.normalize(z.permute(0, 2, 3, 1).reshape(-1, self.vq.spec.code_dim), dim=-1)

    def quantise(self, z_Bdhw: Tensor) -> tuple[Tensor, Tensor]:
        """Straight-through code vectors and the mean squared distance of the latents to them;
        updates the rows.
        """
        index = self.vq.quantize.nearest(z_Bdhw)
        code = self.vq.quantize.lookup(index)
        self._update(z_Bdhw.detach().permute(0, 2, 3, 1).flatten(0, 2), index.flatten())
        return z_Bdhw + (code - z_Bdhw).detach(), (z_Bdhw - code.detach()).square().sum(1).mean()

    @torch.no_grad()
    def _update(self, z_nd: Tensor, index_n: Tensor) -> None:
        used = torch.zeros_like(self.count).index_add_(
            0, index_n, torch.ones_like(index_n, dtype=torch.float)
        )
        total = torch.zeros_like(self.total).index_add_(0, index_n, z_nd)
        self.count.lerp_(used, 1 - self.keep)
        self.total.lerp_(total, 1 - self.keep)
        dead = self.count < 0.05
        if dead.any():
            fresh = z_nd[torch.randperm(len(z_nd))[: int(dead.sum())]]
            self.total[dead] = fresh
            self.count[dead] = 1.0
        self.vq.quantize.embedding.weight.copy_(F.normalize(self.total, dim=-1))


def psnr(vq: VQ, options: training.Options, *, count: int = 32) -> float:
    """Mean peak signal-to-noise ratio of held-out reconstructions, in dB."""
    pixels = scenes(count, options.classes, random.Random("held-out"))
    return float(
        np.mean([decibel(a, b) for a, b in zip(pixels, reconstruct(vq, pixels), strict=True)])
    )


@torch.no_grad()
def reconstruct(vq: VQ, pixels: np.ndarray) -> np.ndarray:
    """What is left of pictures uint8 [B, 48, 48, 3] after encoding and decoding."""
    with training.autocast():
        return to_uint8(vq.decode(vq.encode(to_pixels(pixels)), GRID)).numpy()


def decibel(picture: np.ndarray, other: np.ndarray) -> float:
    error = np.square(picture.astype(np.float64) - other).mean()
    return float(10 * np.log10(255.0**2 / max(error, 1e-9)))


if __name__ == "__main__":
    main()
