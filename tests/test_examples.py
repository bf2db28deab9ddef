"""The examples of docs/extend run by the very commands of their pages, which show their code."""

from __future__ import annotations

import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from runs import harness
from toy import ToyModel, draw, jobs

from harness.engine.guidance import Sampling
from harness.records import SampleRecord, UserError
from harness.runs.spec import load_configured_model
from methods.plain import Plain

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs/extend").glob("*.md"))


def read_command(page: Path) -> list[str]:
    """Read the arguments of the one command of a page."""
    (command,) = re.findall(r"^python -m harness (.+)$", page.read_text(), re.MULTILINE)
    return shlex.split(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_command_of_a_page_runs_its_example(page: Path, tmp_path: Path) -> None:
    stages = "stages=[generate,score]"  # the report has tests of its own
    code, output = harness(ROOT, *read_command(page), f"results={tmp_path}", stages)
    assert code == 0, output
    (journal,) = tmp_path.rglob("records-0.jsonl")
    records = [SampleRecord.from_json(line) for line in journal.read_text().splitlines()]
    assert records and all(record.status == "done" for record in records)
    (scores,) = tmp_path.rglob("scores*.jsonl")
    assert len(scores.read_text().splitlines()) == len(records)
    config = (journal.parent / "config.yaml").read_text()
    assert re.search(r"plugins:\n +\w+: [0-9a-f]{16}", config), "its own code names the result"
    for record in records:
        if page.stem == "method":
            assert len(record.notes["scores"]) == 4
            assert record.usage.discarded == 3 * 72  # halves of the other three
        if page.stem == "judge":
            assert record.notes["chosen"] == _argmax(record.notes["scores"])
    if page.stem == "benchmark":
        values = {json.loads(line)["value"] for line in scores.read_text().splitlines()}
        assert values <= {0.0, 0.5, 1.0}


def _argmax(scores: list[float]) -> int:
    return scores.index(max(scores))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_its_example_as_it_is(page: Path) -> None:
    files = sorted((ROOT / "examples" / page.stem).rglob("*.[py]*"))
    shown = [path for path in files if path.suffix in (".py", ".yaml")]
    assert len(shown) == 2
    for path in shown:
        assert path.read_text() in page.read_text(), path


@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_hugging_face_decoder_is_drawn_from_by_its_own_probabilities(
    key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities of what was drawn are those that transformers computes by itself."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "examples/model")])
    import hugging_face
    from hugging_face import TEXT, HuggingFaceModel

    shared = partial(hugging_face.LlamaConfig, num_key_value_heads=key_heads)
    monkeypatch.setattr(hugging_face, "LlamaConfig", shared)
    grouped = partial(hugging_face.TrunkSpec, groups=key_heads)
    monkeypatch.setattr(hugging_face, "TrunkSpec", grouped)

    class Keeping(Plain):
        async def generate(self, prompt, s):  # type: ignore[no-untyped-def]
            canvas = await super().generate(prompt, s)
            s.note(log_probs=list(canvas.log_probs))
            return canvas

    model = HuggingFaceModel()
    options = {"model": model, "sampling": Sampling()}
    done = draw(Keeping(), jobs(["a red cat", "two dogs"]), **options)  # type: ignore[arg-type]
    llama = HuggingFaceModel().llama
    llama.config._attn_implementation = "eager"
    for delivery in done.values():
        text = list(delivery.job.prompt.text.encode())
        ids = torch.tensor([text + [TEXT + token for token in delivery.tokens]])
        logits = llama(ids).logits[0, len(text) - 1 : -1, TEXT:]
        expected = logits.log_softmax(-1).gather(1, ids[0, len(text) :, None] - TEXT)[:, 0]
        drawn = torch.tensor(delivery.notes["log_probs"])
        torch.testing.assert_close(drawn, expected, atol=1e-3, rtol=1e-3)


def test_a_grid_that_does_not_hold_the_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.runs.spec.load_model", lambda *_: ToyModel(grid=(4, 4)))
    monkeypatch.setattr(ToyModel, "num_tokens", 15)
    config = OmegaConf.create({"model": {"_target_": "x", "sampling": {}}, "device": "cpu"})
    with pytest.raises(UserError, match=r"grid of 4 x 4 does not hold num_tokens=15"):
        load_configured_model(config)
