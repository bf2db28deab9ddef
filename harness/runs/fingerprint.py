"""Name results: what a run's fingerprint is made of, and what it leaves out.

A fingerprint is eight hexadecimal digits over everything that images and scores depend on. Commands
with equal fingerprints share one run folder. Classes and options that were renamed are still
recorded under their first name, so that an earlier folder stays the folder of the same command.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra

from harness.records import Prompt, digest, dump

SCHEMA = 1
"""Format of run folders, part of every fingerprint. Folders of a newer format are refused."""

CODE = 1
"""Version of the project's own code as results see it: raised whenever golden tokens change.

A change of the code that changes no token leaves it as it is, so that runs stay what they are. The
first version is left out of fingerprints.
"""

RECORDED_AS = {
    "benchmarks.tiif.vqa_model.VQAJudge": "benchmarks.tiif.interview.Interview",
    "benchmarks.tiif_pictogram.detector_vqa.DetectorVQA": "benchmarks.tiif_pictogram.looking.Eyes",
    "harness.engine.draft_trees.Dynamic": "harness.trees.Dynamic",
    "harness.engine.draft_trees.Static": "harness.trees.Static",
}
"""Classes that have moved, and the names under which fingerprints know them for good."""

ADDED: dict[str, dict[str, Any]] = {"methods.gridar.GridAR": {"released_fallback": False}}
"""Options that a class got after runs of it were recorded, with the value that changed no run.

With this value they are left out, so that an earlier folder stays the folder of the same command.
"""

SIZES_RECORDED_AS = {"tokens_per_step": "width", "tree_capacity": "room"}
"""Sizes of the sampler, and the names under which fingerprints know them for good."""

REACHING = frozenset({"give_up_after", "self_test"})
"""Options that say how an endpoint is reached, and that no fingerprint has ever known.

They are left out wherever they stand, in a method's judges too.
"""

PLACES_OF_JUDGES = REACHING | frozenset(
    {
        "device",
        "base_url",
        "needs_key",
        "timeout_s",
        "retries",
        "backoff_s",
        "longest_pause_s",
        "concurrency",
    }
)
"""Options of a judge, at any depth, that say where it runs or how it is reached."""
PLACES = PLACES_OF_JUDGES | {"metadata", "checkpoint", "images_of", "vocabulary", "detections"}
"""Options of a benchmark, at any depth, that say where something is or how it is reached.

They name no result: the content is named by the benchmark's version, prompts and judge id.
"""
PLACES_OF: dict[str, frozenset[str]] = {
    "benchmarks.coco.benchmark.Coco": frozenset({"coco", "reference", "neighbours"}),
    "benchmarks.pie_bench.networks.ClipSimilarity": frozenset({"model", "revision"}),
    "benchmarks.pie_bench.networks.DinoKeys": frozenset({"model", "revision"}),
    "benchmarks.prompts.OwnPrompts": frozenset({"file", "prompts_list", "category"}),
}
"""Such options of one class, whose names mean other things in other classes."""
RECORDED_PLACES = frozenset(
    {"device", "base_url", "timeout_s", "retries", "backoff_s", "concurrency"}
)
"""Those of judges that earlier fingerprints of methods hold."""


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits that name `identity`, everything a result depends on."""
    code = {} if CODE == 1 else {"code": CODE}
    named = dump({"schema": SCHEMA, **code, **_restore_class_names(identity)})
    return hashlib.blake2b(named.encode(), digest_size=4).hexdigest()


def restore_size_names(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sampler's sizes under the names that fingerprints know them by."""
    return {SIZES_RECORDED_AS.get(name, name): size for name, size in sizes.items()}


def drop_places(settings: Any) -> Any:
    """Return a benchmark's settings without those that say where something is (`PLACES`)."""
    if not isinstance(settings, dict):
        return settings
    places = PLACES | PLACES_OF.get(str(settings.get("_target_")), frozenset())
    return {name: drop_places(value) for name, value in settings.items() if name not in places}


def default_places(part: Any) -> Any:
    """Return a method's settings with each place at its default, so that it names no result.

    A place is an option of a judge that says where it runs or how it is reached. The ones in
    `RECORDED_PLACES` stand in the fingerprints of earlier runs, and stay there with the default of
    the class that reads them; others are left out.
    """
    if isinstance(part, list):
        return [default_places(inner) for inner in part]
    if not isinstance(part, Mapping):
        return part
    settled = {name: default_places(value) for name, value in part.items()}
    reached = PLACES_OF_JUDGES & part.keys()
    if reached and "_target_" in part:
        defaults = _read_defaults(str(part["_target_"]))
        for name in reached:
            del settled[name]
            if name in RECORDED_PLACES:
                settled[name] = defaults.get(name)
    return settled


def name_paths_by_content(settings: Any) -> Any:
    """Return settings in which a path of a file or folder that is there stands as its content.

    So other weights under the same path are another run, and the same weights elsewhere are not.
    Names without a separator, such as those of shipped weights, are no paths.
    """
    if isinstance(settings, Mapping):
        return {key: name_paths_by_content(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [name_paths_by_content(value) for value in settings]
    if isinstance(settings, str) and os.sep in settings and "\n" not in settings:
        path = Path(settings).expanduser()
        with suppress(OSError):  # a name that is too long is no path
            if path.exists():
                from harness.models.checkpoint import content_of  # which imports torch

                return f"content {content_of(path)}"
    return settings


@lru_cache
def _read_defaults(target: str) -> Mapping[str, Any]:
    """Read the defaults of the options of a class or function."""
    parameters = inspect.signature(hydra.utils.get_object(target)).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def hash_prompts(prompts: Iterable[Prompt]) -> str:
    """Return the sha256 of all that prompts ask for, answer keys included."""
    return digest(dump([_identify_prompt(prompt) for prompt in prompts]).encode())


def _identify_prompt(prompt: Prompt) -> list[Any]:
    """List what names a prompt; weight and cluster only where they are set."""
    identity: list[Any] = [prompt.id, prompt.text, prompt.category, dict(prompt.spec)]
    return [*identity, prompt.extra_fields] if prompt.extra_fields else identity


def _restore_class_names(value: Any) -> Any:
    """Return the same values, with the recorded name at each `_target_` whose class has moved.

    Options that no fingerprint knows are left out of whatever has a `_target_`.
    """
    if isinstance(value, Mapping):
        unknown = _list_unknown_options(value)
        known = {key: inner for key, inner in value.items() if key not in unknown}
        return {key: _restore_entry(key, inner) for key, inner in known.items()}
    if isinstance(value, list | tuple):
        return [_restore_class_names(inner) for inner in value]
    return value


def _list_unknown_options(part: Mapping[Any, Any]) -> set[str]:
    """List the options of a part that fingerprints do not know: those of `REACHING` and `ADDED`."""
    if "_target_" not in part:
        return set()
    unknown = set(REACHING)
    for option, default in ADDED.get(part["_target_"], {}).items():
        if option in part and part[option] == default:
            unknown.add(option)
    return unknown


def _restore_entry(key: Any, value: Any) -> Any:
    if key == "_target_":
        return RECORDED_AS.get(value, value)
    return _restore_class_names(value)
