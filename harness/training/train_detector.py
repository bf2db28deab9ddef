"""Train a detector: `python -m harness.training.train_detector --arch residual --part judge`.

Data are rendered scenes with blur, gain, tint and noise. Once a tokenizer exists, half of each
batch goes through it, with some codes swapped for neighbours. Broken objects (cut in half, merged
from two, shuffled) are hard negatives.

A reward that is right about every image makes Best-of-N as good as the oracle. `--samples`,
`--broken` and `--worn` let it see fewer scenes, fewer broken objects and less blur and noise: it
then errs about what it has seen little of, as real rewards do. Nothing is added to its answers;
`verify --parts natural` measures how often it agrees with the judge.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.arguments import explain_mistakes, share
from harness.models.pictogram import world
from harness.models.pictogram.detector import (
    ARCHITECTURES,
    STRIDE,
    Detection,
    Detector,
    cell_centres,
    new_network,
    split_output,
)
from harness.models.pictogram.grammar import TASKS, objects
from harness.models.pictogram.world import SIDE, Pixels, Placed
from harness.models.vq import VQ, to_uint8
from harness.records import UserError
from harness.training import loop as training
from harness.training.train_tokenizer import GRID, new_vq, swap_for_near, to_pixels

BATCH = 32
Scene = tuple[Pixels, tuple[Placed, ...]]
"""A picture, and the objects in it that count."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What differs between trainings of a detector."""

    broken: float = 0.5  # share of the scenes in which an object is broken
    worn: float = 0.75  # share of the pictures with blur, gain, tint and noise
    decoded: float = 0.5  # share of the pictures that go through the tokenizer


@explain_mistakes
def main() -> None:
    parser = training.parser("train_detector", __doc__ or "", cpu_minutes=8)
    training.add_samples(parser)
    parser.add_argument("--part", choices=("judge", "reward"), default="judge")
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), default="residual")
    usual = Recipe()
    for name, what in (
        ("broken", "share of the scenes in which an object is broken and counts no longer"),
        ("worn", "share of the pictures with blur, gain, tint and noise"),
        ("decoded", "share of the pictures that go through the tokenizer"),
    ):
        parser.add_argument(f"--{name}", type=share, default=getattr(usual, name), help=what)
    arguments = parser.parse_args()
    recipe = Recipe(arguments.broken, arguments.worn, arguments.decoded)
    train(training.options(arguments), arguments.part, arguments.arch, recipe)


def train(
    options: training.Options, part: str, architecture: str, recipe: Recipe = Recipe()
) -> Detector:
    """Train until the budget is spent.

    Raises UserError where the checkpoint to continue is of another recipe.
    """
    network = new_network(architecture, len(options.classes))
    path = options.checkpoint(part)
    progress, states = training.resume(path)
    optimisers = training.muon_adamw(network, 0.01, 2e-3)
    if not states:
        training.warm(options, part, network, but="head.")
    else:
        training.expect_recipe(states.get("recipe"), asdict(recipe), asdict(Recipe()), path)
        network.load_state_dict(states["model"])
        training.restore(optimisers, states["optimisers"])
    vq = trained_vq(options)

    def save() -> None:
        states = {"architecture": architecture, "recipe": asdict(recipe)}
        training.save(path, progress, network, optimisers, **states)

    while (spent := progress.share(options.cpu_minutes, options.samples)) < 1:
        # 1. Draw fresh scenes, some of them broken.
        network.train()
        training.set_rate(optimisers, training.decay(spent))
        rng = training.step_rng(options.seed, part, progress.step)
        pixels, placed = batch(BATCH, options.classes, rng, vq, recipe)

        # 2. Learn where the objects are.
        loss = step(network, pixels, targets(placed, options.classes))
        training.descend(loss, network, optimisers)
        progress.tick(BATCH)

        # 3. Measure and save.
        if progress.step % 100 == 0:
            numbers = measure(Detector(network, options.classes), vq, options)
            progress.note(loss=loss.item(), **numbers)
            save()

    progress.note(**measure(Detector(network, options.classes), vq, options))
    save()
    return Detector(network, options.classes)


def trained_vq(options: training.Options) -> VQ | None:
    """Load the tokenizer of this set's checkpoint; None where it is not trained yet."""
    _, states = training.resume(options.checkpoint("tokenizer"))
    if not states:
        return None
    vq = new_vq()
    vq.load_state_dict(states["model"])
    return vq.eval()


def expect_trained_vq(options: training.Options) -> VQ:
    """Load the tokenizer of this set's checkpoint. Raises UserError where it is not trained yet."""
    vq = trained_vq(options)
    if vq is None:
        path = options.checkpoint("tokenizer")
        raise UserError(f"{path}: there is no tokenizer: train it first, or set --work or --set")
    return vq


# --- data -----------------------------------------------------------------------------------------


def batch(
    count: int,
    classes: Sequence[str],
    rng: random.Random,
    vq: VQ | None,
    recipe: Recipe = Recipe(),
) -> tuple[Tensor, list[tuple[Placed, ...]]]:
    """Draw pictures, float32 [B, 3, 48, 48], and list the objects that are whole in each."""
    scenes = []
    for _ in range(count):
        scene = one_scene(rng, classes)
        scenes.append(break_object(scene, rng, classes, recipe.broken))
    noise = np.random.default_rng(rng.getrandbits(63))
    x = to_pixels(np.stack([pixels for pixels, _ in scenes]))
    if vq is not None:
        decoded = int(count * recipe.decoded)
        x[:decoded] = through_tokenizer(vq, x[:decoded], noise)
    return wear(x, noise, recipe.worn), [placed for _, placed in scenes]


def one_scene(rng: random.Random, classes: Sequence[str]) -> Scene:
    """Draw a scene: clutter, or one that a prompt of some task asks for."""
    if rng.random() < 0.5:
        return world.draw_clutter(rng, classes)
    spec = world.sample_spec(rng.choice(TASKS), classes, rng, tinted=rng.random() < 0.4)
    assert objects(spec)
    return world.draw_scene(spec, rng)


def break_object(
    scene: Scene, rng: random.Random, classes: Sequence[str], broken: float = 0.5
) -> Scene:
    """Spoil one object in a share of the scenes, so that it counts no longer."""
    pixels, placed = scene
    if not placed or rng.random() > broken:
        return scene

    pixels = pixels.copy()
    spoilt = rng.choice(placed)
    x1, y1, x2, y2 = spoilt.box
    region = pixels[y1:y2, x1:x2]
    background = _find_background(pixels)
    kind = rng.choice(("half", "merged", "shuffled", "shuffled"))
    if kind == "half":
        _cut_half(region, background, rng)
    elif kind == "merged":
        other = rng.choice([name for name in classes if name != spoilt.name])
        _merge(region, other, spoilt.color, background)
    else:
        shuffle_blocks(region, rng)
    return pixels, tuple(one for one in placed if one is not spoilt)


def _find_background(pixels: Pixels) -> int:
    """Return the index of the background that most pixels have."""
    counts = []
    for color in world.BACKGROUNDS:
        is_background = (pixels == np.array(color, np.uint8)).all(-1)
        counts.append(int(is_background.sum()))
    return int(np.argmax(counts))


def _cut_half(region: Pixels, background: int, rng: random.Random) -> None:
    """Fill one half of a region with background, in place."""
    height, width = region.shape[:2]
    halves = (
        np.s_[: height // 2],
        np.s_[height // 2 :],
        np.s_[:, : width // 2],
        np.s_[:, width // 2 :],
    )
    region[rng.choice(halves)] = np.array(world.BACKGROUNDS[background], np.uint8)


def _merge(region: Pixels, other: str, color: str | None, background: int) -> None:
    """Replace the right half of a region by that of another class, in place."""
    side = 4 * ((max(region.shape[:2]) + 3) // 4)
    patch, _ = world.patch_of(other, color, side, background)
    height, width = region.shape[:2]
    region[:, width // 2 :] = patch[:height, width // 2 : width]


def shuffle_blocks(region: Pixels, rng: random.Random, size: int = 4) -> None:
    """Permute the whole blocks of a region, in place."""
    height, width = region.shape[:2]
    rows = range(0, height - size + 1, size)
    columns = range(0, width - size + 1, size)
    spots = list(itertools.product(rows, columns))
    blocks = [region[y : y + size, x : x + size].copy() for y, x in spots]
    rng.shuffle(blocks)
    for (y, x), block in zip(spots, blocks, strict=True):
        region[y : y + size, x : x + size] = block


@torch.no_grad()
def through_tokenizer(
    vq: VQ, x: Tensor, noise: np.random.Generator, *, swap: float = 0.06
) -> Tensor:
    """Encode and decode, with some of the codes replaced by near ones: see `swap_for_near`."""
    with training.autocast():
        codes = vq.encode(x)
        y = vq.decode(swap_for_near(codes, vq, noise, swap), GRID)
    return to_uint8(y).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def wear(x_B3HW: Tensor, noise: np.random.Generator, worn: float = 0.75) -> Tensor:
    """Blur a share of the pictures, change gain and tint, and add noise."""

    def draw_normal(*shape: int) -> Tensor:
        return torch.from_numpy(noise.standard_normal(shape)).float()

    count = len(x_B3HW)
    is_worn = noise.random((count, 1, 1, 1)) > 1 - worn
    strength = torch.from_numpy(is_worn * noise.random((count, 1, 1, 1))).float()

    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line)[None, None].expand(3, 1, 3, 3)
    padded = F.pad(x_B3HW, (1, 1, 1, 1), mode="replicate")
    blurred = F.conv2d(padded, kernel, groups=3)
    x = torch.lerp(x_B3HW, blurred, strength)

    gain = 1 + 0.12 * draw_normal(count, 1, 1, 1) * strength
    tint = 0.05 * draw_normal(count, 3, 1, 1) * strength
    grain = 0.05 * draw_normal(*x.shape) * strength
    return (x * gain + tint + grain).clamp(-1, 1)


def targets(
    placed: Sequence[Sequence[Placed]], classes: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Make what the network should answer for scenes.

    Returns the heat [B, C, h, w] with a soft bump at each centre, the distances of a cell to the
    sides of its object [B, 4, h, w], and a mask of the cells around centres [B, 1, h, w].
    """
    cells = SIDE // STRIDE
    heat = torch.zeros(len(placed), len(classes), cells, cells)
    sides = torch.zeros(len(placed), 4, cells, cells)
    central = torch.zeros(len(placed), 1, cells, cells)
    for b, scene in enumerate(placed):
        for one in scene:
            x1, y1, x2, y2 = one.box
            row = _find_cell(y1, y2, cells)
            column = _find_cell(x1, x2, cells)
            channel = heat[b, classes.index(one.name)]
            torch.maximum(channel, _make_bump(row, column, cells), out=channel)
            _mark_centre(sides[b], central[b], one, row, column)
    return heat, sides, central


def _find_cell(low: float, high: float, cells: int) -> int:
    """Return the cell of the middle of an interval of pixels."""
    return min(int((low + high) / 2 / STRIDE), cells - 1)


def _make_bump(row: int, column: int, cells: int) -> Tensor:
    """Return exp(-squared distance) to a cell, [h, w]."""
    place = torch.arange(cells)
    squared = (place[:, None] - row) ** 2 + (place - column) ** 2
    return torch.exp(-squared / 1.0)


def _mark_centre(
    sides_4hw: Tensor, central_1hw: Tensor, one: Placed, row: int, column: int
) -> None:
    """Write the distances to an object's sides into the cells around its centre."""
    x1, y1, x2, y2 = one.box
    cells = central_1hw.shape[-1]
    centres = cell_centres(SIDE)
    for u in range(max(row - 1, 0), min(row + 2, cells)):
        for v in range(max(column - 1, 0), min(column + 2, cells)):
            x = float(centres[v])
            y = float(centres[u])
            sides_4hw[:, u, v] = torch.tensor([x - x1, y - y1, x2 - x, y2 - y])
            central_1hw[0, u, v] = 1


def step(network: nn.Module, x: Tensor, wanted: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the loss of one batch.

    It is CenterNet's focal loss on the heat (its equation 1) and an L1 loss on the distances around
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
    """Measure precision, recall and colour accuracy on held-out renders.

    With a tokenizer they are also measured on its reconstructions.
    """
    rng = random.Random("held-out detector")
    scenes = [one_scene(rng, options.classes) for _ in range(count)]
    pictures = np.stack([pixels for pixels, _ in scenes])
    precision, recall, color = accuracy(detector, list(pictures), scenes)
    numbers = {"precision": precision, "recall": recall, "color": color}
    if vq is not None:
        again = through_tokenizer(vq, to_pixels(pictures), np.random.default_rng(0), swap=0.0)
        precision, recall, color = accuracy(detector, list(to_uint8(again).numpy()), scenes)
        numbers |= {"recon_precision": precision, "recon_recall": recall, "recon_color": color}
    return numbers


def accuracy(
    detector: Detector,
    pictures: Sequence[Pixels],
    scenes: Sequence[Scene],
    *,
    threshold: float = 0.4,
) -> tuple[float, float, float]:
    """Measure precision and recall at IoU 0.5 with the right class, and the accuracy of colours.

    The last is the share of tinted hits whose colour is read right.
    """
    hits = found = wanted = colored = right = 0
    for detections, (_, placed) in zip(detector.detect(pictures), scenes, strict=True):
        kept = [one for one in detections if one.score > threshold]
        found += len(kept)
        wanted += len(placed)
        free = list(placed)
        for one in kept:
            match = next((other for other in free if _is_hit(one, other)), None)
            if match is None:
                continue
            free.remove(match)
            hits += 1
            colored += match.color is not None
            right += match.color == one.color
    return hits / max(found, 1), hits / max(wanted, 1), right / max(colored, 1)


def _is_hit(detection: Detection, placed: Placed) -> bool:
    return detection.name == placed.name and overlap(placed.box, detection.box) > 0.5


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes (x1, y1, x2, y2)."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    intersection = width * height
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    union = area_a + area_b - intersection
    return intersection / union if union > 0 else 0.0


if __name__ == "__main__":
    sys.exit(main())
