"""Asking a server or a SageMaker endpoint, as one asks a run: pictures in, classes and probabilities out."""

from __future__ import annotations

import http.client
import io
import json
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from imgcls.errors import UserError
from imgcls.serve.payloads import MAX_BODY

CONNECTION_LOST = (ConnectionError, http.client.BadStatusLine, http.client.CannotSendRequest)


class EndpointError(UserError):
    """The endpoint did not answer, or refused.

    Attributes:
        status: of HTTP; None where there was no answer.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class Client:
    """Asks an endpoint; made to be used in notebooks, and by several threads at once.

    Args:
        endpoint: `http://host:port` of a server, or the name of a SageMaker endpoint.
        seconds: for an answer.
        attempts: how often a busy endpoint, or one that cannot be reached, is asked.
        parallel: requests at the same time.
        runtime: boto3's `sagemaker-runtime` client, if not the default one.

    >>> imgcls.Client("http://localhost:8080").predict("picture.jpg")  # doctest: +SKIP
    [[('cat', 0.97), ('dog', 0.02)]]
    """

    def __init__(
        self, endpoint: str, *, seconds: float = 60.0, attempts: int = 4, parallel: int = 8, runtime: Any = None
    ) -> None:
        self.endpoint, self.attempts, self.parallel = endpoint, attempts, parallel
        self._transport: Transport
        if "://" in endpoint:
            self._transport = Http(endpoint, seconds)
        else:
            self._transport = SageMaker(endpoint, seconds, runtime)

    def __repr__(self) -> str:
        return f"Client({self.endpoint!r})"

    def predict(self, pictures: Any, top_k: int = 5) -> list[list[tuple[str, float]]]:
        """The `top_k` likeliest classes of each picture, each as (name, probability).

        Args:
            pictures: paths, bytes, Pillow images or uint8 arrays (H, W, 3); one alone, or a sequence of them.
            top_k: how many classes; no more than there are.

        Raises:
            EndpointError: a picture is refused, or there is no answer.
        """
        if isinstance(pictures, str | Path | bytes | np.ndarray) or not isinstance(pictures, Sequence):
            pictures = [pictures]
        with ThreadPoolExecutor(max(1, min(self.parallel, len(pictures)))) as pool:
            return list(pool.map(lambda picture: self.predict_one(picture, top_k), pictures))

    def predict_one(self, picture: Any, top_k: int = 5) -> list[tuple[str, float]]:
        """`predict` for one picture."""
        answer = json.loads(self.invoke(_content(picture), "application/x-image", f"application/json;top_k={top_k}"))
        return [(one["class"], float(one["probability"])) for one in answer["predictions"][0]["classes"]]

    def invoke(self, body: bytes, content_type: str, accept: str = "application/json") -> bytes:
        """The endpoint's own answer to a request, tried again where it is busy."""
        if len(body) > MAX_BODY:
            raise EndpointError(f"The picture has more than {MAX_BODY:,} bytes; make it smaller.", 413)
        for attempt in range(1, self.attempts + 1):
            last = attempt == self.attempts
            try:
                status, content, wait = self._transport.send(body, content_type, accept)
            except (OSError, http.client.HTTPException) as error:
                if last:
                    raise EndpointError(f"{self.endpoint} does not answer: {error or type(error).__name__}") from error
                wait = None
            else:
                if status == 200:
                    return content
                if status not in (429, 503) or last:
                    raise EndpointError(f"{self.endpoint} refused ({status}): {_sentence(content)}", status)
            time.sleep(min(wait if wait is not None else 0.25 * 2**attempt, 30.0))
        raise AssertionError("unreachable")


class Transport(Protocol):
    """One way to an endpoint."""

    def send(self, body: bytes, content_type: str, accept: str) -> tuple[int, bytes, float | None]:
        """Status, body, and the seconds after which to try again, if the endpoint says so."""


class Http:
    """To a server of `imgcls.serve`, or anything with its `/invocations`; one kept connection a thread."""

    def __init__(self, endpoint: str, seconds: float) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"endpoint={endpoint}: an http(s) URL, or the name of a SageMaker endpoint.")
        self._parts, self._seconds, self._local = parts, seconds, threading.local()
        path = parts.path.rstrip("/")
        self._path = path if path.endswith("/invocations") else f"{path}/invocations"

    def send(self, body: bytes, content_type: str, accept: str) -> tuple[int, bytes, float | None]:
        headers = {"Content-Type": content_type, "Accept": accept}
        path = self._path + (f"?{self._parts.query}" if self._parts.query else "")
        kept = getattr(self._local, "connection", None)
        connection = kept or self._connect()
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except CONNECTION_LOST:
            connection.close()
            self._local.connection = None
            if kept is None:
                raise
            return self.send(body, content_type, accept)  # the server closed a connection that had been idle
        except BaseException:
            connection.close()
            self._local.connection = None
            raise
        wait = response.headers.get("Retry-After", "")
        return response.status, content, float(wait) if wait.isdigit() else None

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        connection: http.client.HTTPConnection
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, port, timeout=self._seconds, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._seconds)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._local.connection = connection
        return connection


class SageMaker:
    """To a SageMaker endpoint, with the credentials that boto3 finds."""

    def __init__(self, name: str, seconds: float, runtime: Any = None) -> None:
        self._name, self._runtime = name, runtime
        if runtime is None:
            try:
                import boto3
                from botocore.config import Config
                from botocore.exceptions import BotoCoreError
            except ImportError as error:
                raise UserError(f"endpoint={name}: a SageMaker endpoint needs boto3: pip install boto3") from error
            config = Config(connect_timeout=10, read_timeout=seconds, retries={"total_max_attempts": 1})
            try:
                self._runtime = boto3.client("sagemaker-runtime", config=config)
            except BotoCoreError as error:
                raise UserError(f"endpoint={name}: {error}") from error

    def send(self, body: bytes, content_type: str, accept: str) -> tuple[int, bytes, float | None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            response = self._runtime.invoke_endpoint(
                EndpointName=self._name, Body=body, ContentType=content_type, Accept=accept
            )
            return 200, response["Body"].read(), None
        except ClientError as error:
            return _aws_refusal(error.response)
        except BotoCoreError as error:
            raise ConnectionError(str(error)) from error


def _aws_refusal(response: dict[str, Any]) -> tuple[int, bytes, float | None]:
    """What the model said, where it was the model that refused; AWS's own words otherwise."""
    error = response.get("Error", {})
    status = int(response.get("OriginalStatusCode") or response["ResponseMetadata"].get("HTTPStatusCode", 500))
    if error.get("Code") in ("ThrottlingException", "ServiceUnavailable"):
        status = 503
    text = response.get("OriginalMessage") or json.dumps({"error": error.get("Message", "unknown")})
    return status, text.encode(), None


def _content(picture: Any) -> bytes:
    if isinstance(picture, str | Path):
        try:
            return Path(picture).expanduser().read_bytes()
        except OSError as error:
            raise UserError(f"{picture}: {error.strerror}.") from error
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _sentence(content: bytes) -> str:
    """The error of an answer, shortened."""
    try:
        found = json.loads(content)
        text = str(found.get("error", found)) if isinstance(found, dict) else str(found)
    except ValueError:
        text = content.decode("utf-8", "replace")
    return " ".join(text.split())[:300]
