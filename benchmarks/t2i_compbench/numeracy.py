"""Score numbers of objects as T2I-CompBench does: half for each kind, half for its number.

The rules were written from a description of what the reference computes (numeracy_eval.py), not
from its code. They are pure functions that need no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.boxes import Detection, single_box
from benchmarks.t2i_compbench.boxes import is_duplicate

NUMBERS = {
    "a": 1,
    "an": 1,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
}
ARTICLES = ("a", "an")
CLASS_OF = {
    "boy": "person",
    "girl": "person",
    "man": "person",
    "woman": "person",
    "ship": "boat",
    "telivision": "tv",  # as the reference spells it
    "goldfish": "fish",
    "painting": "picture",
}
"""Words whose name in the detector's vocabulary is another one."""
_REGULAR = (
    "airplane,apple,backpack,bag,balloon,banana,bear,bee,bicycle,bird,boat,book,"
    "bottle,bowl,boy,bread,cake,camel,camera,candle,car,cat,chair,chicken,clock,"
    "computer,cow,cup,desk,dog,drum,duck,egg,flag,frog,giraffe,girl,guitar,"
    "hamburger,helicopter,helmet,horse,key,kite,lamp,lemon,microphone,microwave,"
    "paddle,painting,pear,pen,phone,pig,pillow,plate,printer,rabbit,refrigerator,"
    "ship,sink,sofa,stool,suitcase,swan,table,television,tent,toy,train,truck,"
    "turtle,vase"
)
_PLURALS: Mapping[str, str] = {
    "butterfly": "butterflies",
    "couch": "couches",
    "deer": "deer",
    "fish": "fish",
    "goldfish": "goldfish",
    "knife": "knives",
    "man": "men",
    "mouse": "mice",
    "peach": "peaches",
    "person": "people",
    "sheep": "sheep",
    "shrimp": "shrimp",
    "strawberry": "strawberries",
    "tomato": "tomatoes",
    "woman": "women",
    **{name: f"{name}s" for name in _REGULAR.split(",")},
}
"""The nouns that numbers are read with, and their plurals (the reference's new_objects.txt)."""
_SINGULARS = {plural: name for name, plural in _PLURALS.items()}


@dataclass(frozen=True, slots=True)
class NumeracyScore:
    """The score of an image, how many kinds were found, and how many had the right number."""

    value: float
    found: int
    exact: int
    counts: tuple[int, ...]
    """The number of objects seen of each kind."""


def find_counts(words: Sequence[str]) -> list[tuple[str, int]]:
    """Find the nouns of a prompt that follow a number, and their numbers, in order.

    Raises ValueError where the reference's parser fails: for a number at the end, a number above
    one before a singular, and an article before a plural.
    """
    found = []
    for position, word in enumerate(words):
        if word not in NUMBERS:
            continue
        if position + 1 == len(words):
            raise ValueError(f"the prompt ends in the number {word!r}")
        noun = words[position + 1]
        if noun in _PLURALS and (NUMBERS[word] == 1 or noun not in _SINGULARS):
            if NUMBERS[word] > 1:
                raise ValueError(f"the number {word!r} stands before the singular {noun!r}")
            found.append((noun, 1))
        elif noun in _SINGULARS:
            if word in ARTICLES:
                raise ValueError(f"the article {word!r} stands before the plural {noun!r}")
            found.append((_SINGULARS[noun], NUMBERS[word]))
    return found


def class_of(noun: str) -> str:
    """Name a noun in the detector's vocabulary."""
    return CLASS_OF.get(noun, noun)


def merge_detections(detections: Sequence[Detection]) -> list[int]:
    """List the detections that stay, by index: none that equals a kept one of its class."""
    kept: list[int] = []
    for index, one in enumerate(detections):
        box = single_box(one.box)
        others = [detections[i] for i in kept if detections[i].name == one.name]
        if not any(is_duplicate(single_box(other.box), box) for other in others):
            kept.append(index)
    return kept


def score_counts(
    wanted: Sequence[tuple[str, int]], detections: Sequence[Detection]
) -> NumeracyScore:
    """Score the numbers of classes, in order; `wanted` names them in the detector's vocabulary.

    A class that was not seen takes over every class that contains its name, for good. Raises
    ValueError if nothing is wanted.
    """
    if not wanted:
        raise ValueError("the prompt names no number of objects")
    names = [detections[index].name for index in merge_detections(detections)]
    value = 0.0
    counts = []
    for name, count in wanted:
        if name not in names:
            names = [name if name in other else other for other in names]
        seen = names.count(name)
        counts.append(seen)
        value += (0.5 * (seen > 0) + 0.5 * (seen == count)) / len(wanted)
    exact = sum(seen == count for seen, (_, count) in zip(counts, wanted, strict=True))
    return NumeracyScore(value, sum(seen > 0 for seen in counts), exact, tuple(counts))
