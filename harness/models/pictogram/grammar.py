"""The one prompt grammar of the embedded model: what it can be asked, and what such a text means.

Captions for training, prompts for evaluation and the reward's reading of a prompt all come from the
tables below, so a text the model was trained on is a text the reward understands:
`parse(caption(spec, ...)) == spec`. Specs are rows of GenEval's metadata (`tag`, `include`,
`exclude`), objects in the order of `include`. Nothing here needs torch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Literal, NotRequired, TypedDict

PROMPT_POSITIONS = 32
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PLACES = ("top", "bottom", "left", "right")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
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

# Wordings. {x} and {y} are the objects in text order, {rel} a wording of the relation, {verb} a
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
"""A place (top, bottom, left, right) for each object in the order of `include`; empty when the text
says nothing.
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
    """A GenEval row without its text: what a picture must (`include`) and must not (`exclude`)
    show.
    """

    tag: str
    include: list[Clause]
    exclude: NotRequired[list[Clause]]


class Row(Spec):
    """A GenEval row."""

    prompt: str


# --- specs ----------------------------------------------------------------------------------------


def make_spec(
    names: Sequence[str], *, count: int = 1, colors: Sequence[str] = (), relation: str | None = None
) -> Spec:
    """The spec of a text that names `names` in this order; the first stands in `relation` to the
    second.
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
    """A random spec of a task; `tinted` gives colours to objects of the tasks that ask for none."""
    pair = tag in ("two_object", "position", "color_attr")
    names = rng.sample(classes, 2) if pair else [rng.choice(classes)]
    colors = rng.sample(COLORS, len(names)) if tinted or tag in ("colors", "color_attr") else ()
    count = rng.choice((2, 3, 4)) if tag == "counting" else 1
    relation = rng.choice(tuple(RELATIONS)) if tag == "position" else None
    return make_spec(names, count=count, colors=colors, relation=relation)


def objects(spec: Spec) -> list[tuple[str, str | None]]:
    """Class and colour of every object a spec asks for, in the order of `include`."""
    return [
        (clause["class"], clause.get("color"))
        for clause in spec["include"]
        for _ in range(clause["count"])
    ]


# --- from specs to texts --------------------------------------------------------------------------


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def plural(name: str) -> str:
    """GenEval's mechanical plural: "es" after a final s, else "s" ("knifes")."""
    return name + ("es" if name.endswith("s") else "s")


def noun_phrase(clause: Clause, adjective: str = "") -> str:
    color = clause.get("color", "")
    if clause["count"] > 1:
        return " ".join(
            filter(None, (NUMBERS[clause["count"]], adjective, color, plural(clause["class"])))
        )
    rest = " ".join(filter(None, (adjective, color, clause["class"])))
    return f"{article(rest)} {rest}"


def caption(
    spec: Spec, *, style: Style = "geneval", layout: Layout = (), rng: random.Random | None = None
) -> str:
    """A text for a spec. GenEval's templates are fixed; the other styles draw their wording from
    `rng`.

    "short" and "long" imitate TIIF's two lengths; a layout clause is appended where one is given
    (not to "long").
    """
    if style == "geneval":
        return _geneval(spec) + layout_clause(spec, layout)
    rng = rng or random.Random(0)
    body = _sentence(spec, rng, adjectives=style == "long")
    if style == "short":
        text = body + layout_clause(spec, layout)
        return text if len(words(text)) <= PROMPT_POSITIONS else caption(spec, layout=layout)
    if body.startswith("in the scene, "):
        body = body.removeprefix("in the scene, ")
    text = f"{rng.choice(OPENERS)}, {body}"
    tail = f", {rng.choice(TAILS)}"
    return text + tail if len(words(text + tail)) <= PROMPT_POSITIONS else text


def _text_order(spec: Spec) -> list[Clause]:
    return spec["include"][::-1] if "position" in spec["include"][-1] else spec["include"]


def _geneval(spec: Spec) -> str:
    first, *others = _text_order(spec)
    text = f"a photo of {noun_phrase(first)}"
    for other in others:
        text += f" {first['position'][0] if 'position' in first else 'and'} {noun_phrase(other)}"
    return text


def _sentence(spec: Spec, rng: random.Random, *, adjectives: bool) -> str:
    clauses = _text_order(spec)
    if spec["tag"] in ("colors", "color_attr") and rng.random() < 0.3:
        return " and ".join(f"the {clause['class']} is {clause['color']}" for clause in clauses)
    phrases = [
        noun_phrase(clause, rng.choice(ADJECTIVES) if adjectives else "") for clause in clauses
    ]
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
    """ ", two on the top and one on the bottom" and its kin; empty for an empty layout."""
    if not layout:
        return ""
    if len(spec["include"]) == 2:
        named = list(zip(spec["include"], layout, strict=True))
        ordered = named[::-1] if _text_order(spec) != spec["include"] else named
        parts = [f"the {_colored(clause)} on the {place}" for clause, place in ordered]
    else:
        runs = [(place, layout.count(place)) for place in dict.fromkeys(layout)]
        if len(runs) == 1:
            parts = [f"{'all ' if len(layout) > 1 else ''}on the {layout[0]}"]
        else:
            parts = [f"{NUMBERS[count]} on the {place}" for place, count in runs]
    return ", " + " and ".join(parts)


def _colored(clause: Clause) -> str:
    return f"{clause['color']} {clause['class']}" if "color" in clause else clause["class"]


# --- from texts to specs --------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Lower-case words and commas; other punctuation is dropped."""
    return re.findall(r"[a-z]+|,", text.lower())


def parse(text: str) -> Spec | None:
    """The spec a text of the grammar asks for (its layout clause left aside), or None for any other
    text.
    """
    found = parse_layout(text)
    return found[0] if found else None


def parse_layout(text: str) -> tuple[Spec, Layout] | None:
    """The spec and the layout clause of a text, or None where the text is not of the grammar."""
    plain = " ".join(words(text))
    plain = re.sub(rf"^(?:{_any(OPENERS)}) , ", "", plain)
    plain = re.sub(rf" , (?:{_any(TAILS)})$", "", plain)
    plain = re.sub(r"^in the scene , ", "", plain)
    body, _, clause = plain.partition(" , ")
    body = re.sub(r"^(?:a photo of|there is|there are|the scene includes) ", "", body).removesuffix(
        " in the scene"
    )
    spec = _parse_body(body)
    if spec is None:
        return None
    if not clause:
        return spec, ()
    layout = _layouts(spec).get(clause)
    return None if layout is None else (spec, layout)


def _parse_body(body: str) -> Spec | None:
    for pattern in _patterns():
        match = pattern.fullmatch(body)
        if match is None:
            continue
        group = {key: value for key, value in match.groupdict().items() if value is not None}
        names = [group[key] for key in ("name_x", "name_y") if key in group]
        colors = [group[key] for key in ("color_x", "color_y") if key in group]
        if "number_x" in group:
            singular = {plural(name): name for name in CLASSES}
            number = next(n for n, word in NUMBERS.items() if word == group["number_x"])
            return make_spec([singular[group["plural_x"]]], count=number, colors=colors)
        if len(colors) not in (0, len(names)):
            return None
        relation = next((key for key, said in RELATIONS.items() if group.get("rel") in said), None)
        return make_spec(names, colors=colors, relation=relation)
    return None


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    adjective = _any(ADJECTIVES)
    color = _any(COLORS)
    name = _any(CLASSES)
    one = {
        s: rf"an? (?:(?:{adjective}) )?(?:(?P<color_{s}>{color}) )?(?P<name_{s}>{name})"
        for s in "xy"
    }
    said = {s: rf"the (?P<name_{s}>{name}) is (?P<color_{s}>{color})" for s in "xy"}
    many = (
        rf"(?P<number_x>two|three|four) (?:(?:{adjective}) )?(?:(?P<color_x>{color}) )?"
        rf"(?P<plural_x>{_any([plural(c) for c in CLASSES])})"
    )
    relation = _any([wording for said_so in RELATIONS.values() for wording in said_so])
    placed = rf"{one['x']} (?:(?:{_any(VERBS)}) )?(?P<rel>{relation}) {one['y']}"
    sources = (
        one["x"],
        f"{one['x']} and {one['y']}",
        placed,
        many,
        said["x"],
        f"{said['x']} and {said['y']}",
    )
    return tuple(re.compile(source) for source in sources)


def _any(options: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, options), key=len, reverse=True)).replace("\\ ", " ")


def _layouts(spec: Spec) -> dict[str, Layout]:
    return {" ".join(words(layout_clause(spec, layout))[1:]): layout for layout in layouts(spec)}


def layouts(spec: Spec) -> list[Layout]:
    """Every layout a spec can be drawn in: objects split over top and bottom or over left and
    right.
    """
    n = len(objects(spec))
    if len(spec["include"]) == 2:
        pairs = [("top", "bottom"), ("bottom", "top"), ("left", "right"), ("right", "left")]
        relation = spec["include"][1].get("position", [None])[0]
        wanted = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
        return [pair for pair in pairs if relation is None or pair[1] == wanted[str(relation)]]
    splits = [(k, n - k) for k in range(n + 1) if max(k, n - k) < 4]
    axes = (("top", "bottom"), ("left", "right"))
    return [(first,) * k + (second,) * m for first, second in axes for k, m in splits]


# --- tokens ---------------------------------------------------------------------------------------


@cache
def vocabulary() -> dict[str, int]:
    """Every word the grammar can produce for all 80 classes, and the ids it has; <pad> is 0, <unk>
    is 1.
    """
    tables: list[Iterable[str]] = [
        *(
            CLASSES,
            map(plural, CLASSES),
            COLORS,
            PLACES,
            NUMBERS.values(),
            VERBS,
            OPENERS,
            ADJECTIVES,
            TAILS,
        ),
        *RELATIONS.values(),
        *([re.sub(r"\{\w+\}", "", text) for text in texts] for texts in SENTENCES.values()),
        ("a photo of", "an and is are", "all on the", ","),
    ]
    known = sorted({word for table in tables for text in table for word in words(text)})
    return {word: i for i, word in enumerate(("<pad>", "<unk>", *known))}


def encode(text: str | None) -> list[int]:
    """Word ids, exactly `PROMPT_POSITIONS` of them: longer texts are cut, shorter ones padded; None
    is all <pad>.
    """
    ids = [vocabulary().get(word, 1) for word in words(text or "")][:PROMPT_POSITIONS]
    return ids + [0] * (PROMPT_POSITIONS - len(ids))


# --- prompts --------------------------------------------------------------------------------------


def generate_prompts(classes: Sequence[str], total: int, seed: int) -> list[Row]:
    """`total` different rows of GenEval's six templates, spread as evenly over the tasks as these
    can provide.
    """
    spaces = {task: _space(task, classes) for task in TASKS}
    capacity = {task: size for task, (size, _) in spaces.items()}
    if total > sum(capacity.values()):
        raise ValueError(
            f"{len(classes)} classes give {sum(capacity.values())} different prompts, {total} were asked for"
        )
    wanted = dict.fromkeys(TASKS, 0)
    while sum(wanted.values()) < total:
        open_tasks = [task for task in TASKS if wanted[task] < capacity[task]]
        wanted[min(open_tasks, key=wanted.__getitem__)] += 1
    rows = []
    for task, (size, spec_of) in spaces.items():
        specs = map(spec_of, random.Random(f"{seed}/{task}").sample(range(size), wanted[task]))
        rows += [Row(**spec, prompt=caption(spec)) for spec in specs]
    return rows


def _space(task: str, classes: Sequence[str]) -> tuple[int, Callable[[int], Spec]]:
    """How many specs a task has and the spec of a number; millions are counted, none is listed."""
    pairs = len(classes) * (len(classes) - 1)
    tints = len(COLORS) * (len(COLORS) - 1)
    if task == "single_object":
        return len(classes), lambda i: make_spec([classes[i]])
    if task == "two_object":
        return pairs, lambda i: make_spec(_pair(classes, i))
    if task == "counting":
        return 3 * len(classes), lambda i: make_spec([classes[i // 3]], count=2 + i % 3)
    if task == "colors":
        colored = [(name, color) for name in classes for color in COLORS if color != name]
        return len(colored), lambda i: make_spec(colored[i][:1], colors=colored[i][1:])
    if task == "position":
        relations = tuple(RELATIONS)
        return 4 * pairs, lambda i: make_spec(_pair(classes, i // 4), relation=relations[i % 4])
    return tints * pairs, lambda i: make_spec(
        _pair(classes, i // tints), colors=_pair(COLORS, i % tints)
    )


def _pair(names: Sequence[str], i: int) -> tuple[str, str]:
    """The pair of number `i` among all ordered pairs of different names."""
    first, second = divmod(i, len(names) - 1)
    return names[first], names[second + (second >= first)]
