"""Find imported images in the folder layout of TIIF-Bench's reference.

FOLDER/<dimension>/<model>/short_description/<row>.png

The other length is long_description; .jpg, .jpeg and .webp are read, too.
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
    """Find the image file of each prompt that has one, and warn of the number that is missing.

    Keys are prompt id and image number, which is 0. `model` chooses among the models whose images
    are there; None takes the only one. Raises UserError if that leaves none or several.
    """
    model = _choose_model(folder, model)
    found = {}
    missing = []
    for prompt in prompts:
        path = _find_image(folder, model, prompt)
        if path:
            found[prompt.id, 0] = path
        else:
            missing.append(prompt.id)
    if missing:
        log.warning(
            "%s: %d of %d images are missing (%s%s); all their questions count as wrong",
            folder,
            len(missing),
            len(prompts),
            ", ".join(missing[:3]),
            ", ..." if len(missing) > 3 else "",
        )
    return found


def _choose_model(folder: Path, model: str | None) -> str:
    models = {path.name for path in folder.glob("*/*") if (path / "short_description").is_dir()}
    if model is None and len(models) == 1:
        (model,) = models
    if model is None or model not in models:
        raise UserError(
            f"benchmark.images={folder} has images of {', '.join(sorted(models)) or 'no model'} "
            "in TIIF-Bench's layout: choose one with benchmark.images_of"
        )
    return model


def _find_image(folder: Path, model: str, prompt: Prompt) -> Path | None:
    """Find the file of a prompt's image. Raises UserError if it is there in two formats."""
    _, dimension, length, row = prompt.id.split("/")
    images = folder / dimension / model / f"{length}_description"
    files = [images / f"{row}{ending}" for ending in ENDINGS]
    found = [file for file in files if file.is_file()]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1].name} are one image: remove one of them")
    return found[0] if found else None
