"""Caption features for LlamaGen: cleaning, flan-t5's encoder, and a store of its answers on disk.

Shapes: v caption tokens (the end token included), T = 120 condition positions, C feature width.
"""

from __future__ import annotations

import html
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import unquote_plus

import torch
from torch import Tensor

from harness.kernels.noise import derive
from harness.models import checkpoint as checkpoints
from harness.records import Count, UserError, digest, one_line


@dataclass(frozen=True, slots=True)
class Features:
    """The encoder's output for a caption: `row_vC` of its v real tokens, `last_C` of the last of T.

    For a caption shorter than T that last position is padding; image tokens follow it if prompts
    are padded on the right.
    """

    row_vC: Tensor
    last_C: Tensor
    cut: int = 0  # tokens at the caption's end that the encoder did not read


class Captions(Protocol):
    """A text encoder. `revision` identifies its weights; features are on the CPU."""

    @property
    def revision(self) -> str: ...

    def __call__(self, text: str) -> Features: ...


@runtime_checkable
class CaptionNetwork(Captions, Protocol):
    """A text encoder that is a network of its own; it need not stay on a device."""

    def count_bytes(self) -> int:
        """Count the bytes that it takes of a device while it is there."""
        ...

    def prepare(self, texts: Sequence[str], device: torch.device, *, stay: bool) -> None:
        """Encode texts on a device, and leave it unless it is to stay there."""
        ...


class T5:
    """The encoder half of a T5 model of the hub.

    `checkpoint` is a folder to read instead of the hub's cache. Features are kept in the folder
    `cache`, one file per weights and caption, so that the encoder is loaded only when one is
    missing there. LlamaGen cleans captions and reads the features of real tokens; EditAR does
    neither: `cleaned=False` encodes texts as they are, `padded=True` keeps the features of the
    padding, too. Texts that come without being prepared are encoded on the CPU, unless the encoder
    stays on a device. Raises UserError, with the remedy, when it cannot be loaded.
    """

    def __init__(
        self,
        hub: str = "google/flan-t5-xl",
        revision: str = "main",
        length: Count = 120,
        dtype: str = "bfloat16",
        checkpoint: str | None = None,
        cache: str | None = None,
        cleaned: bool = True,
        padded: bool = False,
    ) -> None:
        self.hub = hub
        self.length = length
        self.cleaned = cleaned
        self.padded = padded
        self.dtype = dtype
        self.checkpoint = checkpoint
        named = f"{hub}@{revision}" if checkpoint is None else _name_folder(checkpoint)
        self.revision = f"{named} {dtype} {length}"
        if not cleaned:
            self.revision += " uncleaned"
        if padded:
            self.revision += " padded"
        self._hub_revision = revision
        self._device = torch.device("cpu")  # where the encoder is, or will be loaded
        root = Path(cache) if cache else _default_cache()
        self._folder = root / "captions" / digest(self.revision.encode(), 12)

    def __call__(self, text: str) -> Features:
        caption = self._prepare_text(text)
        file = self._file_of(caption)
        features = _read_features(file, self.length)
        if features is None:
            features = self._encode(caption)
            _write_features(file, features)
        return features

    def count_bytes(self) -> int:
        """Count the bytes of the encoder, from its configuration alone."""
        with self._explain_trouble():
            from transformers import AutoConfig, T5EncoderModel

            config = AutoConfig.from_pretrained(self._locate(["*.json"]), local_files_only=True)
            with torch.device("meta"):
                encoder = T5EncoderModel(config)
        numbers = sum(parameter.numel() for parameter in encoder.parameters())
        return numbers * getattr(torch, self.dtype).itemsize

    def prepare(self, texts: Sequence[str], device: torch.device, *, stay: bool) -> None:
        """Encode texts on a device where they are not kept yet, and leave it unless told to stay.

        The encoder is loaded only for that.
        """
        captions = dict.fromkeys(self._prepare_text(text) for text in texts)
        missing = [
            one for one in captions if _read_features(self._file_of(one), self.length) is None
        ]
        if missing or stay:
            self._move_to(device)
        for caption in missing:
            _write_features(self._file_of(caption), self._encode(caption))
        if not stay:
            self._move_to(torch.device("cpu"))

    def _move_to(self, device: torch.device) -> None:
        """Forget an encoder that is elsewhere; it is loaded when it is needed."""
        if device == self._device:
            return
        self.__dict__.pop("_tokenizer_and_encoder", None)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._device = device

    def _prepare_text(self, text: str) -> str:
        return clean_prompt(text) if self.cleaned else text

    def _file_of(self, caption: str) -> Path:
        return self._folder / f"{digest(caption.encode(), 32)}.safetensors"

    @torch.no_grad()
    def _encode(self, caption: str) -> Features:
        tokenizer, encoder = self._tokenizer_and_encoder
        tokens = tokenizer(
            [caption],
            max_length=self.length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(encoder.device)
        encoded = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)
        (row_TC,) = encoded.last_hidden_state.cpu()
        if not torch.isfinite(row_TC).all():
            raise UserError(
                f"the text encoder {self.checkpoint or self.hub}: its features of "
                f"{caption[:60]!r} are not finite; set model.captions.dtype=float32"
            )
        count = int(tokens.attention_mask.sum())
        cut = len(tokenizer(caption).input_ids) - count
        kept = self.length if self.padded else count
        return Features(row_TC[:kept].clone(), row_TC[-1].clone(), cut)

    @cached_property
    def _tokenizer_and_encoder(self) -> tuple[Any, Any]:
        with self._explain_trouble():
            folder = self._locate(["*.json", "*.model", "*.safetensors"])
            from transformers import AutoTokenizer, T5EncoderModel

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            encoder = T5EncoderModel.from_pretrained(
                folder, local_files_only=True, dtype=getattr(torch, self.dtype)
            ).eval()
        return tokenizer, encoder.to(self._device)

    def _locate(self, files: Sequence[str]) -> Path:
        return checkpoints.locate(self.hub, self._hub_revision, files, self.checkpoint)

    @contextmanager
    def _explain_trouble(self) -> Iterator[None]:
        """Turn what goes wrong with the encoder's files inside into a UserError."""
        try:
            yield
        except (ImportError, OSError, ValueError, UserError) as error:
            reason = one_line(error)[:200]
            raise UserError(
                f"the text encoder {self.checkpoint or self.hub} is not usable ({reason}): "
                f"download it with `hf download {self.hub}`, "
                "or set model.captions.checkpoint to its folder"
            ) from error


def _name_folder(checkpoint: str) -> str:
    """Name a text encoder's folder by its content, wherever it lies.

    One that is not there keeps its path until it is needed.
    """
    path = Path(checkpoint).expanduser()
    return checkpoints.content_of(path) if path.exists() else checkpoint


class WordFeatures:
    """A stand-in for the text encoder, for random weights and tests.

    Every word has fixed random features; `padded` adds those of padding up to the length.
    """

    revision = "words"

    def __init__(self, width: Count = 2048, length: Count = 120, padded: bool = False) -> None:
        self.width = width
        self.length = length
        self.padded = padded

    def __call__(self, text: str) -> Features:
        all_words = clean_prompt(text).split()
        words = all_words[: self.length - 1]
        rows = [self._features_of(word) for word in [*words, "</s>"]]
        is_full = len(rows) == self.length
        last_C = rows[-1] if is_full else self._features_of("<pad>")
        if self.padded:
            rows += [last_C] * (self.length - len(rows))
        return Features(torch.stack(rows), last_C, len(all_words) - len(words))

    def _features_of(self, word: str) -> Tensor:
        generator = torch.Generator().manual_seed(derive(word) >> 1)
        return torch.randn(self.width, generator=generator)


# ------------------------------------------------------------------ the store on disk


def _default_cache() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(caches, "visual-ar-tts")


def _read_features(file: Path, length: int) -> Features | None:
    """The features of a file; None where it is missing or damaged.

    Also None where a caption fills all positions and an earlier version did not say how much of it
    was cut.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(file)
        if "cut" in stored:
            return Features(stored["rows"], stored["last"], int(stored["cut"]))
        is_full = len(stored["rows"]) == length
        return None if is_full else Features(stored["rows"], stored["last"])
    except (OSError, KeyError, SafetensorError):
        return None


def _write_features(file: Path, features: Features) -> None:
    """Write a file of features at once, so that another process never sees a part of it."""
    from safetensors.torch import save_file

    draft = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stored = {
            "rows": features.row_vC,
            "last": features.last_C,
            "cut": torch.tensor(features.cut),
        }
        save_file(stored, draft)
        os.replace(draft, file)
    except OSError as error:
        reason = f"caption features cannot be kept in {file.parent} ({one_line(error)})"
        raise UserError(f"{reason}: set XDG_CACHE_HOME to a folder that can be written") from None


# ------------------------------------------------------------------ cleaning

_FILE = "png|jpe?g|bmp|webp|eps|pdf|apk|mp4"
_SUFFIX = "com|co|ru|net|org|edu|gov|it"

_Rules = Sequence[tuple[re.Pattern[str], str]]


def _rules(*pairs: tuple[str, str]) -> _Rules:
    """Regular expressions and their replacements, applied one after the other."""
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


_ADDRESSES = _rules(
    ("<person>", "person"),
    (
        r"\b(?:(?:https?|www):(?:/{1,3}|[a-z0-9%])"
        rf"|[a-z0-9.-]+\.(?:{_SUFFIX})[\w/-]*\b/?(?!@))",
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


def clean_prompt(text: str) -> str:
    """Clean a prompt as LlamaGen does before encoding it: two passes of `clean`."""
    return clean(clean(text))


def clean(text: str) -> str:
    """Make one pass of LlamaGen's caption cleaning (`language/t5.py`, clean_caption)."""
    # 1. Addresses, markup and names.
    text = _apply(_ADDRESSES, unquote_plus(text).strip().lower())
    text = _apply(_NAMES, _visible_text(text))

    # 2. Dashes, quotes, numbers and other remnants of web pages.
    text = "".join("-" if unicodedata.category(letter) == "Pd" else letter for letter in text)
    text = _apply(_REMNANTS, text)
    if len(re.findall("[-_]", text)) > 3:
        text = re.sub("[-_]", " ", text)

    # 3. Broken encodings, serial numbers, and what is left at the ends.
    text = html.unescape(html.unescape(_repair(text)))
    text = _apply(_SERIALS, text).strip()
    return _apply(_ENDS, text).strip()


def _repair(text: str) -> str:
    """Repair broken encodings by `ftfy.fix_text`.

    Printable ASCII without entities is what that returns unchanged, so ftfy is not needed for it.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    import ftfy

    return ftfy.fix_text(text)


def _apply(rules: _Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


class _VisibleText(HTMLParser):
    """Collects the text that a page would show."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []
        self._hidden_depth = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden_depth += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden_depth -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if self._hidden_depth <= 0:
            self.shown.append(data)


def _visible_text(markup: str) -> str:
    parser = _VisibleText()
    parser.feed(markup)
    parser.close()
    return "".join(parser.shown)
