"""Choose one caption for each image of COCO, as papers do.

The lists differ from paper to paper, and with them the scores. A list is a function of
`captions_val2017.json` alone, so that its digest can be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.records import UserError


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence about an image, as it stands in the file."""

    image: int
    annotation: int
    raw: str

    @property
    def text(self) -> str:
        """The prompt: runs of blanks and line breaks are one blank."""
        return " ".join(self.raw.split())


def list_captions(data: Mapping[str, Any], rule: str) -> list[Caption]:
    """Return one caption for each image, in the rule's order.

    `data` is a caption file of COCO: `images` with ids, `annotations` with image id, id and
    caption. Raises UserError for a rule that there is not, and names the image or annotation where
    the file is not whole.
    """
    if rule not in RULES:
        raise UserError(f"captions={rule}: choose one of {', '.join(RULES)}")
    return RULES[rule](_captions_by_image(data))


def _captions_by_image(data: Mapping[str, Any]) -> dict[int, list[Caption]]:
    """Collect the captions of each image; images and captions in the order of the annotations."""
    missing = [key for key in ("images", "annotations") if not isinstance(data.get(key), list)]
    if missing:
        raise UserError(f"not a caption file of COCO: it has no list {missing[0]!r}")
    known = [entry["id"] for entry in data["images"]]
    if len(set(known)) < len(known):
        raise UserError("not a caption file of COCO: an image id stands twice")

    found: dict[int, list[Caption]] = {}
    for entry in data["annotations"]:
        caption = Caption(entry["image_id"], entry["id"], entry["caption"])
        if not caption.text:
            raise UserError(f"caption {caption.annotation} of image {caption.image} is blank")
        found.setdefault(caption.image, []).append(caption)
    if without := sorted(set(known) - found.keys()):
        raise UserError(f"image {without[0]} has no caption ({len(without)} such images)")
    if strangers := sorted(found.keys() - set(known)):
        raise UserError(f"captions of image {strangers[0]}, which is not among the images")
    return found


def _longest(found: Mapping[int, Sequence[Caption]]) -> list[Caption]:
    """The longest in characters, blanks counted, the first of equals (LANTERN)."""
    return [max(captions, key=lambda caption: len(caption.raw)) for captions in found.values()]


def _first(found: Mapping[int, Sequence[Caption]]) -> list[Caption]:
    """The caption with the lowest id, by image id."""
    by_image = [found[image] for image in sorted(found)]
    return [min(captions, key=lambda caption: caption.annotation) for captions in by_image]


def _last(found: Mapping[int, Sequence[Caption]]) -> list[Caption]:
    """The last in the file (ARsample)."""
    return [captions[-1] for captions in found.values()]


def _running_longest(found: Mapping[int, Sequence[Caption]]) -> list[Caption]:
    """What the code of SJD lists, which was meant to be the longest captions.

    The greatest length so far and the index that goes with it outlive the image, so that the index
    moves only where a caption is longer than all before it, of whichever image.
    """
    chosen: list[Caption] = []
    longest = 0
    index = 0
    for image in sorted(found):
        captions = found[image]
        for i, caption in enumerate(captions):
            if len(caption.raw) > longest:
                longest = len(caption.raw)
                index = i
        chosen.append(captions[index])
    return chosen


RULES: dict[str, Callable[[Mapping[int, Sequence[Caption]]], list[Caption]]] = {
    "longest": _longest,
    "sjd": _running_longest,
    "first": _first,
    "last": _last,
}
"""How a caption is chosen, by the name of the list."""
