"""The Lambda function: events of every kind in, the proxy format out, errors as the client should see them."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imgcls.serve import lambda_function
from imgcls.serve.lambda_function import lambda_handler
from tests.inputs.images import encoded
from tests.serve.conftest import picture

exceptions = pytest.importorskip("botocore.exceptions")

PNG = encoded(picture(), "PNG")
TEXT = base64.b64encode(PNG).decode()
CLASSES = json.dumps({"predictions": [{"classes": [{"class": "Eule", "index": 2, "probability": 0.9}]}]})


class Runtime:
    """A fake of boto3's client: records the request, answers or raises."""

    def __init__(self) -> None:
        self.request: dict[str, Any] = {}
        self.answer: bytes | Exception = CLASSES.encode()
        self.kind = "application/json"

    def invoke_endpoint(self, **request: Any) -> Any:
        self.request = request
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"Body": io.BytesIO(self.answer), "ContentType": self.kind}


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    fake = Runtime()
    monkeypatch.setattr(lambda_function, "runtime", lambda: fake)
    monkeypatch.setenv("ENDPOINT_NAME", "dog-breeds")
    return fake


@pytest.mark.parametrize(
    ("event", "body", "kind"),
    [
        ({"url": "https://example.org/a.jpg"}, b'{"url": "https://example.org/a.jpg"}', "application/json"),
        ({"image": TEXT}, PNG, "application/x-image"),
        ({"image": f"data:image/png;base64,{TEXT}"}, PNG, "application/x-image"),
        (
            {"body": TEXT, "isBase64Encoded": True, "headers": {"Content-Type": "image/png"}, "httpMethod": "POST"},
            PNG,
            "image/png",
        ),
        (
            {"version": "2.0", "body": TEXT, "isBase64Encoded": True, "headers": {"content-type": "image/png"}},
            PNG,
            "image/png",
        ),
        ({"body": TEXT, "isBase64Encoded": True}, PNG, "application/x-image"),
        ({"body": TEXT, "isBase64Encoded": False, "headers": None}, TEXT.encode(), "text/plain"),
        ({"body": '{"url": "https://a.org/b"}', "headers": {}}, b'{"url": "https://a.org/b"}', "application/json"),
        ({"body": {"url": "https://a.org/b"}}, b'{"url": "https://a.org/b"}', "application/json"),
    ],
)
def test_events(event: dict[str, Any], body: bytes, kind: str, runtime: Runtime) -> None:
    answer = lambda_handler(event, None)
    assert answer["statusCode"] == 200
    assert answer["headers"]["Content-Type"] == "application/json"
    assert json.loads(answer["body"])["predictions"][0]["classes"][0]["class"] == "Eule"
    assert runtime.request["EndpointName"] == "dog-breeds"
    assert (runtime.request["Body"], runtime.request["ContentType"]) == (body, kind)
    json.dumps(answer)


def test_the_accept_header_is_passed_on(runtime: Runtime) -> None:
    runtime.answer, runtime.kind = b"\x93NUMPY\xff", "application/x-npy"
    answer = lambda_handler({"image": TEXT, "headers": {"Accept": "application/x-npy"}}, None)
    assert runtime.request["Accept"] == "application/x-npy"
    assert answer["isBase64Encoded"] is True
    assert base64.b64decode(answer["body"]) == b"\x93NUMPY\xff"


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (None, 400),
        ([], 400),
        ({}, 400),
        ({"body": ""}, 400),
        ({"body": None, "httpMethod": "GET"}, 400),
        ({"image": "!!!"}, 400),
        ({"image": ""}, 400),
        ({"body": "***", "isBase64Encoded": True}, 400),
        ({"body": "x" * 7_000_000}, 413),
        ({"image": "A" * 9_000_000}, 413),
    ],
)
def test_events_without_a_picture(event: Any, status: int, runtime: Runtime) -> None:
    answer = lambda_handler(event, None)
    assert answer["statusCode"] == status
    assert list(json.loads(answer["body"])) == ["error"]
    assert not runtime.request


def client_error(code: str, **more: Any) -> Exception:
    response = {
        "Error": {"Code": code, "Message": "arn:aws:secret"},
        "ResponseMetadata": {"HTTPStatusCode": 400},
        **more,
    }
    return exceptions.ClientError(response, "InvokeEndpoint")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (
            client_error("ModelError", OriginalStatusCode=400, OriginalMessage='{"error": "not an image"}'),
            400,
            "not an image",
        ),
        (client_error("ModelError", OriginalStatusCode=413, OriginalMessage="too large\nTraceback"), 413, "too large"),
        (client_error("ModelError", OriginalStatusCode=500, OriginalMessage="Traceback"), 502, "model failed"),
        (client_error("ModelError", OriginalStatusCode=503, OriginalMessage="{}"), 503, "busy"),
        (client_error("ThrottlingException"), 503, "busy"),
        (client_error("ValidationError"), 502, "cannot be called"),
        (client_error("AccessDeniedException"), 502, "cannot be called"),
        (exceptions.ReadTimeoutError(endpoint_url="https://secret"), 504, "in time"),
        (exceptions.ConnectTimeoutError(endpoint_url="https://secret"), 504, "in time"),
        (exceptions.EndpointConnectionError(endpoint_url="https://secret"), 502, "reached"),
        (exceptions.NoCredentialsError(), 502, "cannot be called"),
        (ValueError("secret"), 500, "failed"),
    ],
)
def test_errors(error: Exception, status: int, message: str, runtime: Runtime) -> None:
    runtime.answer = error
    answer = lambda_handler({"image": TEXT}, None)
    assert answer["statusCode"] == status
    assert message in json.loads(answer["body"])["error"]
    assert "secret" not in answer["body"]
    assert "Traceback" not in answer["body"]
    assert ("Retry-After" in answer["headers"]) == (status == 503)


def test_no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENDPOINT_NAME", raising=False)
    assert lambda_handler({"image": TEXT}, None)["statusCode"] == 500


def test_timeouts_and_no_second_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMEOUT", "7")
    for name, value in {"DEFAULT_REGION": "eu-central-1", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    lambda_function.runtime.cache_clear()
    try:
        config = lambda_function.runtime().meta.config
    finally:
        lambda_function.runtime.cache_clear()
    assert (config.connect_timeout, config.read_timeout) == (3, 7.0)
    assert config.retries["total_max_attempts"] == 1


def test_the_file_alone_is_enough(tmp_path: Path) -> None:
    """Copied to an empty folder it answers without importing imgcls, numpy or Pillow."""
    (tmp_path / "lambda_function.py").write_bytes(Path(lambda_function.__file__).read_bytes())
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import lambda_function as f;"
        "print(f.lambda_handler({})['statusCode']);"
        "print({'imgcls', 'numpy', 'PIL', 'torch'} & {*sys.modules})"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout.splitlines() == ["400", "set()"]
