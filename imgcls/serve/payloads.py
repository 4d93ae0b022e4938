"""From the body of a request to the pictures and tensors in it, whatever format they come in."""

from __future__ import annotations

import base64
import binascii
import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

import numpy as np

from imgcls.serve.refusals import Refusal

MAX_BODY = 6 * 1024 * 1024
"""Bytes of a request, as SageMaker's real-time endpoints have it."""
MAX_PICTURES = 1000
"""Pictures in one request."""

JSON_LINES = frozenset(
    {"application/jsonlines", "application/x-jsonlines", "application/x-ndjson", "application/jsonl"}
)
NPY = frozenset({"application/x-npy", "application/npy"})
BASE64 = frozenset({"text/plain", "application/base64", "application/x-base64"})
BYTES = frozenset({"application/x-image", "application/octet-stream", "binary/octet-stream", ""})
FORM = "multipart/form-data"

# The keys of a JSON object, each with what it holds. The plural ones hold lists.
CONTENT_KEYS = ("image", "b64", "data", "body")
TENSOR_KEYS = ("tensor", "array", "input")
LIST_KEYS = ("images", "instances", "inputs", "urls")
DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)
NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class Encoded:
    """A picture as a file: JPEG, PNG, webp, …"""

    content: bytes


@dataclass(frozen=True)
class Link:
    """A picture somewhere on the web."""

    url: str


@dataclass(frozen=True)
class Array:
    """Numbers: a picture as uint8 (H, W, 3), or what goes into the model as float32 (3, S, S)."""

    values: np.ndarray


Item = Encoded | Link | Array


@dataclass
class Request:
    """What a request asks for."""

    items: list[Item] = field(default_factory=list)
    lines: bool = False
    """It came as JSON lines, and is answered in such unless it asks for something else."""


def parse(body: bytes | str, content_type: str | None) -> Request:
    """The pictures in `body`.

    Args:
        body: what was sent. SageMaker's toolkit gives JSON as a string.
        content_type: of the HTTP header, with its parameters.

    Raises:
        Refusal: 400, 413 or 415, with what is wrong.
    """
    content = body.encode() if isinstance(body, str) else bytes(body)
    if len(content) > MAX_BODY:
        raise Refusal(413, f"The request has more than {MAX_BODY:,} bytes.")
    header = Message()
    header["content-type"] = content_type or "application/octet-stream"
    kind = header.get_content_type() if content_type else ""
    if not content.strip():
        raise Refusal(400, "The request is empty; send a picture.")
    if kind in JSON_LINES:
        request = Request(list(_json_lines(content)), lines=True)
    elif kind == "application/json" or kind.endswith("+json"):
        request = Request(list(_from_json(_parsed(content))))
    elif kind in NPY or (kind in BYTES and content.startswith(NPY_MAGIC)):
        request = Request(list(split_array(_npy(content))))
    elif kind in BASE64:
        request = Request([Encoded(_base64(content))])
    elif kind == FORM:
        request = Request(list(_form(content, header)))
    elif kind in BYTES or kind.startswith("image/"):
        request = Request([Encoded(content)])
    else:
        raise Refusal(415, f"Content-Type {kind[:100]} is not understood; send image/jpeg or application/json, say.")
    if not request.items:
        raise Refusal(400, "There is no picture in the request.")
    if len(request.items) > MAX_PICTURES:
        raise Refusal(
            413, f"There are {len(request.items):,} pictures in the request; at most {MAX_PICTURES:,} may be."
        )
    return request


def _json_lines(content: bytes) -> Iterator[Item]:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                yield from _from_json(_parsed(line))
            except Refusal as refusal:
                raise Refusal(refusal.status, f"Line {number}: {refusal.sentence}") from refusal


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except RecursionError as error:
        raise Refusal(400, "The JSON is nested too deeply.") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise Refusal(400, f"The body is no JSON: {str(error)[:100]}.") from error


def _from_json(value: Any) -> Iterator[Item]:
    """The pictures in a JSON value: an object with a key that is known, a base64 text, a list of such, a tensor."""
    if isinstance(value, str):
        yield Encoded(_base64(value.encode()))
    elif isinstance(value, dict):
        yield from _from_object(value)
    elif isinstance(value, list) and value and isinstance(value[0], dict | str):
        for one in value:
            yield from _from_json(one)
    elif isinstance(value, list) and value:
        yield from split_array(_numbers(value))
    elif value == []:
        raise Refusal(400, "The batch is empty; send at least one picture.")
    else:
        raise Refusal(400, "A JSON request is an object, a list or a base64 text.")


def _from_object(value: dict[str, Any]) -> Iterator[Item]:
    for key in LIST_KEYS:
        if key in value:
            several = value[key]
            if not isinstance(several, list):
                raise Refusal(400, f'"{key}" must be a list.')
            if not several:
                raise Refusal(400, "The batch is empty; send at least one picture.")
            links = key == "urls"
            yield from (_link(one) for one in several) if links else _from_json(several)
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
    known = ", ".join(f'"{key}"' for key in ("image", "images", "tensor", "instances", "url"))
    raise Refusal(400, f"The JSON object has no picture; it needs one of {known}.")


def _link(value: Any) -> Link:
    if not isinstance(value, str) or not value:
        raise Refusal(400, "A url must be a text.")
    return Link(value)


def _base64(text: bytes) -> bytes:
    head = text[:200].decode("ascii", "replace").lstrip()
    match = DATA_URL.match(head)
    if match:
        text = text.lstrip()[match.end() :]
    text = b"".join(text.split()).strip(b"\"'").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        content = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, "The text is no base64.") from error
    if not content:
        raise Refusal(400, "The base64 text is empty.")
    return content


def _numbers(values: list[Any]) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (ValueError, RecursionError, OverflowError) as error:
        raise Refusal(400, "The lists of the tensor have different lengths.") from error
    if array.dtype.kind not in "iuf":
        raise Refusal(400, "A tensor holds numbers and nothing else.")
    return array


def _npy(content: bytes) -> np.ndarray:
    """An array of numpy's format; its header is checked against what is there before memory is taken for it."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream, max_header_size=10_000)
        if dtype.hasobject or dtype.kind not in "iufb":
            raise Refusal(400, f"An NPY tensor holds numbers, not {dtype}.")
        count = 1
        for side in shape:
            count *= int(side)
        if min(shape, default=0) < 0 or count * dtype.itemsize != len(content) - stream.tell():
            raise Refusal(400, "The NPY tensor is cut off, or longer than its header says.")
        array = np.frombuffer(content, dtype, offset=stream.tell())
        return array.reshape(shape, order="F" if fortran else "C")
    except Refusal:
        raise
    except Exception as error:  # numpy parses the header with Python's own tokenizer, and raises what that raises
        raise Refusal(400, "The body is no NPY tensor.") from error


def split_array(array: np.ndarray) -> Iterator[Array]:
    """One picture after the other: a batch has four dimensions, one picture three.

    uint8, or whole numbers with the channels last, are pixels; everything else is what goes into the model.
    """
    shape = "x".join(map(str, array.shape))
    if array.ndim not in (3, 4):
        raise Refusal(400, f"A tensor of shape {shape} is neither one picture nor a batch of them.")
    if not array.size:
        raise Refusal(400, "The batch is empty; send at least one picture.")
    pixels = array.dtype == np.uint8 or (array.dtype.kind in "iu" and array.shape[-1] == 3)
    if pixels:
        if array.shape[-1] != 3:
            raise Refusal(400, f"Pixels have the shape (height, width, 3) or (N, height, width, 3), not {shape}.")
        if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
            raise Refusal(400, "Pixels are whole numbers from 0 to 255.")
        array = array.astype(np.uint8, copy=False)
    else:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
    yield from (Array(one) for one in (array if array.ndim == 4 else array[None]))


def _form(content: bytes, header: Message) -> Iterator[Item]:
    """The files of a multipart form, and its fields `image` (base64) and `url`."""
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 200:
        raise Refusal(400, "The multipart form names no boundary.")
    try:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser
    except ImportError as error:
        raise Refusal(415, "This server takes no forms; send the bytes of a picture, or JSON.") from error
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what it warns of is told to the client
    parts = _Parts()
    try:
        parser = MultipartParser(boundary.encode("latin-1", "replace"), parts.callbacks(), max_size=MAX_BODY)
        parser.write(content)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, "The multipart form is malformed.") from error
    if not parts.closed:
        raise Refusal(400, "The multipart form is cut off.")
    for disposition, value in parts.found:
        name, file = _parameter(disposition, "name"), _parameter(disposition, "filename")
        if file is not None:
            if value:  # a form's file field in which nothing was chosen
                yield Encoded(value)
        elif name == "url":
            yield _link(value.decode("utf-8", "replace").strip())
        elif name in CONTENT_KEYS:
            yield Encoded(_base64(value))


class _Parts:
    """Collects what the parser finds: the Content-Disposition of each part, and its content."""

    def __init__(self) -> None:
        self.found: list[tuple[str, bytes]] = []
        self.closed = False
        self._name, self._value, self._disposition, self._content = b"", b"", "", bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._close,
        }

    def _begin(self) -> None:
        self._disposition, self._content = "", bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value.decode("utf-8", "replace")
        self._name = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _end(self) -> None:
        self.found.append((self._disposition, bytes(self._content)))

    def _close(self) -> None:
        self.closed = True


def _parameter(disposition: str, name: str) -> str | None:
    header = Message()
    header["content-disposition"] = disposition.replace("\r", " ").replace("\n", " ")
    value = header.get_param(name, header="content-disposition")
    return value if isinstance(value, str) else None
