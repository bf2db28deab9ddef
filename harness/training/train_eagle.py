"""Train EAGLE's layer for a model: `python -m harness.training.train_eagle --model pictogram`.

The model draws pictures for training captions, and the layer learns to continue its features on
them: the next feature, and the distribution that the head makes of it under the model's guidance.
The embedded model's captions come from its grammar; others are given with --captions, one a line,
none of a benchmark. A checkpoint is written every two minutes, with the pictures that are learned
from; a training that was killed continues from it.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
import torch.nn.functional as F
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from harness.arguments import count, explain_mistakes, natural, not_negative
from harness.drafters.eagle import Layer, LayerWeights, embedded, published, target_spec
from harness.engine.acceptance import exact
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.kernels.noise import derive
from harness.models import HasClasses, ImageModel
from harness.models.checkpoint import expect_same_tensors
from harness.models.devices import choose_device
from harness.models.trunk import Attend, TrunkSpec
from harness.records import Usage, UserError
from harness.runs.instantiate import build_object, resolve_config
from harness.runs.options import expect_options
from harness.runs.unknown_names import explain_compose_error
from harness.training import loop as training

FRESH_EVERY = 12
"""Steps between two batches of pictures drawn by the model; drawing is the expensive part."""
KEPT = 4096
"""Drawn pictures that are kept to learn from, the latest."""
NOISE = 0.2
"""Width of the uniform noise on the features that go in (LANTERN's training)."""
Captions = Callable[[random.Random], str]
"""Draws one training caption."""


@explain_mistakes
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m harness.training.train_eagle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "options",
        nargs="*",
        metavar="OPTION=VALUE",
        help="of the model, as in a run: embedded=FOLDER, model.checkpoint=PATH",
    )
    parser.add_argument("--model", default="pictogram", help="an option of conf/model")
    parser.add_argument(
        "--captions",
        type=Path,
        help="training captions, one a line (default: the embedded grammar's)",
    )
    parser.add_argument(
        "--cpu-minutes",
        type=not_negative,
        default=10,
        help="time of the process, earlier runs included",
    )
    training.add_samples(parser)
    parser.add_argument("--batch", type=count, default=32, help="pictures a step")
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument(
        "--warm",
        metavar="DRAFTER",
        help="begin with this layer, of a weight set or a checkpoint, instead of random weights",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(".train"),
        help="folder of checkpoints: <work>/<model's name>/eagle.pt",
    )
    given = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    model, sampling = build_model([f"model={given.model}", *given.options], given.device)

    captions = read_captions(given.captions) if given.captions else grammar_captions(model)
    path = given.work / model.name / "eagle.pt"
    train(
        model,
        sampling,
        captions,
        path,
        minutes=given.cpu_minutes,
        samples=given.samples,
        batch=given.batch,
        seed=given.seed,
        warm=given.warm,
    )


def build_model(options: Sequence[str], device: str) -> tuple[ImageModel, Sampling]:
    """Build the model that options choose, and its sampling. Raises UserError for wrong ones."""
    with hydra.initialize_config_module("conf", version_base="1.3"):
        try:
            composed = hydra.compose("config", list(options))
            expect_options(composed)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain_compose_error(error, options)) from None
    config = resolve_config(composed.model)
    sampling = Sampling(**config.pop("sampling"))
    if "llamagen" in config["_target_"]:
        config["collapse"] = False  # the layer reads the features of all prompt positions
    return build_object(config, place="model", device=choose_device(device)), sampling


def read_captions(path: Path) -> Captions:
    """Choose captions from the lines of a file. Raises UserError where there is none."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"--captions {path} cannot be read ({error.strerror})") from None
    if not lines:
        raise UserError(f"--captions {path} is empty: give one caption a line")
    return lambda rng: rng.choice(lines)


def grammar_captions(model: ImageModel) -> Captions:
    """Make captions from the embedded model's grammar. Raises UserError for other models."""
    from harness.training.train_generator import one_sample

    if not isinstance(model, HasClasses):
        raise UserError(
            f"{model.name} has no captions of its own: give training captions with --captions FILE"
        )
    classes = list(model.classes)
    return lambda rng: one_sample(classes, rng).text


def train(
    model: ImageModel,
    sampling: Sampling,
    captions: Captions,
    path: Path,
    *,
    minutes: float,
    batch: int,
    seed: int,
    samples: int | None = None,
    warm: str | None = None,
) -> Layer:
    """Train until the budget is spent (`Progress.share`); return the running average.

    Checkpoints go to `path`, and a training that has one continues it. Another begins with the
    layer that `warm` names, where given: see `read_layer`.
    """
    spec = target_spec(model)
    layer = new_layer(spec).to(model.device)
    average = new_layer(spec).to(model.device)
    progress, states = training.resume(path)
    optimisers = training.muon_adamw(layer, 0.02, 3e-3)
    if states:
        layer.load_state_dict(states["model"])
        training.restore(optimisers, states["optimisers"])
    elif warm is not None:
        layer.load_state_dict(dict(read_layer(warm, layer).state))
    average.load_state_dict(states.get("average", layer.state_dict()))
    pictures = unpack_pictures(states.get("pictures"))
    alarm = training.Alarm()

    while (share := progress.share(minutes, samples)) < 1:
        # 1. Let the model draw now and then, and choose a batch.
        training.set_rate(optimisers, training.decay(share))
        rng = training.step_rng(seed, "eagle", progress.step)
        if progress.step % FRESH_EVERY == 0 or not pictures:
            fresh = draw_pictures(model, sampling, [captions(rng) for _ in range(64)], rng)
            pictures = (pictures + fresh)[-KEPT:]
        texts, tokens = zip(*rng.choices(pictures, k=batch), strict=True)

        # 2. Learn to continue the model's features.
        lesson = Lesson(model, sampling, texts, torch.stack(tokens))
        generator = torch.Generator(model.device).manual_seed(rng.getrandbits(32))
        loss, overlap = lesson.loss(layer, generator)
        training.descend(loss, layer, optimisers)
        decay = min(0.998, progress.step / (progress.step + 10))
        training.update_average(average, layer, decay)
        progress.tick(batch)

        # 3. Measure and save.
        is_last = progress.share(minutes, samples) == 1
        if progress.step % 50 == 0 or is_last:
            progress.note(loss=loss.item(), acceptance=overlap)
        if alarm.rings() or is_last:
            more = {
                "average": average.state_dict(),
                "target": model.revision,
                "pictures": pack_pictures(pictures),
            }
            training.save(path, progress, layer, optimisers, **more)
    return average


def read_layer(name: str, like: Layer) -> LayerWeights:
    """Read the layer of a weight set, or of a checkpoint's file.

    Raises UserError where there is none, or one of another shape.
    """
    found = published(name) if Path(name).is_file() else embedded(name)
    expect_same_tensors(found.state, like, Path(name), "this model's drafter")
    return found


def pack_pictures(pictures: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    """Arrange drawn pictures for a checkpoint."""
    return {
        "texts": [text for text, _ in pictures],
        "tokens": torch.stack([tokens for _, tokens in pictures]),
    }


def unpack_pictures(packed: dict[str, Any] | None) -> list[tuple[str, Tensor]]:
    """Read drawn pictures from a checkpoint; there are none at the start."""
    if packed is None:
        return []
    return list(zip(packed["texts"], packed["tokens"], strict=True))


def new_layer(spec: TrunkSpec) -> Layer:
    """Make a layer with random matrices; its output projections and biases are zero."""
    layer = Layer(spec)
    for name, parameter in layer.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        if name.endswith((".wo.weight", ".w2.weight", "bias")):
            torch.nn.init.zeros_(parameter)
    return layer


@torch.no_grad()
def draw_pictures(
    model: ImageModel, sampling: Sampling, texts: Sequence[str], rng: random.Random
) -> list[tuple[str, Tensor]]:
    """Let the model draw images for some texts by plain sampling; return texts and tokens [N]."""
    slots = len(texts) * (1 if sampling.scale == 1 else 2)
    sampler = Sampler(model, sampling, slots=slots, prefill=(16, 32))
    seed = rng.getrandbits(32)
    rows = []
    for i, text in enumerate(texts):
        rows.append(sampler.open(*sampler.contexts(text), derive(seed, i), Usage()))
    nothing = [None] * len(rows)
    while not rows[0].done:
        sampler.forward(rows, nothing)
        sampler.draw(rows, nothing, exact)
    return [(text, torch.tensor(row.tokens)) for text, row in zip(texts, rows, strict=True)]


class Lesson:
    """The target's features on some pictures, all positions at once.

    Under guidance they are of the null branches and the text branches, else of the text alone.
    """

    @torch.no_grad()
    def __init__(
        self, model: ImageModel, sampling: Sampling, texts: Sequence[str], token_BN: Tensor
    ) -> None:
        self.model = model
        self.scale = sampling.scale
        branches: list[tuple[str | None, str]] = [(text, text) for text in texts]
        if self.scale != 1:
            branches = [(None, text) for text in texts] + branches
            token_BN = token_BN.repeat(2, 1)
        device = model.device
        token_BN = token_BN.to(device)

        # 1. Embed prompts and tokens; the last token has no successor.
        contexts = [model.context(text, like) for text, like in branches]
        self.start_B = torch.tensor([len(context) for context in contexts], device=device)
        tokens = token_BN.shape[1]
        index_BN = torch.arange(tokens - 1, device=device).expand(len(branches), -1)
        image_BND = model.embed(token_BN[:, :-1], index_BN)
        rows = [torch.cat(parts) for parts in zip(contexts, image_BND, strict=True)]
        # Padding lies behind the tokens, where a causal mask makes it idle.
        self.x_BLD = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        last_B1 = (self.start_B + (tokens - 1)).unsqueeze(1)
        self.pos_BL = torch.arange(self.x_BLD.shape[1], device=device).minimum(last_B1)

        # 2. Forward them.
        with self._autocast():
            feature_BLD = model.forward(self.x_BLD, self.pos_BL, self.start_B, self._attend())
        self.feature_BLD = feature_BLD.to(model.dtype)

        # 3. Find the positions whose features the tokens are drawn from.
        self.image_BN = self.start_B[:, None] - 1 + torch.arange(tokens, device=device)

    def _autocast(self) -> torch.autocast:
        """Compute in bfloat16 on a CPU, on a GPU in the model's number format."""
        if self.model.device.type == "cpu":
            return training.autocast()
        return torch.autocast("cuda", enabled=False)

    def _attend(self) -> Attend:
        if self.model.device.type == "cpu":
            return training.attend_causally
        return lambda _layer, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def loss(self, layer: Layer, generator: torch.Generator) -> tuple[Tensor, float]:
        """Return the loss of a layer, and the mean overlap of its distributions with the target's.

        The loss is the smooth L1 of features plus the cross entropy of guided distributions. The
        pair that predicts the second token is the first that counts; the last feature has no
        successor.
        """
        shape = self.feature_BLD.shape
        device = self.model.device

        # 1. Guess each next feature from a noisy one and the token behind it.
        noise_BLD = (torch.rand(shape, generator=generator, device=device) - 0.5) * NOISE
        noisy_BLD = self.feature_BLD.float() + noise_BLD
        model: Any = self.model  # of a kind that has rotary positions
        rotary_BL2 = model.rotary(self.pos_BL[:, 1:], self.start_B)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            guess_BLD = layer(
                self.x_BLD[:, 1:].float(), noisy_BLD[:, :-1], rotary_BL2, self._attend()
            )

        # 2. Compare features at the image's positions.
        place_BND = self.image_BN[:, :-1, None].expand(-1, -1, shape[2])
        guess_BND = guess_BLD.float().gather(1, place_BND)
        true_BND = self.feature_BLD.float().gather(1, place_BND + 1)
        regression = F.smooth_l1_loss(guess_BND, true_BND)

        # 3. Compare the distributions that the head makes of them.
        with torch.no_grad():
            probs_BNV = self._guided(true_BND).softmax(-1)
        guess_BNV = self._guided(guess_BND)
        classification = -(probs_BNV * guess_BNV.log_softmax(-1)).sum(-1).mean()
        overlap = torch.minimum(probs_BNV, guess_BNV.detach().softmax(-1)).sum(-1).mean()
        return regression + classification, float(overlap)

    def _guided(self, feature_BND: Tensor) -> Tensor:
        """Return the guided logits of features, [B, N, V]."""
        with torch.autocast(feature_BND.device.type, dtype=torch.bfloat16):
            logits_BNV = self.model.head(feature_BND.to(self.model.dtype)).float()
        if self.scale == 1:
            return logits_BNV
        null_BNV, text_BNV = logits_BNV.chunk(2)
        return null_BNV + self.scale * (text_BNV - null_BNV)


if __name__ == "__main__":
    sys.exit(main())
