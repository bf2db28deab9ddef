"""What takes a device's memory, as named parts: fixed bytes, and bytes for each slot.

A sampler has slots, prefills and the image decoder's feature maps, and on a GPU also the memory of
its CUDA graphs and of the libraries that multiply. Beside it lie the model's weights, and whatever
drafters, judges and rules hold: they declare it by `memory_need` (`DeclaresMemory`). All sizes are
in bytes; a GB is 10^9 of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FunctionType, MethodType, ModuleType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from harness.engine.draft_trees import Tree
from harness.engine.rendering import images_at_once
from harness.models import HasRenderBytes, HasTextEncoder, ImageModel
from harness.records import MemoryPart

LOGIT_BYTES = 96
"""Working memory per logit of a draw: float32 probabilities, and noise in 64-bit words."""
PREFILL_COPIES = 16
"""Working memory of a forward's positions, in multiples of their hidden states."""
CAPTURED_LOGIT_BYTES = 16
"""Memory per logit that a captured forward keeps: the head's, as float32, gathered and chosen."""
WORKSPACE_BYTES = 32 * 2**20
"""The workspace of a matrix library for one CUDA stream, the largest: Hopper's."""
WORKSPACES = 8
"""Those of cuBLAS and cuBLASLt for the streams that draw, warm up, capture and decode images."""
GB = 1e9

DEEPEST_PART = 3
"""How many objects within each other are searched for one that declares its memory."""


# ------------------------------------------------------------------ what is declared


@dataclass(frozen=True, slots=True)
class SamplerShape:
    """The arguments of a sampler but its slots, and what its method does with it.

    `device` is where it will run: the model's own, unless only sizes are asked for. `trees` are the
    shapes of the trees that are drafted, as far as the method holds them.
    """

    device: torch.device
    tokens_per_step: int
    prefill: tuple[int, int]
    render_batch: int
    tree_capacity: int = 0
    hidden: bool = False
    trees: tuple[Tree, ...] = ()
    rewrites_prompts: bool = False


@runtime_checkable
class DeclaresMemory(Protocol):
    """A drafter, judge or rule that says what it takes of the device."""

    def memory_need(self, model: ImageModel, shape: SamplerShape) -> Sequence[MemoryPart]:
        """List what it takes beside a sampler of that shape over `model`; nothing is allocated."""
        ...


def takes_nothing(_self: object, _model: ImageModel, _shape: SamplerShape) -> list[MemoryPart]:
    """Declare no memory: the `memory_need` of what runs elsewhere, or holds nothing."""
    return []


def list_declared(
    owners: Iterable[object], model: ImageModel, shape: SamplerShape
) -> list[MemoryPart]:
    """List what drafters, judges and rules take of the device of a sampler.

    An object that does not declare it may be made of some that do: a reward of its chat. Of others
    the tensors count that they hold, and a drafter or judge without any is listed by name, as not
    declared. Parts with the same key are one: weights that two judges share.
    """
    speakers: list[object] = []
    for owner in owners:
        speakers += list(_list_declaring(owner, DEEPEST_PART)) or [owner]
    parts: list[MemoryPart] = []
    for speaker in _distinct(speakers):
        parts += _parts_of(speaker, model, shape)
    kept: dict[object, MemoryPart] = {}
    for number, part in enumerate(parts):
        if _is_on(part.device, shape.device):
            kept.setdefault(part.key or number, part)
    return list(kept.values())


def _parts_of(owner: object, model: ImageModel, shape: SamplerShape) -> list[MemoryPart]:
    if isinstance(owner, DeclaresMemory):
        return list(owner.memory_need(model, shape))
    name = type(owner).__name__
    if answers_or_drafts(owner):
        return [MemoryPart(name, is_declared=False)]
    size = _count_tensors(owner, model)
    return [MemoryPart(name, fixed=size, held=size)] if size else []


def answers_or_drafts(part: object) -> bool:
    """Tell whether a part of a method is a drafter, a judge or a verifier."""
    is_judge = callable(part) and hasattr(part, "id")
    return is_judge or hasattr(part, "propose") or hasattr(part, "select")


def _list_declaring(owner: object, depth: int) -> Iterator[object]:
    """Yield an object that declares its memory, or those within it that do."""
    if isinstance(owner, type | ModuleType | FunctionType | MethodType | nn.Module):
        return
    if isinstance(owner, DeclaresMemory):
        yield owner
    elif depth > 0:
        for inner in getattr(owner, "__dict__", {}).values():
            yield from _list_declaring(inner, depth - 1)


def _count_tensors(owner: object, model: ImageModel) -> int:
    """Count the bytes of the tensors that an object holds on the model's device."""
    held = getattr(owner, "__dict__", {}).values()
    tensors = [one for one in held if isinstance(one, Tensor) and one.device == model.device]
    return count_storage(tensors)


def _distinct(owners: Iterable[object]) -> list[object]:
    """Leave out objects that are listed again."""
    return list({id(owner): owner for owner in owners}.values())


def _is_on(name: str, device: torch.device) -> bool:
    """Tell whether a part's device is this one: "" is, and "auto" is a GPU where there is one."""
    if not name:
        return True
    if name == "auto":
        return device.type == "cuda" or not torch.cuda.is_available()
    other = torch.device(name)
    same_index = other.index is None or device.index is None or other.index == device.index
    return other.type == device.type and same_index


# ------------------------------------------------------------------ the sum


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """The parts that a sampler and all beside it take."""

    parts: tuple[MemoryPart, ...]

    @property
    def fixed(self) -> int:
        """Count the bytes that do not depend on the number of slots."""
        return sum(part.fixed for part in self.parts)

    @property
    def per_slot(self) -> int:
        """Count the bytes of one slot."""
        return sum(part.per_slot for part in self.parts)

    @property
    def held(self) -> int:
        """Count the bytes that are on the device already."""
        return sum(part.held for part in self.parts)

    @property
    def undeclared(self) -> list[str]:
        """Name what does not say how much it takes."""
        return [part.name for part in self.parts if not part.is_declared]

    def part(self, name: str) -> MemoryPart:
        """Return the part of a name; an empty one if there is none."""
        return next((part for part in self.parts if part.name == name), MemoryPart(name))

    def total(self, slots: int) -> int:
        """Compute the bytes with so many slots."""
        return self.fixed + slots * self.per_slot

    def slots_within(self, budget: float) -> int:
        """Compute how many slots fit into so many bytes."""
        return max(0, int(budget - self.fixed) // self.per_slot)

    def describe(self, slots: int) -> str:
        """Write the arithmetic: "64 slots x 0.191 GB + weights 1.55 GB + ... = 22.7 GB"."""
        by_slot = [f"{part.name} {_gb(part.per_slot)}" for part in self.parts if part.per_slot]
        terms = [f"{slots} slots x {_gb(self.per_slot)} GB"]
        if len(by_slot) > 1:
            terms[0] += f" ({', '.join(by_slot)})"
        terms += [f"{part.name} {_gb(part.fixed)} GB" for part in self.parts if part.fixed]
        said = f"{' + '.join(terms)} = {_gb(self.total(slots))} GB"
        if self.undeclared:
            said += f"; not declared: {', '.join(self.undeclared)}"
        return said


def _gb(size: int) -> str:
    return f"{size / GB:.3g}"


# ------------------------------------------------------------------ what a sampler takes


def estimate_need(
    model: ImageModel,
    *,
    tokens_per_step: int,
    prefill: tuple[int, int],
    render_batch: int,
    tree_capacity: int = 0,
    hidden: bool = False,
) -> MemoryNeed:
    """Estimate what a sampler over `model` takes, without making it, and nothing beside it.

    The arguments are those of `Sampler`.
    """
    shape = SamplerShape(
        model.device, tokens_per_step, prefill, render_batch, tree_capacity, hidden
    )
    return need_beside(model, shape, ())


def need_beside(model: ImageModel, shape: SamplerShape, owners: Iterable[object]) -> MemoryNeed:
    """Estimate what a sampler of a shape takes, and drafters, judges and rules beside it."""
    parts = list_sampler_parts(model, shape)
    if shape.device.type == "cuda":
        parts.append(MemoryPart("matrix workspaces", fixed=WORKSPACES * WORKSPACE_BYTES))
    if shape.rewrites_prompts and isinstance(model, HasTextEncoder):
        parts.append(MemoryPart("text encoder", fixed=model.count_text_encoder_bytes()))
    parts += list_declared(owners, model, shape)
    return MemoryNeed(tuple(parts))


def list_sampler_parts(model: ImageModel, shape: SamplerShape) -> list[MemoryPart]:
    """List what a sampler of a shape takes: weights, slots, prefill, image decoder, graphs."""
    # 1. One slot: keys and values, context, tokens, hidden states, and the logits of a draw.
    cache = model.cache(1, shape.tree_capacity)
    number_bytes = cache.keys.element_size()
    context = model.max_context * model.dim * number_bytes + 8 * model.num_tokens
    states = cache.length * model.dim * number_bytes if shape.hidden else 0
    draw = LOGIT_BYTES * shape.tokens_per_step * model.vocab

    # 2. One prefill: the keys and values of one layer, gathered, and hidden states.
    rows, columns = shape.prefill
    position = PREFILL_COPIES * model.dim * number_bytes
    gathered = rows * cache.slot_bytes // len(cache.keys)
    scratch = cache.slot_bytes + context

    # 3. One batch of the image decoder.
    image_bytes = model.render_bytes if isinstance(model, HasRenderBytes) else 0
    images = images_at_once(shape.device, shape.render_batch)

    weights = count_weights(model)
    parts = [
        MemoryPart("slots", per_slot=cache.slot_bytes + context + states + draw),
        MemoryPart("weights", fixed=weights, held=weights),
        MemoryPart("image decoder", fixed=images * image_bytes),
        MemoryPart("prefill", fixed=scratch + gathered + rows * columns * position),
    ]
    if shape.device.type == "cuda":
        # 4. The pool of the captured forwards and bursts: what the largest of them keeps.
        forward = shape.tokens_per_step * (position + CAPTURED_LOGIT_BYTES * model.vocab)
        parts.append(MemoryPart("CUDA graphs", per_slot=forward + LOGIT_BYTES * model.vocab))
    return parts


def rename_parts(parts: Iterable[MemoryPart], owner: str) -> list[MemoryPart]:
    """Name parts after whom they belong to: "slots" becomes "janus_pro_1b's slots"."""
    return [replace(part, name=f"{owner}'s {part.name}") for part in parts]


def count_weights(model: object) -> int:
    """Sum up the parameters and buffers of a module, or of the modules that a model holds.

    Of a model, those count that are where it computes: a word table may stay on the CPU.
    """
    if isinstance(model, nn.Module):
        return count_storage([*model.parameters(), *model.buffers()])
    tensors: list[Tensor] = []
    for module in vars(model).values():
        if isinstance(module, nn.Module):
            tensors += module.parameters()
            tensors += module.buffers()
    device = getattr(model, "device", None)
    if device is not None:
        tensors = [tensor for tensor in tensors if tensor.device.type == device.type]
    return count_storage(tensors)


def count_storage(tensors: Iterable[Tensor]) -> int:
    """Sum up the bytes of tensors, storage that they share counted once; also on `meta`."""
    size_of_storage: dict[int, int] = {}
    packed_bytes = 0
    for tensor in tensors:
        if tensor.is_mkldnn:  # packed: it shares nothing, and torch knows no storage of it
            packed_bytes += tensor.nbytes
            continue
        storage = tensor.untyped_storage()
        size_of_storage[StorageWeakRef(storage).cdata] = storage.nbytes()
    return packed_bytes + sum(size_of_storage.values())
