"""GenEval's detector through mmdet 3.3: the network of the reference, whose weights mmdet 3
publishes converted.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.geneval import mmcv_ops
from benchmarks.geneval.detector import LONG_SIDE, Mask2Former, expect_coco
from harness.download import fetch, file_sha256
from harness.records import UserError, one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

OFFICIAL = "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco"
URL = "https://download.openmmlab.com/mmdetection/v3.0/mask2former/{name}/{name}_20220504_001756-{sha256}.pth"
SHA256 = "c9d0c4f2"
"""The digits that mmdet publishes, in the file's name."""
MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)
PADDING = (128, 128, 128)


class Mmdet(Mask2Former):
    """A Mask2Former of mmdet: `config` is a name among mmdet's or a file.

    `weights` are `published`, which means a `checkpoint` file (.pth or .safetensors), or null for
    the pinned download; or `random`, which tests the path. `short_side` is what pictures are
    resized to, in pixels; the reference has 800. Raises UserError for what does not exist; a
    checkpoint that does not fit is refused when it is loaded.
    """

    def __init__(
        self,
        config: str = OFFICIAL,
        weights: str = "published",
        checkpoint: str | None = None,
        short_side: int = 800,
        device: str = "auto",
        batch: int | None = None,
    ) -> None:
        super().__init__(device, batch, weights)
        if short_side < 32:
            raise UserError(
                f"benchmark.detector.short_side={short_side}: at least 32 pixels are needed"
            )
        if self.random and checkpoint:
            raise UserError(
                "benchmark.detector: weights=random and a checkpoint exclude each other"
            )
        self._config = config
        self._checkpoint = checkpoint
        self._short_side = short_side
        name = Path(config).stem + (
            f"-{file_sha256(Path(config))[:8]}" if config.endswith(".py") else ""
        )
        if config != OFFICIAL and not self.random and checkpoint is None:
            raise UserError(
                f"benchmark.detector.config={config}: only {OFFICIAL} has a download; set checkpoint=PATH"
            )
        which = (
            "random" if self.random else file_sha256(Path(checkpoint))[:8] if checkpoint else SHA256
        )
        self.id = f"mmdet-{name}-{which}" + (f"@{short_side}" if short_side != 800 else "")

    def build(self) -> torch.nn.Module:
        import torch

        config = self._read_config()
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # mmdet's own deprecations
            torch.manual_seed(0)
            network = self._instantiate(config)
        expect_coco(network.num_classes, self._config)
        if not self.random:
            path = Path(self._checkpoint) if self._checkpoint else self._download()
            fit(network, read_checkpoint(path), path, self._config)
        if self.device.type == "cuda":
            mmcv_ops.expect_sound_attention(self.device)
        return network

    def prepare(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """As mmdet 2 does it: resized as bytes, padded to a multiple of 32 with gray,
        normalised.
        """
        import mmcv
        import torch

        scale = (round(LONG_SIDE * self._short_side), self._short_side)
        resized = mmcv.imrescale(image, scale)
        used = (int(resized.shape[0]), int(resized.shape[1]))
        padded = mmcv.impad_to_multiple(resized, 32, pad_val=PADDING)
        normal = mmcv.imnormalize(
            padded, np.array(MEAN), np.array(DEVIATION), to_rgb=False
        )  # it is RGB already
        return torch.from_numpy(normal.transpose(2, 0, 1).copy()), used

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        network: Any = self.network
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.meshgrid")  # how mmdet calls it
            class_LBQC, mask_LBQhw = network.panoptic_head(network.extract_feat(pixels_BCHW), [])
        return class_LBQC[-1], mask_LBQhw[-1]  # of the last decoder layer

    def _read_config(self) -> Any:
        mmcv_ops.install()
        import mmdet
        from mmengine.config import Config

        path = Path(self._config)
        if path.suffix != ".py":
            assert mmdet.__file__
            path = (
                Path(mmdet.__file__).parent
                / ".mim"
                / "configs"
                / "mask2former"
                / f"{self._config}.py"
            )
            if not path.is_file():
                known = ", ".join(sorted(file.stem for file in path.parent.glob("*coco.py")))
                raise UserError(
                    f"benchmark.detector.config={self._config}: choose a file, or one of {known}"
                )
        try:
            return Config.fromfile(path)
        except Exception as error:  # a configuration is Python: it can fail in any way
            raise UserError(
                f"{path}: no configuration of mmdet ({one_line(error)[:200]})"
            ) from None

    def _instantiate(self, config: Any) -> Any:
        import mmdet.models  # noqa: F401  registers them
        from mmengine.registry import MODELS, DefaultScope

        config.model.backbone.init_cfg = None  # the classifier's weights would be downloaded
        level = logging.getLogger("mmengine").level
        logging.getLogger("mmengine").setLevel(logging.ERROR)
        try:
            with DefaultScope.overwrite_default_scope("mmdet"):
                network = MODELS.build(config.model)
        finally:
            logging.getLogger("mmengine").setLevel(level)
        if not hasattr(network, "panoptic_head"):
            raise UserError(
                f"benchmark.detector.config={self._config} is a {type(network).__name__}, no Mask2Former"
            )
        network.num_classes = network.panoptic_head.num_classes
        return network

    def _download(self) -> Path:
        url = URL.format(name=self._config, sha256=SHA256)
        return fetch(
            url,
            SHA256,
            f"geneval/{url.rsplit('/', 1)[1]}",
            "set benchmark.detector.checkpoint=PATH",
        )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights of an mmengine checkpoint, or of a safetensors file made of one.

    What a checkpoint may hold besides tensors is listed here by name.
    """
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer
    from torch import Tensor

    from harness.models.checkpoint import read_file, unpickle

    if path.suffix == ".safetensors":
        return read_file(path)

    def statistic(kind: object, name: str) -> object:
        """The methods that a log's history names; Python's own `getattr` would hand out any."""
        if kind is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
            raise pickle.UnpicklingError(f"{name} of {kind} is not for checkpoints")
        return getattr(HistoryBuffer, name)

    kinds = [
        type(np.dtype(kind)) for kind in (np.int64, np.int32, np.float64, np.float32, np.bool_)
    ]
    multiarray: Any = np._core.multiarray  # type: ignore[attr-defined]  # how NumPy 2 pickles; NumPy 1 had no underscore
    arrays = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("_reconstruct", "scalar")
        for core in ("core", "_core")
    ]
    harmless = [
        HistoryBuffer,
        ConfigDict,
        np.ndarray,
        np.dtype,
        *kinds,
        *arrays,
        (statistic, "builtins.getattr"),
    ]
    loaded = unpickle(path, harmless)
    state = loaded.get("state_dict", loaded)
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise UserError(f"{path}: no weights by name, so it is no checkpoint of mmdet")
    return state


def fit(network: torch.nn.Module, state: dict[str, Tensor], path: Path, config: str) -> None:
    """Put weights into a network, every one of them. Raises UserError for a checkpoint of another
    network.
    """
    wanted = network.state_dict()
    other = [
        name
        for name, value in state.items()
        if name in wanted and tuple(value.shape) != tuple(wanted[name].shape)
    ]
    problems = [
        *_listed("are missing", [name for name in wanted if name not in state]),
        *_listed("are unknown", [name for name in state if name not in wanted]),
        *_listed("have another shape", other),
    ]
    if problems:
        raise UserError(
            f"{path} does not fit {config}: of its tensors, {'; '.join(problems)}. It must be the instance "
            f"segmentation variant, from mmdet 3: {URL.format(name=OFFICIAL, sha256=SHA256)}"
        )
    network.load_state_dict(state)


def _listed(problem: str, names: Sequence[str]) -> list[str]:
    return [f"{len(names)} {problem} (such as {min(names)})"] if names else []
