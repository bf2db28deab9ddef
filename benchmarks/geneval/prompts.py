"""Read GenEval's metadata files: JSON Lines to prompts, with every rule of the schema checked.

A row that the evaluator would understand differently from its author (a misspelt key, a clause that
refers to a later one) is refused: it would not fail later, it would give a wrong score.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.geneval.verdict import COLORS, RELATIONS
from benchmarks.jsonl import bad_line, read_objects
from harness.download import fetch, file_sha256
from harness.records import Prompt, UserError

log = logging.getLogger(__name__)

COMMIT = "af4902f24d3ca90ebbb446dd9891a59e0f82725f"
REPOSITORY = f"https://raw.githubusercontent.com/djghosh13/geneval/{COMMIT}"
URL = f"{REPOSITORY}/prompts/evaluation_metadata.jsonl"
SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def read_prompts(path: Path | str, classes: Collection[str] | None = None) -> list[Prompt]:
    """Read the prompts of a metadata file; ids are row indices ("geneval/00042").

    A prompt's `spec` is the whole row. With `classes`, a row that names any other class is refused.
    Raises UserError naming file, line and problem.
    """
    path = Path(path)
    prompts = []
    for number, row in read_objects(path):
        if problem := row_problem(row, classes):
            raise bad_line(path, number, problem)
        if not row["include"] and not row.get("exclude"):
            problem = "the row has no clause, so that any image would be correct"
            raise bad_line(path, number, problem)
        prompts.append(Prompt(f"geneval/{number - 1:05d}", row["prompt"], row["tag"], row))
    return prompts


def locate_metadata(metadata: str | None, allow_other_version: bool) -> tuple[Path, str]:
    """Find the metadata file and name its version.

    None or "official" is the reference's own file, from the cache or a download pinned by its hash;
    its version is the reference's commit. Any other file needs `allow_other_version` and has its
    own hash as version; without, it raises UserError.
    """
    if metadata in (None, "official"):
        remedy = "set benchmark.metadata=PATH"
        return fetch(URL, SHA256, "geneval/evaluation_metadata.jsonl", remedy), COMMIT[:7]

    path = Path(str(metadata)).expanduser()
    found = file_sha256(path)
    if found == SHA256:
        return path, COMMIT[:7]
    if not allow_other_version:
        raise UserError(
            f"{path} has sha256 {found}, GenEval's metadata at {COMMIT[:7]} has {SHA256}: "
            "take that file, or set benchmark.allow_other_version=true, "
            "which marks the version of every row"
        )
    return path, f"other-{found[:8]}"


def select_by_classes(
    prompts: Sequence[Prompt], classes: Collection[str], others: str, source: str
) -> list[Prompt]:
    """Select the prompts that name no class but these, and warn of the number left out.

    For the messages, `others` describes the other classes ("unknown to ...") and `source` names
    where the prompts are from. Raises UserError if no prompt is left.
    """
    allowed = set(classes)
    chosen = [prompt for prompt in prompts if classes_of(prompt) <= allowed]
    if not chosen:
        raise UserError(f"{source}: each of its {len(prompts)} prompts names a class {others}")

    unknown = Counter(name for prompt in prompts for name in classes_of(prompt) - allowed)
    if unknown:
        examples = ", ".join(name for name, _ in unknown.most_common(5))
        log.warning(
            "%s: %d of %d prompts left out: they name %d classes %s (%s%s)",
            source,
            len(prompts) - len(chosen),
            len(prompts),
            len(unknown),
            others,
            examples,
            ", ..." if len(unknown) > 5 else "",
        )
    return chosen


def classes_of(prompt: Prompt) -> frozenset[str]:
    """Collect the classes that a prompt's clauses name."""
    clauses = [*prompt.spec.get("include", ()), *prompt.spec.get("exclude", ())]
    return frozenset(clause["class"] for clause in clauses)


def row_problem(row: Mapping[str, Any], classes: Collection[str] | None = None) -> str | None:
    """Describe what is wrong with a metadata row; None if nothing is."""
    if problem := _key_problem(row, needed=("tag", "include", "prompt"), optional=("exclude",)):
        return problem
    if row["tag"] not in TASKS:
        return f"unknown tag {row['tag']!r}; the tags are {', '.join(TASKS)}"
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        return f"'prompt' must be a text, found {row['prompt']!r}"
    for kind in ("include", "exclude"):
        if not isinstance(row.get(kind, []), list):
            return f"'{kind}' must be a list of clauses, found {row[kind]!r}"

    for kind in ("include", "exclude"):
        for index, clause in enumerate(row.get(kind, [])):
            if problem := _clause_problem(clause, kind, index, classes):
                return f"{kind} clause {index}: {problem}"
    return None


def _clause_problem(
    clause: object, kind: str, index: int, classes: Collection[str] | None
) -> str | None:
    if not isinstance(clause, dict):
        return f"expected a JSON object, found {clause!r}"
    optional = ("color", "position") if kind == "include" else ()
    if problem := _key_problem(clause, needed=("class", "count"), optional=optional):
        return problem

    name = clause["class"]
    if not isinstance(name, str) or not name:
        return f"'class' must be a name, found {name!r}"
    if classes is not None and name not in classes:
        return f"unknown class {name!r}"

    count = clause["count"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        return f"'count' must be a whole number of at least 1, found {count!r}"

    if "color" in clause and clause["color"] not in COLORS:
        return f"unknown color {clause['color']!r}; the colors are {', '.join(COLORS)}"
    if "position" in clause:
        return _position_problem(clause["position"], index)
    return None


def _position_problem(position: object, index: int) -> str | None:
    if not isinstance(position, list) or len(position) != 2:
        return f"'position' must be [relation, clause index], found {position!r}"
    relation, target = position
    if relation not in RELATIONS:
        return f"unknown relation {relation!r}; the relations are {', '.join(RELATIONS)}"
    if not isinstance(target, int) or isinstance(target, bool) or target < 0:
        return f"the target of 'position' must be a clause index, found {target!r}"
    if target >= index:
        return f"'position' refers to clause {target}, which is not an earlier one"
    return None


def _key_problem(
    value: Mapping[str, Any], needed: Collection[str], optional: Collection[str]
) -> str | None:
    if missing := [key for key in needed if key not in value]:
        return f"'{missing[0]}' is missing"
    if unknown := [key for key in value if key not in needed and key not in optional]:
        return f"unknown key {unknown[0]!r}; the keys are {', '.join([*needed, *optional])}"
    return None
