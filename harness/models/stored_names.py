"""Where a checkpoint stores the tensors of our modules, and putting them there.

A layout is a list of rules that turn our names into a checkpoint's. What a module needs is looked
up by them; what no name asks for is known and not needed, or is reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from harness.models import checkpoint as checkpoints
from harness.records import UserError

Convert = Callable[[str, Tensor], Tensor]
"""Turns the stored tensor of one of our names into ours, such as a kernel without a time axis."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Rules from our names to stored ones, and a pattern of stored names that are not needed.

    Rules are regular expressions with replacements, applied one after the other. `prefix` stands
    before all names of the module in the file; what does not begin with it belongs to others.
    """

    rules: tuple[tuple[str, str], ...]
    not_needed: str = r"(?!)"
    prefix: str = ""

    def stored_name(self, name: str) -> str:
        """Translate one of our names."""
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return self.prefix + name


def fill_from(
    module: nn.Module,
    state: Mapping[str, Tensor],
    file: Path,
    layout: Layout,
    convert: Convert | None = None,
) -> None:
    """Fill a module made on the meta device from a checkpoint's tensors, in float32.

    Unknown tensors are reported. Raises UserError for tensors that are missing, named as the file
    would name them, and for those of another shape.
    """
    stored_names = {name: layout.stored_name(name) for name in module.state_dict()}
    missing = sorted(set(stored_names.values()) - state.keys())
    if missing:
        raise UserError(
            f"{file} lacks {len(missing)} of {len(stored_names)} tensors, the first is "
            f"{missing[0]}: it is the checkpoint of another model"
        )
    used = set(stored_names.values())
    own = {name for name in state.keys() - used if name.startswith(layout.prefix)}
    not_needed = re.compile(re.escape(layout.prefix) + f"(?:{layout.not_needed})")
    checkpoints.report_unknown({name for name in own if not not_needed.match(name)}, file)

    filled = {}
    for name, stored in stored_names.items():
        tensor = state[stored]
        if convert is not None:
            tensor = convert(name, tensor)
        filled[name] = tensor.float() if tensor.is_floating_point() else tensor
    checkpoints.fill(module, filled, file)
