"""Checkpoints that are written while the training goes on."""

from __future__ import annotations

import shutil
import traceback
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from imgcls.errors import UserError
from imgcls.system.files import atomic_path

SPARE = 1 << 20  # bytes; where less is free after a failed write, the disk was full


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its target, synchronise, rename; read it with `weights_only=True`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_path(Path(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch's own writer hides the OSError of a full disk
                full = shutil.disk_usage(temporary.parent).free < SPARE
                for one in (error, error.__context__):  # they hold the half-written file open, and its space with it
                    traceback.clear_frames(one.__traceback__ if one is not None else None)
                if not full:
                    raise
                raise UserError(
                    f"Cannot write {path}: the disk is full. Free some space, then run the same command again."
                ) from None

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint in `path`, on the CPU, without executing anything from it. Raises UserError."""
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch reads flipped bits without a word
            if damaged := archive.testzip():
                raise ValueError(f"its part {damaged} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no checkpoint that can be read: {reason}") from error


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """Copies a checkpoint to the host and writes it in a thread; the training waits for the copy alone.

    One is written at a time, in order: the next one, and the end of the training, wait for it, and raise what its
    writing raised. A run that is killed meanwhile has the checkpoint before it, whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="imgcls-checkpoint")
        self._pending: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.wait()
        self._pending = self._pool.submit(super().save_checkpoint, on_host(checkpoint), path, storage_options)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        self.wait()
        return super().load_checkpoint(path, map_location, weights_only)

    def wait(self) -> None:
        """Until everything is written. Raises what went wrong, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def teardown(self) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()


def on_host(content: Any) -> Any:
    """`content` with copies on the host of all tensors in it, which the next step may then change."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, Mapping):
        copies = ((name, on_host(value)) for name, value in content.items())
        return OrderedDict(copies) if isinstance(content, OrderedDict) else dict(copies)
    if isinstance(content, list | tuple) and type(content) in (list, tuple):
        return type(content)(on_host(value) for value in content)
    return content
