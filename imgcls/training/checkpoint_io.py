"""Reads and writes checkpoints: atomically, without unpickling, and if wanted in the background."""

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

from imgcls.errors import UserError, first_line
from imgcls.models.adapters import adapted_checkpoint, merged_checkpoint
from imgcls.system.files import atomic_path

FULL_DISK_BYTES = 1 << 20  # with less free space after a failed write, the disk was full


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, syncs and renames it; reads it with `weights_only=True`.

    In the file the adapters of a network are merged; the training that resumes gets them as they were.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_path(Path(path)) as temporary:
            try:
                torch.save(merged_checkpoint(checkpoint), temporary)
            except RuntimeError as error:  # torch's own writer hides the OSError of a full disk
                full = shutil.disk_usage(temporary.parent).free < FULL_DISK_BYTES
                for cause in (error, error.__context__):  # their frames keep the half-written file open, and its space
                    traceback.clear_frames(cause.__traceback__ if cause is not None else None)
                if not full:
                    raise
                raise UserError(
                    f"Cannot write {path}: the disk is full. Free some space, then run the same command again."
                ) from None

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return adapted_checkpoint(read_checkpoint(Path(path)))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint in `path`, on the CPU, read without executing anything in it. Raises UserError."""
    if not path.is_file():
        raise UserError(f"Checkpoint {path} does not exist.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch reads flipped bits without a word
            if damaged := archive.testzip():
                raise ValueError(f"its part {damaged} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from error


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """Copies a checkpoint to the host and writes it in a thread; the training waits only for the copy.

    One checkpoint is written at a time, in order: the next one, and the end of the training, wait for it and raise its
    errors. A run killed meanwhile still has the previous checkpoint, complete.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="imgcls-checkpoint")
        self._pending: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.wait()
        self._pending = self._pool.submit(super().save_checkpoint, copy_to_host(checkpoint), path, storage_options)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        self.wait()
        return super().load_checkpoint(path, map_location, weights_only)

    def wait(self) -> None:
        """Wait until everything is written. Raises the error of the writing, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def teardown(self) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()


def copy_to_host(content: Any) -> Any:
    """`content` with all tensors copied to the host, so that the next step may change the originals."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, Mapping):
        copies = ((name, copy_to_host(value)) for name, value in content.items())
        return OrderedDict(copies) if isinstance(content, OrderedDict) else dict(copies)
    if isinstance(content, list | tuple) and type(content) in (list, tuple):
        return type(content)(copy_to_host(value) for value in content)
    return content
