"""Measure what a draft does to the relaxed methods: `python -m harness.training.measure_draft`.

Acceptance and the place of the rejected probability are read off the draft's distributions on
samples of the generator. Then each method draws the same prompts, and its loss is taken against
all images of exact rules in the same file, which have plain's distribution. Every method is written
to `--out` when it is done: the command continues there, and further drafts are measured into the
same file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.arguments import count, explain_mistakes
from harness.drafters import eagle
from harness.drafters.model import DraftModel
from harness.models.pictogram import grammar
from harness.records import UserError
from harness.results.stats import macro_mean, paired_difference
from harness.runs.instantiate import build_object
from harness.training import samples

SPECULATIVE = "methods.speculative.Speculative"
VVS = "methods.vvs.VVS"
LANTERN = {"_target_": "methods.lantern.Lantern", "k": 10, "delta": 0.2, "residual": "code_static"}
PLUS = {"_target_": "methods.lantern.Lantern", "k": 10, "multiplier": 3.0}
THIRD = {"_target_": "methods.vvs.Uniform", "interval": 3}
FOURTH = {"_target_": "methods.vvs.Uniform", "interval": 4}

METHODS: dict[str, dict[str, Any]] = {
    "exact": {"_target_": SPECULATIVE},
    "lantern": {"_target_": SPECULATIVE, "rule": LANTERN},
    "lantern_plus": {"_target_": SPECULATIVE, "rule": {**PLUS, "residual": "code_static"}},
    "vvs_3": {"_target_": VVS, "rule": LANTERN, "schedule": THIRD},
    "vvs_3_cap_2": {"_target_": VVS, "rule": LANTERN, "schedule": THIRD, "cap": 2},
    "vvs_exact_4_cap_1": {"_target_": VVS, "schedule": FOURTH, "cap": 1},
    "vvs_exact_4": {"_target_": VVS, "schedule": FOURTH},
}
"""What is drawn with each draft, beside plain sampling; presets' settings where they have one."""
GAMMA = 4
NEAR = 10
FAR = 50
"""Rejected probability is counted on the nearest codes up to these ranks, and beyond."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the draft's distribution differs from the target's, per token; means of each image."""

    accepted: np.ndarray  # probability that the exact rule accepts
    likeliest: np.ndarray  # rejected mass on the target's likeliest code
    near: np.ndarray  # on its NEAR nearest codes
    far: np.ndarray  # beyond its FAR nearest
    top_1: np.ndarray  # the target's largest probability
    entropy: np.ndarray  # of the target, nats


@explain_mistakes
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m harness.training.measure_draft",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", default=grammar.DEFAULT, help="a set, or the folder of one")
    parser.add_argument("--drafter", choices=("draft", "eagle"), default="draft")
    parser.add_argument("--prompts", type=count, default=102)
    parser.add_argument("--images", type=count, default=2, help="for each prompt")
    parser.add_argument("--plain", type=count, default=4, help="images of plain sampling")
    parser.add_argument(
        "--methods", nargs="*", choices=sorted(METHODS), default=list(METHODS), metavar="METHOD"
    )
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, continued")
    given = parser.parse_args()

    torch.set_num_threads(1)
    bench = samples.Bench(given.weights)
    drafter = new_drafter(given.drafter, bench)
    found = Found(given.out, given.prompts, bench)
    found.measure_plain(given.plain)
    if given.drafter == "draft":
        found.measure_place(drafter.id)
    for name in given.methods:
        found.measure_method(drafter, name, given.images)
    print("\n".join(report(found.content)))


def new_drafter(kind: str, bench: samples.Bench) -> Any:
    """Make the drafter of a weight set: its draft model, or its EAGLE layer."""
    if kind == "eagle":
        return eagle.Eagle(partial(eagle.embedded, bench.weights))
    return DraftModel(model=lambda **_: bench.draft, guided=False)


# --- measuring ------------------------------------------------------------------------------------


class Found:
    """What has been measured so far, in a file: verdicts and counts of each drafter and method.

    Raises UserError for a file of other prompts or another generator.
    """

    def __init__(self, path: Path, prompts: int, bench: samples.Bench) -> None:
        self._path = path
        self._bench = bench
        self._prompts = prompts
        tags = [row["tag"] for row in bench.rows(prompts)]
        of = {"target": bench.model.revision, "tags": tags}
        self.content: dict[str, Any] = {**of, "drawn": {}, "places": {}}
        if path.is_file():
            self.content = json.loads(path.read_text())
            if {key: self.content[key] for key in of} != of:
                raise UserError(
                    f"--out {path} holds other prompts or another generator: name another file"
                )

    def measure_plain(self, images: int) -> None:
        """Draw plain samples, whose tokens are kept, unless the file has them."""
        if "plain" not in self.content["drawn"]:
            self._draw("plain", images, build_object(samples.PLAIN), keep_tokens=True)

    def measure_method(self, drafter: Any, name: str, images: int) -> None:
        """Draw with a method, unless the file has it for this drafter."""
        key = f"{drafter.id} {name}"
        if key not in self.content["drawn"]:
            options = METHODS[name]
            method = build_object(options, drafter=drafter, gamma=GAMMA)
            self._draw(key, images, method)

    def measure_place(self, drafter_id: str) -> None:
        """Compare the distributions of draft and target on the plain samples."""
        if drafter_id in self.content["places"]:
            return
        drawn = self.content["drawn"]["plain"]
        tokens_PIN = torch.tensor(drawn["tokens"])
        texts = [row["prompt"] for row in self._bench.rows(self._prompts)]
        place = compare_distributions(self._bench, texts, tokens_PIN)
        means = {name: getattr(place, name).tolist() for name in Place.__dataclass_fields__}
        self.content["places"][drafter_id] = means
        self._write()

    def _draw(self, key: str, images: int, method: Any, *, keep_tokens: bool = False) -> None:
        drawn = samples.draw(self._bench, self._prompts, images, samples.SCALE, method)
        counts = [drawn_counts(note) for note in drawn.notes]
        entry: dict[str, Any] = {
            "right": drawn.right.astype(int).tolist(),
            **{name: [one[name] for one in counts] for name in counts[0]},
            "target_passes": [usage.target_passes for usage in drawn.usages],
            "skipped": [usage.skipped for usage in drawn.usages],
        }
        if keep_tokens:
            entry["tokens"] = drawn.tokens.tolist()
        self.content["drawn"][key] = entry
        self._write()
        print(f"{key}: {macro_mean(tabulate(self.content, key)):.3f}", flush=True)

    def _write(self) -> None:
        draft = self._path.with_suffix(".tmp")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(self.content))
        os.replace(draft, self._path)


def drawn_counts(notes: Mapping[str, Any]) -> dict[str, float]:
    """Read the accepted tokens, the verifications and the rescued tokens of one image's notes."""
    accepted = notes.get("accepted", [])
    return {
        "accepted": sum(number * times for number, times in enumerate(accepted)),
        "verifications": sum(accepted),
        "rescued": notes.get("rescued", 0),
    }


@torch.no_grad()
def compare_distributions(bench: samples.Bench, texts: Sequence[str], token_PIN: Tensor) -> Place:
    """Compare draft and target on given images of prompts; arrays are [prompts, images]."""
    prompts, images, _ = token_PIN.shape
    rank_VV = code_ranks(bench.model.codebook)
    parts: dict[str, list[Tensor]] = {name: [] for name in Place.__dataclass_fields__}
    for first in range(0, prompts, 8):
        tokens = token_PIN[first : first + 8].flatten(0, 1)
        repeated = [text for text in texts[first : first + 8] for _ in range(images)]
        probs_BNV = samples.teacher_forced(bench.model, repeated, tokens, samples.SCALE)
        draft_BNV = samples.teacher_forced(bench.draft, repeated, tokens, 1.0)
        for name, mean_B in place_rejections(probs_BNV, draft_BNV, rank_VV).items():
            parts[name].append(mean_B)
    return Place(
        **{name: torch.cat(some).view(prompts, images).numpy() for name, some in parts.items()}
    )


def place_rejections(probs_BNV: Tensor, draft_BNV: Tensor, rank_VV: Tensor) -> dict[str, Tensor]:
    """Return the means over an image's tokens of what `Place` lists, [B] each."""
    rejected_BNV = (draft_BNV - probs_BNV).clamp(min=0)
    top_BN, likeliest_BN = probs_BNV.max(-1)
    rank_BNV = rank_VV[likeliest_BN]
    is_near = (rank_BNV >= 1) & (rank_BNV <= NEAR)
    masses = {
        "accepted": torch.minimum(probs_BNV, draft_BNV).sum(-1),
        "likeliest": (rejected_BNV * (rank_BNV == 0)).sum(-1),
        "near": (rejected_BNV * is_near).sum(-1),
        "far": (rejected_BNV * (rank_BNV > FAR)).sum(-1),
        "top_1": top_BN,
        "entropy": torch.special.entr(probs_BNV).sum(-1),
    }
    return {name: mass_BN.mean(-1) for name, mass_BN in masses.items()}


def code_ranks(codebook_Vd: Tensor) -> Tensor:
    """Return the rank of code j among those nearest to code i, int64 [V, V]; 0 is i itself."""
    code_Vd = F.normalize(codebook_Vd.double(), dim=-1)
    distance_VV = torch.cdist(code_Vd, code_Vd, compute_mode="donot_use_mm_for_euclid_dist")
    distance_VV.fill_diagonal_(-1)
    return distance_VV.argsort(dim=1, stable=True).argsort(dim=1)


# --- reporting ------------------------------------------------------------------------------------


def report(content: Mapping[str, Any]) -> Iterator[str]:
    """Render what is in a file as two Markdown tables; intervals are 95 % over prompts."""
    tags = content["tags"]
    yield "| draft | accepted a token | rejected, near | rejected, far | on the likeliest |"
    yield "|---|---|---|---|---|"
    for name, place in content["places"].items():
        accepted = samples.table(rows_of(tags), np.array(place["accepted"]))
        rejected = 1 - np.mean(place["accepted"])
        shares = [np.mean(place[part]) / rejected for part in ("near", "far", "likeliest")]
        cells = " | ".join(f"{share:.3f}" for share in shares)
        yield f"| {name} | {accepted['value'].mean():.3f} | {cells} |"
    yield ""
    pool = pool_exact(content)
    yield f"pool of exact rules: {macro_mean(pool):.3f} ({len(pool)} images)"
    yield ""
    yield "| drafter, method | images | score | loss [95 %] | accepted a round | rescued | passes |"
    yield "|---|---|---|---|---|---|---|"
    for key, entry in content["drawn"].items():
        drawn = tabulate(content, key)
        loss, low, high = paired_difference(pool, drawn)
        rounds = max(1, sum(entry["verifications"]))
        accepted_a_round = sum(entry["accepted"]) / rounds
        numbers = f"{macro_mean(drawn):.3f} | {loss:+.3f} [{low:+.3f}, {high:+.3f}]"
        costs = f"{np.mean(entry['rescued']):.1f} | {np.mean(entry['target_passes']):.1f}"
        yield f"| {key} | {len(drawn)} | {numbers} | {accepted_a_round:.3f} | {costs} |"


def pool_exact(content: Mapping[str, Any]) -> pd.DataFrame:
    """Join the verdicts of plain sampling and of exact rules, which have the same distribution."""
    keys = [key for key in content["drawn"] if key == "plain" or key.endswith(" exact")]
    rights = [np.array(content["drawn"][key]["right"]) for key in keys]
    return samples.table(rows_of(content["tags"]), np.concatenate(rights, 1))


def tabulate(content: Mapping[str, Any], key: str) -> pd.DataFrame:
    """Arrange the verdicts of one method as the statistics want them."""
    right = np.array(content["drawn"][key]["right"])
    return samples.table(rows_of(content["tags"]), right)


def rows_of(tags: Sequence[str]) -> list[Any]:
    """Make rows of which only the task is known."""
    return [{"tag": tag} for tag in tags]


if __name__ == "__main__":
    sys.exit(main())
