"""Checkpoints that are written while the training goes on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from imgcls.checkpoints import AtomicCheckpointIO


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
