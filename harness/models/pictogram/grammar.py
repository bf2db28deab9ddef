"""The one prompt grammar of the embedded model: what it can be asked, and what such a text means.

Captions for training, prompts for evaluation and the reward's reading of a prompt all come from the tables below, so a
text the model was trained on is a text the reward understands: `parse(caption(spec, ...)) == spec`. Specs are rows of
GenEval's metadata (`tag`, `include`, `exclude`); the order of objects is the order of `include`. Nothing here needs torch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, permutations, product
from typing import NotRequired, TypedDict

PROMPT_POSITIONS = 32
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
PLACES = ("top", "bottom", "left", "right")
NUMBERS = {2: "two", 3: "three", 4: "four"}

CLASSES = tuple(
    """person;bicycle;car;motorcycle;airplane;bus;train;truck;boat;traffic light;fire hydrant;stop sign;parking meter;bench
    bird;cat;dog;horse;sheep;cow;elephant;bear;zebra;giraffe;backpack;umbrella;handbag;tie;suitcase;frisbee;skis;snowboard
    sports ball;kite;baseball bat;baseball glove;skateboard;surfboard;tennis racket;bottle;wine glass;cup;fork;knife;spoon
    bowl;banana;apple;sandwich;orange;broccoli;carrot;hot dog;pizza;donut;cake;chair;couch;potted plant;bed;dining table
    toilet;tv;laptop;computer mouse;tv remote;computer keyboard;cell phone;microwave;oven;toaster;sink;refrigerator;book
    clock;vase;scissors;teddy bear;hair drier;toothbrush""".replace("\n    ", ";").split(";")
)
CLASS_SETS: dict[str, tuple[str, ...]] = {
    "pictogram_16": tuple(
        "car bus airplane boat bird cat dog giraffe apple banana cup bottle chair clock umbrella book".split()
    ),
}


class Include(TypedDict):
    """One clause of a GenEval row: at least `count` objects of a class, maybe of a colour, maybe placed by an earlier clause."""

    count: int
    color: NotRequired[str]
    position: NotRequired[list[str | int]]


# `class` is a keyword, so the clause's remaining field is declared with the functional form.
Clause = TypedDict(
    "Clause",
    {"class": str, "count": int, "color": NotRequired[str], "position": NotRequired[tuple[str, int] | list[str | int]]},
)


class Spec(TypedDict):
    """A GenEval row without its text: what a picture must (`include`) and must not (`exclude`) show."""

    tag: str
    include: list[Clause]
    exclude: NotRequired[list[Clause]]


class Row(Spec):
    """A GenEval row."""

    prompt: str


Layout = tuple[str, ...]  # one place per object, in the order of `include`; () says nothing
