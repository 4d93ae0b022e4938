"""Keeps answered requests in a folder for `imgcls.monitor`, in the format of SageMaker's data capture."""

from __future__ import annotations

import base64
import json
import logging
import os
import queue
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from imgcls.errors import UserError

log = logging.getLogger(__name__)

FILE_BYTES = 8_000_000
"""Of a file, after which another one is begun; but at least a tenth of all."""
WAITING_BYTES = 32_000_000
"""Of requests that wait to be written; further ones are not kept, so that answers do not wait for the disk."""


class Capture:
    """Writes requests and their answers as lines of JSON into `FOLDER/TIME-ID.jsonl`, in a thread.

    The oldest files are removed as soon as there are more than `max_bytes`, also those of earlier servers. The folder
    is readable for its owner alone, as it holds the images of users.
    """

    def __init__(self, folder: Path, percent: float = 100, max_bytes: int = 1_000_000_000) -> None:
        """
        Args:
            folder: created if missing.
            percent: of the requests that are kept, at random.
            max_bytes: of all files together.

        Raises:
            UserError: the folder cannot be written to.
        """
        self.folder, self._share, self._max_bytes = folder, percent / 100, max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(f"capture={folder}: {error.strerror or error}.") from error
        if not os.access(folder, os.W_OK):
            raise UserError(f"capture={folder}: cannot be written to.")
        self._dice, self._failed = Random(), False
        self._file: Path | None = None
        self._sizes = {file: file.stat().st_size for file in sorted(folder.glob("*.jsonl"))}
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._bytes, self._lock = 0, threading.Lock()
        self._thread = threading.Thread(target=self._write_all, name="imgcls-capture", daemon=True)
        self._thread.start()

    def add(self, body: bytes, kind: str | None, answer: bytes, answer_kind: str) -> None:
        """Keep an answered request, if it is chosen and there is room; returns at once."""
        if self._dice.random() >= self._share or self._bytes > WAITING_BYTES:
            return
        line = {
            "captureData": {
                "endpointInput": _part(body, kind or "application/octet-stream", "INPUT"),
                "endpointOutput": _part(answer, answer_kind, "OUTPUT"),
            },
            "eventMetadata": {
                "eventId": str(uuid.uuid4()),
                "inferenceTime": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            },
            "eventVersion": "0",
        }
        text = json.dumps(line).encode() + b"\n"
        with self._lock:
            self._bytes += len(text)
        self._waiting.put(text)

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        while (line := self._waiting.get()) is not None:
            with self._lock:
                self._bytes -= len(line)
            try:
                self._write(line)
                self._failed = False
            except OSError as error:
                if not self._failed:
                    log.error("capture=%s: %s. Requests are not kept.", self.folder, error.strerror or error)
                self._failed, self._file = True, None

    def _write(self, line: bytes) -> None:
        if len(line) > self._max_bytes:
            return
        if self._file is None or self._sizes[self._file] + len(line) > min(FILE_BYTES, self._max_bytes // 10):
            self._file = self.folder / f"{time.strftime('%Y-%m-%dT%H-%M-%S', time.gmtime())}-{time.time_ns()}.jsonl"
            self._sizes[self._file] = 0
        while self._sizes and sum(self._sizes.values()) + len(line) > self._max_bytes:
            oldest = next(iter(self._sizes))
            if oldest == self._file:
                break
            oldest.unlink(missing_ok=True)
            del self._sizes[oldest]
        with self._file.open("ab") as file:
            file.write(line)
        self._sizes[self._file] += len(line)


def _part(data: bytes, kind: str, mode: str) -> dict[str, str]:
    text = base64.b64encode(data).decode()
    return {"observedContentType": kind, "mode": mode, "data": text, "encoding": "BASE64"}
