"""Read and write the folder layout of T2I-CompBench's reference.

FOLDER/color/samples/a green bench and a blue bowl_000000.png

A folder holds one category. The number runs over its images, prompt by prompt.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.jsonl import bad_line, read_objects
from harness.records import Prompt, UserError

log = logging.getLogger(__name__)

_NAME = re.compile(r"([^_]+)_([0-9]+)\.(?:png|jpg|jpeg|webp)")


def read_folder(folder: Path, prompts: Sequence[Prompt]) -> dict[tuple[str, int], Path]:
    """Find the images of each prompt by the text in their names, in the order of their numbers.

    Prompts with one text share its images evenly. Warns of images that belong to no prompt, and of
    prompts with fewer images than others. Raises UserError for a folder without any image.
    """
    found: dict[tuple[str, int], Path] = {}
    by_category: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_category[prompt.category].append(prompt)
    strange = 0
    for category, of_category in by_category.items():
        by_text = _list_images(folder / category / "samples")
        strange += len(set(by_text) - {prompt.text for prompt in of_category})
        found |= _deal_images(of_category, by_text)
    if not found:
        raise UserError(
            f"benchmark.images={folder}: no image of the {len(prompts)} prompts asked for; the "
            "layout is FOLDER/<category>/samples/<prompt>_000000.png"
        )
    if strange:
        log.warning("%s: images of %d texts that no prompt asked for has", folder, strange)
    return found


def count_images(found: Mapping[tuple[str, int], Path]) -> int:
    """Return the most images that a prompt has."""
    return max(number for _, number in found) + 1


def warn_of_missing(
    folder: Path, found: Mapping[tuple[str, int], Path], prompts: Sequence[Prompt], images: int
) -> None:
    """Warn of the images that prompts have fewer than `images`; they count as wrong."""
    missing = images * len(prompts) - len(found)
    if missing:
        total = images * len(prompts)
        log.warning("%s: %d of %d images are missing; they count as wrong", folder, missing, total)


def export_run(run: Path, folder: Path) -> tuple[int, int]:
    """Copy a run's images into a new `folder` of the layout; count copied and missing.

    Numbers are those of the reference, so that detections made from the folder can be imported.
    Raises UserError for a folder that is not empty and for a run of another benchmark.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose a new folder")
    jobs = run / "jobs.jsonl"
    copied = 0
    missing = 0
    for line, job in read_objects(jobs):
        parts = str(job.get("prompt_id")).split("/")
        if len(parts) != 3 or parts[0] != "t2i_compbench":
            raise bad_line(jobs, line, f"{job.get('prompt_id')!r} is no prompt of t2i_compbench")
        _, category, index = parts
        samples = folder / category / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        images = int(job["images"])
        for image in range(images):
            source = run / "images" / category / index / f"{image}.png"
            if source.is_file():
                number = images * int(index) + image
                shutil.copyfile(source, samples / f"{job['text']}_{number:06d}.png")
                copied += 1
            else:
                missing += 1
    return copied, missing


def _list_images(samples: Path) -> dict[str, list[Path]]:
    """List the images of each text by their numbers; none where there is no folder."""
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    if samples.is_dir():
        for path in sorted(samples.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match and path.is_file():
                other = numbered[match[1]].setdefault(int(match[2]), path)
                if other != path:
                    raise UserError(
                        f"{path} and {other.name} have the same number: remove one of them"
                    )
    return {
        text: [path for _, path in sorted(of_text.items())] for text, of_text in numbered.items()
    }


def _deal_images(
    prompts: Sequence[Prompt], by_text: Mapping[str, Sequence[Path]]
) -> dict[tuple[str, int], Path]:
    """Give each prompt the images of its text; of prompts with one text, each gets its share."""
    sharing: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        sharing[prompt.text].append(prompt)
    dealt: dict[tuple[str, int], Path] = {}
    for text, of_text in sharing.items():
        paths = by_text.get(text, ())
        share = -(-len(paths) // len(of_text))
        for position, prompt in enumerate(of_text):
            own = paths[position * share : (position + 1) * share]
            for number, path in enumerate(own):
                dealt[prompt.id, number] = path
    return dealt
