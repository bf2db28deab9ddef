"""Compare test-time methods for visual autoregressive models on one batched sampler.

These names are what a method author needs. They are loaded on first use, so that `import harness` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.canvas import Canvas as Canvas
    from harness.download import cache_folder as cache_folder
    from harness.hooks import Draft as Draft
    from harness.hooks import Drafts as Drafts
    from harness.hooks import Guide as Guide
    from harness.hooks import Probe as Probe
    from harness.hooks import Rule as Rule
    from harness.hooks import cfg as cfg
    from harness.hooks import confidence as confidence
    from harness.hooks import coupled as coupled
    from harness.hooks import entropy as entropy
    from harness.hooks import exact as exact
    from harness.hooks import faced as faced
    from harness.hooks import leftover as leftover
    from harness.hooks import own as own
    from harness.hooks import unguided as unguided
    from harness.hooks import verify as verify
    from harness.hooks import verify_chain as verify_chain
    from harness.judges.verifier import Verifier as Verifier
    from harness.models import ImageModel as ImageModel
    from harness.noise import Noise as Noise
    from harness.notes import pack_picture as pack_picture
    from harness.notes import pack_series as pack_series
    from harness.notes import unpack_series as unpack_series
    from harness.records import UserError as UserError
    from harness.rendering import Image as Image
    from harness.session import Decoding as Decoding
    from harness.session import Drafter as Drafter
    from harness.session import Judge as Judge
    from harness.session import Method as Method
    from harness.session import Session as Session
    from harness.trees import Tree as Tree
    from harness.trees import paths as paths
    from harness.trees import without_replacement as without_replacement

_HOME = {
    "harness.canvas": ("Canvas",),
    "harness.download": ("cache_folder",),
    "harness.hooks": (
        "Draft", "Drafts", "Guide", "Probe", "Rule", "cfg", "confidence", "coupled", "entropy", "exact",
        "faced", "leftover", "own", "unguided", "verify", "verify_chain",
    ),
    "harness.judges.verifier": ("Verifier",),
    "harness.models": ("ImageModel",),
    "harness.noise": ("Noise",),
    "harness.notes": ("pack_picture", "pack_series", "unpack_series"),
    "harness.records": ("UserError",),
    "harness.rendering": ("Image",),
    "harness.session": ("Decoding", "Drafter", "Judge", "Method", "Session"),
    "harness.trees": ("Tree", "paths", "without_replacement"),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
