"""Asking a server or a SageMaker endpoint, as one asks a run: pictures in, classes and probabilities out."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from urllib3 import PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError, ProtocolError

from imgcls.errors import UserError
from imgcls.serve.payloads import MAX_BODY
from imgcls.system.extras import need

BUSY = (429, 503)  # the states of HTTP that another attempt may find gone
LONGEST_PAUSE = 30  # seconds, whatever the endpoint asks for


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
        seconds: within which each attempt has to be answered.
        attempts: how often a busy endpoint, or one that cannot be reached, is asked; asking twice changes nothing.
        parallel: requests at the same time.
        runtime: boto3's `sagemaker-runtime` client, if not the default one.

    >>> imgcls.Client("http://localhost:8080").predict("picture.jpg")  # doctest: +SKIP
    [[('cat', 0.97), ('dog', 0.02)]]
    """

    def __init__(
        self, endpoint: str, *, seconds: float = 60.0, attempts: int = 4, parallel: int = 8, runtime: Any = None
    ) -> None:
        self.endpoint, self.parallel = endpoint, parallel
        retry = Retry(
            attempts - 1,
            allowed_methods=None,
            status_forcelist=BUSY,
            backoff_factor=0.5,
            backoff_max=LONGEST_PAUSE,
            retry_after_max=LONGEST_PAUSE,
            raise_on_status=False,
        )
        self._transport: Http | SageMaker
        if "://" in endpoint:
            self._transport = Http(endpoint, seconds, retry, parallel)
        else:
            self._transport = SageMaker(endpoint, seconds, retry, runtime)

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
        try:
            status, content = self._transport.send(body, content_type, accept)
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise EndpointError(f"{self.endpoint} does not answer: {reason.__cause__ or reason}") from error
        if status != 200:
            raise EndpointError(f"{self.endpoint} refused ({status}): {_sentence(content)}", status)
        return content


class Http:
    """To a server of `imgcls.serve`, or anything with its `/invocations`; connections are kept for the next request."""

    def __init__(self, endpoint: str, seconds: float, retry: Retry, connections: int) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"endpoint={endpoint}: an http(s) URL, or the name of a SageMaker endpoint.")
        path = f"{parts.path.rstrip('/').removesuffix('/invocations')}/invocations"
        self._url = parts._replace(path=path, fragment="").geturl()
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a warning for each attempt
        self._pool = PoolManager(maxsize=connections, timeout=Timeout(seconds), retries=retry)

    def send(self, body: bytes, content_type: str, accept: str) -> tuple[int, bytes]:
        """The last answer's status and body."""
        headers = {"Content-Type": content_type, "Accept": accept}
        response = self._pool.request("POST", self._url, body=body, headers=headers, redirect=False)
        return response.status, response.data


class SageMaker:
    """To a SageMaker endpoint, with the credentials that boto3 finds."""

    def __init__(self, name: str, seconds: float, retry: Retry, runtime: Any = None) -> None:
        self._name, self._retry, self._runtime = name, retry, runtime
        if runtime is None:
            boto3 = need("boto3", "s3", f"endpoint={name}")
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError

            config = Config(connect_timeout=10, read_timeout=seconds, retries={"total_max_attempts": 1})
            try:
                self._runtime = boto3.client("sagemaker-runtime", config=config)
            except BotoCoreError as error:
                raise UserError(f"endpoint={name}: {error}") from error

    def send(self, body: bytes, content_type: str, accept: str) -> tuple[int, bytes]:
        """The last answer's status and body. boto3 does not see that it was the model which is busy."""
        from botocore.exceptions import BotoCoreError, ClientError

        retry = self._retry
        while True:
            try:
                response = self._runtime.invoke_endpoint(
                    EndpointName=self._name, Body=body, ContentType=content_type, Accept=accept
                )
                return 200, response["Body"].read()
            except ClientError as error:
                status, content = _aws_refusal(error.response)
                if status not in BUSY or not retry.total:
                    return status, content
                retry = retry.increment("POST")
            except BotoCoreError as error:
                retry = retry.increment("POST", error=ProtocolError(str(error)))  # which it raises after the last
            retry.sleep()


def _aws_refusal(response: dict[str, Any]) -> tuple[int, bytes]:
    """What the model said, where it was the model that refused; AWS's own words otherwise."""
    error = response.get("Error", {})
    status = int(response.get("OriginalStatusCode") or response["ResponseMetadata"].get("HTTPStatusCode", 500))
    if error.get("Code") in ("ThrottlingException", "ServiceUnavailable"):
        status = 503
    text = response.get("OriginalMessage") or json.dumps({"error": error.get("Message", "unknown")})
    return status, text.encode()


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
