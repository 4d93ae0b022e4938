"""One request from its body to its answer: admission, parallel decoding, batches, time-outs. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from imgcls.serve import answers, payloads
from imgcls.serve.batching import MAX_BATCH, Batcher
from imgcls.serve.metrics import Metrics
from imgcls.serve.predictor import Predictor
from imgcls.serve.refusals import Refusal

log = logging.getLogger(__name__)

Result = TypeVar("Result")
BYTES = ("image/", "application/x-image")
"""Beginnings of content types whose body is the picture itself."""


@dataclass(frozen=True)
class Limits:
    """What keeps the memory bounded and the answers prompt.

    Attributes:
        requests: accepted at the same time; more are refused with 503.
        bytes: of the bodies of all accepted requests.
        seconds: for a request; SageMaker's own limit is 60.
        body_seconds: for the client to send its body.
        decoders: threads that decode pictures.
        fetches: threads that fetch pictures from URLs.
        max_batch: pictures that go through the model at once.
    """

    requests: int = 64
    bytes: int = 128 * 1024 * 1024
    seconds: float = 55.0
    body_seconds: float = 20.0
    decoders: int = 2
    fetches: int = 16
    max_batch: int = MAX_BATCH


class Service:
    """Answers requests with a predictor, many at a time.

    Args:
        predictor: the model; its `warm_up` has been called.
        limits: see there.
    """

    def __init__(self, predictor: Predictor, limits: Limits | None = None) -> None:
        self.predictor, self.limits = predictor, limits or Limits()
        self.metrics = Metrics()
        self.batcher = Batcher(
            lambda images: predictor.model.engine.scores(images), self.limits.max_batch, self.metrics.batch
        )
        self._decoders = ThreadPoolExecutor(self.limits.decoders, "imgcls-decode")
        self._fetchers = ThreadPoolExecutor(self.limits.fetches, "imgcls-fetch")
        # Decoded pictures that wait for the model, whatever number the requests bring.
        self._slots = asyncio.Semaphore(max(4 * self.limits.max_batch, 2 * self.limits.decoders))
        # Pictures that were fetched; a slow host must not take the places of those that came with their requests.
        self._links = asyncio.Semaphore(2 * self.limits.fetches)
        self._requests = self._bytes = 0
        self._probe: Future[np.ndarray] | None = None

    @contextmanager
    def admitted(self, size: int | None) -> Iterator[None]:
        """A place for a request with a body of `size` bytes. Raises Refusal, 413 and 503, where there is none."""
        if size is not None and size > payloads.MAX_BODY:
            raise Refusal(413, f"The request has more than {payloads.MAX_BODY:,} bytes.")
        size = payloads.MAX_BODY if size is None else size
        if self._requests >= self.limits.requests or self._bytes + size > self.limits.bytes:
            raise Refusal(503, "The server is busy; try again in a second.", retry_after=1)
        self._requests, self._bytes = self._requests + 1, self._bytes + size
        self.metrics.in_progress.set(self._requests)
        try:
            yield
        finally:
            self._requests, self._bytes = self._requests - 1, self._bytes - size
            self.metrics.in_progress.set(self._requests)

    async def answer(
        self, body: bytes, content_type: str | None, accept: str | None, top_k: str | None = None
    ) -> tuple[bytes, str]:
        """The body of the answer and its Content-Type. Raises Refusal."""
        try:
            async with asyncio.timeout(self.limits.seconds):
                wanted = answers.wish(accept, top_k)  # before any work is done
                if (content_type or "").startswith(BYTES):
                    request = payloads.parse(body, content_type)  # nothing to do: a thread would take longer to wake
                else:
                    request = await self._in_thread(payloads.parse, body, content_type)
                if request.lines:
                    wanted = answers.wish(accept, top_k, lines=True)
                scores = await self._scores(request.items)
                return answers.render(scores, self.predictor.model.class_names, wanted)
        except TimeoutError as error:
            raise Refusal(503, f"The answer took more than {self.limits.seconds:g} s.", retry_after=5) from error
        except Refusal:
            raise
        except Exception as error:
            log.exception("A request failed.")
            raise Refusal(500, "The model could not answer; the server's log says why.") from error

    async def _scores(self, items: list[payloads.Item]) -> np.ndarray:
        """float32 (N, C)."""
        if len(items) == 1:
            return (await self._one(items[0], ""))[None]
        tasks: list[asyncio.Task[np.ndarray]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for number, item in enumerate(items, start=1):
                    tasks.append(group.create_task(self._one(item, f"Picture {number}: ")))
        except ExceptionGroup as group_error:  # the others were cancelled
            raise group_error.exceptions[0] from group_error
        return np.stack([task.result() for task in tasks])

    async def _one(self, item: payloads.Item, which: str) -> np.ndarray:
        try:
            if isinstance(item, payloads.Link):
                async with self._links:
                    fetched = await self._in_thread(self.predictor.encoded, item, pool=self._fetchers)
                    return await self._computed(fetched)
            return await self._computed(item)
        except Refusal as refusal:
            raise Refusal(refusal.status, which + refusal.sentence, refusal.retry_after) from refusal

    async def _computed(self, item: payloads.Item) -> np.ndarray:
        async with self._slots:
            if self.batcher.waiting > 8 * self.limits.max_batch:  # those of requests that gave up
                raise Refusal(503, "The model does not answer; try again later.", retry_after=10)
            image = await self._in_thread(self.predictor.image, item)
            return await asyncio.wrap_future(self.batcher.submit(image))

    async def _in_thread(
        self, work: Callable[..., Result], *arguments: Any, pool: ThreadPoolExecutor | None = None
    ) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool or self._decoders, work, *arguments)

    async def check_health(self, seconds: float = 1.5) -> None:
        """Raise Refusal, 503, where the model cannot answer.

        Answers that were given in the last seconds are proof enough; otherwise the model is asked.
        """
        batcher = self.batcher
        if not batcher.alive:
            raise Refusal(503, "The model has stopped.")
        if not batcher.failing and time.monotonic() - batcher.last_success < 2 * seconds:
            return
        if self._probe is None or self._probe.done():  # one question is enough for a model that hangs
            self._probe = batcher.submit(np.zeros(self.predictor.shape, dtype=np.float32))
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(asyncio.wrap_future(self._probe))
        except TimeoutError as error:
            raise Refusal(503, "The model does not answer.") from error
        except Exception as error:
            raise Refusal(503, "The model fails.") from error

    def close(self) -> None:
        """Finish what was accepted, and end the threads."""
        self.batcher.close()
        for pool in (self._decoders, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)
