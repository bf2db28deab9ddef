"""Parse prompts with spaCy, as the reference does: only for prompts that have no shipped parse.

The reference pins spaCy's model en_core_web_sm at 3.5.0; the shipped parses were made with 3.8.0,
which is pinned here. Another version finds other phrases, so the version of the run names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.optional import require
from benchmarks.t2i_compbench.complex_prompts import drop_adjectives
from benchmarks.t2i_compbench.numeracy import class_of, find_counts
from benchmarks.t2i_compbench.questions import select_phrases
from benchmarks.t2i_compbench.spatial import (
    RELATIONS_2D,
    RELATIONS_3D,
    Objects,
    find_complex_objects,
    find_objects,
    find_relation,
)
from harness.records import UserError

MODEL = "en_core_web_sm"
ADDRESS = (
    "https://github.com/explosion/spacy-models/releases/download/en_core_web_sm-3.8.0/"
    "en_core_web_sm-3.8.0-py3-none-any.whl"
    "#sha256=1932429db727d4bff3deed6b34cfc05df17794f4a52eeb26cf8928f7c1a0fb85"
)
"""The model that the shipped parses were made with; no package index has it under this name."""


@dataclass(frozen=True, slots=True)
class ParsedText:
    """What spaCy says of a prompt: its noun chunks, and its words with their parts of speech."""

    noun_chunks: tuple[str, ...]
    tokens: tuple[tuple[str, str], ...]


class Parser:
    """Parse with spaCy's small English model.

    Raises UserError with the command to type where one of the two is not installed.
    """

    def __init__(self) -> None:
        require("spacy", extra="t2i_compbench")
        import spacy

        try:
            self._pipeline: Any = spacy.load(MODEL)
        except OSError:
            raise UserError(
                f"spaCy has no model {MODEL}, which parses prompts: pip install '{ADDRESS}'"
            ) from None
        self.id = f"spacy-{spacy.__version__}-{MODEL}-{self._pipeline.meta['version']}"

    def parse(self, text: str) -> ParsedText:
        """Parse a prompt."""
        document = self._pipeline(text)
        return ParsedText(
            tuple(chunk.text for chunk in document.noun_chunks),
            tuple((token.text, token.pos_) for token in document),
        )


def derive_parse(category: str, text: str, parsed: ParsedText) -> dict[str, Any]:
    """Derive from a parsed prompt what the shipped parses have of the official ones.

    Raises ValueError for a prompt that the rules of its category cannot score.
    """
    if category in ("color", "shape", "texture"):
        phrases = select_phrases(parsed.noun_chunks)
        if not phrases:
            raise ValueError("it has no noun phrase to ask about, so any image would score 1")
        return {"phrases": phrases}
    if category in ("spatial", "3d_spatial"):
        relations = RELATIONS_2D if category == "spatial" else RELATIONS_3D
        if find_relation(text, relations) is None:
            raise ValueError(f"it has none of the relations {', '.join(relations)}")
        return {"objects": list(find_objects(parsed.tokens))}
    if category == "numeracy":
        counts = find_counts([word for word, _ in parsed.tokens])
        if not counts:
            raise ValueError("it names no number of an object of the reference's list")
        return {"counts": [[class_of(noun), count] for noun, count in counts]}
    if category == "complex":
        return _derive_complex(parsed)
    return {}


def _derive_complex(parsed: ParsedText) -> dict[str, Any]:
    """Derive the three parts of a complex prompt; outside the lists all three are averaged."""
    parse: dict[str, Any] = {
        "phrases": select_phrases(parsed.noun_chunks),
        "clip_text": drop_adjectives(parsed.tokens),
        "kind": "both",
    }
    objects: Objects = find_complex_objects(parsed.tokens)
    if objects != (None, None):
        parse["objects"] = list(objects)
    return parse
