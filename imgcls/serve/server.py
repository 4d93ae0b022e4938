"""The HTTP server: FastAPI around a Service, with the routes of SageMaker's containers and a few for people."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

import imgcls
from imgcls.serve.answers import JSON
from imgcls.serve.bodies import Body, refusal_response
from imgcls.serve.capture import Capture
from imgcls.serve.current import Current
from imgcls.serve.feedback import Feedback
from imgcls.serve.guards import HEALTH, SECURITY_HEADERS, Guards
from imgcls.serve.page import add_page
from imgcls.serve.predictor import Predictor
from imgcls.serve.refusals import Refusal
from imgcls.serve.service import Service

log = logging.getLogger(__name__)

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
        401: "The API key is missing or wrong",
        406: "Unsupported format in Accept",
        408: "The body did not arrive in time",
        409: "The model was not loaded again",
        413: "Too large",
        415: "Unsupported Content-Type",
        503: "Busy (with Retry-After), or the model cannot answer",
    }.items()
}


def create_app(
    service: Service,
    guards: Guards | None = None,
    load: Callable[[], Predictor] | None = None,
    feedback: Feedback | None = None,
    examples: Sequence[Path] = (),
    capture: Capture | None = None,
) -> FastAPI:
    """The application around `service`, which it closes when the server stops.

    Args:
        service: answers the requests.
        guards: who is answered; None: everybody.
        load: loads the model again, on SIGHUP or `POST /reload`.
        feedback: keeps the corrections that the page's users make; None: they make none.
        examples: images that the page offers.
        capture: keeps requests with their answers, and is closed when the server stops; None: none are kept.
    """
    guards, current = guards or Guards(), Current(service, load)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if load is not None:
            _reload_on_hangup(current)
        yield
        await current.close()
        if capture is not None:
            await asyncio.to_thread(capture.close)

    # FastAPI's own pages load their scripts from a CDN.
    app = FastAPIOffline(
        "/docs",
        None,  # ReDoc
        title="imgcls",
        version=imgcls.__version__,
        description="An image classifier: images in, classes out.",
        lifespan=lifespan,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if guards.api_key is not None else None,  # for /docs
        redirect_slashes=False,  # a redirect would lead to whatever the Host header says
    )
    guards.install(app)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _server_error)
    _add_routes(app, current, capture)
    if guards.api_key is not None and load is not None:  # anybody's would be a way to keep the server busy
        _add_reload(app, current)
    add_page(app, current, feedback, examples)
    return app


def _reload_on_hangup(current: Current) -> None:
    """Load the model again on SIGHUP, which Windows, and threads other than the main one, do not get."""
    loop, begun = asyncio.get_running_loop(), set()

    async def reload() -> None:
        with contextlib.suppress(Refusal):  # it is in the log
            await current.reload()

    def begin() -> None:
        task = loop.create_task(reload())
        begun.add(task)
        task.add_done_callback(begun.discard)

    with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
        loop.add_signal_handler(signal.SIGHUP, begin)


def _add_reload(app: FastAPI, current: Current) -> None:
    @app.post("/reload", summary="Load the model again", responses={409: ERRORS[409]})
    async def reload() -> Response:
        try:
            await current.reload()
        except Refusal as refusal:
            return refusal_response(refusal)
        return JSONResponse({"status": "loaded"})


def _add_routes(app: FastAPI, current: Current, capture: Capture | None) -> None:
    async def health() -> Response:
        try:
            await current.service.check_health()
        except Refusal as refusal:
            return refusal_response(refusal)
        return JSONResponse({"status": "healthy"})

    for path in HEALTH:
        summary = "Whether the model can answer"
        app.add_api_route(path, health, responses={503: ERRORS[503]}, summary=summary, operation_id=path[1:])

    @app.get("/version", summary="Which model this is, and which imgcls")
    async def version() -> dict[str, Any]:
        description = current.service.predictor.model.description
        return {
            "imgcls": imgcls.__version__,
            "model": description["architecture"]["name"],
            **dict.fromkeys(("run", "commit", "trained")),
            **description.get("origin", {}),
        }

    @app.get("/models", summary="What is served")
    async def models() -> dict[str, Any]:
        model = current.service.predictor.model
        about = {
            "name": model.description["architecture"]["name"],
            "classes": list(model.class_names),
            "preprocessing": model.preprocessing.as_dict(),
            "metrics": model.description["metrics"],
            "versions": model.description["versions"],
            "engine": model.engine.name,
            "urls": current.service.predictor.fetcher is not None,
            **({"known": model.known_share} if model.known_share is not None else {}),
        }
        return {"models": [about]}

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(current.service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post(
        "/invocations",
        summary="Classify images",
        openapi_extra={
            "requestBody": {"content": BODY, "required": True},
            "parameters": [
                {"name": "top_k", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 5}},
                {
                    "name": "coverage",
                    "in": "query",
                    "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                },
            ],
        },
        responses={200: {"content": ANSWER, "description": "The most likely classes of each image"}, **ERRORS},
    )
    async def invocations(request: Request) -> Response:
        began, service = time.monotonic(), current.service
        body = Body(request)
        try:
            with service.arrival() as count:
                content = await body.read(service.limits.body_seconds, count)
                kind, accept = request.headers.get("content-type"), request.headers.get("accept")
                with service.admission():
                    asked = (request.query_params.get(name) for name in ("top_k", "coverage"))
                    answer, answer_kind = await service.answer(content, kind, accept, *asked)
                if capture is not None:
                    capture.add(content, kind, answer, answer_kind)
                response = Response(answer, headers={"content-type": answer_kind})
        except Refusal as refusal:
            await body.drain()
            answered = refusal.in_batch()
            response = refusal_response(refusal) if answered is None else Response(answered, media_type=JSON)
        service.metrics.requests.labels(str(response.status_code)).inc()
        service.metrics.seconds.observe(time.monotonic() - began)
        return response


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
