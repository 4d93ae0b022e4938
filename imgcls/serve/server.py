"""The HTTP server: FastAPI around a Service, with the routes of SageMaker's containers and a few for people."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from html import escape
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import imgcls
from imgcls.serve import answers, payloads
from imgcls.serve.refusals import Refusal
from imgcls.serve.service import Service

log = logging.getLogger(__name__)

DRAIN_BYTES = 8 * payloads.MAX_BODY_BYTES
"""How much of a body that is too large is still read, so that the client gets to read the refusal."""

GRACE_SECONDS = 5.0
MIN_BYTES_PER_SECOND = 4096
"""Of a body, on average after GRACE_SECONDS."""

PAGE_POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
BINARY = {"type": "string", "format": "binary"}
BODY: dict[str, Any] = {
    **{
        kind: {"schema": BINARY}
        for kind in ("image/jpeg", "image/png", "image/webp", "application/x-image", "application/x-npy")
    },
    "text/plain": {"schema": {"type": "string", "description": "an image as base64"}},
    "application/json": {
        "schema": {"type": "object"},
        "examples": {
            "image": {"value": {"image": "base64…"}},
            "images": {"value": {"images": ["base64…", "base64…"]}},
            "tensor": {"value": {"tensor": [[[[0.0]]]]}},
            "link": {"value": {"url": "https://…"}},
        },
    },
    "application/jsonlines": {"schema": {"type": "string", "description": "one JSON request per line"}},
    "multipart/form-data": {"schema": {"type": "object", "properties": {"file": BINARY}}},
}
ANSWER = {
    "application/json": {
        "example": {"predictions": [{"classes": [{"class": "cat", "index": 0, "probability": 0.97}]}]}
    },
    "application/jsonlines": {},
    "text/csv": {},
    "application/x-npy": {},
}
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "content": {"application/json": {"example": {"error": "One sentence."}}}}
    for code, text in {
        400: "Invalid request or damaged image",
        406: "Unsupported format in Accept",
        408: "The body did not arrive in time",
        413: "Too large",
        415: "Unsupported Content-Type",
        503: "Busy (with Retry-After), or the model cannot answer",
    }.items()
}


def create_app(service: Service, allowed_hosts: Sequence[str] = ()) -> FastAPI:
    """The application around `service`, which it closes when the server stops.

    Args:
        service: answers the requests.
        allowed_hosts: of the Host header, `*.example.org` for all below one; empty: all.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="imgcls",
        version=imgcls.__version__,
        description="An image classifier: images in, classes out.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,  # a redirect would lead to whatever the Host header says
    )
    app.add_middleware(Guard, allowed_hosts=tuple(host.lower() for host in allowed_hosts))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _server_error)
    _add_routes(app, service)
    return app


class Guard:
    """ASGI middleware: security headers on every answer, and a check of the Host header."""

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self._app, self._allowed_hosts = app, allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if its host is allowed."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._app
        if scope["type"] == "http" and not self._is_allowed(scope):
            app = JSONResponse({"error": "This server does not answer to that host name."}, 421)
        await app(scope, receive, send_with_headers)

    def _is_allowed(self, scope: Scope) -> bool:
        if not self._allowed_hosts or scope["path"] == "/ping":  # load balancers ask by address
            return True
        try:
            host = urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname or ""
        except ValueError:
            return False
        return any(fnmatchcase(host, pattern) for pattern in self._allowed_hosts)


def _documentation(schema: dict[str, Any]) -> str:
    """The routes of an OpenAPI schema as a page without scripts."""
    rows = []
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            bodies = ", ".join(route.get("requestBody", {}).get("content", {}))
            answers = "".join(f"<li>{code}: {escape(str(a['description']))}" for code, a in route["responses"].items())
            body = f"<p>Content-Type: {escape(bodies)}" if bodies else ""
            rows.append(
                f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(route['summary'])}{body}<ul>{answers}</ul>"
            )
    title = f"{escape(schema['info']['title'])} {escape(schema['info']['version'])}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
        f'<p>{escape(schema["info"]["description"])} Schema: <a href="openapi.json">openapi.json</a>'
        f"{''.join(rows)}</html>"
    )


def _add_routes(app: FastAPI, service: Service) -> None:
    page = resources.files("imgcls.serve").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_documentation(app.openapi()))

    @app.get("/ping", responses={503: ERRORS[503]}, summary="Whether the model can answer")
    async def ping() -> Response:
        try:
            await service.check_health()
        except Refusal as refusal:
            return _refusal_response(refusal)
        return JSONResponse({"status": "healthy"})

    @app.get("/models", summary="What is served")
    async def models() -> dict[str, Any]:
        model = service.predictor.model
        about = {
            "name": model.description["architecture"]["name"],
            "classes": list(model.class_names),
            "preprocessing": model.preprocessing.as_dict(),
            "metrics": model.description["metrics"],
            "versions": model.description["versions"],
            "engine": model.engine.name,
            "urls": service.predictor.fetcher is not None,
        }
        return {"models": [about]}

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post(
        "/invocations",
        summary="Classify images",
        openapi_extra={
            "requestBody": {"content": BODY, "required": True},
            "parameters": [{"name": "top_k", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 5}}],
        },
        responses={200: {"content": ANSWER, "description": "The most likely classes of each image"}, **ERRORS},
    )
    async def invocations(request: Request) -> Response:
        began = time.monotonic()
        body = _Body(request)
        try:
            with service.arrival() as count:
                content = await body.read(service.limits.body_seconds, count)
                kind, accept = request.headers.get("content-type"), request.headers.get("accept")
                with service.admission():
                    answer, answer_kind = await service.answer(content, kind, accept, request.query_params.get("top_k"))
                response = Response(answer, headers={"content-type": answer_kind})
        except Refusal as refusal:
            await body.drain()
            response = _refusal_response(refusal)
        service.metrics.requests.labels(str(response.status_code)).inc()
        service.metrics.seconds.observe(time.monotonic() - began)
        return response


class _Body:
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


def _refusal_response(refusal: Refusal) -> Response:
    headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after is not None else None
    return Response(refusal.body, refusal.status, headers, media_type=answers.JSON)


async def _http_error(request: Request, error: Exception) -> Response:
    """An unknown path or method, in the form of all errors."""
    assert isinstance(error, HTTPException)
    sentences = {404: "No such path.", 405: "This path does not support that method."}
    sentence = sentences.get(error.status_code, str(error.detail))
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _server_error(request: Request, error: Exception) -> Response:
    """The traceback goes to the server's log, not to the client."""
    return JSONResponse(
        {"error": "The server failed; see its log."}, 500, SECURITY_HEADERS
    )  # no middleware is around it
