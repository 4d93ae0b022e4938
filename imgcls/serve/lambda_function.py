"""An AWS Lambda function in front of a SageMaker endpoint. Copy this one file; it needs only boto3.

Events: API Gateway's (an image, base64 or JSON as the body; versions 1.0 and 2.0, function URLs), and plain
`{"url": …}` or `{"image": base64}`. Answers in the proxy format: `statusCode`, `headers`, `body`.

Environment: `ENDPOINT_NAME` (required); `TIMEOUT` of the endpoint's answer in seconds (25; API Gateway waits for 29).
Handler: `lambda_function.lambda_handler`.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
from functools import cache
from typing import Any

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 6 * 1024 * 1024
JSON = "application/json"
RETRY = {"Retry-After": "1"}
BUSY = ("ThrottlingException", "ServiceUnavailable", "ServiceUnavailableException", "ModelNotReadyException")

Answer = dict[str, Any]


class Refused(Exception):  # noqa: N818 - refusing an event is not an error of the function
    """An event that cannot be passed on: an HTTP status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def lambda_handler(event: Any, context: Any = None) -> Answer:
    """Pass the image of `event` on to the endpoint and return its answer."""
    try:
        body, content_type, accept = request_of(event)
        return invoke(body, content_type, accept)
    except Refused as refused:
        return answer(refused.status, {"error": refused.sentence})
    except Exception:
        log.exception("The event could not be answered.")
        return answer(500, {"error": "The function failed; see its log."})


def request_of(event: Any) -> tuple[bytes, str, str]:
    """Body, Content-Type and Accept of the request to the endpoint. Raises Refused."""
    if not isinstance(event, dict):
        raise Refused(400, "The event must be a JSON object.")
    headers = {str(name).lower(): str(value) for name, value in (event.get("headers") or {}).items()}
    accept = headers.get("accept", JSON)
    if isinstance(event.get("url"), str):
        return json.dumps({"url": event["url"]}).encode(), JSON, accept
    body = event.get("body")
    if isinstance(event.get("image"), str):
        content, kind = decoded(event["image"]), "application/x-image"
    elif not body:
        raise Refused(400, 'There is no image in the event: send "body", "url" or "image".')
    elif isinstance(body, dict | list):  # a test event in the console
        content, kind = json.dumps(body).encode(), JSON
    elif event.get("isBase64Encoded"):
        content, kind = decoded(str(body)), headers.get("content-type", "application/x-image")
    else:
        content = str(body).encode("utf-8", "replace")
        kind = headers.get("content-type") or (JSON if str(body).lstrip()[:1] in ("{", "[") else "text/plain")
    if len(content) > MAX_BODY_BYTES:
        raise Refused(413, f"The request has more than {MAX_BODY_BYTES:,} bytes.")
    return content, kind, accept


def decoded(text: str) -> bytes:
    """The bytes of a base64 string, with or without the head of a data URL."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, "The image is not valid base64.") from error
    if not content:
        raise Refused(400, "The image is empty.")
    return content


def invoke(body: bytes, content_type: str, accept: str) -> Answer:
    """The endpoint's answer, or the error to return to the client."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectTimeoutError,
        EndpointConnectionError,
        ReadTimeoutError,
    )

    name = os.environ.get("ENDPOINT_NAME")
    if not name:
        log.error("ENDPOINT_NAME is not set.")
        raise Refused(500, "The function has no endpoint.")
    try:
        response = runtime().invoke_endpoint(EndpointName=name, Body=body, ContentType=content_type, Accept=accept)
        content, kind = response["Body"].read(), response.get("ContentType", JSON)
    except (ReadTimeoutError, ConnectTimeoutError):
        return answer(504, {"error": "The endpoint did not answer in time."})
    except EndpointConnectionError:
        return answer(502, {"error": "The endpoint cannot be reached."})
    except ClientError as error:
        return explained(error.response)
    except BotoCoreError:
        log.exception("The endpoint could not be called.")
        return answer(502, {"error": "The endpoint cannot be called."})
    return answer(200, content, kind)


def explained(response: dict[str, Any]) -> Answer:
    """The answer to the client for an error of `invoke_endpoint`."""
    code = response.get("Error", {}).get("Code", "")
    status = int(response.get("OriginalStatusCode") or 500) if code == "ModelError" else None
    if code in BUSY or status == 503:
        return answer(503, {"error": "The endpoint is busy; try again."}, more=RETRY)
    if status is not None:
        message = str(response.get("OriginalMessage") or "")
        if 400 <= status < 500:
            return answer(status, {"error": sentence_of(message) or "The image was refused."})
        log.error("The model failed (%s): %s", status, message[:2000])
        return answer(502, {"error": "The model failed."})
    log.error("invoke_endpoint: %s", response.get("Error"))
    return answer(502, {"error": "The endpoint cannot be called."})


def sentence_of(message: str) -> str:
    """The sentence in `{"error": sentence}`; the first line of anything else."""
    try:
        return str(json.loads(message)["error"])
    except (ValueError, KeyError, TypeError):
        return message.strip().partition("\n")[0][:300]


def answer(status: int, body: Any, kind: str = JSON, more: dict[str, str] | None = None) -> Answer:
    """API Gateway's proxy format; bytes that are not UTF-8 are sent as base64."""
    headers = {"Content-Type": kind, **(more or {})}
    if not isinstance(body, bytes):
        return {"statusCode": status, "headers": headers, "body": json.dumps(body, ensure_ascii=False)}
    try:
        return {"statusCode": status, "headers": headers, "body": body.decode()}
    except UnicodeDecodeError:
        encoded = base64.b64encode(body).decode()
        return {"statusCode": status, "headers": headers, "body": encoded, "isBase64Encoded": True}


@cache
def runtime() -> Any:
    """boto3's client, created once: a warm function reuses its connection."""
    import boto3
    from botocore.config import Config

    seconds = float(os.environ.get("TIMEOUT", "25"))
    retries = {"total_max_attempts": 1, "mode": "standard"}  # a second attempt would exceed the gateway's timeout
    return boto3.client("sagemaker-runtime", config=Config(connect_timeout=3, read_timeout=seconds, retries=retries))
