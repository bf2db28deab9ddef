"""The folder layout of TIIF-Bench's reference: images made elsewhere.

FOLDER/<dimension>/<model>/short_description/<row>.png    and long_description; also .jpg, .jpeg and .webp
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from harness.records import Prompt, UserError

log = logging.getLogger(__name__)

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def read_folder(
    folder: Path, model: str | None, prompts: Sequence[Prompt]
) -> dict[tuple[str, int], Path]:
    """The image file of each prompt that has one, by prompt id and number, which is 0; says how
    many are missing.

    `model` chooses among the models whose images are there. Raises UserError where that leaves none
    or several.
    """
    there = sorted({one.name for one in folder.glob("*/*") if (one / "short_description").is_dir()})
    if model is None and len(there) == 1:
        (model,) = there
    if model not in there:
        raise UserError(
            f"benchmark.images={folder} has images of {', '.join(there) or 'no model'} in TIIF-Bench's layout: "
            "choose one with benchmark.images_of"
        )
    found = {(prompt.id, 0): path for prompt in prompts if (path := _file(folder, model, prompt))}
    if len(found) < len(prompts):
        lacking = [prompt.id for prompt in prompts if (prompt.id, 0) not in found]
        log.warning(
            "%s: %d of %d images are missing (%s%s); all their questions count as wrong",
            *(
                folder,
                len(lacking),
                len(prompts),
                ", ".join(lacking[:3]),
                ", ..." if lacking[3:] else "",
            ),
        )
    return found


def _file(folder: Path, model: str, prompt: Prompt) -> Path | None:
    _, dimension, length, row = prompt.id.split("/")
    files = (
        folder / dimension / model / f"{length}_description" / f"{row}{ending}"
        for ending in ENDINGS
    )
    return next((file for file in files if file.is_file()), None)
