"""Which devices a run uses, and the values of `auto` that depend on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from imgcls.errors import UserError
from imgcls.system.machine import all_processes, local_processes

KINDS = {"gpu": "GPU", "cuda": "CUDA device", "mps": "Apple GPU"}


@dataclass(frozen=True)
class Devices:
    """The accelerator and the devices of one machine that a run uses."""

    accelerator: str
    indices: int | list[int]  # for Lightning's Trainer(devices=…)
    num_nodes: int = 1

    @property
    def per_node(self) -> int:
        return self.indices if isinstance(self.indices, int) else len(self.indices)

    @property
    def total(self) -> int:
        """Processes that train together, over all machines."""
        return self.per_node * self.num_nodes

    def torch_device(self, local_rank: int = 0) -> torch.device:
        """The device of the process `local_rank` of this machine."""
        if self.accelerator != "cuda":
            return torch.device(self.accelerator)
        return torch.device("cuda", self.indices[local_rank] if isinstance(self.indices, list) else local_rank)

    def precision(self, choice: str | int) -> str | int:
        """`choice`, or for auto: bfloat16 on GPUs that support it, float16 on older GPUs, float32 elsewhere."""
        if choice != "auto":
            return choice
        if self.accelerator != "cuda":
            return "32-true"
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"

    def channels_last(self, choice: bool | str, side: int, depthwise: bool = False) -> bool:
        """`choice`, or for auto: on CUDA, and on the CPU for larger images or `depthwise` networks."""
        if choice != "auto":
            return bool(choice)
        return self.accelerator == "cuda" or (self.accelerator == "cpu" and (side >= 128 or depthwise))

    def compile(self, choice: bool | str, steps: int) -> bool | str:
        """`choice`, or for auto: on CUDA if the run is long enough to make up for the compilation."""
        if choice != "auto":
            return choice
        return self.accelerator == "cuda" and steps >= 3000

    def write_in_background(self, choice: bool | str) -> bool:
        """`choice`, or for auto: on GPUs, where writing checkpoints does not compete with the training."""
        return self.accelerator in ("cuda", "mps") if choice == "auto" else bool(choice)


def choose_devices(accelerator: str, devices: Any, num_nodes: int = 1) -> Devices:
    """The devices that `trainer.accelerator` and `trainer.devices` ask for.

    Raises UserError for a device that this machine does not have.
    """
    present = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = accelerator in ("auto", "cpu", present) or (accelerator == "gpu" and present != "cpu")
    if not available and accelerator in KINDS:
        raise UserError(
            f"trainer.accelerator={accelerator}: torch finds no {KINDS[accelerator]} on this machine. "
            "Use trainer.accelerator=auto for the available device, or install a torch build and driver for it."
        )
    chosen = present if accelerator in ("auto", "gpu") else accelerator
    count = torch.cuda.device_count() if chosen == "cuda" else 1
    if devices == "auto":
        return Devices(chosen, count, num_nodes)
    indices = list(devices) if not isinstance(devices, str | int) else int(devices)
    if accelerator == "cpu" and isinstance(indices, int):
        return Devices(chosen, indices, num_nodes)  # any number of processes on the CPU
    too_many = indices > count if isinstance(indices, int) else max(indices, default=0) >= count
    if too_many:
        value = f"[{','.join(map(str, indices))}]" if isinstance(indices, list) else indices
        kind = f"{KINDS[chosen]}{'s' if count > 1 else ''}" if chosen in KINDS else "device (the CPU)"
        hint = " For several processes on the CPU add trainer.accelerator=cpu." if chosen == "cpu" else ""
        raise UserError(f"trainer.devices={value}: this machine has {count} {kind}.{hint}")
    return Devices(chosen, indices, num_nodes)


def devices_of_torchrun(accelerator: str) -> Devices:
    """A device for each process that torchrun has started, on all machines; one device without torchrun.

    Raises UserError where this machine has fewer.
    """
    here, everywhere = local_processes(), all_processes()
    chosen = choose_devices(accelerator, "auto")
    if chosen.accelerator != "cpu":  # which any number of processes can share
        choose_devices(accelerator, here)
    return replace(chosen, indices=here, num_nodes=everywhere // here)


def devices_of_training(accelerator: str, devices: Any, num_nodes: int) -> Devices:
    """As `choose_devices`; under torchrun, `auto` is a device for each of its processes, on all its machines.

    Raises UserError too where these are not as many as torchrun's processes, each of which would train alone.
    """
    processes = all_processes()
    if processes > 1 and devices == "auto":
        return devices_of_torchrun(accelerator)
    chosen = choose_devices(accelerator, devices, num_nodes)
    if processes > 1 and chosen.total != processes:
        raise UserError(
            f"torchrun has started {processes} processes, but trainer.devices={devices} and trainer.num_nodes="
            f"{num_nodes} are {chosen.total}. Leave both out: torchrun decides."
        )
    return chosen


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that a device (or this machine) had no memory left for a tensor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


class OutOfMemory(Exception):  # noqa: N818 - handled, never shown
    """A device had no memory left for a micro-batch of `size` images."""

    def __init__(self, size: int, reason: str) -> None:
        super().__init__(reason)
        self.size = size
