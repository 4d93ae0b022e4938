"""The client against a real server, and against a fake of boto3's SageMaker client."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imgcls
from imgcls.errors import UserError
from imgcls.images.decoding import BadPicture
from imgcls.images.rgb import ORIENTATION
from imgcls.portable import PortableModel
from imgcls.predict import UnreadableError, predict
from imgcls.serve.client import Client, EndpointError
from tests.inputs.images import encoded
from tests.serve.conftest import NAMES, Server, picture

PNG = encoded(picture(), "PNG")


def test_the_client_answers_like_a_run(server: Server, model: PortableModel, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    client = imgcls.Client(server.url)
    inputs = [tmp_path / "a.png", str(tmp_path / "a.png"), PNG, picture(), np.asarray(picture())]
    for top_k in (1, 3):
        [expected] = model.top([picture()], top_k)
        for answer in [*client.predict(inputs, top_k), *client.predict(inputs[0], top_k)]:
            assert [name for name, _ in answer] == [name for name, _ in expected]
            assert np.allclose([value for _, value in answer], [value for _, value in expected], atol=1e-5)
    [expected] = model.top([picture()], coverage=0.9)
    assert [name for name, _ in client.predict_one(PNG, coverage=0.9)] == [name for name, _ in expected]
    assert client.predict([]) == []
    many = [picture(seed) for seed in range(20)]
    assert [best[0] for best, *_ in client.predict(many)] == [best[0] for best, *_ in model.top(many)]


def sources() -> dict[str, Any]:
    image = picture()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    rotated = Image.open(buffer)
    pixels = np.asarray(image)
    modes = ("1", "L", "LA", "La", "P", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "I", "F")
    grey = image.convert("L")
    converted = {m: image.convert("LA").convert("La") if m == "La" else (grey if m in "IF" else image) for m in modes}
    images = {
        mode: base if mode == "La" else (base.convert("RGBA").convert(mode) if mode == "RGBa" else base.convert(mode))
        for mode, base in converted.items()
    }
    return {
        "EXIF orientation": rotated,
        "a copy with EXIF orientation": rotated.copy(),
        **images,
        "I;16": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "(H, W)": pixels[..., 0],
        "(H, W, 1)": pixels[..., :1],
        "(H, W, 4)": np.asarray(image.convert("RGBA")),
        "uint16": pixels.astype(np.uint16) * 257,
        "not contiguous": pixels[:, ::-1],
    }


@pytest.mark.parametrize("name", sources())
def test_images_of_any_kind_are_answered_as_by_the_model(name: str, server: Server, model: PortableModel) -> None:
    source = sources()[name]
    expected = model.top([source], len(NAMES))[0]
    assert Client(server.url).predict_one(source) == [(label, pytest.approx(p, abs=2e-6)) for label, p in expected]
    if isinstance(source, Image.Image):
        pixels = model.preprocessing.pixels(source)[None]
        assert model.probabilities(pixels).max() == pytest.approx(expected[0][1], abs=1e-6)


@pytest.mark.parametrize(
    "source", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2, 1), np.uint8), np.zeros((0, 4, 3)), None, 3]
)
def test_what_is_not_an_image_is_one_line(source: Any, model: PortableModel) -> None:
    with pytest.raises(BadPicture, match="not ") as bad:
        model.top([source])
    with pytest.raises(UserError, match=rf"cannot be used: {re.escape(bad.value.reason.removeprefix('image 1: '))}"):
        Client("http://127.0.0.1:9").predict([source])


def test_refusals_carry_the_servers_message(server: Server) -> None:
    with pytest.raises(EndpointError, match=r"refused \(400\): The image cannot be used: not an image") as error:
        Client(server.url).predict(b"hello")
    assert error.value.status == 400
    with pytest.raises(EndpointError, match="bytes"):
        Client(server.url).predict(bytes(7_000_000))
    with pytest.raises(UserError, match="No such file"):
        Client(server.url).predict("nothing.png")


def test_no_server() -> None:
    with pytest.raises(EndpointError, match="does not answer"):
        Client("http://127.0.0.1:9", attempts=1).predict(PNG)
    with pytest.raises(UserError, match="URL"):
        Client("ftp://127.0.0.1")


class Scripted(BaseHTTPRequestHandler):
    """Answers from a script, a connection at a time, and closes the connection if the script says so."""

    script: list[tuple[int, dict[str, str]]]
    requests: int
    connections: int
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        type(self).connections += 1

    def do_POST(self) -> None:
        type(self).requests += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        status, headers = self.script.pop(0)
        body = json.dumps({"predictions": [{"classes": [{"class": "cat", "index": 0, "probability": 1.0}]}]}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = headers.get("X-Close") == "1"  # unannounced, as after an idle timeout

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the library's own name
        pass


@pytest.fixture
def scripted() -> Any:
    # threads, since one that waits for the next request of an open connection would never hear the shutdown
    handler = type("Handler", (Scripted,), {"script": [], "requests": 0, "connections": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield handler, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between attempts; the clock does not wait."""
    seconds: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", seconds.append)
    return seconds


def test_requests_to_a_busy_server_are_retried(scripted: Any, pauses: list[float]) -> None:
    handler, url = scripted
    handler.script += [(503, {"Retry-After": "3"}), (429, {"Retry-After": "9999"}), (503, {}), (200, {})]
    assert Client(url).predict_one(PNG) == [("cat", 1.0)]
    assert pauses == [3, 30, 2.0], "as long as the server asks for, within limits"
    assert (handler.requests, handler.connections) == (4, 1)
    handler.script += [(503, {})] * 2
    with pytest.raises(EndpointError, match="503"):
        Client(url, attempts=2).predict_one(PNG)
    handler.script += [(500, {})]
    with pytest.raises(EndpointError, match="500"):
        Client(url).predict_one(PNG)
    assert handler.requests == 7, "a server error is not retried"


def test_a_closed_connection_is_reopened(scripted: Any) -> None:
    handler, url = scripted
    handler.script += [(200, {"X-Close": "1"}), (200, {})]
    client = Client(url, attempts=2)
    assert client.predict_one(PNG) == client.predict_one(PNG) == [("cat", 1.0)]
    assert (handler.requests, handler.connections) == (2, 2)


def test_requests_to_an_unreachable_server_are_retried(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EndpointError, match=r"does not answer: \[Errno \d+\] Connection refused$"):
        Client("http://127.0.0.1:9").predict_one(PNG)
    assert pauses == [1.0, 2.0], "the first retry comes at once"
    assert not caplog.records


def test_an_answer_that_takes_too_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.05, attempts=2)
        with pytest.raises(EndpointError, match="does not answer: timed out"):
            client.predict_one(PNG)


class Runtime:
    """The part of boto3's sagemaker-runtime that the client uses."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.requests = list(answers), []  # type: ignore[var-annotated]

    def invoke_endpoint(self, **request: Any) -> Any:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"Body": io.BytesIO(json.dumps(answer).encode()), "ContentType": "application/json"}


def model_error(code: str, status: int, **more: Any) -> Exception:
    errors = pytest.importorskip("botocore.exceptions")
    response = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}, **more}
    return errors.ClientError(response, "InvokeEndpoint")


def test_a_sagemaker_endpoint(pauses: list[float]) -> None:
    answer = {"predictions": [{"classes": [{"class": "cat", "index": 0, "probability": 0.5}]}]}
    runtime = Runtime(answer, model_error("ThrottlingException", 400), answer)
    client = Client("dog-breeds", runtime=runtime)
    assert client.predict(PNG) == [[("cat", 0.5)]]
    assert runtime.requests[0] == {
        "EndpointName": "dog-breeds",
        "Body": PNG,
        "ContentType": "application/x-image",
        "Accept": "application/json;top_k=5",
    }
    assert client.predict(PNG) == [[("cat", 0.5)]]
    refusal = model_error("ModelError", 424, OriginalStatusCode=400, OriginalMessage='{"error": "not an image"}')
    with pytest.raises(EndpointError, match=r"refused \(400\): not an image"):
        Client("dog-breeds", runtime=Runtime(refusal)).predict(PNG)
    with pytest.raises(EndpointError, match="no"):
        Client("dog-breeds", runtime=Runtime(model_error("ValidationError", 400))).predict(PNG)
    busy = Runtime(*[model_error("ModelError", 424, OriginalStatusCode=503, OriginalMessage="busy")] * 3)
    with pytest.raises(EndpointError, match=r"refused \(503\): busy"):
        Client("dog-breeds", attempts=3, runtime=busy).predict(PNG)
    assert len(busy.requests) == 3
    unreachable = Runtime(*[pytest.importorskip("botocore.exceptions").HTTPClientError(error="no route")] * 2)
    with pytest.raises(EndpointError, match=r"dog-breeds does not answer: .*no route"):
        Client("dog-breeds", attempts=2, runtime=unreachable).predict(PNG)


def test_the_program_in_the_serving_docs(
    server: Server,
    model: PortableModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "serving.md").read_text()
    [program] = re.findall(r"```python\n(# ask\.py\n.*?)```", page, re.DOTALL)
    assert "http://127.0.0.1:8080" in program
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.jpg").write_bytes(PNG)
    exec(program.replace("http://127.0.0.1:8080", server.url), {})
    assert model.top([picture()])[0][0][0] in capsys.readouterr().out


def test_predict_sends_to_an_endpoint(
    server: Server, model: PortableModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(encoded(picture(seed), "PNG"))
    (tmp_path / "bad.jpg").write_bytes(b"hello")
    with pytest.raises(UnreadableError, match="1 of 4"):
        predict([f"endpoint={server.url}", "format=jsonl", "top_k=2", str(tmp_path)])
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    for seed, row in enumerate(rows):
        assert [entry["class"] for entry in row["classes"]] == [name for name, _ in model.top([picture(seed)], 2)[0]]
    assert "not an image" in output.err
    with pytest.raises(UserError, match="endpoint"):
        predict([f"endpoint={server.url}", "run=x", "a.png"])
