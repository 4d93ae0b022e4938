"""The way from the host to the device."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKING = ("cpu", "mps")  # where a copy that is not waited for gains nothing, or has been seen to go wrong


def send(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`, without waiting for the work that the device has still to do, as `.to(device)` would."""
    return values.to(device, non_blocking=device.type not in BLOCKING)
