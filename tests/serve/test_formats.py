"""Every format of requests and answers, through a real server."""

from __future__ import annotations

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from imgcls.portable import PortableModel
from imgcls.serve import answers
from imgcls.serve.refusals import Refusal
from tests.inputs.images import encoded
from tests.serve.conftest import NAMES, SIDE, Server, picture

PNG = encoded(picture(), "PNG")
TEXT = base64.b64encode(PNG)
BOUNDARY = "a-boundary"
LOSSLESS = io.BytesIO()
picture().save(LOSSLESS, "WEBP", lossless=True)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def form(*parts: tuple[str, bytes]) -> bytes:
    sent = b""
    for disposition, content in parts:
        sent += f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n".encode()
        sent += b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n"
    return sent + f"--{BOUNDARY}--\r\n".encode()


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


PIXELS = np.asarray(picture())
REQUESTS = {
    "png": (PNG, "image/png"),
    "png, called something else": (PNG, "image/jpeg"),
    "webp": (LOSSLESS.getvalue(), "image/webp"),
    "x-image": (PNG, "application/x-image"),
    "no content type": (PNG, ""),
    "octet stream": (PNG, "application/octet-stream"),
    "base64 text": (TEXT, "text/plain"),
    "base64 text with line breaks": (b"\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)), "text/plain"),
    "base64 for URLs": (TEXT.replace(b"+", b"-").replace(b"/", b"_").rstrip(b"="), "application/base64"),
    "data URL": (b"data:image/png;base64," + TEXT, "text/plain; charset=utf-8"),
    "data URL with parameters": (b"data:image/jpeg;name=my%20cat.jpg;base64," + TEXT, "text/plain"),
    "data URL with quotes": (b' DATA:image/png; name="a, b.png" ;Base64,' + TEXT, "text/plain"),
    "json data URL": (as_json({"image": "data:image/png;name=a%2Cb.png;base64," + TEXT.decode()}), "application/json"),
    "form with a name in RFC 5987": (
        form(("name=\"file\"; filename*=UTF-8''caf%C3%A9.png", PNG)),
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "form with both names": (
        form(("name=file; filename=cafe.png; filename*=utf-8''caf%C3%A9.png", PNG)),
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "form with a name in parts": (
        form(("name=\"f\"; filename*0*=utf-8''caf%C3; filename*1*=%A9.png", PNG)),
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "form with a folded head": (
        form(('name="file";\r\n filename="a.png"', PNG)),
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "form with a preamble": (
        b"hello\r\n" + form(('name="file"; filename="a.png"', PNG)) + b"\r\nthe end",
        f"multipart/form-data; boundary={BOUNDARY}",
    ),
    "form with a type and no file name": (form(('name="file"', PNG)), f"multipart/form-data; boundary={BOUNDARY}"),
    "form": (form(('name="file"; filename="a \\"b\\".png"', PNG)), f"multipart/form-data; boundary={BOUNDARY}"),
    "form with base64": (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"\r\n\r\n'.encode()
        + TEXT
        + f"\r\n--{BOUNDARY}--\r\n".encode(),
        f'multipart/form-data; boundary="{BOUNDARY}"',
    ),
    "json image": (as_json({"image": TEXT.decode()}), "application/json"),
    "json images": (as_json({"images": [TEXT.decode()]}), "application/json; charset=utf-8"),
    "json instances": (as_json({"instances": [{"b64": TEXT.decode()}]}), "application/json"),
    "json text": (as_json(TEXT.decode()), "application/json"),
    "json list of texts": (as_json([TEXT.decode()]), "application/json"),
    "json pixels": (as_json(PIXELS.tolist()), "application/json"),
    "json pixels by name": (as_json({"tensor": PIXELS[None].tolist()}), "application/json"),
    "json lines": (as_json({"image": TEXT.decode()}) + b"\n", "application/jsonlines"),
    "npy pixels": (npy(PIXELS), "application/x-npy"),
    "npy pixels in a batch": (npy(PIXELS[None]), "application/x-npy"),
    "npy as bytes": (npy(PIXELS), "application/octet-stream"),
    "npy in Fortran's order": (npy(np.asfortranarray(PIXELS)), "application/x-npy"),
    "npy of 64 bits": (npy(PIXELS.astype(np.int64)), "application/x-npy"),
    "npy of 16 bits": (npy(PIXELS.astype(">u2") * 257), "application/x-npy"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_request_gives_the_same_answer(name: str, server: Server, model: PortableModel) -> None:
    body, content_type = REQUESTS[name]
    answer = server.post(body, content_type, Accept="application/json")
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/json"
    [prediction] = answer.json["predictions"]
    expected = model.top([picture()])[0]
    assert [entry["class"] for entry in prediction["classes"]] == [name for name, _ in expected]
    assert [entry["index"] for entry in prediction["classes"]] == [NAMES.index(name) for name, _ in expected]
    probabilities = [entry["probability"] for entry in prediction["classes"]]
    assert np.allclose(probabilities, [value for _, value in expected], atol=1e-5)


@pytest.mark.parametrize("kind", ["json", "json by name", "npy", "npy alone", "npy of 64 bits"])
def test_tensors_go_into_the_model_unchanged(kind: str, server: Server, model: PortableModel) -> None:
    images = model.preprocessing.normalise(np.stack([model.preprocessing.pixels(picture(seed)) for seed in (1, 2)]))
    body, content_type = {
        "json": (as_json(images.tolist()), "application/json"),
        "json by name": (as_json({"instances": images.tolist()}), "application/json"),
        "npy": (npy(images), "application/x-npy"),
        "npy alone": (npy(images[0]), "application/x-npy"),
        "npy of 64 bits": (npy(images.astype(np.float64)), "application/x-npy"),
    }[kind]
    answer = server.post(body, content_type, Accept="application/x-npy")
    assert answer.headers["content-type"] == "application/x-npy"
    logits = np.load(io.BytesIO(answer.body))
    assert np.allclose(logits, model.engine.outputs(images)[: len(logits)], atol=1e-4)
    assert len(logits) == (1 if kind == "npy alone" else 2)


def test_jpeg_is_decoded_as_in_training(server: Server, model: PortableModel) -> None:
    jpeg = encoded(picture(3, 101, 67), "JPEG")
    assert server.post(jpeg, "image/jpeg").json["predictions"][0]["classes"][0]["class"] == model.top([jpeg])[0][0][0]


def test_lines_are_answered_line_by_line_in_order(server: Server, model: PortableModel) -> None:
    pictures = [picture(seed) for seed in range(7)]
    lines = [as_json({"image": base64.b64encode(encoded(image)).decode()}) for image in pictures]
    answer = server.post(b"\n".join(lines), "application/jsonlines")
    assert answer.headers["content-type"] == "application/jsonlines"
    best = [json.loads(line)["classes"][0] for line in answer.body.splitlines()]
    expected = [classes[0] for classes in model.top(pictures)]
    assert len({name for name, _ in expected}) > 1, "this test needs images of several predicted classes"
    assert [entry["class"] for entry in best] == [name for name, _ in expected]
    together = server.post(b"\n".join(lines), "application/jsonlines", Accept="application/json")
    assert len(together.json["predictions"]) == 7


def test_a_form_with_several_files(server: Server) -> None:
    body = form(*((f'name="file{seed}"; filename="{seed}.png"', encoded(picture(seed), "PNG")) for seed in range(3)))
    answer = server.post(body, f"multipart/form-data; boundary={BOUNDARY}")
    assert len(answer.json["predictions"]) == 3


def test_csv(server: Server, model: PortableModel) -> None:
    answer = server.post(PNG, path="?top_k=2", Accept="text/csv")
    assert answer.headers["content-type"].startswith("text/csv")
    header, *rows = csv.reader(io.StringIO(answer.body.decode()))
    assert header == ["picture", "rank", "class", "index", "probability"]
    assert [row[2] for row in rows] == [name for name, _ in model.top([picture()], 2)[0]]


@pytest.mark.parametrize("kind", ["application/json", "text/csv", "application/jsonlines"])
def test_logits(kind: str, server: Server, model: PortableModel) -> None:
    answer = server.post(PNG, Accept=f"{kind}; format=scores")
    text = answer.body.decode()
    rows = json.loads(text) if kind == "application/json" else [json.loads(f"[{text.strip().strip('[]')}]")]
    images = model.preprocessing.normalise(model.preprocessing.pixels(picture())[None])
    assert np.allclose(rows, model.engine.outputs(images), atol=1e-4)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "application/json"),
        ("", "application/json"),
        ("text/html, text/csv;q=0.5, application/json;q=0.1", "text/csv"),
        ("text/*", "text/csv"),
        ("application/xml;q=1, */*;q=0.1", "application/json"),
        ("application/x-npy", "application/x-npy"),
    ],
)
def test_the_accept_header_decides(accept: str, content_type: str, server: Server) -> None:
    assert server.post(PNG, Accept=accept).headers["content-type"].split(";")[0] == content_type


def test_top_k(server: Server) -> None:
    for path, accept, count in [("?top_k=1", "*/*", 1), ("", "application/json;top_k=2", 2), ("?top_k=99", "*/*", 3)]:
        assert len(server.post(PNG, path=path, Accept=accept).json["predictions"][0]["classes"]) == count


def test_coverage_gives_sets(server: Server, model: PortableModel) -> None:
    for seed in range(4):
        body = encoded(picture(seed), "PNG")
        [expected] = model.top([picture(seed)], coverage=0.9)
        for path, accept in (("?coverage=0.9", "*/*"), ("", "application/json;coverage=0.9")):
            [prediction] = server.post(body, "image/png", path=path, Accept=accept).json["predictions"]
            assert [entry["class"] for entry in prediction["classes"]] == [name for name, _ in expected]
    for query, message in [
        ("coverage=2", "between 0 and 1"),
        ("coverage=nan", "between"),
        ("coverage=.9&top_k=2", "both"),
    ]:
        refused = server.post(PNG, "image/png", path=f"?{query}")
        assert (refused.status, message in refused.json["error"]) == (400, True)
    without = answers.ResponseFormat(coverage=0.9)
    with pytest.raises(Refusal, match="export run="):
        answers.render([np.zeros(3, np.float32)], NAMES, without)


def test_the_other_routes(server: Server) -> None:
    ping = server.ask("GET", "/ping")
    assert (ping.status, ping.json) == (200, {"status": "healthy"})
    [model] = server.ask("GET", "/models").json["models"]
    assert model["classes"] == list(NAMES)
    assert model["preprocessing"]["image_size"] == SIDE
    assert model["metrics"] == {"test/accuracy": 0.875}
    assert model["precision"] == "fp32"
    paths = server.ask("GET", "/openapi.json").json["paths"]
    assert {"/ping", "/health", "/version", "/invocations", "/models", "/metrics"} <= paths.keys()
    assert "image/jpeg" in paths["/invocations"]["post"]["requestBody"]["content"]
    assert server.ask("GET", "/docs").status == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/ping", "/models", "/metrics", "/openapi.json", "/nothing", "/redoc"])
def test_every_answer_has_security_headers_and_loads_nothing_from_elsewhere(path: str, server: Server) -> None:
    answer = server.ask("GET", path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    if path in ("/", "/docs"):
        assert answer.headers["content-type"].startswith("text/html")
        assert not re.search(rb"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", answer.body)
    refused = server.post(b"hello")
    assert (refused.status, refused.headers["x-content-type-options"]) == (400, "nosniff")


def test_the_documentation_is_swagger_from_this_server(server: Server) -> None:
    page = server.ask("GET", "/docs").body.decode()
    scripts = re.findall(r'<script src="([^"]+)"', page)
    assert scripts
    assert all(server.ask("GET", script).status == 200 for script in scripts)
    assert server.ask("GET", "/redoc").status == 404


def test_a_slash_too_many_leads_nowhere(server: Server) -> None:
    answer = server.ask("POST", "/invocations/", b"", Host="evil.example")
    assert (answer.status, "location" in answer.headers) == (404, False)


def test_prometheus_counts(server: Server) -> None:
    def count(text: str) -> float:
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    name = 'imgcls_requests_total{status="200"}'
    before = count(server.ask("GET", "/metrics").body.decode())
    server.post(PNG)
    text = server.ask("GET", "/metrics").body.decode()
    assert count(text) == before + 1
    for metric in ("imgcls_request_seconds_bucket", "imgcls_batch_pictures_count", "imgcls_pictures_total"):
        assert metric in text


def test_grey_alpha_and_palette_pictures(server: Server) -> None:
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "I;16"):
        image = Image.new("I;16", (40, 40)) if mode == "I;16" else picture().convert(mode)
        body = encoded(image, "TIFF" if mode in ("CMYK", "I;16") else "PNG")
        assert server.post(body, "application/x-image").status == 200, mode
