"""The page for people: images are dropped on it, and examples and corrections belong to it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from imgcls.portable.examples import encode_file
from imgcls.serve.bodies import Body, refusal_response
from imgcls.serve.feedback import Feedback
from imgcls.serve.models import Models
from imgcls.serve.refusals import Refusal

EXAMPLE_PX = 512


def add_page(app: FastAPI, models: Models, feedback: Feedback | None, examples: Sequence[Path]) -> None:
    """Add the page's routes to `app`: `/`, `/page`, `/examples/0` and so on, and `/feedback` where there is one."""
    page = resources.files("imgcls.serve").joinpath("page.html").read_text(encoding="utf-8")
    shown = [encode_file(file, EXAMPLE_PX) for file in examples]

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page)

    @app.get("/page", include_in_schema=False)
    async def about() -> dict[str, Any]:
        return {"examples": len(shown), "feedback": feedback is not None}

    @app.get("/examples/{number}", include_in_schema=False)
    async def example(number: int) -> Response:
        if not 0 <= number < len(shown):
            return refusal_response(Refusal(404, "There is no such example."))
        return Response(shown[number], media_type="image/jpeg")

    if feedback is not None:
        _add_feedback(app, models, feedback)


def _add_feedback(app: FastAPI, models: Models, feedback: Feedback) -> None:
    @app.post(
        "/feedback",
        summary="Keep an image with its right label",
        status_code=201,
        openapi_extra={
            "requestBody": {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}},
            "parameters": [
                {"name": "label", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                {"name": "predicted", "in": "query", "schema": {"type": "string"}},
            ],
        },
    )
    async def correct(request: Request) -> Response:
        body, service = Body(request), models.service
        try:
            # A page elsewhere can post a form or a text to this server, but no image without asking first (CORS).
            kind = request.headers.get("content-type", "")
            if not kind.startswith(("image/", "application/x-image")):
                raise Refusal(415, "Send an image as image/jpeg or application/x-image.")
            with service.arrival() as count:
                content = await body.read(service.limits.body_seconds, count)
                labels = request.query_params.getlist("label")
                predicted = request.query_params.get("predicted", "")
                kept = await asyncio.to_thread(feedback.add, content, labels, predicted)
        except Refusal as refusal:
            await body.drain()
            return refusal_response(refusal)
        return JSONResponse({"images": kept}, 201)
