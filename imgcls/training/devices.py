"""Which devices a run uses, and the automatic values that depend on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from imgcls.errors import UserError


@dataclass(frozen=True)
class Devices:
    """The accelerator and the devices of one machine that a run uses."""

    accelerator: str
    indices: int | list[int]  # what Lightning's Trainer(devices=…) takes
    num_nodes: int = 1

    @property
    def per_node(self) -> int:
        return self.indices if isinstance(self.indices, int) else len(self.indices)

    @property
    def total(self) -> int:
        """Processes that train together, over all machines."""
        return self.per_node * self.num_nodes

    @property
    def on_gpu(self) -> bool:
        return self.accelerator in ("cuda", "mps")

    def torch_device(self, local_rank: int = 0) -> torch.device:
        """The device of the process `local_rank` of this machine."""
        if self.accelerator != "cuda":
            return torch.device(self.accelerator)
        return torch.device("cuda", self.indices[local_rank] if isinstance(self.indices, list) else local_rank)

    def precision(self, wanted: str | int) -> str | int:
        """`wanted`, or for auto: bfloat16 where the GPU computes in it, half precision on older ones, else float32."""
        if wanted != "auto":
            return wanted
        if self.accelerator != "cuda":
            return "32-true"
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"

    def channels_last(self, wanted: bool | str, image_size: int) -> bool:
        """`wanted`, or for auto: on GPUs, and on the CPU for larger pictures only (small ones gain nothing there)."""
        if wanted != "auto":
            return bool(wanted)
        return self.accelerator == "cuda" or (self.accelerator == "cpu" and image_size >= 128)

    def compile(self, wanted: bool | str, steps: int) -> bool | str:
        """`wanted`, or for auto: on CUDA where the run is long enough to earn the compilation back."""
        if wanted != "auto":
            return wanted
        return self.accelerator == "cuda" and steps >= 3000

    def in_background(self, wanted: bool | str) -> bool:
        """`wanted`, or for auto: on GPUs, which the training does not share with the writing of checkpoints."""
        return self.on_gpu if wanted == "auto" else bool(wanted)


def choose_devices(accelerator: str, devices: Any, num_nodes: int = 1) -> Devices:
    """The devices that `trainer.accelerator` and `trainer.devices` ask for.

    Raises UserError for a device that this machine does not have.
    """
    wanted = accelerator
    if accelerator in ("auto", "gpu"):
        accelerator = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if wanted == "gpu" and accelerator == "cpu":
            raise UserError(_none_found("gpu", "GPU"))
    elif accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError(_none_found("cuda", "CUDA device"))
    elif accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError(_none_found("mps", "Apple GPU"))

    there = torch.cuda.device_count() if accelerator == "cuda" else 1
    if devices == "auto":
        return Devices(accelerator, there, num_nodes)
    indices = list(devices) if not isinstance(devices, str | int) else int(devices)
    if accelerator == "cpu" and wanted == "cpu" and isinstance(indices, int):
        return Devices(accelerator, indices, num_nodes)  # processes on the CPU: as many as asked for
    unknown = [index for index in indices if index >= there] if isinstance(indices, list) else []
    if unknown or (isinstance(indices, int) and indices > there):
        shown = f"[{','.join(map(str, indices))}]" if isinstance(indices, list) else indices
        kind = {"cuda": "CUDA device", "mps": "Apple GPU", "cpu": "device (the CPU)"}[accelerator]
        also = " For several processes on the CPU add trainer.accelerator=cpu." if accelerator == "cpu" else ""
        raise UserError(f"trainer.devices={shown}: this machine has {there} {kind}{'s' if there > 1 else ''}.{also}")
    return Devices(accelerator, indices, num_nodes)


def _none_found(accelerator: str, kind: str) -> str:
    return (
        f"trainer.accelerator={accelerator}: torch finds no {kind} on this machine. "
        "Use trainer.accelerator=auto for what is there, or install a torch build and driver for it."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device (or this machine) had no memory left for a tensor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


class OutOfMemory(Exception):  # noqa: N818 - a state that is handled, not an error that is shown
    """A device had no memory left for the micro-batch of `size` pictures."""

    def __init__(self, size: int, reason: str) -> None:
        super().__init__(reason)
        self.size = size
