"""LlamaGen's checkpoints: the files of GPT and tokenizer, and their tensors put into our modules.

The released model is two files, one for the GPT and one for the tokenizer. AR-GRPO's is one file
with both, the GPT's names behind `gpt_model.` and the tokenizer's behind `vq_model.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from harness.download import file_sha256
from harness.models import checkpoint as checkpoints
from harness.models.llamagen_network import GPT
from harness.models.vq import VQ
from harness.records import UserError

RELEASED = {"t2i_XL_stage1_256.pt": 256, "t2i_XL_stage2_512.pt": 512}
"""Pixels a side of the published files, which have the same tensors of the same shapes."""

TRAINING_KEYS = ("model", "module", "state_dict")
"""Where training programs put the tensors within what they save, in the order of looking."""

_TOKENIZER_PREFIX = "vq_model."


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where the files of a model are: in a repository of the hub, or at paths that replace it.

    `checkpoint` is the GPT's file, or the folder that has it as `file`. The tokenizer is its own
    file unless the GPT's holds it too.
    """

    hub: str | None = None
    revision: str | None = None
    file: str | None = None
    checkpoint: str | None = None
    tokenizer_hub: str | None = None
    tokenizer_file: str = "vq_ds16_t2i.pt"
    tokenizer_checkpoint: str | None = None

    def find_gpt(self) -> Path:
        """Find the GPT's weights: a file, or a folder with files of weights.

        Raises UserError, with the remedy, for weights that are missing.
        """
        found = checkpoints.locate(self.hub, self.revision, [self.file or "*"], self.checkpoint)
        if self.file is None or not found.is_dir():
            return found
        if not (found / self.file).is_file():
            raise UserError(
                f"{found} has no {self.file}: "
                "set model.checkpoint to the file, or model.file to its name"
            )
        return found / self.file

    def find_tokenizer(self, gpt_path: Path, *, gpt_includes_it: bool) -> Path:
        """Find the tokenizer's weights.

        They are at `tokenizer_checkpoint`, in the GPT's file, beside it, or in the hub, in this
        order. Raises UserError, with the remedy, for weights that are missing.
        """
        checkpoint = self.tokenizer_checkpoint
        if checkpoint is None and gpt_includes_it:
            return gpt_path
        checkpoint = checkpoint or _file_beside(gpt_path, self.tokenizer_file)
        hub = self.tokenizer_hub or self.hub
        revision = None if self.tokenizer_hub else self.revision
        found = checkpoints.locate_tokenizer(hub, revision, [self.tokenizer_file], checkpoint)
        return found / self.tokenizer_file if found.is_dir() else found


def _file_beside(path: Path, name: str) -> str | None:
    """The file of that name in a folder, or beside a file, if there is one."""
    file = (path if path.is_dir() else path.parent) / name
    return str(file) if file.is_file() else None


# ------------------------------------------------------------------ tensors into modules


def fill_model(gpt: GPT, vq: VQ, image: int, source: WeightSource) -> str:
    """Put published weights into both modules, made on the meta device.

    `image` is the number of pixels a side. Returns the revision: 12 digits of the files' sha256.
    """
    gpt_path = source.find_gpt()
    state = fill_gpt(gpt, gpt_path, image)
    vq_path = source.find_tokenizer(gpt_path, gpt_includes_it=_has_tokenizer(state))
    fill_vq(vq, vq_path)
    files = checkpoints.weight_files(gpt_path) + checkpoints.weight_files(vq_path)
    return checkpoints.sha256(files)[:12]


def fill_editor(editor: nn.Module, vq: VQ, source: WeightSource, sha256: str | None) -> str:
    """Put EditAR's weights and LlamaGen's tokenizer into modules made on the meta device.

    `sha256` pins the editor's file by its hash, or the first digits of it. Returns the revision: 12
    digits of the files' sha256. Raises UserError for another file than the pinned one.
    """
    path = source.find_gpt()
    if sha256:
        found = file_sha256(path)
        if not found.startswith(sha256):
            raise UserError(
                f"{path} has sha256 {found}, not {sha256}: get the file again, or set model.sha256"
            )
    fill_editing_gpt(editor, path)
    vq_path = source.find_tokenizer(path, gpt_includes_it=False)
    fill_vq(vq, vq_path)
    files = checkpoints.weight_files(path) + checkpoints.weight_files(vq_path)
    return checkpoints.sha256(files)[:12]


def fill_editing_gpt(editor: nn.Module, path: Path) -> None:
    """Put EditAR's tensors into its GPT, made on the meta device.

    The head that learned from DINOv2 in training (`alignment`) is left out. Raises UserError for a
    checkpoint of another model or size.
    """
    _fill_module(editor, _read_state(path), path, ignore=("freqs_cis", "alignment."))


def fill_gpt(gpt: GPT, path: Path, image: int) -> dict[str, Tensor]:
    """Put a checkpoint's tensors into a GPT made on the meta device; returns all tensors.

    Raises UserError for a checkpoint of another resolution or size.
    """
    released_image = RELEASED.get(path.name, image)
    if released_image != image:
        raise UserError(
            f"{path} is the {released_image} px model, this configuration is for {image} px: "
            f"choose model=llamagen_xl_{released_image}, or another model.checkpoint"
        )
    state = _read_state(path)
    condition = gpt.spec.condition
    num_tokens = gpt.spec.side**2
    table = state.get("freqs_cis")
    if table is not None and len(table) != condition + num_tokens:
        raise UserError(
            f"{path} was made for {len(table) - condition} image tokens, "
            f"this configuration has {num_tokens} ({image} px): "
            "choose the configuration of its resolution"
        )
    _fill_module(gpt, state, path, ignore=("freqs_cis", _TOKENIZER_PREFIX))
    return state


def fill_vq(vq: VQ, path: Path) -> None:
    """Put a checkpoint's tensors into a VQ; the file is the tokenizer's, or holds the GPT too."""
    state = _read_state(path)
    if _has_tokenizer(state):
        state = {
            name.removeprefix(_TOKENIZER_PREFIX): tensor
            for name, tensor in state.items()
            if name.startswith(_TOKENIZER_PREFIX)
        }
    _fill_module(vq, state, path, ignore=("quantize.codebook_used",))


def _has_tokenizer(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(_TOKENIZER_PREFIX) for name in state)


def _read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name, whatever they were saved under (see `TRAINING_KEYS`)."""
    if path.is_dir() or path.suffix in (".safetensors", ".json"):
        return checkpoints.read_weights(path)
    saved = checkpoints.unpickle(path)
    state = next((saved[key] for key in TRAINING_KEYS if key in saved), saved)
    is_state = isinstance(state, dict) and all(isinstance(t, Tensor) for t in state.values())
    if not is_state:
        raise UserError(
            f"{path} has no tensors by name, neither on top nor under model, module or state_dict"
        )
    return state


def _fill_module(
    module: nn.Module, state: Mapping[str, Tensor], path: Path, ignore: tuple[str, ...]
) -> None:
    """Fill all of a module and report unknown tensors, but not those that begin with `ignore`."""
    named = {
        _module_name(name): tensor for name, tensor in state.items() if not name.startswith(ignore)
    }
    wanted = module.state_dict().keys()
    missing = sorted(wanted - named.keys())
    if missing:
        first = missing[0].removeprefix("trunk.")
        raise UserError(
            f"{path} lacks {len(missing)} of {len(wanted)} tensors, the first is {first}: "
            "it is the checkpoint of another model"
        )
    checkpoints.report_unknown(sorted(named.keys() - wanted), path)
    checkpoints.fill(module, {name: named[name] for name in wanted}, path)


def _module_name(name: str) -> str:
    """Our name of a checkpoint's tensor."""
    name = name.removeprefix("gpt_model.")
    return f"trunk.{name}" if name.startswith(("layers.", "norm.")) else name
