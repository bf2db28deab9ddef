"""Answer questions about attributes with BLIP's VQA network, as the reference does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.networks import is_random, list_network_parts
from benchmarks.t2i_compbench.blip_network import (
    MAX_TOKENS,
    BlipSpec,
    answer_logits,
    build_network,
    encode_pictures,
    encode_questions,
    group_by_length,
    load_checkpoint,
    prepare_picture,
)
from benchmarks.t2i_compbench.questions import clean_question, yes_probability
from harness.download import fetch, file_sha256
from harness.judges.placement import OnDevice, count_rows, place_network
from harness.records import Count, MemoryPart, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHECKPOINT = (
    "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/"
    "model_base_vqa_capfilt_large.pth"
)
"""1.4 GB, published without a hash, so it is not downloaded: its own hash names it."""
VOCABULARY = (
    "https://huggingface.co/bert-base-uncased/resolve/"
    "86b5e0934494bd15c9632b12f734a8a67f723594/vocab.txt"
)
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"

ROWS = 16
"""Rows of a forward on a GPU."""
WEIGHT_BYTES = 4 * 361_500_000
"""Bytes of the network in float32."""
PICTURE_BYTES = 4 * 4 * 12 * 901 * 901
"""Bytes that a picture takes: four copies of the attention of 12 heads over its 901 positions."""


class BlipVqa:
    """Answer with the released checkpoint, or with random weights of the same size.

    `checkpoint` is the authors' file; `vocabulary` is bert-base-uncased's vocab.txt, None its
    pinned download. Every forward has `batch` rows, so that no result depends on what else is in
    the batch; None is 1 on the CPU and 16 on a GPU. All is in float32, as in the reference.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        weights: str = "published",
        vocabulary: str | None = None,
        device: str = "auto",
        batch: Count | None = None,
    ) -> None:
        if batch is not None and batch < 1:
            raise UserError(f"benchmark.blip.batch={batch}: at least one row is needed")
        self.random = is_random("blip", weights)
        if self.random and checkpoint:
            raise UserError("benchmark.blip: weights=random and a checkpoint exclude each other")
        self.missing = ""
        name = "random"
        if checkpoint:
            name = file_sha256(Path(checkpoint).expanduser())[:8]
        elif not self.random:
            self.missing = f"benchmark.blip.checkpoint=PATH, the file {CHECKPOINT}"
        self.id = f"blip-vqa-{name}"
        self._checkpoint = checkpoint
        self._vocabulary = vocabulary
        self._device_name = device
        self._batch = batch
        self._spec = BlipSpec()
        self._network: Any = None

    def memory_need(self, _model: object, shape: OnDevice) -> list[MemoryPart]:
        """List its weights, and what encoding a batch of pictures takes."""
        rows = count_rows(self._batch, place_network(self._device_name, shape), ROWS)
        return list_network_parts(
            "BLIP VQA",
            WEIGHT_BYTES,
            PICTURE_BYTES * rows,
            is_loaded=self._network is not None,
            device=self._device_name,
        )

    def load(self) -> None:
        """Build the network and its tokenizer; later calls do nothing."""
        if self._network is not None:
            return
        import torch

        from harness.models.devices import device_named

        self._tokenizer = _read_tokenizer(self._vocabulary)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build_network(self._spec)
        if self._checkpoint:
            load_checkpoint(network, Path(self._checkpoint).expanduser())
        self._device: torch.device = device_named(self._device_name)
        self._network = network.to(self._device)

    def answer(self, asked: Sequence[tuple[np.ndarray, str]]) -> list[float]:
        """Return the chance of yes for each picture and question; a picture is encoded once."""
        import torch

        if not asked:
            return []
        self.load()
        size = count_rows(self._batch, self._device, ROWS)
        pictures = {id(picture): picture for picture, _ in asked}
        rows = {identity: row for row, identity in enumerate(pictures)}
        ids = [self._tokenizer.encode(clean_question(question)).ids for _, question in asked]

        probabilities = [0.0] * len(asked)
        with torch.inference_mode():
            picture_BPD = self._encode(list(pictures.values()), size)
            for group in group_by_length([len(row) for row in ids]):
                for first in range(0, len(group), size):
                    some = group[first : first + size]
                    filled = some + some[-1:] * (size - len(some))
                    ids_QW = torch.tensor([ids[i] for i in filled], device=self._device)
                    picture_rows = [rows[id(asked[i][0])] for i in filled]
                    states = encode_questions(self._network, ids_QW, picture_BPD[picture_rows])
                    logits = answer_logits(self._network, states).double().tolist()
                    for i, pair in zip(some, logits, strict=False):
                        probabilities[i] = yes_probability(*pair)
        return probabilities

    def _encode(self, pictures: Sequence[np.ndarray], size: int) -> Tensor:
        """Encode pictures in batches of `size`, the last one filled up with copies."""
        import torch

        prepared = [prepare_picture(picture, self._spec.image_size) for picture in pictures]
        prepared += prepared[-1:] * (-len(prepared) % size)
        encoded = []
        for first in range(0, len(prepared), size):
            pixels_B3HW = torch.stack(prepared[first : first + size]).to(self._device)
            encoded.append(encode_pictures(self._network, pixels_B3HW))
        return torch.cat(encoded)


def find_vocabulary(vocabulary: str | None, option: str) -> Path:
    """Find bert-base-uncased's vocab.txt: as given by an option, or its pinned download.

    Raises UserError for another file, and where it cannot be had.
    """
    if vocabulary is None:
        remedy = f"set {option}=PATH"
        return fetch(VOCABULARY, VOCABULARY_SHA256, "t2i_compbench/vocab.txt", remedy)
    path = Path(vocabulary).expanduser()
    found = file_sha256(path)
    if found != VOCABULARY_SHA256:
        raise UserError(
            f"{option}={vocabulary} has sha256 {found}, bert-base-uncased's vocab.txt has "
            f"{VOCABULARY_SHA256}"
        )
    return path


def _read_tokenizer(vocabulary: str | None) -> Any:
    """Read the tokenizer of the questions, which are cut to the reference's length."""
    from tokenizers import BertWordPieceTokenizer

    path = find_vocabulary(vocabulary, "benchmark.blip.vocabulary")
    tokenizer = BertWordPieceTokenizer(str(path), lowercase=True)
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer
