"""Compare test-time methods for visual autoregressive models on one batched sampler.

`draw` draws an image of a prompt, `load` reads results into pandas frames. The other names are what
the author of a method, benchmark, model or judge needs (docs/extend). They are loaded on first use,
so that `import harness` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harness.packages import pin_own_packages

if TYPE_CHECKING:
    from harness.download import cache_folder as cache_folder
    from harness.drafters.jacobi import Jacobi as Jacobi
    from harness.drafters.jacobi import JacobiWindow as JacobiWindow
    from harness.drawing import Drawing as Drawing
    from harness.drawing import FailedImageError as FailedImageError
    from harness.drawing import draw as draw
    from harness.drawing import release as release
    from harness.engine.acceptance import Draft as Draft
    from harness.engine.acceptance import Drafts as Drafts
    from harness.engine.acceptance import DraftTest as DraftTest
    from harness.engine.acceptance import Front as Front
    from harness.engine.acceptance import Rule as Rule
    from harness.engine.acceptance import SlotTest as SlotTest
    from harness.engine.acceptance import coupled as coupled
    from harness.engine.acceptance import exact as exact
    from harness.engine.acceptance import list_tests as list_tests
    from harness.engine.acceptance import residual_probs as residual_probs
    from harness.engine.acceptance import tested_against as tested_against
    from harness.engine.acceptance import token_prob as token_prob
    from harness.engine.acceptance import verify as verify
    from harness.engine.acceptance import verify_by_depth as verify_by_depth
    from harness.engine.acceptance import verify_chain as verify_chain
    from harness.engine.canvas import Canvas as Canvas
    from harness.engine.draft_trees import Proactive as Proactive
    from harness.engine.draft_trees import Tree as Tree
    from harness.engine.draft_trees import continue_tree as continue_tree
    from harness.engine.draft_trees import paths as paths
    from harness.engine.draft_trees import without_replacement as without_replacement
    from harness.engine.guidance import Guide as Guide
    from harness.engine.guidance import cfg as cfg
    from harness.engine.guidance import unguided as unguided
    from harness.engine.method_spec import DecodingSizes as DecodingSizes
    from harness.engine.probes import Probe as Probe
    from harness.engine.probes import confidence as confidence
    from harness.engine.probes import entropy as entropy
    from harness.engine.rendering import Image as Image
    from harness.engine.session import Decoding as Decoding
    from harness.engine.session import Drafter as Drafter
    from harness.engine.session import EditJudge as EditJudge
    from harness.engine.session import FrontDrafter as FrontDrafter
    from harness.engine.session import Judge as Judge
    from harness.engine.session import Method as Method
    from harness.engine.session import Session as Session
    from harness.engine.session import TokenCountingJudge as TokenCountingJudge
    from harness.judges.narrator import Narrator as Narrator
    from harness.judges.verifier import Verifier as Verifier
    from harness.kernels.noise import ACCEPT as ACCEPT
    from harness.kernels.noise import DRAW as DRAW
    from harness.kernels.noise import RESIDUAL as RESIDUAL
    from harness.kernels.noise import Noise as Noise
    from harness.models import EditsImages as EditsImages
    from harness.models import ImageModel as ImageModel
    from harness.models.raster import Raster as Raster
    from harness.records import Answer as Answer
    from harness.records import Count as Count
    from harness.records import Natural as Natural
    from harness.records import NotNegative as NotNegative
    from harness.records import Positive as Positive
    from harness.records import Prompt as Prompt
    from harness.records import Score as Score
    from harness.records import Share as Share
    from harness.records import SourceImage as SourceImage
    from harness.records import UnansweredError as UnansweredError
    from harness.records import UserError as UserError
    from harness.results.load import load as load
    from harness.runs.benchmark import Aggregates as Aggregates
    from harness.runs.benchmark import Benchmark as Benchmark
    from harness.runs.benchmark import IdentifiedJudge as IdentifiedJudge
    from harness.runs.trace_codec import pack_picture as pack_picture
    from harness.runs.trace_codec import pack_series as pack_series
    from harness.runs.trace_codec import unpack_series as unpack_series

_HOME = {
    "harness.download": ("cache_folder",),
    "harness.drafters.jacobi": ("Jacobi", "JacobiWindow"),
    "harness.drawing": ("Drawing", "FailedImageError", "draw", "release"),
    "harness.engine.acceptance": (
        "Draft", "DraftTest", "Drafts", "Front", "Rule", "SlotTest", "coupled", "exact",
        "list_tests", "residual_probs", "tested_against", "token_prob", "verify",
        "verify_by_depth", "verify_chain",
    ),
    "harness.engine.canvas": ("Canvas",),
    "harness.engine.draft_trees": (
        "Proactive", "Tree", "continue_tree", "paths", "without_replacement",
    ),
    "harness.engine.guidance": ("Guide", "cfg", "unguided"),
    "harness.engine.method_spec": ("DecodingSizes",),
    "harness.engine.probes": ("Probe", "confidence", "entropy"),
    "harness.engine.rendering": ("Image",),
    "harness.engine.session": (
        "Decoding", "Drafter", "EditJudge", "FrontDrafter", "Judge", "Method", "Session",
        "TokenCountingJudge",
    ),
    "harness.judges.narrator": ("Narrator",),
    "harness.judges.verifier": ("Verifier",),
    "harness.kernels.noise": ("ACCEPT", "DRAW", "RESIDUAL", "Noise"),
    "harness.models": ("EditsImages", "ImageModel"),
    "harness.models.raster": ("Raster",),
    "harness.records": (
        "Answer", "Count", "Natural", "NotNegative", "Positive", "Prompt", "Score", "Share",
        "SourceImage", "UnansweredError", "UserError",
    ),
    "harness.results.load": ("load",),
    "harness.runs.benchmark": ("Aggregates", "Benchmark", "IdentifiedJudge"),
    "harness.runs.trace_codec": ("pack_picture", "pack_series", "unpack_series"),
}  # fmt: skip
"""The public names by the module that defines them."""
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE)

pin_own_packages()


def __getattr__(name: str) -> Any:
    """Import a public name when it is used for the first time."""
    if name not in _MODULE:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
