"""What stands before every request: request ids and their log, host names, security headers, origins, the API key."""

from __future__ import annotations

import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEALTH = ("/ping", "/health")
"""Paths for load balancers, which ask by address and without a key."""
PAGES = ("/", "/docs", "/openapi.json")
SCRIPTS = "/static-offline-docs/"
"""What a browser opens before a key can be typed in: nothing of the model."""
PAGE_POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


@dataclass(frozen=True)
class Guards:
    """Who is answered, and what is written about it.

    Attributes:
        allowed_hosts: of the Host header, `*.example.org` for all below one; empty: all.
        cors: origins whose pages may ask, such as https://app.example.org; `*` is all; empty: none.
        api_key: what a request must carry, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; None: nothing.
        log: takes a line of JSON for each answered request; None: no log.
    """

    allowed_hosts: Sequence[str] = ()
    cors: Sequence[str] = ()
    api_key: str | None = None
    log: Callable[[str], None] | None = None

    def install(self, app: FastAPI) -> None:
        """Put the guards before `app`: the one added last is asked first."""
        if self.api_key is not None:
            app.add_middleware(ApiKey, key=self.api_key)
        if self.cors:
            app.add_middleware(
                CORSMiddleware,
                allow_origins=list(self.cors),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id", "Retry-After"],
            )
        app.add_middleware(Hosts, allowed=tuple(host.lower() for host in self.allowed_hosts))
        app.add_middleware(RequestIds, write=self.log)


class RequestIds:
    """ASGI middleware: an id for each request, that of the client if it sends one, and a line in the log."""

    def __init__(self, app: ASGIApp, write: Callable[[str], None] | None) -> None:
        self._app, self._write = app, write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its answer has the header `X-Request-Id`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if REQUEST_ID.fullmatch(asked) else secrets.token_hex(16)
        began, status, sent = time.monotonic(), 500, 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if self._write is not None:
                self._write(json.dumps(self._entry(scope, request_id, status, sent, time.monotonic() - began)))

    @staticmethod
    def _entry(scope: Scope, request_id: str, status: int, sent: int, seconds: float) -> dict[str, Any]:
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": request_id,
            "client": (scope.get("client") or [None])[0],
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "bytes": sent,
            "seconds": round(seconds, 4),
        }


class Hosts:
    """ASGI middleware: security headers on every answer, and a check of the Host header."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if its host is allowed."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if scope["path"] in ("/", "/docs"):
                    headers["Content-Security-Policy"] = PAGE_POLICY
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._app
        if scope["type"] == "http" and not self._is_allowed(scope):
            app = JSONResponse({"error": "This server does not answer to that host name."}, 421)
        await app(scope, receive, send_with_headers)

    def _is_allowed(self, scope: Scope) -> bool:
        if not self._allowed or scope["path"] in HEALTH:
            return True
        try:
            host = urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname or ""
        except ValueError:
            return False
        return any(fnmatchcase(host, pattern) for pattern in self._allowed)


class ApiKey:
    """ASGI middleware: requests without the key are refused, but for the health checks and the empty pages."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it has the key."""
        app = self._app
        if scope["type"] == "http" and not self._is_open(scope["path"]) and not self._has_key(scope):
            sentence = "Send the API key of this server: Authorization: Bearer KEY"
            app = JSONResponse({"error": sentence}, 401, {"WWW-Authenticate": "Bearer"})
        await app(scope, receive, send)

    @staticmethod
    def _is_open(path: str) -> bool:
        return path in (*HEALTH, *PAGES) or path.startswith(SCRIPTS)

    def _has_key(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        sent = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(sent.encode("latin-1", "replace"), self._key)
