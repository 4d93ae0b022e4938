"""A request from its body to its answer, without HTTP: admission, parallel decoding, batches, timeouts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from imgcls.serve import answers, payloads
from imgcls.serve.batching import MAX_BATCH, Batcher
from imgcls.serve.metrics import Metrics
from imgcls.serve.predictor import LARGE_PIXELS, LargeImage, Predictor
from imgcls.serve.refusals import Refusal

log = logging.getLogger(__name__)

Result = TypeVar("Result")
RAW_TYPES = ("image/", "application/x-image")
"""Prefixes of the content types whose body is the image itself."""


@dataclass(frozen=True)
class Limits:
    """Bounds on memory and latency.

    Attributes:
        requests: answered at the same time; more are refused with 503.
        bytes: total size of all bodies, of those that arrive too.
        seconds: for a request; SageMaker's limit is 60.
        body_seconds: for the client to send the body; a slow one has less (`bodies.MIN_BYTES_PER_SECOND`).
        decoders: threads that decode images.
        fetches: threads that fetch images from URLs.
        max_batch: images that go through the model at once.
    """

    requests: int = 64
    bytes: int = 128 * 1024 * 1024
    seconds: float = 55.0
    body_seconds: float = 20.0
    decoders: int = 2
    fetches: int = 16
    max_batch: int = MAX_BATCH


class Service:
    """Answers concurrent requests with a predictor, which has been warmed up."""

    def __init__(self, predictor: Predictor, limits: Limits | None = None, metrics: Metrics | None = None) -> None:
        self.predictor, self.limits = predictor, limits or Limits()
        self.metrics = metrics or Metrics()
        self.batchers = [
            Batcher(engine.outputs, self.limits.max_batch, self.metrics.batch) for engine in predictor.engines
        ]
        self._decoders = ThreadPoolExecutor(self.limits.decoders, "imgcls-decode")
        self._fetchers = ThreadPoolExecutor(self.limits.fetches, "imgcls-fetch")
        # Bounds the decoded images that wait for the model.
        self._slots = asyncio.Semaphore(max(4 * self.limits.max_batch * len(self.batchers), 2 * self.limits.decoders))
        # Bounds the memory: images of many pixels are decoded one at a time.
        self._large = asyncio.Semaphore(1)
        # Bounds the fetched images; a slow host must not block images that came with their requests.
        self._links = asyncio.Semaphore(2 * self.limits.fetches)
        self._requests = self._bytes = self._arrivals = 0

    @contextmanager
    def arrival(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes of a body that arrives; the function takes the size of each part, and raises Refusal.

        413 if the body is too large, 503 if all bodies together are.
        """
        size = 0

        def add(part: int) -> None:
            nonlocal size
            if size + part > payloads.MAX_BODY_BYTES:
                raise Refusal(413, f"The request has more than {payloads.MAX_BODY_BYTES:,} bytes.")
            if self._bytes + part > self.limits.bytes:
                raise self._busy()
            size, self._bytes = size + part, self._bytes + part

        self.metrics.in_progress.inc()
        self._arrivals += 1
        try:
            yield add
        finally:
            self.metrics.in_progress.dec()
            self._arrivals, self._bytes = self._arrivals - 1, self._bytes - size

    @property
    def in_use(self) -> bool:
        """Whether a request is in progress."""
        return bool(self._arrivals)

    @contextmanager
    def admission(self, size: int = 0) -> Iterator[None]:
        """Admit a request whose body has arrived, so that slow clients take no place. Raises Refusal, 503 if busy.

        `size` is what `arrival` has not counted.
        """
        if self._requests >= self.limits.requests or self._bytes + size > self.limits.bytes:
            raise self._busy()
        self._requests, self._bytes = self._requests + 1, self._bytes + size
        try:
            yield
        finally:
            self._requests, self._bytes = self._requests - 1, self._bytes - size

    @staticmethod
    def _busy() -> Refusal:
        return Refusal(503, "The server is busy; try again in a second.", retry_after=1)

    async def answer(
        self,
        body: bytes,
        content_type: str | None,
        accept: str | None,
        top_k: str | None = None,
        coverage: str | None = None,
    ) -> tuple[bytes, str]:
        """The body of the answer and its Content-Type. Raises Refusal."""
        try:
            async with asyncio.timeout(self.limits.seconds):
                response = answers.negotiate(accept, top_k, coverage=coverage)  # before any work
                depth = self.predictor.model.preprocessing.depth
                if (content_type or "").startswith(RAW_TYPES):
                    request = payloads.parse(body, content_type, depth)  # trivial: waking a thread would take longer
                else:
                    request = await self._in_thread(payloads.parse, body, content_type, depth)
                if request.lines:
                    response = answers.negotiate(accept, top_k, lines=True, coverage=coverage)
                results = await self._results(request.items)
                model = self.predictor.model
                self.metrics.answers([row for row in results if not isinstance(row, Refusal)], model)
                return answers.render(results, model.class_names, response, model.thresholds, model.sets)
        except TimeoutError as error:
            raise Refusal(503, f"The answer took more than {self.limits.seconds:g} s.", retry_after=5) from error
        except Refusal:
            raise
        except Exception as error:
            log.exception("A request failed.")
            raise Refusal(500, "The model could not answer; see the server's log.") from error

    async def _results(self, items: list[payloads.Item | Refusal]) -> list[np.ndarray | Refusal]:
        """Of each item its outputs, float32 (C,) or (C + 1,), or why not. Raises Refusal if the server is to blame."""
        if len(items) == 1:
            return [await self._result(items[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._result(item)) for item in items]
        except ExceptionGroup as group_error:  # the others were cancelled
            raise group_error.exceptions[0] from group_error
        return [task.result() for task in tasks]

    async def _result(self, item: payloads.Item | Refusal) -> np.ndarray | Refusal:
        if isinstance(item, Refusal):
            return item
        try:
            if isinstance(item, payloads.Link):
                async with self._links:
                    fetched = await self._in_thread(self.predictor.encoded, item, pool=self._fetchers)
                    return await self._compute(fetched)
            return await self._compute(item)
        except Refusal as refusal:
            if refusal.status >= 500:
                raise
            return refusal

    async def _compute(self, item: payloads.Item) -> np.ndarray:
        try:
            return await self._compute_within(item, LARGE_PIXELS)
        except LargeImage:  # it waits here, where it takes no slot and no thread from small images
            async with self._large:
                return await self._compute_within(item)

    async def _compute_within(self, item: payloads.Item, max_pixels: int | None = None) -> np.ndarray:
        async with self._slots:
            if min(batcher.waiting for batcher in self.batchers) > 8 * self.limits.max_batch:  # requests that timed out
                raise Refusal(503, "The model does not answer; try again later.", retry_after=10)
            image = await self._in_thread(self.predictor.image, item, max_pixels)
            least_busy = min(self.batchers, key=lambda batcher: batcher.load)
            return await asyncio.wrap_future(least_busy.submit(image))

    async def _in_thread(
        self, work: Callable[..., Result], *arguments: Any, pool: ThreadPoolExecutor | None = None
    ) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool or self._decoders, work, *arguments)

    async def check_health(self, seconds: float = 1.5) -> None:
        """Raise Refusal, 503, if the model cannot answer. It is asked unless it has answered in the last seconds."""
        probes = []
        for batcher in self.batchers:
            if not batcher.alive:
                raise Refusal(503, "The model has stopped.")
            if batcher.failing or time.monotonic() - batcher.last_success >= 2 * seconds:
                probes.append(batcher.probe(np.zeros(self.predictor.shape, dtype=np.float32)))
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(asyncio.gather(*map(asyncio.wrap_future, probes)))
        except TimeoutError as error:
            raise Refusal(503, "The model does not answer.") from error
        except Exception as error:
            raise Refusal(503, "The model failed.") from error

    def close(self) -> None:
        """Finish the accepted requests, then end the threads."""
        for batcher in self.batchers:
            batcher.close()
        for pool in (self._decoders, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)
