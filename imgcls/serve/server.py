"""The HTTP server: FastAPI around a Service, with the routes of SageMaker's containers and a few for people."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
from imgcls.serve.models import Models
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
    served: Service | Models,
    guards: Guards | None = None,
    load: Callable[[], Predictor] | None = None,
    feedback: Feedback | None = None,
    examples: Sequence[Path] = (),
    capture: Capture | None = None,
) -> FastAPI:
    """The application around one model or several, which it closes when the server stops.

    Args:
        served: answers the requests.
        guards: who is answered; None: everybody.
        load: loads the only model again, on SIGHUP or `POST /reload`; those of Models load themselves.
        feedback: keeps the corrections that the page's users make; None: they make none.
        examples: images that the page offers.
        capture: keeps requests with their answers, and is closed when the server stops; None: none are kept.
    """
    guards, can_load = guards or Guards(), load is not None or isinstance(served, Models)
    models = served if isinstance(served, Models) else Models({"model": Current(served, load)})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if can_load:
            _reload_on_hangup(models)
        yield
        await models.close()
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
    _add_routes(app, models, capture)
    if guards.api_key is not None and can_load:  # anybody's would be a way to keep the server busy
        _add_changes(app, models)
    add_page(app, models, feedback, examples)
    return app


def _reload_on_hangup(models: Models) -> None:
    """Load the model again on SIGHUP, which Windows, and threads other than the main one, do not get."""
    loop, begun = asyncio.get_running_loop(), set()

    async def reload() -> None:
        with contextlib.suppress(Refusal):  # it is in the log
            await models.reload()

    def begin() -> None:
        task = loop.create_task(reload())
        begun.add(task)
        task.add_done_callback(begun.discard)

    with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
        loop.add_signal_handler(signal.SIGHUP, begin)


def _add_changes(app: FastAPI, models: Models) -> None:
    async def answer(change: Coroutine[Any, Any, None], status: str) -> Response:
        try:
            await change
        except Refusal as refusal:
            return refusal_response(refusal)
        return JSONResponse({"status": status})

    @app.post("/reload", summary="Load the models again", responses={409: ERRORS[409]})
    async def reload() -> Response:
        return await answer(models.reload(), "loaded")

    @app.post("/models", summary="Add a model, which becomes the default", responses={409: ERRORS[409]})
    async def add(name: str, run: str) -> Response:
        return await answer(models.add(name, run), "loaded")

    @app.delete("/models/{name}", summary="Remove a model", responses={409: ERRORS[409]})
    async def remove(name: str) -> Response:
        return await answer(models.remove(name), "removed")


def _add_routes(app: FastAPI, models: Models, capture: Capture | None) -> None:
    async def health() -> Response:
        try:
            await models.service.check_health()
        except Refusal as refusal:
            return refusal_response(refusal)
        return JSONResponse({"status": "healthy"})

    for path in HEALTH:
        summary = "Whether the model can answer"
        app.add_api_route(path, health, responses={503: ERRORS[503]}, summary=summary, operation_id=path[1:])

    @app.get("/version", summary="Which model this is, and which imgcls")
    async def version() -> dict[str, Any]:
        description = models.service.predictor.model.description
        return {
            "imgcls": imgcls.__version__,
            "model": description["architecture"]["name"],
            **dict.fromkeys(("run", "commit", "trained")),
            **description.get("origin", {}),
        }

    @app.get("/models", summary="What is served")
    async def list_models() -> dict[str, Any]:
        return {"models": [_about(name, models) for name in models.names]}

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(models.service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def invoke(request: Request, name: str | None = None) -> Response:
        began, body = time.monotonic(), Body(request)
        service = models.service
        try:
            name = name or models.choose()
            service = models.find(name).service
            with service.arrival() as count:
                content = await body.read(service.limits.body_seconds, count)
                kind, accept = request.headers.get("content-type"), request.headers.get("accept")
                with service.admission():
                    asked = (request.query_params.get(option) for option in ("top_k", "coverage"))
                    answer, answer_kind = await service.answer(content, kind, accept, *asked)
                if capture is not None:
                    capture.add(content, kind, answer, answer_kind)
                response = Response(answer, headers={"content-type": answer_kind, "x-model": quote(name)})
                service.metrics.models.labels(name).inc()
        except Refusal as refusal:
            await body.drain()
            answered = refusal.in_batch()
            response = refusal_response(refusal) if answered is None else Response(answered, media_type=JSON)
        service.metrics.requests.labels(str(response.status_code)).inc()
        service.metrics.seconds.observe(time.monotonic() - began)
        return response

    about: dict[str, Any] = {
        "openapi_extra": {
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
        "responses": {200: {"content": ANSWER, "description": "The most likely classes of each image"}, **ERRORS},
    }

    @app.post("/invocations", summary="Classify images", **about)
    async def invocations(request: Request) -> Response:
        return await invoke(request)

    @app.post("/models/{name}/invoke", include_in_schema=False)  # the path of SageMaker's multi-model endpoints
    @app.post("/models/{name}/invocations", summary="Classify images with this model", **about)
    async def invocations_of(request: Request, name: str) -> Response:
        return await invoke(request, name)


def _about(name: str, models: Models) -> dict[str, Any]:
    """What is public of the model `name`."""
    predictor = models.find(name).service.predictor
    model = predictor.model
    return {
        "model": name,
        "default": name == models.names[-1],
        "name": model.description["architecture"]["name"],
        "classes": list(model.class_names),
        "preprocessing": model.preprocessing.as_dict(),
        "metrics": model.description["metrics"],
        "versions": model.description["versions"],
        "engine": model.engine.name,
        "precision": model.precision,
        "urls": predictor.fetcher is not None,
        **({"known": model.known_share} if model.known_share is not None else {}),
    }


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
