"""Every drafter's configuration builds what it names, and drafts for its own target only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from harness.drafters.eagle import Eagle
from harness.drafters.model import DraftModel
from harness.models.pictogram.generator import Pictogram
from harness.records import UserError

FOLDER = Path(__file__).parent.parent / "conf/drafter"
DRAFTERS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def build_drafter(*overrides: str) -> DraftModel | Eagle:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", list(overrides)).method.drafter
        return instantiate(config)


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_drafter_composes(name: str) -> None:
    drafter = build_drafter("method=speculative", f"drafter@method.drafter={name}")
    assert isinstance(drafter, DraftModel | Eagle)


def test_the_embedded_draft_fits_the_embedded_generator_and_no_other() -> None:
    drafter = build_drafter("method=speculative")
    target = Pictogram()
    drafter.expect_target(target)
    assert drafter.id.startswith("pictogram_80-")

    codes = target.vq.quantize.embedding.weight
    codes.data = torch.randn_like(codes)
    with pytest.raises(UserError, match="another tokenizer than pictogram_80's"):
        drafter.expect_target(target)


def test_the_embedded_eagle_fits_the_embedded_generator_and_no_other() -> None:
    drafter = build_drafter("method=eagle")
    target = Pictogram()
    drafter.expect_target(target)
    assert drafter.id.startswith("eagle-")

    target.revision = "another"
    with pytest.raises(UserError, match="train it again"):
        drafter.expect_target(target)
