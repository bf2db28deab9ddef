"""Read the prompt lists of T2I-CompBench++, and what its evaluators derive from each prompt.

The lists are downloaded, pinned by their hashes. The derived values (noun phrases, objects, texts)
are shipped, keyed by the prompt's hash, so that no run needs the parser that made them: spaCy 3.8.7
with en_core_web_sm 3.8.0. Other versions of it find other phrases. Lists of one's own are parsed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks.t2i_compbench.parser import Parser, derive_parse
from benchmarks.t2i_compbench.spatial import RELATIONS_2D, RELATIONS_3D, find_relation
from harness.download import fetch, file_sha256
from harness.records import Prompt, UserError

COMMIT = "1b7094991a57f3c22abdd4f6e8ba6c1a15517073"
OLDER_COMMIT = "7728deac05e17903b3145befd9b7207c7c019573"
"""The commit before five colour prompts changed (2025-09-03); GridAR was measured on it."""
ADDRESS = "https://raw.githubusercontent.com/Karine-Huang/T2I-CompBench/{commit}/{path}"
FOLDER = "examples/dataset"
REMEDY = "set benchmark.metadata=PATH to the repository's folder examples/dataset"
PARSER = "parses-3.8"
"""The parser, as versions name it."""
SHA256 = {
    "color": "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
    "shape": "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
    "texture": "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
    "spatial": "8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988",
    "3d_spatial": "c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9",
    "numeracy": "dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe",
    "non_spatial": "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
    "complex": "1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4",
}
"""The list of each category."""
OLDER_COLOR_SHA256 = "1e37a12c1861bf6b11623eaffb0bf6d6eeea9702caf45b95d040f1721bba7f4f"
CATEGORIES = tuple(SHA256)
COLOR_LISTS = ("current", "older")


def read_prompts(
    categories: Sequence[str], color_list: str, metadata: str | None
) -> tuple[list[Prompt], str]:
    """Read the prompts of some categories, and name the version of the lists.

    `metadata` is the repository's folder of lists; None is the cache, then the network. Raises
    UserError for an unknown category, a list with another hash, or a prompt without a parse.
    """
    _check_categories(categories)
    if color_list not in COLOR_LISTS:
        raise UserError(f"benchmark.color_list={color_list}: choose from {', '.join(COLOR_LISTS)}")

    prompts: list[Prompt] = []
    for category in categories:
        is_older = category == "color" and color_list == "older"
        path = _locate_list(category, is_older, metadata)
        for index, text in enumerate(_read_lines(path)):
            key = derive_key(category, text)
            prompts.append(Prompt(f"t2i_compbench/{category}/{index}", text, category, key))
    version = f"{COMMIT[:8]}+{PARSER}"
    if "color" in categories and color_list == "older":
        version += f"+color-{OLDER_COMMIT[:8]}"
    return prompts, version


def read_own_prompts(
    categories: Sequence[str] | None, folder: str | None
) -> tuple[list[Prompt], str]:
    """Read prompt lists of one's own, parse them, and name their version by hash and parser.

    They have the names of the reference's lists, such as color_val.txt; `categories` None takes
    every list that is in the folder. Raises UserError for a prompt that cannot be scored.
    """
    if folder is None:
        raise UserError(
            "prompts of your own: set benchmark.metadata=PATH to a folder with lists of them, "
            f"{', '.join(f'{category}_val.txt' for category in CATEGORIES)}; one is enough"
        )
    root = Path(folder).expanduser()
    if categories is None:
        chosen = [name for name in CATEGORIES if (root / f"{name}_val.txt").is_file()]
        if not chosen:
            raise UserError(f"benchmark.metadata={folder}: no list is there, such as color_val.txt")
    else:
        _check_categories(categories)
        chosen = list(categories)

    parser = Parser()
    prompts: list[Prompt] = []
    for category in chosen:
        path = root / f"{category}_val.txt"
        if not path.is_file():
            raise UserError(f"benchmark.metadata={folder}: {path.name} is not there")
        for index, text in enumerate(_read_lines(path)):
            try:
                key = _parse_prompt(category, text, parser)
            except ValueError as error:
                raise UserError(f"{path}, prompt {index + 1}, {text[:60]!r}: {error}") from None
            prompts.append(Prompt(f"t2i_compbench/{category}/{index}", text, category, key))
    if not prompts:
        raise UserError(f"benchmark.metadata={folder}: the lists have no prompt")
    written = "\n".join(f"{prompt.category}/{prompt.text}" for prompt in prompts)
    return prompts, f"own-{hash_prompt(written)[:8]}+{parser.id}"


def derive_key(category: str, text: str) -> dict[str, Any]:
    """Derive what the rules of a category need from a prompt.

    `phrases` are asked about; `objects` stand in a `relation` (absent where they are undefined);
    `counts` are numbers of objects; `clip_text` is compared with the image; `kind` says how a
    complex prompt's parts are averaged; `findable` is False where the official detector has no
    class of an object's name. Raises UserError for a prompt that is not official.
    """
    parse = load_parses()[category].get(hash_prompt(text))
    if parse is None:
        raise UserError(
            f"{text[:60]!r} is no official prompt of category {category}: the parses of those are "
            "shipped; for others take benchmark=t2i_compbench_own"
        )
    return _complete_key(category, text, parse)


def _parse_prompt(category: str, text: str, parser: Parser) -> dict[str, Any]:
    """Derive what `derive_key` does from a prompt of one's own. Raises ValueError if that fails."""
    if "_" in text or "/" in text:
        raise ValueError("it names files in the reference's layout: take out '_' and '/'")
    parse = derive_parse(category, text, parser.parse(text))
    if "objects" in parse:
        parse["findable"] = are_findable(category, parse["objects"])
    return _complete_key(category, text, parse)


def _complete_key(category: str, text: str, parse: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a parse what needs no parser."""
    key: dict[str, Any] = dict(parse)
    if category in ("spatial", "complex"):
        key["relation"] = find_relation(text, RELATIONS_2D)
    if category == "3d_spatial":
        key["relation"] = find_relation(text, RELATIONS_3D)
    if category == "non_spatial":
        key["clip_text"] = text
    return key


def are_findable(category: str, objects: Sequence[str]) -> bool:
    """Tell whether the official detector has classes of these names, as a category compares them.

    Positions in the plane need equal names, in depth it is enough that a class contains the name.
    """
    names = load_class_names()
    if category == "3d_spatial":
        return all(any(one in name for name in names) for one in objects)
    return all(one in names for one in objects)


@cache
def load_parses() -> Mapping[str, Mapping[str, Any]]:
    """Load the parses of all official prompts: category -> hash of the prompt -> parse."""
    text = (resources.files(__package__) / "parses.json").read_text(encoding="utf-8")
    parses: Mapping[str, Mapping[str, Any]] = json.loads(text)
    return parses


@cache
def load_class_names() -> frozenset[str]:
    """Load the names of the official detector's classes, as the reference's evaluators see them."""
    text = (resources.files(__package__) / "class_names.json").read_text(encoding="utf-8")
    return frozenset(json.loads(text))


def hash_prompt(text: str) -> str:
    """Return the sixteen hexadecimal digits that a prompt's parse is kept under."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def can_be_found(prompt: Prompt) -> bool:
    """Tell whether the official detector can find a prompt's objects at all."""
    if prompt.category in ("spatial", "3d_spatial"):
        return bool(prompt.spec.get("findable"))
    return True


def _check_categories(categories: Sequence[str]) -> None:
    for category in categories:
        if category not in SHA256:
            raise UserError(
                f"benchmark.categories: {category!r} is none of {', '.join(CATEGORIES)}"
            )
    if not categories or len(set(categories)) < len(categories):
        raise UserError(f"benchmark.categories={list(categories)}: name each one once")


def _locate_list(category: str, is_older: bool, metadata: str | None) -> Path:
    """Find a category's list; its hash is checked wherever it comes from."""
    name = f"{category}_val.txt"
    sha256 = OLDER_COLOR_SHA256 if is_older else SHA256[category]
    commit = OLDER_COMMIT if is_older else COMMIT
    if metadata is None:
        url = ADDRESS.format(commit=commit, path=f"{FOLDER}/{name}")
        return fetch(url, sha256, f"t2i_compbench/{commit[:8]}/{name}", REMEDY)
    path = Path(metadata).expanduser() / name
    if not path.is_file():
        raise UserError(f"benchmark.metadata={metadata}: {name} is not there; {REMEDY}")
    found = file_sha256(path)
    if found != sha256:
        raise UserError(
            f"{path} has sha256 {found}, the list of {commit[:8]} has {sha256}: take that one"
        )
    return path


def _read_lines(path: Path) -> list[str]:
    """Read the prompts of a list: line ends differ between lists, and some lack the last one."""
    lines = path.read_bytes().decode("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]
