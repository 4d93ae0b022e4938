from __future__ import annotations

from typing import Any

import pytest
import torch

from imgcls.errors import UserError
from imgcls.training.devices import Devices, choose_devices, devices_of_training, is_out_of_memory


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return pretend


def test_auto_takes_all_gpus_or_else_the_cpu(gpus: Any) -> None:
    gpus(4)
    assert (choose_devices("auto", "auto").accelerator, choose_devices("auto", "auto").total) == ("cuda", 4)
    assert choose_devices("auto", [1, 3]).per_node == 2
    gpus(0)
    assert (choose_devices("auto", "auto").accelerator, choose_devices("auto", "auto").total) == ("cpu", 1)


@pytest.mark.parametrize(
    ("there", "accelerator", "devices"),
    [(0, "auto", 2), (1, "auto", 2), (1, "cuda", [1]), (0, "cuda", 1), (0, "gpu", 1)],
)
def test_a_missing_device_is_refused(gpus: Any, there: int, accelerator: str, devices: Any) -> None:
    gpus(there)
    with pytest.raises(UserError):
        choose_devices(accelerator, devices)


def test_several_processes_on_the_cpu_must_be_asked_for(gpus: Any) -> None:
    gpus(0)
    assert choose_devices("cpu", 2).total == 2


def test_torchrun_decides_how_many_processes_train_together(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each of them would train alone, in one run folder."""
    for name, count in (("WORLD_SIZE", 4), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(count))
    gpus(0)
    assert devices_of_training("auto", "auto", 1) == Devices("cpu", 2, 2)
    gpus(8)
    assert devices_of_training("auto", "auto", 1) == Devices("cuda", 2, 2)
    assert devices_of_training("auto", [3, 5], 2) == Devices("cuda", [3, 5], 2)
    with pytest.raises(UserError, match="has started 4 processes"):
        devices_of_training("auto", 1, 2)
    gpus(1)
    with pytest.raises(UserError, match="this machine has 1 CUDA device"):
        devices_of_training("auto", "auto", 1)


def test_automatic_values_depend_on_the_device(gpus: Any) -> None:
    gpus(1)
    cuda, cpu = choose_devices("auto", "auto"), choose_devices("cpu", 1)
    assert (cuda.precision("auto"), cpu.precision("auto"), cuda.precision("32-true")) == (
        "bf16-mixed",
        "32-true",
        "32-true",
    )
    assert cuda.channels_last("auto", 32)
    assert not cpu.channels_last("auto", 32)
    assert cpu.channels_last("auto", 224)
    assert cpu.channels_last("auto", 32, depthwise=True)
    assert not cpu.channels_last(False, 224, depthwise=True)
    assert cuda.compile("auto", 10_000)
    assert not cuda.compile("auto", 100)
    assert not cpu.compile("auto", 10_000)
    assert cuda.compile("reduce-overhead", 1) == "reduce-overhead"
    assert (cuda.write_in_background("auto"), cpu.write_in_background("auto"), cpu.write_in_background(True)) == (
        True,
        False,
        True,
    )


def test_out_of_memory_is_detected_on_every_device() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))
