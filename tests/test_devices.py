"""A run's device is the current one where it is loaded and drawn on, and judges follow it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from toy import TEXTS, ToyModel, jobs

from harness.engine import scheduler
from harness.engine.guidance import Sampling
from harness.engine.sampler import Sampler
from harness.engine.scheduler import Delivery, Scheduler
from harness.models import devices
from harness.models.devices import choose_device, device_named, on_device
from harness.records import UserError
from methods.plain import Plain


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs that work, and the list of those that became the current one."""
    chosen: list[torch.device] = []

    class Worked:
        """A number that was computed on a device."""

        def __init__(self, device: torch.device) -> None:
            self.device = device if device.index is not None else torch.device(device.type, 0)

        def add_(self, _: int) -> Worked:
            return self

    def ones(_count: int, *, device: torch.device) -> Any:
        return Worked(device) if device.type == "cuda" else torch.zeros(1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "ones", ones)
    return chosen


def test_a_device_has_its_number(two_gpus: list[torch.device]) -> None:
    assert [str(device_named(name)) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
        "cpu",
    ]
    assert not two_gpus  # a judge's device is not the run's


def test_the_device_of_a_run_becomes_the_current_one(two_gpus: list[torch.device]) -> None:
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    assert two_gpus == [torch.device("cuda:1")]


@pytest.mark.parametrize("name", ["cuda:2", "cuda:77", "cuda:-1", "gpu", "meta"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    name: str, two_gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(UserError, match=rf"device={name} is not usable here") as refused:
        choose_device(name)
    assert str(refused.value).endswith("set device=auto, cuda:0, cuda:1 or cpu")
    if name.startswith("cuda:") and "-" not in name:
        assert "GPUs that are visible: 2, by CUDA_VISIBLE_DEVICES=4,5" in str(refused.value)
    assert not two_gpus


def test_without_gpus_the_cpu_is_left() -> None:
    with on_device(device_named("cpu")):
        pass
    if torch.cuda.device_count() == 0:
        with pytest.raises(UserError, match="set device=auto or cpu"):
            device_named("cuda:1")


def test_the_current_device_is_the_models_while_jobs_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever was current before, and again afterwards: a process may hold several models."""
    current = ["another"]

    @contextmanager
    def recorded(device: torch.device) -> Iterator[None]:
        current.append(device.type)
        yield
        current.pop()

    monkeypatch.setattr(scheduler, "on_device", recorded)
    model = ToyModel()
    seen: list[str] = []
    forward = model.forward

    def watched(*inputs: Any) -> Any:
        seen.append(current[-1])
        return forward(*inputs)

    monkeypatch.setattr(model, "forward", watched)

    def deliver(delivery: Delivery) -> None:
        assert not delivery.error
        seen.append(current[-1])

    sampler = Sampler(model, Sampling(scale=2.0), slots=4)
    Scheduler(Plain(), sampler, seed=0).run(jobs(TEXTS[:2]), deliver)
    assert set(seen) == {"cpu"}
    assert current == ["another"]


def test_a_model_is_loaded_on_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.runs import spec

    order: list[str] = []

    def choose(name: str) -> torch.device:
        order.append(f"choose {name}")
        return devices.device_named(name)

    def build(_config: Any, device: torch.device) -> str:
        order.append(f"build on {device}")
        return "model"

    monkeypatch.setattr(spec, "choose_device", choose)
    monkeypatch.setattr(spec, "build_object", build)
    spec.build_model.cache_clear()
    assert spec.load_model('{"_target_": "anything"}', "cpu") == "model"
    assert spec.load_model('{"_target_": "anything"}', "cpu") == "model"
    spec.build_model.cache_clear()
    assert order == ["choose cpu", "build on cpu", "choose cpu"]


@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        (
            ("method=gridar", "judge@method.verifier=local_vlm_verifier"),
            "method.verifier.chat.device",
        ),
        (
            ("method=best_of_n", "judge@method.reward=local_vlm_reward"),
            "method.reward.chat.device",
        ),
        (
            ("benchmark=tiif", "judge@benchmark.judge=tiif_qwen"),
            "benchmark.judge.chat.device",
        ),
        (("benchmark=geneval",), "benchmark.detector.device"),
        (("benchmark=geneval",), "benchmark.colors.device"),
    ],
)
def test_networks_beside_the_model_are_on_the_runs_device(
    overrides: tuple[str, ...], option: str
) -> None:
    with initialize_config_module("conf", version_base="1.3"):
        config: Any = compose("config", [*overrides, "device=cuda:1"])
    for name in option.split("."):
        config = config[name]
    assert config == "cuda:1"
