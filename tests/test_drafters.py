"""Every drafter's configuration builds what it names; published ones ask for their weights in one
line.
"""

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

DRAFTERS = sorted(
    path.stem for path in (Path(__file__).parent.parent / "conf/drafter").glob("*.yaml")
)


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_drafter_composes(name: str) -> None:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(
            "config", ["method=speculative", f"drafter@method.drafter={name}"]
        ).method.drafter
    assert isinstance(instantiate(config), DraftModel | Eagle)


def test_the_embedded_draft_fits_the_embedded_generator_and_no_other() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        drafter = instantiate(compose("config", ["method=speculative"]).method.drafter)
    target = Pictogram()
    drafter.expect_target(target)
    assert drafter.id.startswith("pictogram_80-")
    target.vq.quantize.embedding.weight.data = torch.randn_like(target.vq.quantize.embedding.weight)
    with pytest.raises(UserError, match="another tokenizer than pictogram_80's"):
        drafter.expect_target(target)


def test_the_embedded_eagle_fits_the_embedded_generator_and_no_other() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        drafter = instantiate(compose("config", ["method=eagle"]).method.drafter)
    target = Pictogram()
    drafter.expect_target(target)
    assert drafter.id.startswith("eagle-")
    target.revision = "another"
    with pytest.raises(UserError, match="train it again"):
        drafter.expect_target(target)
