"""From the body of a request to the images and tensors in it, in any of the formats."""

from __future__ import annotations

import base64
import binascii
import io
import json
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

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
DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)
NPY_MAGIC = b"\x93NUMPY"


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
    """The content of a request."""

    items: list[Item]
    lines: bool = False
    """It came as JSON lines, and is answered as such by default."""


def parse(body: bytes | str, content_type: str | None) -> Request:
    """The images in `body`.

    Args:
        body: the request's body; SageMaker's toolkit passes JSON as a string.
        content_type: the HTTP header with its parameters.

    Raises:
        Refusal: 400, 413 or 415, and why.
    """
    content = body.encode() if isinstance(body, str) else bytes(body)
    if len(content) > MAX_BODY_BYTES:
        raise Refusal(413, f"The request has more than {MAX_BODY_BYTES:,} bytes.")
    header = Message()
    header["content-type"] = content_type or "application/octet-stream"
    kind = header.get_content_type() if content_type else ""
    if not content.strip():
        raise Refusal(400, "The request is empty; send an image.")
    if kind in JSON_LINES:
        request = Request(list(_from_json_lines(content)), lines=True)
    elif kind == "application/json" or kind.endswith("+json"):
        request = Request(list(_from_json(_parse_json(content))))
    elif kind in NPY or (kind in BYTES and content.startswith(NPY_MAGIC)):
        request = Request(list(split_array(_npy(content))))
    elif kind in BASE64:
        request = Request([Encoded(_base64(content))])
    elif kind == FORM:
        request = Request(list(_form(content, header.get_param("boundary"))))
    elif kind in BYTES or kind.startswith("image/"):
        request = Request([Encoded(content)])
    else:
        raise Refusal(415, f"Content-Type {kind[:100]} is not supported; send image/jpeg or application/json.")
    if not request.items:
        raise Refusal(400, "There is no image in the request.")
    if len(request.items) > MAX_PICTURES:
        raise Refusal(413, f"The request has {len(request.items):,} images; the limit is {MAX_PICTURES:,}.")
    return request


def _from_json_lines(content: bytes) -> Iterator[Item]:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                yield from _from_json(_parse_json(line))
            except Refusal as refusal:
                raise Refusal(refusal.status, f"Line {number}: {refusal.sentence}") from refusal


def _parse_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except RecursionError as error:
        raise Refusal(400, "The JSON is nested too deeply.") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise Refusal(400, f"The body is not valid JSON: {str(error)[:100]}.") from error


def _from_json(value: Any) -> Iterator[Item]:
    """The images in a JSON value: an object with a known key, a base64 string, a list of these, or a tensor."""
    if isinstance(value, str):
        yield Encoded(_base64(value.encode()))
    elif isinstance(value, dict):
        yield from _from_object(value)
    elif isinstance(value, list) and value and isinstance(value[0], dict | str):
        for item in value:
            yield from _from_json(item)
    elif isinstance(value, list) and value:
        yield from split_array(_numbers(value))
    elif value == []:
        raise Refusal(400, "The batch is empty; send at least one image.")
    else:
        raise Refusal(400, "A JSON request must be an object, a list or a base64 string.")


def _from_object(value: dict[str, Any]) -> Iterator[Item]:
    for key in LIST_KEYS:
        if key in value:
            values = value[key]
            if not isinstance(values, list):
                raise Refusal(400, f'"{key}" must be a list.')
            if not values:
                raise Refusal(400, "The batch is empty; send at least one image.")
            yield from map(_link, values) if key == "urls" else _from_json(values)
            return
    if "url" in value:
        yield _link(value["url"])
        return
    for key in CONTENT_KEYS:
        if isinstance(value.get(key), str):
            yield Encoded(_base64(value[key].encode()))
            return
    for key in (*TENSOR_KEYS, *CONTENT_KEYS):
        if isinstance(value.get(key), list):
            yield from split_array(_numbers(value[key]))
            return
    raise Refusal(400, 'The JSON object has no image; it needs one of "image", "images", "tensor", "instances", "url".')


def _link(value: Any) -> Link:
    if not isinstance(value, str) or not value:
        raise Refusal(400, "A url must be a string.")
    return Link(value)


def _base64(text: bytes) -> bytes:
    if match := DATA_URL.match(text[:200].decode("ascii", "replace").lstrip()):
        text = text.lstrip()[match.end() :]
    text = b"".join(text.split()).strip(b"\"'").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        content = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, "The text is not valid base64.") from error
    if not content:
        raise Refusal(400, "The base64 text is empty.")
    return content


def _numbers(values: list[Any]) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (ValueError, RecursionError, OverflowError) as error:
        raise Refusal(400, "The lists of the tensor have different lengths.") from error
    if array.dtype.kind not in "iuf":
        raise Refusal(400, "A tensor must hold only numbers.")
    return array


def _npy(content: bytes) -> np.ndarray:
    """An array in numpy's format; its header is checked against the size of the body before memory is allocated."""
    stream = io.BytesIO(content)
    try:
        version = npy_format.read_magic(stream)
        read_header = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}[version]
        shape, fortran, dtype = read_header(stream, max_header_size=10_000)
        if dtype.hasobject or dtype.kind not in "iufb":
            raise Refusal(400, f"An NPY tensor must hold numbers, not {dtype}.")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
            raise Refusal(400, "The NPY tensor is shorter or longer than its header says.")
        array = np.frombuffer(content, dtype, offset=stream.tell())
        return array.reshape(shape, order="F" if fortran else "C")
    except Refusal:
        raise
    except Exception as error:  # numpy parses the header with Python's tokenizer and raises its errors
        raise Refusal(400, "The body is not an NPY tensor.") from error


def split_array(array: np.ndarray) -> Iterator[Array]:
    """The images of an array: a batch has four dimensions, a single image three.

    uint8, uint16 or integers with the channels last are pixels; everything else is the model's input.
    """
    shape = "x".join(map(str, array.shape))
    if array.ndim not in (3, 4):
        raise Refusal(400, f"A tensor of shape {shape} is neither an image nor a batch of images.")
    if not array.size:
        raise Refusal(400, "The batch is empty; send at least one image.")
    if array.dtype == np.uint8 or (array.dtype.kind in "iu" and array.shape[-1] == 3):
        if array.shape[-1] != 3:
            raise Refusal(400, f"Pixels must have the shape (height, width, 3) or (N, height, width, 3), not {shape}.")
        if array.dtype.kind != "u" or array.itemsize > 2:  # uint16 goes from 0 to 65535, as everywhere
            if array.min() < 0 or array.max() > 255:
                raise Refusal(400, "Pixels must be whole numbers from 0 to 255.")
            array = array.astype(np.uint8)
    else:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
    yield from map(Array, array if array.ndim == 4 else array[None])


def _form(content: bytes, boundary: object) -> Iterator[Item]:
    """The files of a multipart form, and its fields `image` (base64) and `url`."""
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 200:
        raise Refusal(400, "The multipart form names no boundary.")
    try:
        from python_multipart import FormParser
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import File
    except ImportError as error:
        raise Refusal(415, "This server does not accept forms; send the bytes of an image, or JSON.") from error
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings are in the answer
    parts: list[Any] = []  # fields and files, then None for the closing boundary
    add, close = parts.append, lambda: parts.append(None)
    in_memory = {"MAX_MEMORY_FILE_SIZE": MAX_BODY_BYTES}
    try:
        parser = FormParser(FORM, add, add, close, boundary.encode("latin-1", "replace"), config=in_memory)
        parser.write(content)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, "The multipart form is malformed.") from error
    if not parts or parts.pop() is not None:
        raise Refusal(400, "The multipart form is truncated.")
    for part in parts:
        if isinstance(part, File):
            if part.size:  # 0: a file field in which nothing was chosen
                part.file_object.seek(0)
                yield Encoded(part.file_object.read())
        elif part.field_name == b"url":
            yield _link((part.value or b"").decode("utf-8", "replace").strip())
        elif (part.field_name or b"").decode("utf-8", "replace") in CONTENT_KEYS:
            yield Encoded(_base64(part.value or b""))
