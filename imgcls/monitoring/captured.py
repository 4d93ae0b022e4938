"""Reading captured requests: JSON lines as SageMaker's data capture and this server write them, or plain images."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import Path

from imgcls.errors import UserError
from imgcls.images.channels import Depth
from imgcls.images.signatures import has_picture_signature
from imgcls.serve.payloads import Encoded, Item, parse
from imgcls.serve.refusals import Refusal

SUFFIXES = (".jsonl", ".json")


def read_captured(folder: Path, depth: Depth) -> Iterator[Item | Refusal]:
    """The images of the requests captured in `folder`, in the order of the files' names, or why one cannot be read.

    Where there are no files of JSON lines, its image files.

    Raises:
        UserError: there is nothing, or a file is something else.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder.")
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    captured = [file for file in files if file.suffix.lower() in SUFFIXES]
    for file in captured:
        yield from _read(file, depth)
    if not captured:
        images = [file for file in files if has_picture_signature(file)]
        if not images:
            raise UserError(f"{folder}: no captured requests (*.jsonl) and no images.")
        yield from (Encoded(file.read_bytes()) for file in images)


def _read(file: Path, depth: Depth) -> Iterator[Item | Refusal]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                request = json.loads(line)["captureData"]["endpointInput"]
                data, kind = str(request["data"]), str(request["observedContentType"])
                body = base64.b64decode(data, validate=True) if request["encoding"] == "BASE64" else data.encode()
            except (ValueError, KeyError, TypeError, binascii.Error) as error:
                if line.endswith(b"\n"):
                    raise UserError(f"{file}, line {number}: this is no captured request.") from error
                return  # the server is writing it
            try:
                yield from parse(body, kind, depth).items
            except Refusal as refusal:
                yield refusal
