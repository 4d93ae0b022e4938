"""From the body of a request to the images and tensors in it, in any of the formats."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from itertools import chain, islice
from typing import Any

import numpy as np

from imgcls.images.channels import RGB, TOP, Depth
from imgcls.images.decoding import NPY_MAGIC, BadPicture, read_npy
from imgcls.serve.refusals import Refusal

MAX_BODY_BYTES = 6 * 1024 * 1024
"""Bytes of a request; the limit of SageMaker's real-time endpoints."""
MAX_PICTURES = 1000
"""Images in one request."""

JSON_LINES = ("application/jsonlines", "application/x-jsonlines", "application/x-ndjson", "application/jsonl")
NPY = ("application/x-npy", "application/npy")
BASE64 = ("text/plain", "application/base64", "application/x-base64")
BYTES = ("application/x-image", "application/octet-stream", "binary/octet-stream", "")
FORM = "multipart/form-data"

# Keys of a JSON object.
CONTENT_KEYS = ("image", "b64", "data", "body")
TENSOR_KEYS = ("tensor", "array", "input")
LIST_KEYS = ("images", "instances", "inputs", "urls")
DATA_URL = re.compile(rb'data:(?:[^,"]|"[^"]*")*?;base64,', re.IGNORECASE)
MAX_DATA_URL_HEAD_BYTES = 2000
# Of a part of a form: a file has a name in any spelling (`filename=`, `filename*=` of RFC 5987), or an image's type.
FORM_FILE = re.compile(
    rb"^content-disposition[ \t]*:.*;\s*filename(?:\*\d*)*\s*="
    rb"|^content-type[ \t]*:\s*(?:image/|application/octet-stream)",
    re.IGNORECASE | re.MULTILINE,
)
FORM_FIELD = re.compile(rb'^content-disposition[ \t]*:.*;\s*name\s*=\s*"?([^";\r\n]*)', re.IGNORECASE | re.MULTILINE)
MAX_PART_HEAD_BYTES = 16_384
MAX_JSON_OBJECTS = 4 * MAX_PICTURES
MAX_JSON_LISTS = 1_000_000  # 6 MB of pixels have up to 800,000
MAX_NESTING = 2  # objects in objects


TOO_MANY = f"The request has more than {MAX_PICTURES:,} images."
WHITESPACE = b" \t\r\n\v\f"


@dataclass(frozen=True)
class Encoded:
    """An encoded image: JPEG, PNG, WebP, …"""

    content: bytes


@dataclass(frozen=True)
class Link:
    """An image on the web."""

    url: str


@dataclass(frozen=True)
class Array:
    """An image as uint8 or uint16 (H, W, 3), or the model's input as float32 (3, S, S)."""

    values: np.ndarray


Item = Encoded | Link | Array


@dataclass
class Request:
    """The content of a request: its images, or why one of several is none."""

    items: list[Item | Refusal]
    lines: bool = False
    """It came as JSON lines, and is answered as such by default."""


def parse(body: bytes | str, content_type: str | None, depth: Depth = RGB) -> Request:
    """The images in `body`.

    Args:
        body: the request's body; SageMaker's toolkit passes JSON as a string.
        content_type: the HTTP header with its parameters.
        depth: channels and bits of the model's images.

    Raises:
        Refusal: 400, 413 or 415, and why.
    """
    content = body.encode("utf-8", "replace") if isinstance(body, str) else bytes(body)
    if len(content) > MAX_BODY_BYTES:
        raise Refusal(413, f"The request has more than {MAX_BODY_BYTES:,} bytes.")
    header = Message()
    header["content-type"] = content_type or "application/octet-stream"
    kind = header.get_content_type() if content_type else ""
    if not content.strip():
        raise Refusal(400, "The request is empty; send an image.")
    if kind in JSON_LINES:
        request = Request(_bounded(_from_json_lines(content, depth)), lines=True)
    elif kind == "application/json" or kind.endswith("+json"):
        request = Request(_bounded(_from_json(_parse_json(content), depth)))
    elif kind in NPY or (kind in BYTES and content.startswith(NPY_MAGIC)):
        request = Request(_bounded(split_array(_npy(content), depth)))
    elif kind in BASE64:
        request = Request([Encoded(_base64(content))])
    elif kind == FORM:
        request = Request(_bounded(_form(content, header.get_param("boundary"))))
    elif kind in BYTES or kind.startswith("image/"):
        request = Request([Encoded(content)])
    else:
        raise Refusal(415, f"Content-Type {kind[:100]} is not supported; send image/jpeg or application/json.")
    if not request.items:
        raise Refusal(400, "There is no image in the request.")
    return request


def _bounded(items: Iterable[Item | Refusal]) -> list[Item | Refusal]:
    """All items. Raises Refusal at the first beyond MAX_PICTURES, so that the others are never made."""
    first = list(islice(items, MAX_PICTURES + 1))
    if len(first) > MAX_PICTURES:
        raise Refusal(413, TOO_MANY)
    return first


def _from_json_lines(content: bytes, pixels: Depth) -> Iterator[Item | Refusal]:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                yield from _from_json(_parse_json(line), pixels)
            except Refusal as refusal:
                yield Refusal(refusal.status, f"Line {number}: {refusal.sentence}")


def _parse_json(content: bytes) -> Any:
    if content.count(b"{") > MAX_JSON_OBJECTS:
        raise Refusal(413, f"The JSON has more than {MAX_JSON_OBJECTS:,} objects.")
    if content.count(b"[") > MAX_JSON_LISTS:
        raise Refusal(413, f"The JSON has more than {MAX_JSON_LISTS:,} lists.")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise Refusal(400, "The JSON is nested too deeply.") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise Refusal(400, f"The body is not valid JSON: {str(error)[:100]}.") from error


def _from_json(value: Any, pixels: Depth, depth: int = 0) -> Iterator[Item | Refusal]:
    """The images in a JSON value: an object with a known key, a base64 string, a list of these, or a tensor."""
    if isinstance(value, str):
        yield Encoded(_base64(value.encode("utf-8", "replace")))
    elif isinstance(value, dict):
        yield from _from_object(value, pixels, depth)
    elif isinstance(value, list) and value and isinstance(value[0], dict | str):
        for item in value:
            try:
                yield from _from_json(item, pixels, depth)
            except Refusal as refusal:  # of this one of several
                yield refusal
    elif isinstance(value, list) and value:
        yield from split_array(_numbers(value), pixels)
    elif value == []:
        raise Refusal(400, "The batch is empty; send at least one image.")
    else:
        raise Refusal(400, "A JSON request must be an object, a list or a base64 string.")


def _from_object(value: dict[str, Any], pixels: Depth, depth: int) -> Iterator[Item | Refusal]:
    if depth > MAX_NESTING:
        raise Refusal(400, "The JSON is nested too deeply.")
    for key in LIST_KEYS:
        if key in value:
            values = value[key]
            if not isinstance(values, list):
                raise Refusal(400, f'"{key}" must be a list.')
            if not values:
                raise Refusal(400, "The batch is empty; send at least one image.")
            yield from map(_link, values) if key == "urls" else _from_json(values, pixels, depth + 1)
            return
    if "url" in value:
        yield _link(value["url"])
        return
    for key in CONTENT_KEYS:
        if isinstance(value.get(key), str):
            yield Encoded(_base64(value[key].encode("utf-8", "replace")))
            return
    for key in (*TENSOR_KEYS, *CONTENT_KEYS):
        if isinstance(value.get(key), list):
            yield from split_array(_numbers(value[key]), pixels)
            return
    raise Refusal(400, 'The JSON object has no image; it needs one of "image", "images", "tensor", "instances", "url".')


def _link(value: Any) -> Link:
    if not isinstance(value, str) or not value:
        raise Refusal(400, "A url must be a string.")
    return Link(value)


def _base64(text: bytes) -> bytes:
    text = text.translate(None, WHITESPACE).strip(b"\"'")
    if match := DATA_URL.match(text[:MAX_DATA_URL_HEAD_BYTES]):
        text = text[match.end() :]
    text = text.translate(bytes.maketrans(b"-_", b"+/"))
    try:
        content = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, "The text is not valid base64.") from error
    if not content:
        raise Refusal(400, "The base64 text is empty.")
    return content


def _numbers(values: list[Any]) -> np.ndarray:
    """Nested lists of numbers as an array. numpy alone would pad each of a million texts to the longest."""
    rows, kinds = values, set(map(type, values))
    for _ in range(4):
        if kinds != {list}:
            break
        rows = list(chain.from_iterable(rows))
        kinds = set(map(type, rows))
    if not kinds <= {int, float, list}:
        raise Refusal(400, "A tensor must hold only numbers.")
    if list in kinds:
        raise Refusal(400, "The lists of the tensor have different lengths, or more than four dimensions.")
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise Refusal(400, "The lists of the tensor have different lengths.") from error
    if array.dtype.kind not in "iuf":
        raise Refusal(400, "The tensor has numbers that are too large.")
    return array


def _npy(content: bytes) -> np.ndarray:
    """An array in numpy's format."""
    try:
        return read_npy(io.BytesIO(content))
    except BadPicture as error:
        raise Refusal(400, f"The body is {error.reason}.") from error


def split_array(array: np.ndarray, depth: Depth = RGB) -> Iterator[Array]:
    """The images of an array: a batch has four dimensions, a single image three.

    uint8, uint16 or integers with the channels of `depth` last are pixels; everything else is the model's input.
    """
    shape = "x".join(map(str, array.shape))
    if array.ndim not in (3, 4):
        raise Refusal(400, f"A tensor of shape {shape} is neither an image nor a batch of images.")
    if not array.size:
        raise Refusal(400, "The batch is empty; send at least one image.")
    if array.ndim == 4 and len(array) > MAX_PICTURES:
        raise Refusal(413, TOO_MANY)
    count, most = depth.channels, TOP[depth.bits]
    if array.dtype == np.uint8 or (array.dtype.kind in "iu" and array.shape[-1] == count):
        if array.shape[-1] != count:
            expected = f"(height, width, {count}) or (N, height, width, {count})"
            raise Refusal(400, f"Pixels must have the shape {expected}, not {shape}.")
        if array.dtype.kind != "u" or array.itemsize > 2:  # uint16 goes from 0 to 65535, as everywhere
            if array.min() < 0 or array.max() > most:
                raise Refusal(400, f"Pixels must be whole numbers from 0 to {most}.")
            array = array.astype(depth.type)
    else:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
    yield from map(Array, array if array.ndim == 4 else array[None])


def _form(content: bytes, boundary: object) -> Iterator[Item]:
    """The files of a multipart form (RFC 7578), and its fields `image` (base64) and `url`."""
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 200:
        raise Refusal(400, "The multipart form names no boundary.")
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    parts = (b"\r\n" + content).split(delimiter, MAX_PICTURES + 2)[1:]
    if len(parts) > MAX_PICTURES + 1:
        raise Refusal(413, f"The multipart form has more than {MAX_PICTURES:,} parts.")
    if not parts or not parts.pop().startswith(b"--"):
        raise Refusal(400, "The multipart form is malformed or truncated.")
    for part in parts:
        padding, line_end, rest = part.partition(b"\r\n")
        head, blank, value = (line_end + rest).partition(b"\r\n\r\n")
        if padding.strip(b" \t") or not blank or len(head) > MAX_PART_HEAD_BYTES:
            raise Refusal(400, "The multipart form is malformed.")
        head = re.sub(rb"\r\n[ \t]+", b" ", head)  # folded lines
        if FORM_FILE.search(head):
            if value:  # none: a file field in which nothing was chosen
                yield Encoded(value)
        elif name := FORM_FIELD.search(head):
            if name[1] == b"url":
                yield _link(value.decode("utf-8", "replace").strip())
            elif name[1].decode("utf-8", "replace") in CONTENT_KEYS:
                yield Encoded(_base64(value))
