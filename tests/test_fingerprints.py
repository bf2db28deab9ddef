"""Fingerprints of all presets stay what they were: a refactoring invalidates nobody's results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from harness.records import Prompt
from harness.runs import spec

RECORDED: dict[str, str] = json.loads(Path(__file__).with_name("fingerprints.json").read_text())
"""Options of a run -> its fingerprint, as it was when the list was made."""
STUBBED = {
    "benchmark=geneval",
    "benchmark=pictogram",
    "benchmark=tiif",
    "benchmark=tiif_pictogram",
    "benchmark=tiif_testmini",
}
"""Benchmarks whose configuration is held over a stub's prompts: some read files that tests lack."""


@pytest.fixture(autouse=True, scope="module")
def hydra() -> Iterator[None]:
    Plugins.instance()
    with initialize_config_module("conf", version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def stub_benchmark() -> SimpleNamespace:
    return SimpleNamespace(
        name="stub",
        version="stub 1",
        images=2,
        judge=SimpleNamespace(id="stub-judge"),
        prompts=lambda: [Prompt("stub/0", "a red circle", "one")],
        score=lambda items: [],
    )


def is_stubbed(options: str) -> bool:
    """Whether a benchmark is among the options; the embedded ones are if they are the only one."""
    named = STUBBED & set(options.split())
    embedded = {name for name in named if "pictogram" in name}
    return bool(named - embedded) or options in embedded


@pytest.mark.parametrize("options", sorted(RECORDED))
def test_a_presets_fingerprint_is_the_recorded_one(
    options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = options.split()
    chosen = dict(one.split("=", 1) for one in overrides if "." not in one.partition("=")[0])
    config = compose("config", overrides)
    build_object = spec.build_object

    if "model" in chosen:  # its configuration alone is held, over the embedded model's weights
        embedded_config = spec.resolve_config(compose("config").model)
        del embedded_config["sampling"]
        embedded = build_object(embedded_config, device="cpu")
        monkeypatch.setattr(spec, "load_model", lambda *_: embedded)

    if is_stubbed(options):

        def build_stub(part: Any, **extra: Any) -> Any:
            is_benchmark = str(part._target_).startswith("benchmarks.")
            return stub_benchmark() if is_benchmark else build_object(part, **extra)

        monkeypatch.setattr(spec, "build_object", build_stub)

    choices = {"method": "plain", "benchmark": "pictogram", **chosen}
    assert spec.build_run_spec(config, choices).fingerprint == RECORDED[options]
