"""The HTTP server: FastAPI around a Service, with the routes of SageMaker's containers and a few for people."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

import imgcls
from imgcls.serve import answers, payloads
from imgcls.serve.metrics import CONTENT_TYPE
from imgcls.serve.refusals import Refusal
from imgcls.serve.service import Service

log = logging.getLogger(__name__)

DRAINED = 8 * payloads.MAX_BODY
"""Bytes of a body that is too large which are still read, so that the client hears why it was refused."""

PAGE_POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
BODY = {
    "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
    "image/png": {"schema": {"type": "string", "format": "binary"}},
    "image/webp": {"schema": {"type": "string", "format": "binary"}},
    "application/x-image": {"schema": {"type": "string", "format": "binary"}},
    "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
    "text/plain": {"schema": {"type": "string", "description": "a picture as base64"}},
    "application/json": {
        "schema": {"type": "object"},
        "examples": {
            "picture": {"value": {"image": "base64…"}},
            "pictures": {"value": {"images": ["base64…", "base64…"]}},
            "tensor": {"value": {"tensor": [[[[0.0]]]]}},
            "link": {"value": {"url": "https://…"}},
        },
    },
    "application/jsonlines": {"schema": {"type": "string", "description": "one JSON request a line"}},
    "multipart/form-data": {
        "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
    },
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
        400: "No picture, or a broken one",
        406: "No such answer",
        408: "The body did not come in time",
        413: "Too large",
        415: "No such request",
        503: "Busy (with Retry-After), or the model cannot answer",
    }.items()
}


def create_app(service: Service) -> FastAPI:
    """The application around `service`; closes it when the server stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="imgcls",
        version=imgcls.__version__,
        description="An image classifier: pictures in, classes out.",
        lifespan=lifespan,
    )
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _fault)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    page = resources.files("imgcls.serve").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/ping", responses={503: ERRORS[503]}, summary="Can the model answer?")
    async def ping() -> Response:
        try:
            await service.check_health()
        except Refusal as refusal:
            return _refused(refusal)
        return JSONResponse({"status": "healthy"})

    @app.get("/models", summary="What is served")
    async def models() -> dict[str, Any]:
        return {"models": [about(service)]}

    @app.get("/metrics", summary="For Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.post(
        "/invocations",
        summary="Classify pictures",
        openapi_extra={
            "requestBody": {"content": BODY, "required": True},
            "parameters": [{"name": "top_k", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 5}}],
        },
        responses={200: {"content": ANSWER, "description": "The likeliest classes of each picture"}, **ERRORS},
    )
    async def invocations(request: Request) -> Response:
        began = time.monotonic()
        body = _Body(request)
        try:
            with service.admitted(body.declared):
                response = await _answered(service, request, body)
        except Refusal as refusal:
            await body.drain()
            response = _refused(refusal)
        service.metrics.requests.labels(str(response.status_code)).inc()
        service.metrics.seconds.observe(time.monotonic() - began)
        return response


async def _answered(service: Service, request: Request, body: _Body) -> Response:
    content = await body.read(service.limits.body_seconds)
    headers = request.headers
    accept, top_k = headers.get("accept"), request.query_params.get("top_k")
    answer, kind = await service.answer(content, headers.get("content-type"), accept, top_k)
    return Response(answer, headers={"content-type": kind})


class _Body:
    """The body of a request: read up to a limit, and not longer than a while."""

    def __init__(self, request: Request) -> None:
        self._request, self._ended = request, False
        value = request.headers.get("content-length", "")
        self.declared = int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None
        """Bytes, where the request says so."""

    async def read(self, seconds: float) -> bytes:
        content = bytearray()
        try:
            async with asyncio.timeout(seconds):
                while not self._ended:
                    content += await self._part()
                    if len(content) > payloads.MAX_BODY:
                        raise Refusal(413, f"The request has more than {payloads.MAX_BODY:,} bytes.")
        except TimeoutError as error:
            self._ended = True
            raise Refusal(408, f"The body did not come within {seconds:g} s.") from error
        return bytes(content)

    async def drain(self) -> None:
        """Read what the client still sends, within limits: it would not hear the answer while it sends."""
        left = DRAINED
        with contextlib.suppress(TimeoutError, Refusal):
            async with asyncio.timeout(5):
                while left > 0 and not self._ended:
                    left -= len(await self._part())

    async def _part(self) -> bytes:
        message = await self._request.receive()
        self._ended = message["type"] != "http.request" or not message.get("more_body")
        if message["type"] == "http.disconnect":
            raise Refusal(400, "The client has gone.")
        part: bytes = message.get("body", b"")
        return part


def about(service: Service) -> dict[str, Any]:
    """What `GET /models` says of the model."""
    model = service.predictor.model
    description = model.description
    return {
        "name": description["architecture"]["name"],
        "classes": list(model.class_names),
        "preprocessing": model.preprocessing.as_dict(),
        "metrics": description["metrics"],
        "versions": description["versions"],
        "engine": model.engine.name,
        "urls": service.predictor.fetcher is not None,
    }


def _refused(refusal: Refusal) -> Response:
    headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after is not None else None
    return Response(refusal.body, refusal.status, headers, media_type=answers.JSON)


async def _http_error(request: Request, error: Exception) -> Response:
    """A path or a method that there is not, in the form of all errors."""
    assert isinstance(error, HTTPException)
    sentences = {404: "There is no such path.", 405: "This path does not take that method."}
    sentence = sentences.get(error.status_code, str(error.detail))
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    """The server logs the traceback; the client is told that there is one."""
    return JSONResponse({"error": "The server failed; its log says why."}, 500)
