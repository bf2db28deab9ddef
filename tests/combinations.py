"""Every kind of model, every way of drawing on it, and both samplers: what the matrix tests draw.

A model made here is tiny or embedded, so that all combinations take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from test_batch_invariance import Wanderer
from test_gridar import Mock, gridar
from test_janus import tiny as tiny_janus
from test_llamagen import tiny as tiny_llamagen
from test_twig import Muse
from tiny_language import tiny as tiny_language
from toy import TEXTS, PixelSum, ToyModel, jobs

from harness.drafters.eagle import Eagle, Layer, LayerWeights, embedded, target_spec
from harness.drafters.jacobi import Jacobi
from harness.drafters.model import DraftModel
from harness.engine.acceptance import coupled
from harness.engine.draft_trees import Dynamic, Proactive, Static
from harness.engine.guidance import Sampling
from harness.engine.method_spec import MethodSpec
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.engine.session import Drafter, Method
from harness.models import ImageModel
from harness.models.pictogram.generator import Pictogram
from harness.records import Job
from methods.best_of_n import BestOfN
from methods.cool_sd import CoolSD, EntropyAcceptance
from methods.gsd import Grouped
from methods.lantern import Lantern
from methods.pjd import PJD
from methods.plain import Plain
from methods.scalingar import Policy, ScalingAR
from methods.search import Beam, CellColors, FillingReward, ImportanceSampling
from methods.sjd import SJD
from methods.sjd_pac import longest
from methods.speculative import Speculative
from methods.twig import TwiG
from methods.vvs import VVS, Uniform
from methods.vvs import Dynamic as DynamicSkips
from methods.zipar import ZipAR

Device = str | torch.device
Drawn = dict[tuple[str, int], Delivery]

ONE_NODE = Static({"": 1})
BUSHY = Static({"": 2, "0": 2, "1": 1, "00": 1})
PAC = Proactive(2, 3, 8)
GROWING = Dynamic(nodes=6, depth=3, top_k=3)

CFG = Sampling(scale=2.0)
GREEDY = Sampling(scale=2.0, temperature=0.0)


# ------------------------------------------------------------------ models


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to draw on, a draft model over the same image tokens, and prompts for it.

    `eagle` makes a feature drafter for the model; None where its features cannot be followed.
    """

    name: str
    make: Callable[[Device], ImageModel]
    make_draft: Callable[[Device], ImageModel]
    eagle: Callable[[], Eagle] | None
    texts: tuple[str, ...]

    def jobs(self, count: int) -> list[Job]:
        """One image of each of the first prompts."""
        return jobs(self.texts[:count])

    def draft_model(self, guided: bool = True) -> DraftModel:
        """A drafter with the draft model."""
        return DraftModel(lambda device="cpu": self.make_draft(device), guided)

    def feature_drafter(self) -> Eagle:
        """The feature drafter, where there is one."""
        assert self.eagle is not None, f"{self.name} has no features to follow"
        return self.eagle()


def toy(device: Device) -> ToyModel:
    return ToyModel(device=device, dtype=torch.float32)


def toy_draft(device: Device) -> ToyModel:
    """A toy of other weights with the target's codebook."""
    made = ToyModel(device=device, dtype=torch.float32, seed=5)
    made.codebook = toy(device).codebook
    return made


def llamagen(device: Device, collapse: bool) -> ImageModel:
    return tiny_llamagen(device=device, collapse=collapse)


def random_eagle(make: Callable[[Device], ImageModel]) -> Eagle:
    """A feature drafter of random weights for a model."""
    layer = Layer(target_spec(make("cpu")), 0)
    generator = torch.Generator().manual_seed(3)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    state = layer.requires_grad_(False).state_dict()
    return Eagle(lambda: LayerWeights(state, "random layer", "random", ""))


class CutPictogram(Pictogram):
    """The embedded model, which draws the 4 x 4 tokens of an upper left corner only."""

    def __init__(self, part: str, device: Device) -> None:
        super().__init__("pictogram_16", part=part, device=device)
        self.grid = (4, 4)


def pictogram(device: Device, part: str) -> Pictogram:
    return CutPictogram(part, device)


WHOLE_PROMPT = partial(llamagen, collapse=False)

LANGUAGE_KINDS = ("simplear", "lumina", "emu3")


def language_subject(kind: str) -> Subject:
    """A language model of a kind; the draft model has other weights."""
    make = partial(tiny_language, kind)
    return Subject(kind, make, partial(make, seed=5), partial(random_eagle, make), tuple(TEXTS))


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("toy", toy, toy_draft, partial(random_eagle, toy), tuple(TEXTS)),
        Subject(
            "pictogram",
            partial(pictogram, part="generator"),
            partial(pictogram, part="draft"),
            lambda: Eagle(lambda: embedded("pictogram_16")),
            ("a red circle", "two blue squares"),
        ),
        Subject(
            "llamagen",
            partial(llamagen, collapse=True),
            partial(llamagen, collapse=True),
            None,
            tuple(TEXTS),
        ),
        Subject(
            "llamagen_prompt",
            WHOLE_PROMPT,
            partial(llamagen, collapse=True),
            partial(random_eagle, WHOLE_PROMPT),
            tuple(TEXTS),
        ),
        Subject("janus", tiny_janus, tiny_janus, None, tuple(TEXTS)),
        *map(language_subject, LANGUAGE_KINDS),
    )
}


# ------------------------------------------------------------------ ways of drawing


@dataclass(frozen=True, slots=True)
class Family:
    """A way of drawing. `law` is what its tokens are held to on any model:

    plain: they are those of plain sampling with the same options;
    greedy: at temperature 0 they are those of plain sampling at temperature 0;
    finished: they fill the image.

    A way that is `central` stands for others in quick tests.
    """

    name: str
    build: Callable[[Subject], Method]
    law: str = "finished"
    sampling: Sampling = CFG
    needs_features: bool = False
    central: bool = False

    def fits(self, subject: Subject) -> bool:
        """Tell whether the way can be gone on a model."""
        return subject.eagle is not None or not self.needs_features


def _drafted(
    name: str, drafter: Callable[[Subject], Drafter], needs_features: bool
) -> list[Family]:
    """Chains and trees, exact, coupled and relaxed, of one drafter."""
    additive = partial(Lantern, 4, delta=0.2, residual="code_static")
    multiplicative = partial(Lantern, 4, multiplier=2.0, residual="code_static")
    mild = partial(CoolSD, 1.1, floor=1.0)
    builders: list[tuple[str, str, Callable[[Subject], Method]]] = [
        ("chain", "greedy", lambda s: Speculative(drafter(s), 3)),
        ("chain of one", "greedy", lambda s: Speculative(drafter(s), 1)),
        ("coupled chain", "plain", lambda s: Speculative(drafter(s), 3, coupled)),
        ("relaxed chain", "finished", lambda s: Speculative(drafter(s), 3, additive())),
        ("tree of one node", "greedy", lambda s: Speculative(drafter(s), ONE_NODE)),
        ("static tree", "greedy", lambda s: Speculative(drafter(s), BUSHY)),
        ("coupled static tree", "plain", lambda s: Speculative(drafter(s), BUSHY, coupled)),
        (
            "relaxed static tree",
            "finished",
            lambda s: Speculative(drafter(s), BUSHY, multiplicative()),
        ),
        ("dynamic tree", "greedy", lambda s: Speculative(drafter(s), GROWING)),
        ("coupled dynamic tree", "plain", lambda s: Speculative(drafter(s), GROWING, coupled)),
        ("annealed chain", "finished", lambda s: Speculative(drafter(s), 3, CoolSD(2.0))),
        ("annealed static tree", "greedy", lambda s: Speculative(drafter(s), BUSHY, mild())),
        ("skipping chain", "finished", lambda s: VVS(drafter(s), Uniform(3, 1), 3)),
        (
            "rejecting chain",
            "finished",
            lambda s: VVS(drafter(s), Uniform(3, 1), 3, post="reject", select="confidence"),
        ),
        (
            "look-alike chains",
            "finished",
            lambda s: VVS(drafter(s), DynamicSkips(0.0, paths=3), 3),
        ),
        ("skipping tree", "finished", lambda s: VVS(drafter(s), Uniform(3, 1), GROWING)),
    ]
    central = ("coupled chain", "static tree", "dynamic tree", "skipping chain")
    families = []
    for kind, law, build in builders:
        family = Family(f"{name} {kind}", build, law, needs_features=needs_features)
        families.append(replace(family, central=kind in central))
    return families


def _without_drafter() -> list[Family]:
    """Jacobi decoding and rows side by side."""
    above = partial(Jacobi, "repeat_vertical", "maximal")
    tied = partial(Jacobi, "sample_horizon", "gumbel")
    return [
        Family("jacobi", lambda _: SJD(Jacobi(), 5), "greedy"),
        Family("jacobi uniform", lambda _: SJD(Jacobi("uniform"), 5), "greedy"),
        Family("jacobi maximal", lambda _: SJD(above(), 5), "greedy", central=True),
        Family("jacobi coupled", lambda _: SJD(tied(), 5, coupled), "plain"),
        Family("jacobi grouped", lambda _: SJD(Jacobi(), 5, Grouped(4))),
        Family("jacobi annealed", lambda _: SJD(above(), 5, CoolSD(2.0, floor=1.0)), "greedy"),
        Family("jacobi by entropy", lambda _: SJD(Jacobi(), 5, EntropyAcceptance()), "greedy"),
        Family("jacobi tree", lambda _: Speculative(Jacobi("uniform", "maximal"), PAC), "greedy"),
        Family(
            "jacobi coupled tree",
            lambda _: Speculative(Jacobi("uniform", "gumbel"), PAC, coupled),
            "plain",
            central=True,
        ),
        Family(
            "jacobi tree as released",
            lambda _: Speculative(Jacobi("uniform", "maximal", "residual"), PAC, longest),
            "greedy",
        ),
        Family("zipar", lambda _: ZipAR(2, 3), central=True),
        Family("zipar alone", lambda _: ZipAR(2, 1)),
        Family("pjd", lambda _: PJD(above(), 2, 3, 3), central=True),
        Family("pjd without deferring", lambda _: PJD(Jacobi("uniform"), 2, 3, 3, defer=False)),
        Family("pjd as released", lambda _: PJD(Jacobi("random", "threshold"), 2, 3, 3)),
        Family("pjd row by row", lambda _: PJD(tied(), 2, 3, 1, rule=coupled), "plain"),
    ]


DRAFTED = [
    *_drafted("model", lambda s: s.draft_model(), False),
    *_drafted("text model", lambda s: s.draft_model(guided=False), False)[:2],
    *_drafted("eagle", lambda s: s.feature_drafter(), True),
    *_without_drafter(),
]
"""Every way to draw more than one token in a forward."""


def pac_decoding() -> Speculative:
    """SJD-PAC, to finish another method's candidates."""
    return Speculative(Jacobi("uniform", "maximal"), PAC)


def terminating(drafter: Drafter) -> ScalingAR:
    """ScalingAR's termination over drafts."""
    return ScalingAR(4, policy=Policy(scheduler=False), drafter=drafter, window=5)


SEARCHES = [
    Family("plain", lambda _: Plain(), "plain"),
    Family("plain greedy", lambda _: Plain(), "plain", GREEDY),
    Family("plain top-k", lambda _: Plain(), "plain", Sampling(scale=3.0, top_k=5)),
    Family("plain top-p", lambda _: Plain(), "plain", Sampling(scale=2.0, top_p=0.8)),
    Family("plain unguided", lambda _: Plain(), "plain", Sampling(scale=1.0, top_k=3)),
    Family(
        "plain by entropy",
        lambda _: Plain(),
        "plain",
        Sampling(scale=2.0, top_k=9, entropy_gain=2.5, entropy_theta=0.6),
    ),
    Family("plain interval", lambda _: Plain(), "plain", Sampling(scale=2.0, interval=5)),
    Family("best of 3", lambda _: BestOfN(3, PixelSum())),
    Family("likeliest of 2", lambda _: BestOfN(2)),
    Family("importance sampling", lambda _: ImportanceSampling(3, PixelSum())),
    Family("beam", lambda _: Beam(PixelSum(), 2, 2)),
    Family("fr_tts", lambda _: FillingReward(4, PixelSum(), CellColors(2))),
    Family("scalingar", lambda _: ScalingAR(4)),
    Family(
        "scalingar guided",
        lambda _: ScalingAR(3, entropy_source="guided_prev"),
        sampling=Sampling(scale=2.0, top_k=6),
    ),
    Family("scalingar, jacobi", lambda _: terminating(Jacobi("random", "gumbel"))),
    Family("twig", lambda _: TwiG(Muse(), layers=2)),
    Family("gridar", lambda _: gridar(Mock())),
    Family("gridar, jacobi tree", lambda _: gridar(Mock(), decoding=pac_decoding())),
    Family("wanderer", lambda _: Wanderer()),
]
"""Ways that draw token by token, and choose among candidates."""


def best_of_two(family: Family) -> Family:
    """Best-of-2 whose candidates are drawn in another way."""
    return replace(
        family,
        name=f"best of 2, {family.name}",
        build=lambda subject: BestOfN(2, PixelSum(), family.build(subject)),  # type: ignore[arg-type]
        law="plain" if family.law == "plain" else "finished",
    )


# ------------------------------------------------------------------ samplers


@dataclass(frozen=True, slots=True)
class Setting:
    """A sampler as a configuration names it; `slots` None is what one image needs."""

    name: str
    slots: int | None
    prefill: tuple[int, int]
    concurrency: int | None
    compact: bool
    render_batch: int


THROUGHPUT = Setting("throughput", 16, (3, 4), None, False, 3)
LATENCY = Setting("latency", None, (2, 4), 1, True, 1)
SETTINGS = (THROUGHPUT, LATENCY)


def make_sampler(
    method: Method, model: ImageModel, sampling: Sampling, setting: Setting
) -> Sampler:
    """A sampler that a method fits into."""
    spec = MethodSpec.of(method)
    slots = spec.slots if setting.slots is None else max(setting.slots, spec.slots)
    return Sampler(
        model,
        sampling,
        slots=slots,
        prefill=setting.prefill,
        render_batch=setting.render_batch,
        compact=setting.compact,
        **spec.sampler_sizes(),
    )


def draw_on(sampler: Sampler, method: Method, some: Sequence[Job], setting: Setting) -> Drawn:
    """All deliveries by job; asserts that every slot is free afterwards."""
    done: Drawn = {}

    def keep(delivery: Delivery) -> None:
        done[delivery.job.key] = delivery

    Scheduler(method, sampler, seed=0, concurrency=setting.concurrency).run(some, keep)
    assert sampler.free == sampler.slots
    return done


def tokens_of(drawn: Drawn) -> dict[tuple[str, int], tuple[int, ...]]:
    """The tokens of all images; asserts that no job failed."""
    for delivery in drawn.values():
        assert not delivery.error, delivery.error
    return {key: delivery.tokens for key, delivery in drawn.items()}
