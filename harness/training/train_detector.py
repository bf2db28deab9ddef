"""Train a detector: `python -m harness.training.train_detector --arch residual --part judge --seed
101`.

Data are rendered scenes with blur, gain, tint and noise; once a tokenizer exists, half of each
batch goes through it, with some codes swapped for neighbours. Broken objects (cut in half, merged
from two, shuffled) are hard negatives.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.pictogram import world
from harness.models.pictogram.detector import (
    ARCHITECTURES,
    STRIDE,
    Detector,
    cell_centres,
    new_network,
    split_output,
)
from harness.models.pictogram.grammar import TASKS, objects
from harness.models.pictogram.world import SIDE, Pixels, Placed
from harness.models.vq import VQ, to_uint8
from harness.training import loop as training
from harness.training.train_tokenizer import GRID, new_vq, to_pixels

BATCH = 32
Scene = tuple[Pixels, tuple[Placed, ...]]


def main() -> None:
    parser = training.parser(__doc__ or "", cpu_minutes=8)
    parser.add_argument("--part", choices=("judge", "reward"), default="judge")
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default="residual")
    arguments = parser.parse_args()
    train(training.options(arguments), arguments.part, arguments.arch)


def train(options: training.Options, part: str, architecture: str) -> Detector:
    network = new_network(architecture, len(options.classes))
    path = options.checkpoint(part)
    progress, states = training.resume(path)
    optimisers = training.muon_adamw(network, 0.01, 2e-3)
    if not states:
        training.warm(options, part, network, but="head.")
    else:
        network.load_state_dict(states["model"])
        training.restore(optimisers, states["optimisers"])
    vq = trained_vq(options)
    while (share := progress.share(options.cpu_minutes)) < 1:
        network.train()
        training.set_rate(optimisers, training.decay(share))
        rng = training.stream(options.seed, part, progress.step)
        pixels, placed = batch(BATCH, options.classes, rng, vq)
        loss = step(network, pixels, targets(placed, options.classes))
        training.descend(loss, network, optimisers)
        progress.tick(BATCH)
        if progress.step % 100 == 0:
            progress.note(
                loss=loss.item(), **measure(Detector(network, options.classes), vq, options)
            )
            training.save(path, progress, network, optimisers, architecture=architecture)
    progress.note(**measure(Detector(network, options.classes), vq, options))
    training.save(path, progress, network, optimisers, architecture=architecture)
    return Detector(network, options.classes)


def trained_vq(options: training.Options) -> VQ | None:
    """The tokenizer of this set's checkpoint, once it is quantising."""
    _, states = training.resume(options.checkpoint("tokenizer"))
    if not states:
        return None
    vq = new_vq()
    vq.load_state_dict(states["model"])
    return vq.eval()


# --- data -----------------------------------------------------------------------------------------


def batch(
    count: int, classes: Sequence[str], rng: random.Random, vq: VQ | None
) -> tuple[Tensor, list[tuple[Placed, ...]]]:
    """Pictures float32 [B, 3, 48, 48] and what is well drawn in each."""
    scenes = [broken(one_scene(rng, classes), rng, classes) for _ in range(count)]
    noise = np.random.default_rng(rng.getrandbits(63))
    x = to_pixels(np.stack([pixels for pixels, _ in scenes]))
    if vq is not None:
        x[: count // 2] = through_tokenizer(vq, x[: count // 2], noise)
    return worn(x, noise), [placed for _, placed in scenes]


def one_scene(rng: random.Random, classes: Sequence[str]) -> Scene:
    if rng.random() < 0.5:
        return world.draw_clutter(rng, classes)
    spec = world.sample_spec(rng.choice(TASKS), classes, rng, tinted=rng.random() < 0.4)
    assert objects(spec)
    return world.draw_scene(spec, rng)


def broken(scene: Scene, rng: random.Random, classes: Sequence[str]) -> Scene:
    """In half of the scenes one object is spoilt and no longer counts."""
    pixels, placed = scene
    if not placed or rng.random() > 0.5:
        return scene
    pixels = pixels.copy()
    spoilt = rng.choice(placed)
    x1, y1, x2, y2 = spoilt.box
    region = pixels[y1:y2, x1:x2]
    background = np.array(_background(pixels, placed), np.uint8)
    kind = rng.choice(("half", "merged", "shuffled", "shuffled"))
    if kind == "half":
        height, width = region.shape[:2]
        cut = rng.choice(
            (
                np.s_[: height // 2],
                np.s_[height // 2 :],
                np.s_[:, : width // 2],
                np.s_[:, width // 2 :],
            )
        )
        region[cut] = background
    elif kind == "merged":
        other = rng.choice([name for name in classes if name != spoilt.name])
        index = world.BACKGROUNDS.index(tuple(background.tolist()))
        patch, _ = world.patch_of(
            other, spoilt.color, 4 * ((max(region.shape[:2]) + 3) // 4), index
        )
        width = region.shape[1] // 2
        region[:, width:] = patch[: region.shape[0], width : region.shape[1]]
    else:
        shuffle_blocks(region, rng)
    return pixels, tuple(one for one in placed if one is not spoilt)


def _background(pixels: Pixels, placed: Sequence[Placed]) -> tuple[int, int, int]:
    counts = [
        int((pixels == np.array(color, np.uint8)).all(-1).sum()) for color in world.BACKGROUNDS
    ]
    return world.BACKGROUNDS[int(np.argmax(counts))]


def shuffle_blocks(region: Pixels, rng: random.Random, size: int = 4) -> None:
    """Permute the whole blocks of a region, in place."""
    spots = [
        (y, x)
        for y in range(0, region.shape[0] - size + 1, size)
        for x in range(0, region.shape[1] - size + 1, size)
    ]
    blocks = [region[y : y + size, x : x + size].copy() for y, x in spots]
    rng.shuffle(blocks)
    for (y, x), block in zip(spots, blocks, strict=True):
        region[y : y + size, x : x + size] = block


@torch.no_grad()
def through_tokenizer(
    vq: VQ, x: Tensor, noise: np.random.Generator, *, swap: float = 0.06
) -> Tensor:
    """Encode and decode, with a share of the codes replaced by one of their five nearest
    neighbours.
    """
    with training.autocast():
        codes = vq.encode(x)
        rows = vq.quantize.rows().float()
        near = (rows @ rows.T).topk(6, dim=-1).indices
        swapped = near[codes, torch.from_numpy(noise.integers(1, 6, codes.shape))]
        chosen = torch.from_numpy(
            noise.random(codes.shape) < swap * noise.integers(0, 3, (len(codes), 1))
        )
        y = vq.decode(torch.where(chosen, swapped, codes), GRID)
    return to_uint8(y).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def worn(x_B3HW: Tensor, noise: np.random.Generator) -> Tensor:
    """Blur, gain, tint and noise, different for each picture; a quarter stays as it is."""
    count = len(x_B3HW)
    strength = torch.from_numpy(
        (noise.random((count, 1, 1, 1)) > 0.25) * noise.random((count, 1, 1, 1))
    ).float()
    kernel = torch.tensor([0.25, 0.5, 0.25])
    kernel = (kernel[:, None] * kernel)[None, None].expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(x_B3HW, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    x = torch.lerp(x_B3HW, blurred, strength)
    gain = 1 + 0.12 * torch.from_numpy(noise.standard_normal((count, 1, 1, 1))).float() * strength
    tint = 0.05 * torch.from_numpy(noise.standard_normal((count, 3, 1, 1))).float() * strength
    grain = 0.05 * torch.from_numpy(noise.standard_normal(tuple(x.shape))).float() * strength
    return (x * gain + tint + grain).clamp(-1, 1)


def targets(
    placed: Sequence[Sequence[Placed]], classes: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Heat [B, C, h, w] with a soft bump at each centre, distances [B, 4, h, w], mask of central
    cells [B, 1, h, w].
    """
    cells = SIDE // STRIDE
    heat = torch.zeros(len(placed), len(classes), cells, cells)
    sides = torch.zeros(len(placed), 4, cells, cells)
    central = torch.zeros(len(placed), 1, cells, cells)
    centres = cell_centres(SIDE)
    for b, scene in enumerate(placed):
        for one in scene:
            x1, y1, x2, y2 = one.box
            j, i = (
                min(int((low + high) / 2 / STRIDE), cells - 1) for low, high in ((x1, x2), (y1, y2))
            )
            bump = torch.exp(
                -((torch.arange(cells)[:, None] - i) ** 2 + (torch.arange(cells) - j) ** 2) / 1.0
            )
            channel = heat[b, classes.index(one.name)]
            torch.maximum(channel, bump, out=channel)
            for u in range(max(i - 1, 0), min(i + 2, cells)):
                for v in range(max(j - 1, 0), min(j + 2, cells)):
                    x = float(centres[v])
                    y = float(centres[u])
                    sides[b, :, u, v] = torch.tensor([x - x1, y - y1, x2 - x, y2 - y])
                    central[b, 0, u, v] = 1
    return heat, sides, central


def step(network: nn.Module, x: Tensor, wanted: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """CenterNet's focal loss on the heat (its equation 1) and an L1 loss on the distances around
    the centres.
    """
    heat, sides, central = wanted
    with training.autocast():
        out = network(x.contiguous(memory_format=torch.channels_last))
    logit, distance = split_output(out.float())
    p = logit.sigmoid()
    hit = heat > 0.999
    positive = F.logsigmoid(logit) * (1 - p) ** 2 * hit
    negative = F.logsigmoid(-logit) * p**2 * (1 - heat) ** 4 * ~hit
    count = max(1, int(hit.sum()))
    off = ((distance - sides).abs() * central).sum() / central.sum().clamp(min=1) / 4
    return -(positive.sum() + negative.sum()) / count + 0.1 * off


# --- measuring ------------------------------------------------------------------------------------


def measure(
    detector: Detector, vq: VQ | None, options: training.Options, *, count: int = 96
) -> dict[str, float]:
    """Precision, recall and colour accuracy on held-out renders and, with a tokenizer, on their
    reconstructions.
    """
    rng = random.Random("held-out detector")
    scenes = [one_scene(rng, options.classes) for _ in range(count)]
    pictures = np.stack([pixels for pixels, _ in scenes])
    numbers = dict(
        zip(
            ("precision", "recall", "color"),
            accuracy(detector, list(pictures), scenes),
            strict=True,
        )
    )
    if vq is not None:
        again = through_tokenizer(vq, to_pixels(pictures), np.random.default_rng(0), swap=0.0)
        found = accuracy(detector, list(to_uint8(again).numpy()), scenes)
        numbers |= dict(zip(("recon_precision", "recon_recall", "recon_color"), found, strict=True))
    return numbers


def accuracy(
    detector: Detector,
    pictures: Sequence[Pixels],
    scenes: Sequence[Scene],
    *,
    threshold: float = 0.4,
) -> tuple[float, float, float]:
    """Precision and recall at IoU 0.5 with the right class, and the share of tinted hits whose
    colour is read right.
    """
    hits = found = wanted = colored = right = 0
    for detections, (_, placed) in zip(detector.detect(pictures), scenes, strict=True):
        kept = [one for one in detections if one.score > threshold]
        found = found + len(kept)
        wanted = wanted + len(placed)
        free = list(placed)
        for one in kept:
            match = next(
                (p for p in free if p.name == one.name and overlap(p.box, one.box) > 0.5), None
            )
            if match is None:
                continue
            free.remove(match)
            hits += 1
            colored += match.color is not None
            right += match.color == one.color
    return hits / max(found, 1), hits / max(wanted, 1), right / max(colored, 1)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / area if area > 0 else 0.0


if __name__ == "__main__":
    main()
