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

from imgcls.serve.refusals import Refusal

log = logging.getLogger(__name__)

MAX_BATCH = 16
"""Larger batches are no faster on a CPU, and each image waits longer."""
NOT_FINITE = "The model's outputs are not finite."


@dataclass(frozen=True)
class _Job:
    image: np.ndarray
    scores: Future[np.ndarray]


class Batcher:
    """Runs the model in one thread, each time on all waiting images; none waits for a batch to fill.

    Args:
        compute: maps float32 (N, 3, S, S) to float32 (N, C).
        max_batch: images that go through the model at once.
        observe: called with the size of each batch and its seconds.
    """

    def __init__(
        self,
        compute: Callable[[np.ndarray], np.ndarray],
        max_batch: int = MAX_BATCH,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self.compute, self.max_batch, self.observe = compute, max_batch, observe
        self.last_success = 0.0
        """time.monotonic() of the last successful batch."""
        self.failing = False
        """Whether the last batch raised, or had logits that are not finite."""
        self._computing = 0
        self._probe: Future[np.ndarray] | None = None
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="imgcls-model", daemon=True)
        self._thread.start()

    def submit(self, image: np.ndarray) -> Future[np.ndarray]:
        """The future logits, float32 (C,), of one float32 (3, S, S) image."""
        job = _Job(image, Future())
        self._queue.put(job)
        return job.scores

    def probe(self, image: np.ndarray) -> Future[np.ndarray]:
        """The future logits of `image`, or of an earlier one that still waits: a model that hangs is asked once."""
        if self._probe is None or self._probe.done():
            self._probe = self.submit(image)
        return self._probe

    def close(self, seconds: float = 10.0) -> None:
        """Finish the submitted images, then end the thread."""
        self._queue.put(None)
        self._thread.join(seconds)

    @property
    def waiting(self) -> int:
        """Images that the thread has not taken yet."""
        return self._queue.qsize()

    @property
    def load(self) -> int:
        """Images that are waiting or in the model."""
        return self.waiting + self._computing

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def _work(self) -> None:
        is_open = True
        while is_open:
            jobs, is_open = self._next_batch()
            if batch := [job for job in jobs if job.scores.set_running_or_notify_cancel()]:
                self._run(batch)

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """The waiting jobs, and whether more may come."""
        first = self._queue.get()
        if first is None:
            return [], False
        batch = [first]
        while len(batch) < self.max_batch:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return batch, False
            batch.append(job)
        return batch, True

    def _run(self, batch: list[_Job]) -> None:
        began = time.monotonic()
        try:
            scores = self._outputs(batch)
        except Exception as error:
            self.failing = True
            log.exception("The model failed on a batch of %d images.", len(batch))
            for job in batch:
                job.scores.set_exception(error)
            return
        ended = time.monotonic()
        self.observe(len(batch), ended - began)
        is_finite = np.isfinite(scores).all(axis=1)
        self.failing = not is_finite.all()
        if self.failing:
            log.error("The model's outputs are not finite for %d of %d images.", (~is_finite).sum(), len(batch))
        else:
            self.last_success = ended
        for job, row, good in zip(batch, scores, is_finite, strict=True):
            if good:
                job.scores.set_result(row)
            else:
                job.scores.set_exception(Refusal(500, NOT_FINITE))

    def _outputs(self, batch: list[_Job]) -> np.ndarray:
        self._computing = len(batch)
        try:
            return self.compute(np.stack([job.image for job in batch]))
        finally:
            self._computing = 0  # before the answers, whose clients may ask again at once
