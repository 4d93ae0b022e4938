"""SageMaker's four functions: what its PyTorch inference container calls (`code/inference.py` hands over to here).

A request that is refused goes through as its Refusal, because the toolkit answers everything that is raised with a
traceback.

Environment: `IMGCLS_URLS=true` fetches pictures from URLs, `IMGCLS_URL_ALLOW=a.org,*.b.org` only from these hosts;
`IMGCLS_ENGINE`, `IMGCLS_DEVICE` choose what computes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgcls import portable
from imgcls.serve import answers, payloads
from imgcls.serve.predictor import Predictor, model_folder
from imgcls.serve.refusals import Refusal
from imgcls.serve.urls import Fetcher


@dataclass(frozen=True)
class Prediction:
    """Scores of the classes, float32 (N, C), and what an answer needs beside them."""

    scores: np.ndarray
    class_names: tuple[str, ...]
    lines: bool = False


def model_fn(model_dir: str, context: Any = None) -> Predictor:
    """The model in `model_dir`, ready to answer."""
    folder = model_folder(model_dir)
    model = portable.load(folder, os.environ.get("IMGCLS_ENGINE", "auto"), os.environ.get("IMGCLS_DEVICE") or None)
    predictor = Predictor(model, fetcher_from(os.environ))
    predictor.warm_up()
    return predictor


def input_fn(body: bytes | str, content_type: str | None, context: Any = None) -> payloads.Request | Refusal:
    """The pictures of a request."""
    try:
        return payloads.parse(body, content_type)
    except Refusal as refusal:
        return refusal


def predict_fn(data: payloads.Request | Refusal, model: Predictor, context: Any = None) -> Prediction | Refusal:
    """The scores of the pictures."""
    if isinstance(data, Refusal):
        return data
    try:
        return Prediction(model.scores(model.images(data.items)), model.model.class_names, data.lines)
    except Refusal as refusal:
        return refusal


def output_fn(prediction: Prediction | Refusal, accept: str | None, context: Any = None) -> tuple[bytes, str]:
    """The body of the answer and its Content-Type."""
    try:
        if isinstance(prediction, Refusal):
            raise prediction
        wanted = answers.wish(accept, lines=prediction.lines)
        return answers.render(prediction.scores, prediction.class_names, wanted)
    except Refusal as refusal:
        if context is not None:
            context.set_response_status(code=refusal.status, phrase=refusal.sentence)
        return refusal.body, answers.JSON


def fetcher_from(environment: Mapping[str, str]) -> Fetcher | None:
    """What fetches URLs, as `IMGCLS_URLS` and `IMGCLS_URL_ALLOW` say; None where they are not fetched."""
    if environment.get("IMGCLS_URLS", "").lower() not in ("1", "true", "yes"):
        return None
    hosts = environment.get("IMGCLS_URL_ALLOW", "").split(",")
    return Fetcher(allow=tuple(host.strip() for host in hosts if host.strip()))
