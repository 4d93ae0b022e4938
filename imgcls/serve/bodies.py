"""The bodies of requests, read within limits of size and time, and those of refusals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from fastapi import Request, Response

from imgcls.serve import answers, payloads
from imgcls.serve.refusals import Refusal

DRAIN_BYTES = 8 * payloads.MAX_BODY_BYTES
"""How much of a body that is too large is still read, so that the client gets to read the refusal."""

GRACE_SECONDS = 5.0
MIN_BYTES_PER_SECOND = 4096
"""Of a body, on average after GRACE_SECONDS."""


class Body:
    """The body of a request, read within limits of size and time."""

    def __init__(self, request: Request) -> None:
        self._request, self._ended = request, False
        value = request.headers.get("content-length", "")
        self.declared = int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None
        """Bytes according to Content-Length; None without it."""

    async def read(self, seconds: float, count: Callable[[int], None]) -> bytes:
        """The whole body; `count` takes the size of each part. Raises Refusal, 408 if it takes more than `seconds`."""
        if (self.declared or 0) > payloads.MAX_BODY_BYTES:
            count(self.declared or 0)
        content = bytearray()
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(None) as timer:
                while not self._ended:
                    timer.reschedule(began + min(seconds, GRACE_SECONDS + len(content) / MIN_BYTES_PER_SECOND))
                    part = await self._part()
                    count(len(part))
                    content += part
        except TimeoutError as error:
            self._ended = True
            raise Refusal(408, f"The body did not arrive within {seconds:g} s, or too slowly.") from error
        return bytes(content)

    async def drain(self) -> None:
        """Read the rest of the body, within limits: many clients read the answer only after sending it."""
        remaining = DRAIN_BYTES
        with contextlib.suppress(TimeoutError, Refusal):
            async with asyncio.timeout(5):
                while remaining > 0 and not self._ended:
                    remaining -= len(await self._part())

    async def _part(self) -> bytes:
        message = await self._request.receive()
        self._ended = message["type"] != "http.request" or not message.get("more_body")
        if message["type"] == "http.disconnect":
            raise Refusal(400, "The client has disconnected.")
        part: bytes = message.get("body", b"")
        return part


def refusal_response(refusal: Refusal) -> Response:
    """The answer that refuses a request."""
    headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after is not None else None
    return Response(refusal.body, refusal.status, headers, media_type=answers.JSON)
