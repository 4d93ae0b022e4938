"""The four handlers that SageMaker's PyTorch inference container calls, through `code/inference.py`.

A refused request is passed on as its Refusal, because the toolkit answers every exception with a traceback.

Environment: `IMGCLS_URLS=true` fetches images from URLs, `IMGCLS_URL_ALLOW=a.org,*.b.org` only from these hosts;
`IMGCLS_ENGINE` and `IMGCLS_DEVICE` choose engine and device. `IMGCLS_BATCH=true` answers what is wrong with an image
with status 200: SageMaker's batch transform ends a whole job with the first answer of another status.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgcls import portable
from imgcls.images.channels import RGB
from imgcls.portable.conformal import ClassSets
from imgcls.serve import answers, payloads
from imgcls.serve.predictor import Predictor, model_folder
from imgcls.serve.refusals import Refusal
from imgcls.serve.urls import Fetcher


@dataclass(frozen=True)
class Prediction:
    """Of each image its outputs, float32 (C,) or (C + 1,), or why it has none; and what else the answer needs."""

    results: list[np.ndarray | Refusal]
    class_names: tuple[str, ...]
    lines: bool = False
    thresholds: tuple[float, ...] | None = None
    sets: ClassSets | None = None


_depth = RGB
"""Of the model that this process has loaded: the toolkit passes `input_fn` no model."""


def model_fn(model_dir: str, context: Any = None) -> Predictor:
    """The model in `model_dir`, loaded and warmed up."""
    folder = model_folder(model_dir)
    model = portable.load(folder, os.environ.get("IMGCLS_ENGINE", "auto"), os.environ.get("IMGCLS_DEVICE") or None)
    predictor = Predictor(model, fetcher_from(os.environ))
    predictor.warm_up()
    global _depth
    _depth = model.preprocessing.depth
    return predictor


def input_fn(body: bytes | str, content_type: str | None, context: Any = None) -> payloads.Request | Refusal:
    """The images of a request."""
    try:
        return payloads.parse(body, content_type, _depth)
    except Refusal as refusal:
        return refusal


def predict_fn(data: payloads.Request | Refusal, model: Predictor, context: Any = None) -> Prediction | Refusal:
    """The outputs of the model for the images."""
    if isinstance(data, Refusal):
        return data
    try:
        served = model.model
        return Prediction(model.results(data.items), served.class_names, data.lines, served.thresholds, served.sets)
    except Refusal as refusal:
        return refusal


def output_fn(prediction: Prediction | Refusal, accept: str | None, context: Any = None) -> tuple[bytes, str]:
    """The body of the answer and its Content-Type."""
    try:
        if isinstance(prediction, Refusal):
            raise prediction
        response = answers.negotiate(accept, lines=prediction.lines)
        return answers.render(
            prediction.results, prediction.class_names, response, prediction.thresholds, prediction.sets
        )
    except Refusal as refusal:
        if (answer := refusal.in_batch()) is not None:
            return answer, answers.JSON
        if context is not None:
            context.set_response_status(code=refusal.status, phrase=refusal.sentence)
        return refusal.body, answers.JSON


def fetcher_from(environment: Mapping[str, str]) -> Fetcher | None:
    """The fetcher that `IMGCLS_URLS` and `IMGCLS_URL_ALLOW` configure; None if URLs are not fetched."""
    if environment.get("IMGCLS_URLS", "").lower() not in ("1", "true", "yes"):
        return None
    hosts = environment.get("IMGCLS_URL_ALLOW", "").split(",")
    return Fetcher(allow=tuple(host.strip() for host in hosts if host.strip()))
