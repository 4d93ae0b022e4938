"""From scores to the body of an answer, in the format that the client accepts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Any

import numpy as np

from imgcls.portable.model import softmax, top_classes
from imgcls.serve.refusals import Refusal

JSON, LINES, CSV, NPY = "application/json", "application/jsonlines", "text/csv", "application/x-npy"
FORMATS = {
    JSON: JSON,
    LINES: LINES,
    "application/x-jsonlines": LINES,
    "application/x-ndjson": LINES,
    CSV: CSV,
    NPY: NPY,
}
TOP_K = 5


@dataclass(frozen=True)
class Wish:
    """How the client wants to be answered.

    Attributes:
        kind: one of JSON, LINES, CSV, NPY.
        scores: the plain scores of all classes instead of the likeliest ones with their names.
        top_k: how many classes.
    """

    kind: str = JSON
    scores: bool = False
    top_k: int = TOP_K


def wish(accept: str | None, top_k: str | int | None = None, lines: bool = False) -> Wish:
    """What an Accept header asks for: the first format by its `q` that there is.

    `application/json`, `application/jsonlines` and `text/csv` have the parameters `format=scores` and `top_k=3`;
    `application/x-npy` always has the scores.

    Args:
        accept: the header.
        top_k: of the query; it comes before the header's.
        lines: the request was JSON lines, and so is the answer unless the header says something else.

    Raises:
        Refusal: 406 where no such format is known, 400 for a `top_k` that is no number.
    """
    for kind, parameters in _ranked(accept or "*/*"):
        if kind in ("*/*", "application/*"):
            kind = LINES if lines else JSON
        elif kind == "text/*":
            kind = CSV
        if kind in FORMATS:
            count = _count(top_k if top_k is not None else parameters.get("top_k", TOP_K))
            scores = parameters.get("format") == "scores" or kind == NPY
            return Wish(FORMATS[kind], scores, count)
    raise Refusal(
        406, f"None of the formats of the Accept header is known; there are {JSON}, {LINES}, {CSV} and {NPY}."
    )


def render(scores: np.ndarray, class_names: Sequence[str], wanted: Wish) -> tuple[bytes, str]:
    """The body of an answer, and its Content-Type.

    Args:
        scores: float32 (N, C), before the softmax.
        class_names: C of them.
        wanted: the format.
    """
    if wanted.kind == NPY:
        buffer = io.BytesIO()
        np.save(buffer, scores)
        return buffer.getvalue(), NPY
    if wanted.scores:
        return _rows(scores.tolist(), wanted.kind), wanted.kind
    probabilities = softmax(scores)
    order = top_classes(probabilities, wanted.top_k)
    predictions = [
        [
            {"class": class_names[index], "index": index, "probability": round(float(row[index]), 6)}
            for index in indices.tolist()
        ]
        for row, indices in zip(probabilities, order, strict=True)
    ]
    if wanted.kind == CSV:
        return _table(predictions), CSV
    if wanted.kind == LINES:
        return _lines([{"classes": classes} for classes in predictions]), LINES
    return _dumped({"predictions": [{"classes": classes} for classes in predictions]}), JSON


def _rows(rows: list[list[float]], kind: str) -> bytes:
    if kind == CSV:
        return "".join(",".join(map(repr, row)) + "\n" for row in rows).encode()
    return _lines(rows) if kind == LINES else _dumped(rows)


def _table(predictions: list[list[dict[str, Any]]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "rank", "class", "index", "probability"])
    for number, classes in enumerate(predictions):
        for rank, one in enumerate(classes, start=1):
            writer.writerow([number, rank, one["class"], one["index"], one["probability"]])
    return text.getvalue().encode()


def _lines(values: Sequence[Any]) -> bytes:
    return b"".join(_dumped(value) + b"\n" for value in values)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _ranked(accept: str) -> list[tuple[str, dict[str, str]]]:
    """Media types with their parameters, the most wanted first."""
    found = []
    for position, part in enumerate(accept[:2000].split(",")):
        header = Message()
        header["accept"] = part.strip().replace("\r", " ").replace("\n", " ")
        names = header.get_params([], "accept")
        if not names or not names[0][0]:
            continue
        parameters = {str(name).lower(): str(value) for name, value in names[1:]}
        try:
            quality = float(parameters.get("q", "1"))
        except ValueError:
            quality = 0.0
        if quality > 0:
            found.append((-quality, position, names[0][0].lower(), parameters))
    return [(kind, parameters) for _, _, kind, parameters in sorted(found, key=lambda one: one[:2])]


def _count(value: str | int) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise Refusal(400, "top_k must be a whole number of at least 1.")
    return int(text)
