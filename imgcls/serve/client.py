"""The client of a server or a SageMaker endpoint: images in, classes and probabilities out."""

from __future__ import annotations

import io
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from urllib3 import PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError, ProtocolError

from imgcls.errors import UserError
from imgcls.images.decoding import BadPicture, as_list, open_picture
from imgcls.portable.predictions import Prediction
from imgcls.serve.payloads import MAX_BODY_BYTES
from imgcls.system.extras import need

BUSY = (429, 503)  # HTTP statuses worth another attempt
MAX_PAUSE_SECONDS = 30  # whatever the endpoint asks for


class EndpointError(UserError):
    """The endpoint did not answer, or refused the request.

    Attributes:
        status: the HTTP status; None without an answer.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class Client:
    """Sends requests to an endpoint; for notebooks and programs, safe to use from several threads.

    Args:
        endpoint: `http://host:port` of a server, or the name of a SageMaker endpoint.
        seconds: timeout of each attempt.
        attempts: up to N requests to an endpoint that is busy or cannot be reached; repeating one is harmless.
        parallel: concurrent requests.
        runtime: a `sagemaker-runtime` client of boto3; None: the default one.
        api_key: of a server; None: IMGCLS_API_KEY in the environment, if it is there.

    >>> imgcls.Client("http://localhost:8080").predict("picture.jpg")  # doctest: +SKIP
    [[('cat', 0.97), ('dog', 0.02)]]
    """

    def __init__(
        self,
        endpoint: str,
        *,
        seconds: float = 60.0,
        attempts: int = 4,
        parallel: int = 8,
        runtime: Any = None,
        api_key: str | None = None,
    ) -> None:
        self.endpoint, self.parallel = endpoint, parallel
        retry = Retry(
            attempts - 1,
            allowed_methods=None,
            status_forcelist=BUSY,
            backoff_factor=0.5,
            backoff_max=MAX_PAUSE_SECONDS,
            retry_after_max=MAX_PAUSE_SECONDS,
            raise_on_status=False,
        )
        self._transport: Http | SageMaker
        if "://" in endpoint:
            api_key = api_key or os.environ.get("IMGCLS_API_KEY")
            self._transport = Http(endpoint, seconds, retry, parallel, api_key)
        else:
            self._transport = SageMaker(endpoint, seconds, retry, runtime)

    def __repr__(self) -> str:
        return f"Client({self.endpoint!r})"

    def predict(self, pictures: Any, top_k: int = 5, coverage: float | None = None) -> list[Prediction]:
        """The `top_k` most likely classes of each image, each as (name, probability), with `known` and `novelty`.

        Args:
            pictures: what `open_picture` takes: paths, bytes, Pillow images or arrays; a single one or a sequence.
            top_k: number of classes; all if there are fewer.
            coverage: return the set of classes that holds the true one in this share of the cases instead.

        Raises:
            EndpointError: an image was refused, or there was no answer.
            UserError: a file cannot be read, or an object is not an image.
        """
        pictures = as_list(pictures)
        with ThreadPoolExecutor(max(1, min(self.parallel, len(pictures)))) as pool:
            return list(pool.map(lambda picture: self.predict_one(picture, top_k, coverage), pictures))

    def predict_one(self, picture: Any, top_k: int = 5, coverage: float | None = None) -> Prediction:
        """`predict` for a single image."""
        prediction = self.answer(picture, top_k, coverage)
        classes = ((entry["class"], float(entry["probability"])) for entry in prediction["classes"])
        return Prediction(classes, novelty=prediction.get("novelty"))

    def answer(self, picture: Any, top_k: int | None = None, coverage: float | None = None) -> dict[str, Any]:
        """The endpoint's answer for an image: `classes`, and `known` and `novelty` if its model has them.

        The classes have `class`, `index`, `probability`; with several labels also `above`.

        Args:
            picture: what `open_picture` takes.
            top_k: number of classes; None: the five most likely, or with several labels all.
            coverage: instead, of the set that has the true class that often.
        """
        suffix = f";top_k={top_k}" if top_k is not None else ""
        accept = "application/json" + (suffix if coverage is None else f";coverage={coverage}")
        answer = json.loads(self.invoke(_content(picture), "application/x-image", accept))
        prediction: dict[str, Any] = answer["predictions"][0]
        return prediction

    def labels(self, picture: Any) -> list[tuple[str, float]]:
        """The labels of an image whose probability is at least their threshold, each as (name, probability).

        Raises UserError if the model gives each image one class.
        """
        entries = self.answer(picture)["classes"]
        if "above" not in entries[0]:
            raise UserError("This model gives each image one class. Use predict().")
        return [(entry["class"], float(entry["probability"])) for entry in entries if entry["above"]]

    def invoke(self, body: bytes, content_type: str, accept: str = "application/json") -> bytes:
        """The body of the endpoint's answer to a request, which is repeated while the endpoint is busy."""
        if len(body) > MAX_BODY_BYTES:
            raise EndpointError(f"The image has more than {MAX_BODY_BYTES:,} bytes; make it smaller.", 413)
        try:
            status, content = self._transport.send(body, content_type, accept)
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise EndpointError(f"{self.endpoint} does not answer: {reason.__cause__ or reason}") from error
        if status != 200:
            raise EndpointError(f"{self.endpoint} refused ({status}): {_sentence(content)}", status)
        return content


class Http:
    """Sends to a server of `imgcls.serve` or any other `/invocations`; keeps connections open for the next request."""

    def __init__(
        self, endpoint: str, seconds: float, retry: Retry, connections: int, api_key: str | None = None
    ) -> None:
        self._key = api_key
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"endpoint={endpoint} must be an http(s) URL or the name of a SageMaker endpoint.")
        path = f"{parts.path.rstrip('/').removesuffix('/invocations')}/invocations"
        self._url = parts._replace(path=path, fragment="").geturl()
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns about each attempt
        self._pool = PoolManager(maxsize=connections, timeout=Timeout(seconds), retries=retry)

    def send(self, body: bytes, content_type: str, accept: str) -> tuple[int, bytes]:
        """Status and body of the last attempt's answer."""
        headers = {"Content-Type": content_type, "Accept": accept}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        response = self._pool.request("POST", self._url, body=body, headers=headers, redirect=False)
        return response.status, response.data


class SageMaker:
    """Sends to a SageMaker endpoint, with the credentials that boto3 finds."""

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
        """Status and body of the last attempt's answer. boto3 itself does not retry when the model is busy."""
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
    """Status and body of a refusal: the model's if the model refused, else AWS's."""
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
    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray) and picture.ndim == 3 and not _is_colours(picture):
        np.save(buffer, picture)  # of a model with as many channels
        return buffer.getvalue()
    try:
        open_picture(picture).save(buffer, "PNG")
    except BadPicture as error:
        raise UserError(f"The image cannot be used: {error.reason}.") from error
    return buffer.getvalue()


def _is_colours(array: np.ndarray) -> bool:
    """Whether an image (H, W, C) is grey, RGB, or RGB with transparency, and not one of other channels."""
    return array.shape[2] in (1, 3) or (array.shape[2] == 4 and array.dtype == np.uint8)


def _sentence(content: bytes) -> str:
    """The error message in an answer, shortened."""
    try:
        value = json.loads(content)
        text = str(value.get("error", value)) if isinstance(value, dict) else str(value)
    except ValueError:
        text = content.decode("utf-8", "replace")
    return " ".join(text.split())[:300]
