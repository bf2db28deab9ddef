"""Run GenEval's detector through mmdet 3.3.

It is the network of the reference, whose weights mmdet 3 publishes converted.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.geneval import mmcv_ops
from benchmarks.geneval.detector import LONG_SIDE_RATIO, Mask2Former, expect_coco
from benchmarks.optional import require
from harness.download import fetch, file_sha256
from harness.records import Count, UserError, one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

OFFICIAL = "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco"
SHA256 = "c9d0c4f2"
"""The digits that mmdet publishes, in the file's name."""
FILE = f"{OFFICIAL}_20220504_001756-{SHA256}.pth"
URL = f"https://download.openmmlab.com/mmdetection/v3.0/mask2former/{OFFICIAL}/{FILE}"
OFFICIAL_SHORT_SIDE = 800
MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)
PADDING = (128, 128, 128)


class Mmdet(Mask2Former):
    """Detect objects with a Mask2Former of mmdet.

    `config` is a name among mmdet's configurations, or a file. `weights` are "published", which
    means a `checkpoint` file (.pth or .safetensors) or, if it is None, the pinned download; or
    "random", which tests the path. Pictures are resized to a short side of `short_side` pixels; the
    reference has 800.

    Raises UserError for a combination or a file that does not exist; a checkpoint that does not fit
    is refused when it is loaded.
    """

    def __init__(
        self,
        config: str = OFFICIAL,
        weights: str = "published",
        checkpoint: str | None = None,
        short_side: Count = OFFICIAL_SHORT_SIDE,
        device: str = "auto",
        batch: Count | None = None,
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
        name = Path(config).stem
        if config.endswith(".py"):
            name += f"-{file_sha256(Path(config))[:8]}"
        if config != OFFICIAL and not self.random and checkpoint is None:
            raise UserError(
                f"benchmark.detector.config={config}: only {OFFICIAL} has a download; "
                "set checkpoint=PATH"
            )

        self._config = config
        self._checkpoint = checkpoint
        self._short_side = short_side
        self.id = f"mmdet-{name}-{self._name_weights()}"
        if short_side != OFFICIAL_SHORT_SIDE:
            self.id += f"@{short_side}"

    @property
    def side(self) -> int:
        return self._short_side

    def build(self) -> torch.nn.Module:
        """Build the network on the CPU, and check operators, classes and weights."""
        import torch

        config = self.read_config()
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # mmdet's own deprecations
            torch.manual_seed(0)
            network = self._instantiate(config)
        expect_coco(network.num_classes, self._config)
        if not self.random:
            path = Path(self._checkpoint) if self._checkpoint else _download_weights()
            load_weights(network, read_checkpoint(path), path, self._config)
        if self.device.type == "cuda":
            mmcv_ops.expect_sound_attention(self.device)
        return network

    def prepare(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """Prepare a picture as mmdet 2 does.

        It is resized as bytes, padded with gray to a multiple of 32, then normalised.
        """
        import mmcv
        import torch

        scale = (round(LONG_SIDE_RATIO * self._short_side), self._short_side)
        resized = mmcv.imrescale(image, scale)
        used = (int(resized.shape[0]), int(resized.shape[1]))
        padded = mmcv.impad_to_multiple(resized, 32, pad_val=PADDING)
        # The picture is RGB already, hence to_rgb=False.
        normal = mmcv.imnormalize(padded, np.array(MEAN), np.array(DEVIATION), to_rgb=False)
        return torch.from_numpy(normal.transpose(2, 0, 1).copy()), used

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Compute class and mask logits: those of the last of the decoder's L layers."""
        network: Any = self.network
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.meshgrid")  # how mmdet calls it
            class_LBQC, mask_LBQhw = network.panoptic_head(network.extract_feat(pixels_BCHW), [])
        return class_LBQC[-1], mask_LBQhw[-1]

    def read_config(self) -> Any:
        """Read mmdet's configuration of the network."""
        mmcv_ops.install()
        for package in ("mmengine", "mmdet"):
            require(package, extra="geneval")
        from mmengine.config import Config

        path = self._locate_config()
        try:
            return Config.fromfile(path)
        except Exception as error:  # a configuration is Python: it can fail in any way
            raise UserError(
                f"{path}: no configuration of mmdet ({one_line(error)[:200]})"
            ) from None

    def _locate_config(self) -> Path:
        import mmdet

        if Path(self._config).suffix == ".py":
            return Path(self._config)
        assert mmdet.__file__
        folder = Path(mmdet.__file__).parent / ".mim" / "configs" / "mask2former"
        path = folder / f"{self._config}.py"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in folder.glob("*coco.py")))
            raise UserError(
                f"benchmark.detector.config={self._config}: choose a file, or one of {known}"
            )
        return path

    def _instantiate(self, config: Any) -> Any:
        import mmdet.models  # noqa: F401  registers them
        from mmengine.registry import MODELS, DefaultScope

        config.model.backbone.init_cfg = None  # the classifier's weights would be downloaded
        logger = logging.getLogger("mmengine")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            with DefaultScope.overwrite_default_scope("mmdet"):
                network = MODELS.build(config.model)
        finally:
            logger.setLevel(level)
        if not hasattr(network, "panoptic_head"):
            raise UserError(
                f"benchmark.detector.config={self._config} is a {type(network).__name__}, "
                "no Mask2Former"
            )
        network.num_classes = network.panoptic_head.num_classes
        return network

    def _name_weights(self) -> str:
        """Name the weights for the id."""
        if self.random:
            return "random"
        return file_sha256(Path(self._checkpoint))[:8] if self._checkpoint else SHA256


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the weights of an mmengine checkpoint, or of a safetensors file made of one.

    Raises UserError for a file that holds anything but weights and harmless statistics of training.
    """
    from torch import Tensor

    from harness.models.checkpoint import read_file, unpickle

    if path.suffix == ".safetensors":
        return read_file(path)

    loaded = unpickle(path, _harmless_globals())
    state = loaded.get("state_dict", loaded)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: no weights by name, so it is no checkpoint of mmdet")
    return state


def _harmless_globals() -> list[Any]:
    """List what a checkpoint may name besides tensors, for `unpickle`.

    A pair is a stand-in and the name that it stands for.
    """
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    def get_statistic(kind: object, name: str) -> object:
        """Get the methods that a log's history names; Python's own `getattr` would get any."""
        if kind is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
            raise pickle.UnpicklingError(f"{name} of {kind} is not for checkpoints")
        return getattr(HistoryBuffer, name)

    scalars = (np.int64, np.int32, np.float64, np.float32, np.bool_)
    kinds = [type(np.dtype(scalar)) for scalar in scalars]
    multiarray = import_module("numpy._core.multiarray")  # NumPy 1 had no underscore
    arrays = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("_reconstruct", "scalar")
        for core in ("core", "_core")
    ]
    statistic = (get_statistic, "builtins.getattr")
    return [HistoryBuffer, ConfigDict, np.ndarray, np.dtype, *kinds, *arrays, statistic]


def load_weights(
    network: torch.nn.Module, state: dict[str, Tensor], path: Path, config: str
) -> None:
    """Load weights into a network, every one of them.

    Raises UserError for a checkpoint of another network; `path` and `config` are for its message.
    """
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    reshaped = [
        name for name in state if name in wanted and state[name].shape != wanted[name].shape
    ]
    problems = [
        *_describe("are missing", missing),
        *_describe("are unknown", unknown),
        *_describe("have another shape", reshaped),
    ]
    if problems:
        raise UserError(
            f"{path} does not fit {config}: of its tensors, {'; '.join(problems)}. "
            f"It must be the instance segmentation variant, from mmdet 3: {URL}"
        )
    network.load_state_dict(state)


def _describe(problem: str, names: Sequence[str]) -> list[str]:
    return [f"{len(names)} {problem} (such as {min(names)})"] if names else []


def _download_weights() -> Path:
    return fetch(URL, SHA256, f"geneval/{FILE}", "set benchmark.detector.checkpoint=PATH")
