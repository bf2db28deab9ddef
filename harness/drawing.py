"""Draw images of prompts of your own, without a run: `harness.draw`.

The configuration, the scheduler and the ledger are those of a run, so that an image is the one that
a run of the same options journals: the same tokens, the same bytes, the same counts. Noise follows
a prompt's id, and the id of a text is made of the text (`Prompt.of_text`), as in
`benchmark=prompts`. Nothing is written.
"""

from __future__ import annotations

import base64
import dataclasses
import gc
import html
import inspect
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast, overload

import hydra
import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from PIL import Image as Pillow
from tqdm import tqdm

from harness.cli import enable_plugins
from harness.engine.guidance import Sampling
from harness.engine.method_spec import MethodSpec
from harness.engine.scheduler import Delivery
from harness.engine.session import Method
from harness.packages import add_author_folder
from harness.records import Job, Prompt, SourceImage, Usage, UserError, dump
from harness.runs.execute import Executor, rows_are_invariant
from harness.runs.folder import encode_png
from harness.runs.generate import complete_notes
from harness.runs.instantiate import build_object, resolve_config
from harness.runs.options import expect_options, spell_numbers
from harness.runs.plan import IncompleteRunError
from harness.runs.spec import (
    Asking,
    DrawingSpec,
    build_drawing_spec,
    build_model,
    expect_sources,
    load_configured_model,
)
from harness.runs.unknown_names import explain_compose_error

LEAST_SHOWN = 192
"""Pixels of an image's width in a notebook at least: smaller ones are shown enlarged."""
Editable = str | Path | np.ndarray | Pillow.Image | SourceImage
"""What `draw` takes as an image to be edited."""
DROPPED = object()
"""Stands for an option whose value is an object, which no configuration can hold."""


@dataclass(frozen=True, slots=True, repr=False)
class Drawing:
    """One drawn image: what a run's journal and image file would have of it."""

    prompt: Prompt
    image: Pillow.Image
    tokens: tuple[int, ...]
    usage: Usage
    """What it cost, with all candidates that were discarded for it.

    Nothing was saved: `save_s` is 0.
    """
    notes: Mapping[str, Any]
    """What the method noted, such as the scores of its candidates."""
    method: str
    seed: int

    def __repr__(self) -> str:
        size = f"{self.image.width}x{self.image.height}"
        return (
            f"Drawing({self.prompt.text!r}, {size}, {self.method}, seed {self.seed}: "
            f"{_list_counts(self.usage)})"
        )

    @property
    def png(self) -> bytes:
        """Return the bytes of the file that a run would write."""
        return self._repr_png_()

    def _repr_png_(self) -> bytes:
        """Show the image in a notebook."""
        return encode_png(np.asarray(self.image))

    def _repr_html_(self) -> str:
        """Show the image in a notebook, with its prompt, method and costs."""
        width = max(self.image.width, LEAST_SHOWN)
        data = base64.b64encode(self.png).decode()
        title = html.escape(self.prompt.text)
        costs = html.escape(f"{self.method}, seed {self.seed}: {describe_usage(self.usage)}")
        return (
            f'<figure style="display:inline-block;margin:4px;width:{width}px;vertical-align:top">'
            f'<img src="data:image/png;base64,{data}" alt="{title}" width="{width}" '
            f'style="image-rendering:pixelated"><figcaption>{title}<br><small>{costs}</small>'
            "</figcaption></figure>"
        )


class Drawings(list[Drawing]):
    """Several drawings: a list that notebooks show side by side."""

    def _repr_html_(self) -> str:
        return "".join(drawing._repr_html_() for drawing in self)


class FailedImageError(IncompleteRunError):
    """Images that could not be drawn: the message has the method's own reasons.

    `drawn` are the drawings of the other prompts.
    """

    def __init__(self, message: str, drawn: Sequence[Drawing]) -> None:
        super().__init__(message)
        self.drawn = Drawings(drawn)


@overload
def draw(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
    method: str | Method | type[Method],
    prompt: str | Prompt,
    *,
    image: Editable | Sequence[Editable] | None = ...,
    number: int = ...,
    seed: int = ...,
    model: str | None = ...,
    sampler: str | None = ...,
    device: str | None = ...,
    config_dir: str | Path | None = ...,
    overrides: Sequence[str] = ...,
    **options: object,
) -> Drawing: ...


@overload
def draw(
    method: str | Method | type[Method],
    prompt: Sequence[str | Prompt],
    *,
    image: Editable | Sequence[Editable] | None = ...,
    number: int = ...,
    seed: int = ...,
    model: str | None = ...,
    sampler: str | None = ...,
    device: str | None = ...,
    config_dir: str | Path | None = ...,
    overrides: Sequence[str] = ...,
    **options: object,
) -> Drawings: ...


def draw(
    method: str | Method | type[Method],
    prompt: str | Prompt | Sequence[str | Prompt],
    *,
    image: Editable | Sequence[Editable] | None = None,
    number: int = 0,
    seed: int = 0,
    model: str | None = None,
    sampler: str | None = None,
    device: str | None = None,
    config_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    **options: object,
) -> Drawing | Drawings:
    """Draw an image of a prompt with a method; of several prompts at once, a list of images.

    `method` is the name of a configuration, with `options` of its own: plain values, names of
    configurations (`reward="vlm_reward"`, `drafter="pictogram_eagle"`), or objects in their place;
    or it is a method itself. `model`, `sampler` and `device` are chosen as on the command line, and
    `overrides` are any other options of it. `config_dir` is a folder of configurations of your own.
    `number` is the number of the image of its prompt: a run of four draws 0 to 3.

    `image` is an image to be edited as the prompt says, by a model that edits (`model="editar"`): a
    path, pixels uint8 [height, width, 3], or an image of Pillow; or a list with one for each
    prompt.

    Model and method stay loaded for the next call (`release` lets them go). Raises UserError for
    what cannot be had, and FailedImageError with the method's own reason.
    """
    single = isinstance(prompt, str | Prompt)
    prompts = [prompt] if isinstance(prompt, str | Prompt) else list(prompt)
    sources = _read_sources(image, len(prompts))
    jobs = [_make_job(one, number, source) for one, source in zip(prompts, sources, strict=True)]
    if not jobs:
        return Drawings()

    choices = _Choices(method, model, sampler, device, seed, tuple(overrides), options)
    enable_plugins()
    _find_modules_beside(config_dir)
    with _own_hydra():
        try:
            config, objects = choices.compose(config_dir)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain_compose_error(error)) from error
    made = None if isinstance(method, str) else _expect_method(method, options)
    name = method if isinstance(method, str) else type(made).__name__
    drawings = draw_jobs(config, name, jobs, made=made, objects=objects)
    return drawings[0] if single else drawings


def release() -> None:
    """Let go of the model and the method's judges and drafters that `draw` keeps loaded."""
    _build_method.cache_clear()
    build_model.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def draw_jobs(
    config: DictConfig,
    name: str,
    jobs: Sequence[Job],
    *,
    made: Method | None = None,
    objects: Mapping[str, object] | None = None,
) -> Drawings:
    """Draw jobs with the composed configuration of a run; a job that comes twice is drawn once.

    `name` is the method's. `made` is a method that is there already, else it is built with
    `objects` as further arguments. Raises UserError and FailedImageError, as `draw` does.
    """
    # 1. The parts, as a run has them.
    spec = _build_spec(config, len(jobs), made, objects or {})
    expect_sources(spec.model, [job.prompt for job in jobs])

    # 2. Draw each job once, whatever becomes of the others.
    distinct = list({job.key: job for job in jobs}.values())
    found: dict[tuple[str, int], Delivery] = {}
    hidden = None if len(distinct) > 1 else True  # None: hidden where there is no terminal
    with tqdm(total=len(distinct), desc=name, unit=" images", disable=hidden) as bar:

        def take(delivery: Delivery) -> None:
            found[delivery.job.key] = delivery
            bar.update()

        Executor(spec).draw(distinct, take)

    # 3. Hand over what came, or say what did not.
    drawings = Drawings()
    problems = []
    for job in jobs:
        delivery = found[job.key]
        if delivery.image is None:
            problems.append(f"{name}, prompt {job.prompt.text!r}: {delivery.error}")
        else:
            drawings.append(_make_drawing(spec, name, delivery))
    if problems:
        raise FailedImageError("; ".join(dict.fromkeys(problems)), drawings)
    return drawings


def describe_usage(usage: Usage) -> str:
    """Say in a line what an image cost, and how long it took."""
    return f"{_list_counts(usage)}, {usage.wall_s:.2f} s"


def _list_counts(usage: Usage) -> str:
    """List what an image took of each thing that it took."""
    counts = {
        "visual tokens": usage.visual_tokens,
        "target passes": usage.target_passes,
        "drafted positions": usage.drafted_positions,
        "judge calls": usage.judge_calls,
        "judge tokens": usage.judge_tokens,
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


# ------------------------------------------------------------------ configuration


@dataclass(frozen=True, slots=True)
class _Choices:
    """What a call of `draw` asks for."""

    method: object
    model: str | None
    sampler: str | None
    device: str | None
    seed: int
    overrides: tuple[str, ...]
    options: Mapping[str, object]

    def compose(self, config_dir: str | Path | None) -> tuple[DictConfig, dict[str, object]]:
        """Compose the configuration. Returns it, and the options whose values are objects."""
        overrides = self._list_overrides(config_dir)
        _, chosen = _compose(overrides)

        # 1. Names of configurations, where the method has a place for one.
        values: dict[str, object] = {}
        objects: dict[str, object] = {}
        for name, given in self._method_options().items():
            value = _make_plain(given)
            groups = [group for group in chosen if group.partition("@")[2] == f"method.{name}"]
            if groups and isinstance(value, str):
                overrides.append(f"{groups[0]}={value}")
            elif value is DROPPED:
                objects[name] = given
            else:
                values[name] = value
        config, chosen = _compose(overrides)

        # 2. Values, which need no quotes here; a mapping changes what it names.
        with open_dict(config):
            for name, value in values.items():
                OmegaConf.update(config.method, name, value, merge=isinstance(value, dict))
            for name in objects:
                config.method.pop(name, None)
            config.seed = _make_plain(self.seed)
        expect_options(config)
        return spell_numbers(config, chosen), objects

    def _list_overrides(self, config_dir: str | Path | None) -> list[str]:
        named = {"model": self.model, "sampler": self.sampler, "device": self.device}
        overrides = [f"{group}={name}" for group, name in named.items() if name is not None]
        if isinstance(self.method, str):
            overrides.append(f"method={self.method}")
        if config_dir is not None:
            folder = Path(config_dir).expanduser().resolve()
            if not folder.is_dir():
                raise UserError(f"config_dir={config_dir}: no such folder")
            overrides.append(f"hydra.searchpath=[{quote(f'file://{folder}')}]")
        return [*overrides, *self.overrides]

    def _method_options(self) -> Mapping[str, object]:
        return self.options if isinstance(self.method, str) else {}


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Initialize Hydra with our configurations; whatever use a program makes of it is put aside."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module("conf", version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = before


def _compose(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """Compose a run's configuration; what was chosen in each group comes beside it."""
    config = hydra.compose("config", list(overrides), return_hydra_config=True)
    chosen = {group: str(name) for group, name in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config["hydra"]
    return config, chosen


def quote(text: str) -> str:
    """Write a text as a quoted value of Hydra's command line."""
    escaped = text.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"


def _make_plain(value: object) -> Any:
    """Return a value as a configuration can hold it; DROPPED for an object."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        inner = {str(key): _make_plain(one) for key, one in value.items()}
        return DROPPED if DROPPED in inner.values() else inner
    if isinstance(value, list | tuple):
        items = [_make_plain(one) for one in value]
        return DROPPED if DROPPED in items else items
    return DROPPED


def _find_modules_beside(config_dir: str | Path | None) -> None:
    """Let the classes be found that lie beside a folder of configurations."""
    if config_dir is not None:
        add_author_folder(Path(config_dir).expanduser().resolve().parent)


# ------------------------------------------------------------------ parts


def _read_sources(
    image: Editable | Sequence[Editable] | None, count: int
) -> list[SourceImage | None]:
    """Read the image that each of some prompts edits; None where it edits none."""
    if image is None:
        return [None] * count
    if isinstance(image, Sequence) and not isinstance(image, str):
        if len(image) != count:
            raise UserError(f"{len(image)} images for {count} prompts: give one for each")
        return [_read_source(one) for one in image]
    source = _read_source(image)
    return [source] * count


def _read_source(image: Editable) -> SourceImage:
    if isinstance(image, SourceImage):
        return image
    if isinstance(image, str | Path):
        return SourceImage.read(Path(image).expanduser())
    if isinstance(image, Pillow.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return SourceImage(buffer.getvalue())
    if isinstance(image, np.ndarray):
        return SourceImage.of_pixels(image)
    raise UserError(
        f"image={image!r}: give a path, pixels uint8 [height, width, 3], or an image of Pillow"
    )


def _make_job(prompt: str | Prompt, number: int, source: SourceImage | None) -> Job:
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise UserError(f"number={number!r}: give the number of the image, from 0 on")
    if not isinstance(prompt, str | Prompt):
        raise UserError(f"prompt {prompt!r}: give a text, or a list of texts")
    if isinstance(prompt, str):
        return Job(Prompt.of_text(prompt, source=source), number)
    return Job(prompt if source is None else dataclasses.replace(prompt, source=source), number)


def _expect_method(method: object, options: Mapping[str, object]) -> Method:
    """Return a method that was given as an object, or as its class with its options."""
    if inspect.isclass(method):
        return cast(Method, method(**options))
    if options:
        raise UserError(
            f"{', '.join(options)}: {type(method).__name__} is made already, so that its options "
            "are set there; `model`, `sampler`, `seed` and `overrides` go with it"
        )
    return cast(Method, method)


def _build_spec(
    config: DictConfig, images: int, made: Method | None, objects: Mapping[str, object]
) -> DrawingSpec:
    """Build what draws, with no more slots than the images need where that changes no token."""
    sampling = Sampling(**resolve_config(config.model.sampling))
    model = load_configured_model(config)
    method = made
    if method is None:
        method = _make_method(config, objects)
    asking = Asking(model, MethodSpec.of(method).under(sampling))
    spec = build_drawing_spec(config, method, sampling, asking, images=images)
    if made is not None or objects:
        spec.method_spec.prepare_parts()
    if not rows_are_invariant(model.device):
        return spec
    slots = min(spec.sampler_sizes["slots"], spec.method_spec.slots * images)
    return dataclasses.replace(spec, sampler_sizes={**spec.sampler_sizes, "slots": slots})


def _make_method(config: DictConfig, objects: Mapping[str, object]) -> Method:
    options = resolve_config(config.method)
    if not objects:
        kept: Method = _build_method(dump(options))
        return kept
    make = build_object(OmegaConf.create({**options, "_partial_": True}), place="method")
    method: Method = make(**objects)
    return method


@lru_cache(maxsize=1)
def _build_method(options: str) -> Method:
    """Build a method of options in JSON, and test its judges. It is kept for the next call."""
    method: Method = build_object(OmegaConf.create(json.loads(options)), place="method")
    MethodSpec.of(method).prepare_parts()
    return method


def _make_drawing(spec: DrawingSpec, name: str, delivery: Delivery) -> Drawing:
    assert delivery.image is not None
    return Drawing(
        prompt=delivery.job.prompt,
        image=Pillow.fromarray(delivery.image),
        tokens=tuple(delivery.tokens),
        usage=delivery.usage,
        notes=complete_notes(spec.model, delivery),
        method=name,
        seed=spec.seed,
    )
