"""Invalid requests are refused with 4xx and a sentence, and the server keeps running."""

from __future__ import annotations

import base64
import io
import json
import random
import socket
import struct
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from imgcls.serve.payloads import MAX_BODY_BYTES, Encoded, parse
from imgcls.serve.refusals import Refusal
from tests.inputs.images import bomb, encoded
from tests.serve.conftest import SIDE, Answer, Server, picture

PNG = encoded(picture(), "PNG")
JPEG = encoded(picture(0, 64, 64), "JPEG")


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


def npy_objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


INVALID = {
    "empty": (b"", "image/jpeg", 400, "empty"),
    "blanks": (b" \n", "application/json", 400, "empty"),
    "text": (b"hello", "image/jpeg", 400, "not an image"),
    "html": (b"<html></html>", "application/x-image", 400, "not an image"),
    "cut off": (JPEG[: len(JPEG) // 2], "image/jpeg", 400, "truncated"),
    "huge": (bomb(20_000), "image/png", 413, "pixels"),
    "rather large": (bomb(7_000), "image/png", 413, "pixels"),
    "unknown type": (PNG, "application/pdf", 415, "application/pdf"),
    "audio": (PNG, "audio/mpeg", 415, "audio/mpeg"),
    "no json": (b"{", "application/json", 400, "not valid JSON"),
    "not utf-8": (b"\xff\xfe{}", "application/json", 400, "JSON"),
    "deep json": (b"[" * 100_000, "application/json", 400, "JSON"),
    "null": (b"null", "application/json", 400, "object, a list or a base64"),
    "no image": (b'{"hello": 1}', "application/json", 400, '"image"'),
    "empty batch": (b'{"images": []}', "application/json", 400, "batch is empty"),
    "empty list": (b"[]", "application/json", 400, "batch is empty"),
    "empty instances": (b'{"instances": []}', "application/json", 400, "batch is empty"),
    "instances of numbers": (b'{"instances": 3}', "application/json", 400, "must be a list"),
    "no base64": (b'{"image": "!!!"}', "application/json", 400, "not valid base64"),
    "base64 of nothing": (b'{"image": ""}', "application/json", 400, "empty"),
    "base64 of text": (base64.b64encode(b"hello"), "text/plain", 400, "not an image"),
    "ragged": (b"[[[1, 2], [3]]]", "application/json", 400, "different lengths"),
    "strings in a tensor": (b'{"tensor": [[["a"]]]}', "application/json", 400, "numbers"),
    "flat": (b"[1, 2, 3]", "application/json", 400, "shape 3"),
    "wrong side": (npy(np.zeros((1, 3, SIDE + 1, SIDE), np.float32)), "application/x-npy", 400, f"3x{SIDE}x{SIDE}"),
    "channels last": (npy(np.zeros((SIDE, SIDE, 3), np.float32)), "application/x-npy", 400, "uint8"),
    "five dimensions": (npy(np.zeros((1, 1, 3, 2, 2))), "application/x-npy", 400, "neither"),
    "no images": (npy(np.zeros((0, 3, SIDE, SIDE))), "application/x-npy", 400, "batch is empty"),
    "not normalised": (npy(np.full((3, SIDE, SIDE), 200.0)), "application/x-npy", 400, "not normalised"),
    "not finite": (npy(np.full((3, SIDE, SIDE), np.nan)), "application/x-npy", 400, "finite"),
    "beyond float32": (npy(np.full((3, SIDE, SIDE), 1e300)), "application/x-npy", 400, "finite"),
    "complex": (npy(np.zeros((3, SIDE, SIDE), complex)), "application/x-npy", 400, "numbers"),
    "negative pixels": (npy(np.full((8, 8, 3), -1)), "application/x-npy", 400, "0 to 255"),
    "four channels": (npy(np.zeros((8, 8, 4), np.uint8)), "application/x-npy", 400, "(height, width, 3)"),
    "objects": (npy_objects(), "application/x-npy", 400, "numbers"),
    "terabytes": (npy_header("(1, 3, 1000000, 1000000)"), "application/x-npy", 400, "shorter or longer"),
    "negative shape": (npy_header("(-1, 3, 2, 2)"), "application/x-npy", 400, "shorter or longer"),
    "no npy": (b"\x93NUMPY", "application/x-npy", 400, "not an NPY"),
    "code in the header": (npy_header("__import__('os')"), "application/x-npy", 400, "not an NPY"),
    "form without a boundary": (PNG, "multipart/form-data", 400, "boundary"),
    "form cut off": (b"--a\r\n", "multipart/form-data; boundary=a", 400, "form"),
    "form of something else": (b"hello", "multipart/form-data; boundary=a", 400, "form"),
    "form without a file": (
        b'--a\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--a--\r\n',
        "multipart/form-data; boundary=a",
        400,
        "no image",
    ),
    "wrong line": (b'{"image": "aGVsbG8="}\n{', "application/jsonlines", 400, "Image 1: "),
    "too many": (npy(np.zeros((1001, 2, 2, 3), np.uint8)), "application/x-npy", 413, "1,000"),
    "a lone surrogate": (b'{"image": "\\ud800"}', "application/json", 400, "not valid base64"),
    "a lone surrogate in a list": (b'["\\udfff"]', "application/json", 400, "not valid base64"),
    "a lone surrogate in a url": (b'{"url": "http://\\ud800.org/"}', "application/json", 400, "does not fetch images"),
    "a lone surrogate as a key": (b'{"\\ud800": 1}', "application/json", 400, "no image"),
    "objects in objects": (b'{"images": [' * 400 + b"]}" * 400, "application/json", 400, "nested too deeply"),
    "objects by turns": (b'{"inputs": [{"images": [' * 9 + b"]}]}" * 9, "application/json", 400, "nested too deeply"),
    "lists in lists": (b"[" * 300 + b"1" + b"]" * 300, "application/json", 400, "four dimensions"),
    "lists in a tensor": (b"[[[1, [2]]]]", "application/json", 400, "different lengths"),
    "true in a tensor": (b"[[[true, 1]]]", "application/json", 400, "numbers"),
    "a huge number": (b"[[[1" + b"0" * 400 + b"]]]", "application/json", 400, "too large"),
    "url": (b'{"url": "http://example.org/a.jpg"}', "application/json", 400, "does not fetch images"),
    "urls": (b'{"urls": ["http://example.org/a.jpg"]}', "application/json", 400, "does not fetch images"),
    "url of no text": (b'{"url": 3}', "application/json", 400, "must be a string"),
}


def lines(part: bytes, size: int = 6_000_000) -> bytes:
    return part * (size // len(part))


COSTLY = {
    "npy of images of a pixel": (npy(np.zeros((2_000_000, 1, 1, 3), np.uint8)), "application/x-npy", 413, "1,000"),
    "npy of tensors of a number": (npy(np.zeros((1_500_000, 1, 1, 1), "f4")), "application/x-npy", 413, "1,000"),
    "json lines": (lines(b'{"image":"AA=="}\n'), "application/jsonlines", 413, "1,000"),
    "json of texts": (b"[" + lines(b'"AA",') + b'"AA"]', "application/json", 413, "1,000"),
    "json of urls": (b'{"urls":[' + lines(b'"a",') + b'"a"]}', "application/json", 413, "1,000"),
    "json of objects": (b"[" + lines(b"{},") + b"{}]", "application/json", 413, "objects"),
    "json of empty lists": (b"[" + lines(b"[],") + b"[]]", "application/json", 413, "lists"),
    "a tensor of short texts and a long one": (
        b'{"tensor":[["' + b"a" * 1000 + b'"],' + lines(b'["a"],', 5_000_000) + b'["a"]]}',
        "application/json", 400, "numbers",
    ),
    "json of images of a pixel": (
        b"[" + lines(b"[[[1,2,3]]],", 3_900_000) + b"[[[1,2,3]]]]", "application/json", 413, "1,000",
    ),
    "empty parts": (
        lines(b"--a\r\n\r\n") + b"--a--\r\n", "multipart/form-data; boundary=a", 413, "1,000 parts",
    ),
    "empty files": (
        lines(b'--a\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n\r\n') + b"--a--\r\n",
        "multipart/form-data; boundary=a", 413, "1,000 parts",
    ),
    "a form of one head": (
        b"--a\r\n" + lines(b"x: y\r\n") + b"\r\n\r\n\r\n--a--\r\n", "multipart/form-data; boundary=a", 400, "form",
    ),
    "base64 with blanks": (lines(b"A "), "text/plain", 400, "not an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTLY)
def test_large_bodies_are_refused_before_they_are_unpacked(name: str) -> None:
    body, content_type, status, message = COSTLY[name]
    tracemalloc.start()
    try:
        if name == "base64 with blanks":
            [item] = parse(body, content_type).items
            assert isinstance(item, Encoded)
        else:
            with pytest.raises(Refusal, match=message) as refused:
                parse(body, content_type)
            assert refused.value.status == status
        assert tracemalloc.get_traced_memory()[1] < 40 * MAX_BODY_BYTES
    finally:
        tracemalloc.stop()


def check_refusal(answer: Answer, status: int, message: str) -> None:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json) == ["error"]
    sentence = answer.json["error"]
    assert message in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize("name", INVALID)
def test_invalid_requests_are_refused_with_a_sentence(name: str, server: Server) -> None:
    body, content_type, status, message = INVALID[name]
    check_refusal(server.post(body, content_type), status, message)


def several(*contents: bytes) -> bytes:
    return json.dumps({"images": [base64.b64encode(content).decode() for content in contents]}).encode()


def test_of_several_images_only_the_bad_one_fails(server: Server) -> None:
    classes = server.post(PNG).json["predictions"][0]
    answer = server.post(several(PNG, b"hello", PNG), "application/json")
    assert answer.status == 200
    assert [set(image) for image in answer.json["predictions"]] == [{"classes"}, {"error"}, {"classes"}]
    assert answer.json["predictions"][2]["classes"][0]["class"] == classes["classes"][0]["class"]
    assert "not an image" in answer.json["predictions"][1]["error"]
    lines = b'{"image": "%s"}\n{"image": "?"}\nnonsense\n' % base64.b64encode(PNG)
    answers = [json.loads(line) for line in server.post(lines, "application/jsonlines").body.splitlines()]
    assert [set(image) for image in answers] == [{"classes"}, {"error"}, {"error"}]
    assert answers[2]["error"].startswith("Line 3: ")


@pytest.mark.parametrize("accept", ["text/csv", "application/x-npy", "application/json;format=scores"])
def test_a_bad_image_is_named_where_the_format_has_no_place_for_its_error(accept: str, server: Server) -> None:
    check_refusal(server.post(several(PNG, b"hello"), "application/json", Accept=accept), 400, "Image 2: ")


def test_nothing_but_bad_images_is_a_refusal(server: Server) -> None:
    check_refusal(server.post(several(b"hello", b"hello"), "application/json"), 400, "Image 1: ")


def test_unsupported_answers_and_paths(server: Server) -> None:
    check_refusal(server.post(PNG, Accept="application/xml"), 406, "application/json")
    check_refusal(server.post(PNG, Accept="application/json;q=0"), 406, "application/json")
    for top_k in ("0", "-1", "many", "1.5", "9" * 30):
        check_refusal(server.post(PNG, path=f"?top_k={top_k}"), 400, "top_k")
    check_refusal(server.ask("GET", "/nothing"), 404, "No such path")
    check_refusal(server.ask("GET", "/invocations"), 405, "method")


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 4 * MAX_BODY_BYTES])
@pytest.mark.parametrize("chunked", [False, True])
def test_more_than_6_mb(size: int, chunked: bool, server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for start in range(0, size, 65536):
            yield bytes(min(65536, size - start))

    check_refusal(server.post(chunks() if chunked else bytes(size)), 413, "6,291,456 bytes")  # type: ignore[arg-type]


def test_exactly_6_mb_are_accepted(server: Server) -> None:
    assert server.post(PNG + bytes(MAX_BODY_BYTES - len(PNG))).status == 200


def test_a_client_that_disconnects_leaves_nothing_behind(server: Server) -> None:
    for head in (
        b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc",
        b"POST /inv",
        b"\x16\x03\x01",
    ):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head)
    assert server.post(PNG).status == 200
    with server.service.admission(1):
        assert server.service._requests == 1, "requests of disconnected clients still count"


def malformed(rng: random.Random) -> tuple[bytes, str]:
    """A defective request: bytes changed, removed or inserted, or with another Content-Type."""
    valid = [
        (PNG, "image/png"),
        (JPEG, "image/jpeg"),
        (json.dumps({"image": base64.b64encode(PNG).decode()}).encode(), "application/json"),
        (json.dumps({"tensor": [[[0.5, 1.0]] * 3]}).encode(), "application/json"),
        (npy(np.zeros((3, 4, 4), np.float32)), "application/x-npy"),
        (base64.b64encode(JPEG), "text/plain"),
        (b'{"images": ["aGVsbG8="]}\n' * 3, "application/jsonlines"),
        (b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + PNG + b"\r\n--b--\r\n",
         "multipart/form-data; boundary=b"),
    ]  # fmt: skip
    body, content_type = rng.choice(valid)
    content = bytearray(body)
    for _ in range(rng.randint(1, 12)):
        at = rng.randrange(len(content)) if content else 0
        match rng.randrange(4):
            case 0 if content:
                content[at] = rng.randrange(256)
            case 1:
                del content[at : at + rng.randint(1, 200)]
            case 2:
                content[at:at] = rng.randbytes(rng.randint(1, 20))
            case _:
                del content[at:]
    if rng.random() < 0.3:
        odd = ["", "a/b", "image/", ";;", "multipart/form-data; boundary="]
        content_type = rng.choice([kind for _, kind in valid] + odd)
    return bytes(content), content_type


def test_a_thousand_malformed_requests_and_then_a_good_one(server: Server) -> None:
    import http.client

    rng = random.Random(0)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    statuses: dict[int, int] = {}
    for _ in range(1000):
        body, content_type = malformed(rng)
        connection.request("POST", "/invocations", body, {"Content-Type": content_type})
        response = connection.getresponse()
        content = response.read()
        assert response.status < 500, (body[:200], content_type, content)
        assert b"Traceback" not in content
        statuses[response.status] = statuses.get(response.status, 0) + 1
    connection.close()
    assert statuses.get(400, 0) > 500, statuses
    assert server.post(PNG).status == 200
    assert server.ask("GET", "/ping").status == 200


def test_a_batch_is_not_ended_by_an_image(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGCLS_BATCH", "true")
    answer = server.post(b"no image")
    assert answer.status == 200
    [prediction] = answer.json["predictions"]
    assert "cannot be used" in prediction["error"]
