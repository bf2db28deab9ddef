"""Captions as LlamaGen's text encoder gets them: the cleaning, flan-t5's features, and a store of
them on disk.

Shapes: v caption tokens (the end token included), T = 120 condition positions, C feature width.
"""

from __future__ import annotations

import html
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote_plus

import torch
from torch import Tensor

from harness.kernels.noise import derive
from harness.models import checkpoint as files
from harness.records import UserError, digest, one_line


@dataclass(frozen=True, slots=True)
class Features:
    """What the encoder says about a caption: `row_vC` its v real tokens, `last_C` the last of all T
    positions.

    For a caption shorter than T the last position is padding; a right-padded prompt is continued
    from there.
    """

    row_vC: Tensor
    last_C: Tensor


class Captions(Protocol):
    """A text encoder. `revision` identifies its weights; features are on the CPU."""

    @property
    def revision(self) -> str: ...

    def __call__(self, text: str) -> Features: ...


class T5:
    """The encoder half of a T5 of the hub. Features are kept on disk per (weights, caption), so
    that it rarely runs.

    `checkpoint` is a folder to read instead of the hub's cache, `cache` the folder of features. The
    encoder is loaded when the first caption is missing there. Raises UserError, with the remedy,
    when it cannot be.
    """

    def __init__(
        self,
        hub: str = "google/flan-t5-xl",
        revision: str = "main",
        length: int = 120,
        dtype: str = "bfloat16",
        checkpoint: str | None = None,
        cache: str | None = None,
    ) -> None:
        self.hub = hub
        self.length = length
        self.dtype = dtype
        self.checkpoint = checkpoint
        self.revision = f"{checkpoint or hub}@{revision} {dtype} {length}"
        self._hub_revision = revision
        root = (
            Path(cache)
            if cache
            else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "visual-ar-tts")
        )
        self._folder = root / "captions" / digest(self.revision.encode(), 12)

    def __call__(self, text: str) -> Features:
        caption = clean(clean(text))
        file = self._folder / f"{digest(caption.encode(), 32)}.safetensors"
        kept = _read(file)
        if kept is None:
            kept = self._encode(caption)
            _write(file, kept)
        return kept

    @torch.no_grad()
    def _encode(self, caption: str) -> Features:
        tokenizer, encoder = self._parts
        said = tokenizer(
            [caption],
            max_length=self.length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(encoder.device)
        (row_TC,) = encoder(
            said.input_ids, attention_mask=said.attention_mask
        ).last_hidden_state.cpu()
        return Features(row_TC[: int(said.attention_mask.sum())].clone(), row_TC[-1].clone())

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """Tokenizer and encoder."""
        try:
            folder = files.locate(
                self.hub,
                self._hub_revision,
                ["*.json", "*.model", "*.safetensors"],
                self.checkpoint,
            )
            from transformers import AutoTokenizer, T5EncoderModel

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            encoder = T5EncoderModel.from_pretrained(
                folder, local_files_only=True, dtype=getattr(torch, self.dtype)
            ).eval()
        except (ImportError, OSError, ValueError, UserError) as error:
            raise UserError(
                f"the text encoder {self.checkpoint or self.hub} is not usable ({one_line(error)[:200]}): download it "
                f"with `hf download {self.hub}`, or set model.captions.checkpoint to its folder"
            ) from error
        return tokenizer, encoder.to("cuda" if torch.cuda.is_available() else "cpu")


class WordFeatures:
    """A stand-in for the text encoder: fixed random features for every word. For random weights and
    tests.
    """

    revision = "words"

    def __init__(self, width: int = 2048, length: int = 120) -> None:
        self.width = width
        self.length = length

    def __call__(self, text: str) -> Features:
        rows = [
            self._row(word) for word in [*clean(clean(text)).split()[: self.length - 1], "</s>"]
        ]
        return Features(
            torch.stack(rows), rows[-1] if len(rows) == self.length else self._row("<pad>")
        )

    def _row(self, word: str) -> Tensor:
        return torch.randn(self.width, generator=torch.Generator().manual_seed(derive(word) >> 1))


def _read(file: Path) -> Features | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        kept = load_file(file)
        return Features(kept["rows"], kept["last"])
    except (OSError, KeyError, SafetensorError):
        return None


def _write(file: Path, features: Features) -> None:
    from safetensors.torch import save_file

    draft = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"rows": features.row_vC, "last": features.last_C}, draft)
        os.replace(draft, file)
    except OSError as error:
        reason = f"caption features cannot be kept in {file.parent} ({one_line(error)})"
        raise UserError(f"{reason}: set XDG_CACHE_HOME to a folder that can be written") from None


# ------------------------------------------------------------------ cleaning

_FILE = "png|jpe?g|bmp|webp|eps|pdf|apk|mp4"
_SUFFIX = "com|co|ru|net|org|edu|gov|it"

_Rules = Sequence[tuple[re.Pattern[str], str]]


def _rules(*pairs: tuple[str, str]) -> _Rules:
    return [(re.compile(pattern), by) for pattern, by in pairs]


_ADDRESSES = _rules(
    ("<person>", "person"),
    (
        rf"\b(?:(?:https?|www):(?:/{{1,3}}|[a-z0-9%])|[a-z0-9.-]+\.(?:{_SUFFIX})[\w/-]*\b/?(?!@))",
        "",
    ),
)
_NAMES = _rules(
    (r"@\w+\b", ""),
    ("[\u31c0-\u9fff]+", ""),  # CJK strokes, letters, marks and ideographs
)
_REMNANTS = _rules(
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # dotted network numbers
    (r"\d:\d\d\s+$", ""),  # a clock time at the very end
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILE})", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_SERIALS = _rules(
    (r"\b[a-z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-z]+\d+[a-z]+\b", ""),  # x200y
    (r"\b\d+[a-z]+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-z]+\d+[a-z]+\d+[a-z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # 10x20, with a Latin or a Cyrillic letter
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
_ENDS = _rules(
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean(text: str) -> str:
    """One pass of LlamaGen's caption cleaning (`language/t5.py`, clean_caption); its prompts go
    through two.
    """
    import ftfy

    text = _apply(_ADDRESSES, unquote_plus(text).strip().lower())
    text = _apply(_NAMES, _visible_text(text))
    text = "".join("-" if unicodedata.category(letter) == "Pd" else letter for letter in text)
    text = _apply(_REMNANTS, text)
    if len(re.findall("[-_]", text)) > 3:
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _apply(_ENDS, _apply(_SERIALS, text).strip()).strip()


def _apply(rules: _Rules, text: str) -> str:
    for pattern, by in rules:
        text = pattern.sub(by, text)
    return text


class _Text(HTMLParser):
    """Collects what a page would show."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if self._hidden <= 0:
            self.shown.append(data)


def _visible_text(markup: str) -> str:
    parser = _Text()
    parser.feed(markup)
    parser.close()
    return "".join(parser.shown)
