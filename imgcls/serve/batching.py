"""Requests that arrive at the same time go through the model together."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

log = logging.getLogger(__name__)

MAX_BATCH = 16
"""On a CPU larger batches are no faster, and each picture waits longer."""


@dataclass(frozen=True)
class _Waiting:
    image: np.ndarray
    scores: Future[np.ndarray]


class Batcher:
    """Runs the model in one thread, each time on all pictures that wait, so that nobody waits for a batch to fill.

    Args:
        compute: float32 (N, 3, S, S) to float32 (N, C).
        max_batch: pictures that go through the model at once.
        observe: is told the size of each batch and the seconds it took.
    """

    def __init__(
        self,
        compute: Callable[[np.ndarray], np.ndarray],
        max_batch: int = MAX_BATCH,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.compute, self.max_batch, self.observe = compute, max_batch, observe
        self.last_success = 0.0
        """time.monotonic() of the last batch that the model answered."""
        self.failing = False
        """The last batch raised."""
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="imgcls-model", daemon=True)
        self._thread.start()

    def submit(self, image: np.ndarray) -> Future[np.ndarray]:
        """The scores, float32 (C,), of one float32 (3, S, S) image, as soon as they are there."""
        waiting = _Waiting(image, Future())
        self._queue.put(waiting)
        return waiting.scores

    def close(self, seconds: float = 10.0) -> None:
        """Finish what was submitted, then end the thread."""
        self._queue.put(None)
        self._thread.join(seconds)

    @property
    def waiting(self) -> int:
        """Images that the thread has not taken yet."""
        return self._queue.qsize()

    @property
    def alive(self) -> bool:
        """The thread still works."""
        return self._thread.is_alive()

    def _work(self) -> None:
        going_on = True
        while going_on:
            batch, going_on = self._next_batch()
            batch = [one for one in batch if one.scores.set_running_or_notify_cancel()]
            if batch:
                self._run(batch)

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        first = self._queue.get()
        if first is None:
            return [], False
        batch = [first]
        while len(batch) < self.max_batch:
            try:
                another = self._queue.get_nowait()
            except queue.Empty:
                break
            if another is None:
                return batch, False
            batch.append(another)
        return batch, True

    def _run(self, batch: list[_Waiting]) -> None:
        began = time.monotonic()
        try:
            scores = self.compute(np.stack([one.image for one in batch]))
        except Exception as error:
            self.failing = True
            log.exception("The model failed on a batch of %d pictures.", len(batch))
            for one in batch:
                one.scores.set_exception(error)
            return
        self.failing, self.last_success = False, time.monotonic()
        self.observe(len(batch), self.last_success - began)
        for one, row in zip(batch, scores, strict=True):
            one.scores.set_result(row)
