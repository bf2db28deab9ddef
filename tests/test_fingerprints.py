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
from omegaconf import DictConfig

import harness.cli
from harness.records import Prompt
from harness.runs import spec

KEPT: dict[str, str] = json.loads(Path(__file__).with_name("fingerprints.json").read_text())
"""Options of a run -> its fingerprint, as it was when the list was made."""
FILES = ("benchmark=geneval", "benchmark=tiif", "benchmark=tiif_testmini")
"""Benchmarks whose prompts are files that tests do not have: their configuration is held over a
stub's prompts.
"""


@pytest.fixture(autouse=True, scope="module")
def hydra() -> Iterator[None]:
    harness.cli.enable_plugins()
    Plugins.instance()
    with initialize_config_module("conf", version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def stub() -> Any:
    prompts = [Prompt("stub/0", "a red circle", "one")]
    judge = SimpleNamespace(id="stub-judge")
    return SimpleNamespace(version="stub 1", images=2, judge=judge, prompts=lambda: prompts)


@pytest.mark.parametrize("options", sorted(KEPT))
def test_a_presets_fingerprint_is_the_recorded_one(
    options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = options.split()
    chosen = dict(one.split("=", 1) for one in overrides if "." not in one.partition("=")[0])
    config = compose("config", overrides)
    if "model" in chosen:  # its configuration alone is held, over the embedded model's weights
        embedded = spec.build(
            {k: v for k, v in spec.container(compose("config").model).items() if k != "sampling"},
            device="cpu",
        )
        monkeypatch.setattr(spec, "load_model", lambda *_: embedded)
    if (
        any(option in FILES for option in overrides)
        or options == "benchmark=pictogram"
        or options == "benchmark=tiif_pictogram"
    ):
        build = spec.build

        def build_stub(part: DictConfig, **extra: Any) -> Any:
            return stub() if str(part._target_).startswith("benchmarks.") else build(part, **extra)

        monkeypatch.setattr(spec, "build", build_stub)
    choices = {"method": "plain", "benchmark": "pictogram", **chosen}
    assert spec.Point(config, choices).fingerprint == KEPT[options]
