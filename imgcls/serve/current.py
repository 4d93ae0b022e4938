"""The model that a server answers with, replaced by a newer one without a request being lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from imgcls.errors import UserError
from imgcls.serve.predictor import Predictor
from imgcls.serve.refusals import Refusal
from imgcls.serve.service import Service

log = logging.getLogger(__name__)


class Current:
    """The service that answers new requests.

    Attributes:
        service: of the model that was loaded last.
    """

    def __init__(self, service: Service, load: Callable[[], Predictor] | None = None) -> None:
        self.service, self._load = service, load
        self._loading = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()

    async def reload(self) -> None:
        """Load the model again; requests that have begun are answered by the old one.

        Raises:
            Refusal: 409 while it is being loaded or if it cannot be loaded, after which the old one stays.
        """
        if self._load is None or self._loading.locked():
            raise Refusal(
                409, "The model is being loaded." if self._load else "This server cannot load its model again."
            )
        async with self._loading:
            try:
                predictor = await asyncio.to_thread(self._load)
            except UserError as error:
                log.error("The model was not loaded again: %s", error)
                raise Refusal(409, "The model was not loaded again; see the server's log.") from error
            old, self.service = self.service, Service(predictor, self.service.limits, self.service.metrics)
            task = asyncio.create_task(self._close_unused(old))
            self._leaving.add(task)  # the loop keeps only a weak reference
            task.add_done_callback(self._leaving.discard)
        log.warning("The model was loaded again.")

    @staticmethod
    async def _close_unused(service: Service) -> None:
        while service.in_use:
            await asyncio.sleep(0.1)
        await asyncio.to_thread(service.close)

    async def drain(self) -> None:
        """Close it after the last answer to a request that has begun."""
        await self._close_unused(self.service)
        await self.close()

    async def close(self) -> None:
        """Finish the accepted requests, then end the threads."""
        for task in list(self._leaving):
            await task
        await asyncio.to_thread(self.service.close)
