"""The HTTP connections of the server: closed unless the head of a request arrives in time, and bounded in number."""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""From the first byte of a request, or a new connection, to the end of the head."""
MAX_CONNECTIONS = 2048
SPARE_FILES = 128  # file descriptors for all but connections


def create_config(
    app: Any, *, head_seconds: float = HEAD_SECONDS, max_connections: int | None = None, **options: Any
) -> uvicorn.Config:
    """uvicorn's configuration for `app`.

    Args:
        app: the ASGI application.
        head_seconds: connections without a whole head are closed after this time.
        max_connections: beyond it, each new connection closes the oldest that waits for a head; None: MAX_CONNECTIONS,
            or fewer if the process may open fewer files.
        options: further options of uvicorn.
    """
    if max_connections is None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        max_connections = MAX_CONNECTIONS if files < 0 else max(16, min(MAX_CONNECTIONS, files - SPARE_FILES))
    limits = {"head_seconds": head_seconds, "max_connections": max_connections, "waiting": {}}
    # uvicorn's limit_concurrency would count idle connections and refuse /ping.
    return uvicorn.Config(app, http=type("LimitedConnection", (Connection,), limits), lifespan="on", **options)


class Connection(H11Protocol):
    """A connection that waits for a whole head only for a limited time."""

    head_seconds: ClassVar[float]
    max_connections: ClassVar[int]
    waiting: ClassVar[dict[Connection, None]]
    """Connections without a request in progress, the oldest first."""
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for the connection."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            oldest = next(iter(self.waiting), self)
            oldest._stop_waiting()
            oldest.transport.abort()
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(exc)
        self._stop_waiting()

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_waiting()
            return
        self.waiting.setdefault(self)
        idle = self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
        if self._head_timer is None and not idle:
            self._head_timer = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        self.waiting.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
