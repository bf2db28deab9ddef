"""The one prompt grammar of the embedded model: what it can be asked, and what such a text means.

Captions for training, prompts for evaluation and the reward's reading of a prompt all come from the
tables below, so a text that the model was trained on is a text that the reward understands:
`parse(caption(spec, ...)) == spec`. Specs are rows of GenEval's metadata (`tag`, `include`,
`exclude`), objects in the order of `include`. Nothing here needs torch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Literal, NotRequired, TypedDict

PROMPT_POSITIONS = 32
"""Words of a prompt that the model reads, commas included."""

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PLACES = ("top", "bottom", "left", "right")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,"
    "baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,"
    "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,computer keyboard,"
    "cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,"
    "hair drier,toothbrush"
)
CLASSES = tuple(_NAMES.split(","))
CLASS_SETS: dict[str, tuple[str, ...]] = {
    "pictogram_16": (
        *("car", "bus", "airplane", "boat", "bird", "cat", "dog", "giraffe"),
        *("apple", "banana", "cup", "bottle", "chair", "clock", "umbrella", "book"),
    ),
    "pictogram_80": CLASSES,
}
DEFAULT = "pictogram_80"
"""The set of classes, and of the weights trained on it, where none is named."""

# Wordings: {x} and {y} are the objects in text order, {rel} a wording of the relation, {verb} a
# verb of VERBS.
RELATIONS = {
    "left of": ("left of", "to the left of", "on the left side of"),
    "right of": ("right of", "to the right of", "on the right side of"),
    "above": ("above", "over", "right above"),
    "below": ("below", "beneath", "underneath"),
}
VERBS = ("is", "is positioned", "is placed", "is situated", "is located", "sits", "rests", "stands")
SENTENCES = {
    "one": (
        "{x}",
        "there {be} {x}",
        "the scene includes {x}",
        "in the scene, there {be} {x}",
        "there {be} {x} in the scene",
    ),
    "two": (
        "{x} and {y}",
        "there is {x} and {y}",
        "the scene includes {x} and {y}",
        "there is {x} and {y} in the scene",
    ),
    "placed": ("{x} {rel} {y}", "{x} {verb} {rel} {y}", "in the scene, {x} {verb} {rel} {y}"),
}
OPENERS = (
    *(
        "in a quiet scene",
        "in a calm and simple picture",
        "in the soft light of the afternoon",
        "on a plain background",
    ),
    *("in this gentle moment", "in a bright tableau", "against a flat and peaceful backdrop"),
)
ADJECTIVES = ("humble", "graceful", "quiet", "lovely", "sturdy", "charming", "gentle", "simple")
TAILS = (
    *("bathed in soft light", "clearly visible to the eye", "creating a calm and peaceful picture"),
    *("as if time itself stood still", "drawn with quiet care", "in perfect stillness"),
)

Style = Literal["geneval", "short", "long"]
Layout = tuple[str, ...]
"""A place (top, bottom, left, right) for each object in the order of `include`.

Empty if the text says nothing of places.
"""

Clause = TypedDict(
    "Clause",
    {
        "class": str,
        "count": int,
        "color": NotRequired[str],
        "position": NotRequired[list[str | int]],
    },
)


class Spec(TypedDict):
    """A GenEval row without its text.

    `include` is what a picture must show, `exclude` what it must not.
    """

    tag: str
    include: list[Clause]
    exclude: NotRequired[list[Clause]]


class Row(Spec):
    """A GenEval row: a spec and its text."""

    prompt: str


# --- specs ----------------------------------------------------------------------------------------


def make_spec(
    names: Sequence[str], *, count: int = 1, colors: Sequence[str] = (), relation: str | None = None
) -> Spec:
    """Make the spec of a text that names `names` in this order.

    The first of two stands in `relation` to the second.
    """
    clauses = [Clause({"class": name, "count": count}) for name in names]
    for clause, color in zip(clauses, colors, strict=False):
        clause["color"] = color
    if relation is not None:
        clauses.reverse()
        clauses[1]["position"] = [relation, 0]
    spec = Spec(tag=_tag(clauses), include=clauses)
    if count > 1:
        spec["exclude"] = [Clause({"class": names[0], "count": count + 1})]
    return spec


def _tag(clauses: Sequence[Clause]) -> str:
    """The task of a spec with these clauses."""
    if any(clause["count"] > 1 for clause in clauses):
        return "counting"
    if "position" in clauses[-1]:
        return "position"
    colored = all("color" in clause for clause in clauses)
    if len(clauses) == 2:
        return "color_attr" if colored else "two_object"
    return "colors" if colored else "single_object"


def sample_spec(
    tag: str, classes: Sequence[str], rng: random.Random, *, tinted: bool = False
) -> Spec:
    """Draw a random spec of a task; `tinted` gives colours also where the task asks for none."""
    is_pair = tag in ("two_object", "position", "color_attr")
    is_colored = tinted or tag in ("colors", "color_attr")
    names = rng.sample(classes, 2) if is_pair else [rng.choice(classes)]
    colors = rng.sample(COLORS, len(names)) if is_colored else ()
    count = rng.choice((2, 3, 4)) if tag == "counting" else 1
    relation = rng.choice(tuple(RELATIONS)) if tag == "position" else None
    return make_spec(names, count=count, colors=colors, relation=relation)


def objects(spec: Spec) -> list[tuple[str, str | None]]:
    """List class and colour of every object that a spec asks for, in the order of `include`."""
    found: list[tuple[str, str | None]] = []
    for clause in spec["include"]:
        found += [(clause["class"], clause.get("color"))] * clause["count"]
    return found


# --- from specs to texts --------------------------------------------------------------------------


def article(word: str) -> str:
    """Choose "a" or "an"."""
    return "an" if word[0] in "aeiou" else "a"


def plural(name: str) -> str:
    """Form GenEval's mechanical plural: "es" after a final s, else "s" ("knifes")."""
    return name + ("es" if name.endswith("s") else "s")


def noun_phrase(clause: Clause, adjective: str = "") -> str:
    """Write a clause: "a red car", "two quiet cats"."""
    color = clause.get("color", "")
    count = clause["count"]
    if count > 1:
        return _join_words(NUMBERS[count], adjective, color, plural(clause["class"]))
    phrase = _join_words(adjective, color, clause["class"])
    return f"{article(phrase)} {phrase}"


def _join_words(*words: str) -> str:
    """Words with a blank between them; empty ones are left out."""
    return " ".join(filter(None, words))


def caption(
    spec: Spec, *, style: Style = "geneval", layout: Layout = (), rng: random.Random | None = None
) -> str:
    """Write a text for a spec.

    GenEval's templates are fixed; the other styles draw their wording from `rng`. "short" and
    "long" imitate TIIF's two lengths. A layout is appended as a clause, but not to "long".
    """
    if style == "geneval":
        return _geneval_text(spec) + layout_clause(spec, layout)

    rng = rng or random.Random(0)
    body = _sentence(spec, rng, adjectives=style == "long")
    if style == "short":
        text = body + layout_clause(spec, layout)
        return text if _fits(text) else caption(spec, layout=layout)

    text = f"{rng.choice(OPENERS)}, {body.removeprefix('in the scene, ')}"
    text_and_tail = f"{text}, {rng.choice(TAILS)}"
    return text_and_tail if _fits(text_and_tail) else text


def _fits(text: str) -> bool:
    return len(words(text)) <= PROMPT_POSITIONS


def _text_order(spec: Spec) -> list[Clause]:
    """Clauses in the order of the text, which names the object that is placed first."""
    clauses = spec["include"]
    return clauses[::-1] if "position" in clauses[-1] else clauses


def _geneval_text(spec: Spec) -> str:
    first, *others = _text_order(spec)
    joint = first["position"][0] if "position" in first else "and"
    text = f"a photo of {noun_phrase(first)}"
    for other in others:
        text += f" {joint} {noun_phrase(other)}"
    return text


def _sentence(spec: Spec, rng: random.Random, *, adjectives: bool) -> str:
    """A random wording of `SENTENCES`, or "the car is red" where colours are asked for."""
    clauses = _text_order(spec)
    if spec["tag"] in ("colors", "color_attr") and rng.random() < 0.3:
        return " and ".join(f"the {clause['class']} is {clause['color']}" for clause in clauses)

    phrases = []
    for clause in clauses:
        adjective = rng.choice(ADJECTIVES) if adjectives else ""
        phrases.append(noun_phrase(clause, adjective))
    relation = clauses[0].get("position", [""])[0]
    kind = "placed" if relation else ("one", "two")[len(clauses) - 1]
    return rng.choice(SENTENCES[kind]).format(
        x=phrases[0],
        y=phrases[-1],
        be="are" if clauses[0]["count"] > 1 else "is",
        verb=rng.choice(VERBS),
        rel=rng.choice(RELATIONS[str(relation)]) if relation else "",
    )


def layout_clause(spec: Spec, layout: Layout) -> str:
    """Write a layout as a clause such as ", two on the top and one on the bottom".

    It is empty for an empty layout.
    """
    if not layout:
        return ""
    if len(spec["include"]) == 2:
        return ", " + _layout_of_two(spec, layout)

    counts = {place: layout.count(place) for place in layout}
    if len(counts) > 1:
        parts = [f"{NUMBERS[count]} on the {place}" for place, count in counts.items()]
        return ", " + " and ".join(parts)
    everything = "all " if len(layout) > 1 else ""
    return f", {everything}on the {layout[0]}"


def _layout_of_two(spec: Spec, layout: Layout) -> str:
    """Both objects by name, in the order of the text."""
    parts = []
    for clause, place in zip(spec["include"], layout, strict=True):
        name = _join_words(clause.get("color", ""), clause["class"])
        parts.append(f"the {name} on the {place}")
    if _text_order(spec) != spec["include"]:
        parts.reverse()
    return " and ".join(parts)


# --- from texts to specs --------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Split a text into lower-case words and commas; other punctuation is dropped."""
    return re.findall(r"[a-z]+|,", text.lower())


def parse(text: str) -> Spec | None:
    """Read the spec of a text, its layout clause left aside; None for one not of the grammar."""
    found = parse_layout(text)
    return found[0] if found else None


def parse_layout(text: str) -> tuple[Spec, Layout] | None:
    """Read the spec and the layout clause of a text; None for one not of the grammar."""
    # 1. Drop what says nothing of objects: opener, tail, "in the scene".
    plain = " ".join(words(text))
    plain = re.sub(rf"^(?:{_any(OPENERS)}) , ", "", plain)
    plain = re.sub(rf" , (?:{_any(TAILS)})$", "", plain)
    plain = re.sub(r"^in the scene , ", "", plain)
    body, _, clause = plain.partition(" , ")
    body = re.sub(r"^(?:a photo of|there is|there are|the scene includes) ", "", body)
    body = body.removesuffix(" in the scene")

    # 2. Read the objects, then where they are.
    spec = _parse_body(body)
    if spec is None:
        return None
    if not clause:
        return spec, ()
    layout = _layouts_by_clause(spec).get(clause)
    return None if layout is None else (spec, layout)


def _parse_body(body: str) -> Spec | None:
    for pattern in _body_patterns():
        match = pattern.fullmatch(body)
        if match is not None:
            return _spec_of_groups(match.groupdict())
    return None


def _spec_of_groups(groups: dict[str, str | None]) -> Spec | None:
    """The spec of a text by the named groups of its pattern; those without a match are None."""
    names = [name for key in ("name_x", "name_y") if (name := groups.get(key))]
    colors = [color for key in ("color_x", "color_y") if (color := groups.get(key))]
    number = groups.get("number_x")
    if number is not None:
        count = next(n for n, word in NUMBERS.items() if word == number)
        name = next(name for name in CLASSES if plural(name) == groups["plural_x"])
        return make_spec([name], count=count, colors=colors)
    if len(colors) not in (0, len(names)):
        return None
    wording = groups.get("rel")
    relation = next((key for key, wordings in RELATIONS.items() if wording in wordings), None)
    return make_spec(names, colors=colors, relation=relation)


@cache
def _body_patterns() -> tuple[re.Pattern[str], ...]:
    """Patterns of what is left of a text: objects x and y with colours, a number or a relation."""
    adjective = rf"(?:(?:{_any(ADJECTIVES)}) )?"
    x = _object_pattern("x", adjective)
    y = _object_pattern("y", adjective)
    x_is = _is_colored_pattern("x")
    y_is = _is_colored_pattern("y")
    plurals = _any([plural(name) for name in CLASSES])
    many = (
        rf"(?P<number_x>two|three|four) {adjective}(?:(?P<color_x>{_any(COLORS)}) )?"
        rf"(?P<plural_x>{plurals})"
    )
    relation = _any(chain.from_iterable(RELATIONS.values()))
    placed = rf"{x} (?:(?:{_any(VERBS)}) )?(?P<rel>{relation}) {y}"
    sources = (x, f"{x} and {y}", placed, many, x_is, f"{x_is} and {y_is}")
    return tuple(re.compile(source) for source in sources)


def _object_pattern(which: str, adjective: str) -> str:
    """A pattern for "a red car", with named groups for colour and class."""
    color = rf"(?:(?P<color_{which}>{_any(COLORS)}) )?"
    return rf"an? {adjective}{color}(?P<name_{which}>{_any(CLASSES)})"


def _is_colored_pattern(which: str) -> str:
    """A pattern for "the car is red", with named groups for colour and class."""
    return rf"the (?P<name_{which}>{_any(CLASSES)}) is (?P<color_{which}>{_any(COLORS)})"


def _any(options: Iterable[str]) -> str:
    """A pattern of alternatives, the longest first."""
    return "|".join(sorted(map(re.escape, options), key=len, reverse=True)).replace("\\ ", " ")


def _layouts_by_clause(spec: Spec) -> dict[str, Layout]:
    """Every layout of a spec by the words of its clause, without the comma."""
    found = {}
    for layout in layouts(spec):
        clause = words(layout_clause(spec, layout))[1:]
        found[" ".join(clause)] = layout
    return found


def layouts(spec: Spec) -> list[Layout]:
    """List every layout that a spec can be drawn in.

    Objects are split over top and bottom or over left and right, at most three in a half.
    """
    if len(spec["include"]) == 2:
        pairs = [("top", "bottom"), ("bottom", "top"), ("left", "right"), ("right", "left")]
        relation = spec["include"][1].get("position", [None])[0]
        if relation is None:
            return [*pairs]
        wanted = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
        return [pair for pair in pairs if pair[1] == wanted[str(relation)]]

    total = len(objects(spec))
    splits = [k for k in range(total + 1) if max(k, total - k) < 4]
    found: list[Layout] = []
    for first, second in (("top", "bottom"), ("left", "right")):
        found += [(first,) * k + (second,) * (total - k) for k in splits]
    return found


# --- tokens ---------------------------------------------------------------------------------------


@cache
def vocabulary() -> dict[str, int]:
    """Number every word that the grammar can produce for all 80 classes.

    <pad> is 0, <unk> is 1, the others are in alphabetical order.
    """
    sentences = [re.sub(r"\{\w+\}", "", text) for text in chain.from_iterable(SENTENCES.values())]
    texts = chain(
        CLASSES,
        map(plural, CLASSES),
        COLORS,
        PLACES,
        NUMBERS.values(),
        VERBS,
        OPENERS,
        ADJECTIVES,
        TAILS,
        chain.from_iterable(RELATIONS.values()),
        sentences,
        ("a photo of", "an and is are", "all on the", ","),
    )
    known = sorted({word for text in texts for word in words(text)})
    return {word: i for i, word in enumerate(("<pad>", "<unk>", *known))}


def encode(text: str | None) -> list[int]:
    """Convert a text to word ids, exactly `PROMPT_POSITIONS` of them.

    Longer texts are cut, shorter ones padded; None is all <pad>.
    """
    return encode_words(text, vocabulary())


def encode_words(text: str | None, known: Mapping[str, int]) -> list[int]:
    """Do as `encode`, by another numbering of words."""
    ids = [known.get(word, 1) for word in words(text or "")][:PROMPT_POSITIONS]
    return ids + [0] * (PROMPT_POSITIONS - len(ids))


def count_cut(text: str) -> int:
    """Count the words of a text that `encode` cuts off."""
    return max(0, len(words(text)) - PROMPT_POSITIONS)


# --- prompts --------------------------------------------------------------------------------------


def generate_prompts(classes: Sequence[str], total: int, seed: int) -> list[Row]:
    """Generate `total` different rows of GenEval's six templates.

    They are spread over the tasks as evenly as these can provide. Raises ValueError if the classes
    give fewer.
    """
    spaces = {task: number_specs(task, classes) for task in TASKS}
    capacity = {task: size for task, (size, _) in spaces.items()}
    most = sum(capacity.values())
    if total > most:
        raise ValueError(
            f"{len(classes)} classes give {most} different prompts, {total} were asked for"
        )
    wanted = _spread(total, capacity)

    rows = []
    for task, (size, spec_of) in spaces.items():
        rng = random.Random(f"{seed}/{task}")
        for number in rng.sample(range(size), wanted[task]):
            spec = spec_of(number)
            rows.append(Row(**spec, prompt=caption(spec)))
    return rows


def _spread(total: int, capacity: dict[str, int]) -> dict[str, int]:
    """How many rows each task gives: one more for the task that has the fewest, until all are."""
    wanted = dict.fromkeys(capacity, 0)
    for _ in range(total):
        open_tasks = [task for task in wanted if wanted[task] < capacity[task]]
        wanted[min(open_tasks, key=wanted.__getitem__)] += 1
    return wanted


def number_specs(task: str, classes: Sequence[str]) -> tuple[int, Callable[[int], Spec]]:
    """Count the specs of a task and return what makes the spec of a number.

    There are millions, so none is listed.
    """
    pairs = len(classes) * (len(classes) - 1)
    tints = len(COLORS) * (len(COLORS) - 1)
    relations = tuple(RELATIONS)
    colored = [(name, color) for name in classes for color in COLORS if color != name]

    def counted(i: int) -> Spec:
        return make_spec([classes[i // 3]], count=2 + i % 3)

    def tinted(i: int) -> Spec:
        name, color = colored[i]
        return make_spec([name], colors=[color])

    def placed(i: int) -> Spec:
        return make_spec(_pair(classes, i // 4), relation=relations[i % 4])

    def tinted_pair(i: int) -> Spec:
        return make_spec(_pair(classes, i // tints), colors=_pair(COLORS, i % tints))

    return {
        "single_object": (len(classes), lambda i: make_spec([classes[i]])),
        "two_object": (pairs, lambda i: make_spec(_pair(classes, i))),
        "counting": (3 * len(classes), counted),
        "colors": (len(colored), tinted),
        "position": (4 * pairs, placed),
        "color_attr": (tints * pairs, tinted_pair),
    }[task]


def _pair(names: Sequence[str], i: int) -> tuple[str, str]:
    """The pair with number `i` among all ordered pairs of different names."""
    first, second = divmod(i, len(names) - 1)
    return names[first], names[second + (second >= first)]
