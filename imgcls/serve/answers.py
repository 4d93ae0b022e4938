"""From logits to the body of an answer, in the format that the client accepts."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Any

import numpy as np

from imgcls.errors import UserError
from imgcls.portable.conformal import ClassSets, check_coverage
from imgcls.portable.model import NO_SETS, likeliest, sigmoid, softmax, split_outputs
from imgcls.portable.predictions import novelty_entries
from imgcls.serve.refusals import Refusal
from imgcls.system.tables import table_as_csv

JSON, LINES, CSV, NPY = "application/json", "application/jsonlines", "text/csv", "application/x-npy"
ALIASES = {"application/x-jsonlines": LINES, "application/x-ndjson": LINES}
TOP_K = 5


@dataclass(frozen=True)
class ResponseFormat:
    """The format of the answer that the client asks for.

    Attributes:
        kind: one of JSON, LINES, CSV, NPY.
        scores: the logits of all classes instead of the names of the most likely ones.
        top_k: number of classes; None: TOP_K, or all where an image can have several labels.
        coverage: the set of classes that holds the true one in this share of the cases, instead of `top_k` classes.
    """

    kind: str = JSON
    scores: bool = False
    top_k: int | None = None
    coverage: float | None = None


def negotiate(
    accept: str | None, top_k: str | int | None = None, lines: bool = False, coverage: str | float | None = None
) -> ResponseFormat:
    """The supported format that an Accept header prefers.

    `application/json`, `application/jsonlines` and `text/csv` take the parameters `format=scores`, `top_k=3` and
    `coverage=0.95`; `application/x-npy` always holds the logits.

    Args:
        accept: the header.
        top_k: from the query string; overrides the header's.
        lines: the request was JSON lines, which is then the default of the answer.
        coverage: from the query string; overrides the header's.

    Raises:
        Refusal: 406 if no format is supported, 400 for an invalid `top_k` or `coverage`.
    """
    for kind, parameters in _media_types(accept or "*/*"):
        if kind in ("*/*", "application/*"):
            kind = LINES if lines else JSON
        elif kind == "text/*":
            kind = CSV
        kind = ALIASES.get(kind, kind)
        if kind in (JSON, LINES, CSV, NPY):
            asked = top_k if top_k is not None else parameters.get("top_k")
            count = _count(asked) if asked is not None else None
            scores = parameters.get("format") == "scores" or kind == NPY
            share = coverage if coverage is not None else parameters.get("coverage")
            if count is not None and share is not None:
                raise Refusal(400, "Give top_k or coverage, not both.")
            return ResponseFormat(kind, scores, count, _share(share) if share is not None else None)
    raise Refusal(406, f"The Accept header has no supported format; supported are {JSON}, {LINES}, {CSV} and {NPY}.")


def render(
    results: Sequence[np.ndarray | Refusal],
    class_names: Sequence[str],
    wanted: ResponseFormat,
    thresholds: Sequence[float] | None = None,
    sets: ClassSets | None = None,
) -> tuple[bytes, str]:
    """The body of an answer and its Content-Type.

    Args:
        results: float32 (C,) logits of each image, followed by its novelty if the model has it, or why it has none.
            As JSON such an image has an `error`, and the others their classes.
        class_names: the C names.
        wanted: the format.
        thresholds: of the C labels, where an image can have several; each answer says which are `above`.
        sets: of classes, for `coverage`.

    Raises:
        Refusal: that of the first image without logits, where the format has no place for it, or no image has any.
            400, `coverage` of a model without sets.
    """
    refused = {place: result for place, result in enumerate(results) if isinstance(result, Refusal)}
    if refused and (len(refused) == len(results) or wanted.scores or wanted.kind not in (JSON, LINES)):
        place, refusal = next(iter(refused.items()))
        prefix = f"Image {place + 1}: " if len(results) > 1 else ""
        raise Refusal(refusal.status, prefix + refusal.sentence, refusal.retry_after)
    outputs = np.stack([result for result in results if not isinstance(result, Refusal)])
    scores, novelty = split_outputs(outputs, len(class_names))
    if wanted.kind == NPY:
        buffer = io.BytesIO()
        np.save(buffer, scores)
        return buffer.getvalue(), NPY
    if wanted.scores:
        return _rows(scores.tolist(), wanted.kind), wanted.kind
    probabilities = softmax(scores) if thresholds is None else sigmoid(scores)
    if wanted.coverage is not None and sets is None:
        raise Refusal(400, NO_SETS)
    count = wanted.top_k or (TOP_K if thresholds is None else len(class_names))

    def entry(row: np.ndarray, index: int) -> dict[str, Any]:
        above = {} if thresholds is None else {"above": bool(row[index] >= thresholds[index])}
        return {"class": class_names[index], "index": index, "probability": round(float(row[index]), 6), **above}

    predictions = [
        [entry(row, index) for index in indices]
        for row, indices in zip(probabilities, likeliest(probabilities, count, sets, wanted.coverage), strict=True)
    ]
    notes = [novelty_entries(score) for score in novelty]
    if wanted.kind == CSV:
        return _table(predictions, notes), CSV
    answers: list[dict[str, Any]] = [
        {"classes": classes, **note} for classes, note in zip(predictions, notes, strict=True)
    ]
    for place, refusal in refused.items():  # in order, so that each comes to its place
        answers.insert(place, {"error": refusal.sentence})
    return (_lines(answers), LINES) if wanted.kind == LINES else (_dump({"predictions": answers}), JSON)


def _rows(rows: list[list[float]], kind: str) -> bytes:
    if kind == CSV:
        return "".join(",".join(map(repr, row)) + "\n" for row in rows).encode()
    return _lines(rows) if kind == LINES else _dump(rows)


def _table(predictions: list[list[dict[str, Any]]], notes: list[dict[str, Any]]) -> bytes:
    """One row per image and class, with its notes in further columns."""
    several = any("above" in entry for classes in predictions for entry in classes)
    head = ["picture", "rank", "class", "index", "probability", *(["above"] if several else []), *notes[0]]
    rows: list[list[Any]] = [head]
    for number, (classes, note) in enumerate(zip(predictions, notes, strict=True)):
        last = [int(value) if isinstance(value, bool) else value for value in note.values()]
        for rank, entry in enumerate(classes, start=1):
            above = [int(entry["above"])] if several else []
            rows.append([number, rank, entry["class"], entry["index"], entry["probability"], *above, *last])
    return table_as_csv(rows).encode()


def _lines(values: Sequence[Any]) -> bytes:
    return b"".join(_dump(value) + b"\n" for value in values)


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _media_types(accept: str) -> list[tuple[str, dict[str, str]]]:
    """The media types of an Accept header with their parameters, the preferred first."""
    ranked = []
    for part in accept[:2000].split(","):
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
            ranked.append((quality, names[0][0].lower(), parameters))
    ranked.sort(key=lambda entry: -entry[0])  # stable: of equals the first
    return [(kind, parameters) for _, kind, parameters in ranked]


def _count(value: str | int) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise Refusal(400, "top_k must be a whole number of at least 1.")
    return int(text)


def _share(value: str | float) -> float:
    try:
        return check_coverage(value)
    except UserError as error:
        raise Refusal(400, str(error)) from error
