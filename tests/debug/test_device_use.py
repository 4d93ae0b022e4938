"""How busy a device was, from events like those of torch.profiler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from imgcls.debug.device_use import covered, device_use

STEPS = "steps"


def event(name: str, start: float, end: float, device: DeviceType = DeviceType.CPU) -> Any:
    return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end), device_type=device)


def test_overlapping_work_counts_once() -> None:
    assert covered([]) == 0
    assert covered([(0, 10), (2, 3), (9, 12), (20, 21)]) == 13


def test_gaps_in_the_devices_work_are_its_idle_share() -> None:
    work = [event("kernel", *at, DeviceType.CUDA) for at in ((100, 150), (140, 200), (250, 300))]
    use = device_use([event(STEPS, 90, 220), event("aten::conv2d", 95, 99), *work], STEPS)
    assert use == {"idle_share": 0.25, "milliseconds": 0.2, "waits": {}}


def test_only_waits_within_the_steps_count() -> None:
    calls = [event("cudaStreamSynchronize", at, at + 5) for at in (10, 100, 110, 400)]
    calls += [event("cudaMemcpyAsync", 120, 121), event("cudaDeviceSynchronize", 300, 310)]
    use = device_use([event(STEPS, 90, 220), event("kernel", 100, 101, DeviceType.CUDA), *calls], STEPS)
    assert use is not None
    assert use["waits"] == {"cudaStreamSynchronize": 2}


def test_the_window_on_the_device_does_not_count_as_work() -> None:
    window = [event(STEPS, 0, 100), event(STEPS, 10, 90, DeviceType.CUDA)]
    assert device_use(window, STEPS) is None
    use = device_use([*window, event("kernel", 50, 60, DeviceType.CUDA)], STEPS)
    assert use is not None
    assert use["idle_share"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_a_device_there_is_no_result() -> None:
    with torch.profiler.profile() as profile, torch.profiler.record_function(STEPS):
        torch.ones(3).sum()
    assert any(event.name == STEPS for event in profile.events())
    assert device_use(profile.events(), STEPS) is None
