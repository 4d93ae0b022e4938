"""Batches, overload, time-outs, a model that fails or hangs, and an end in which nobody is forgotten."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imgcls.portable import PortableModel
from imgcls.serve.batching import Batcher
from imgcls.serve.service import Limits
from tests.serve.conftest import Server, encoded, picture, serving

PNG = encoded(picture())


class Held:
    """An engine that answers when it is allowed to."""

    name = "held"

    def __init__(self, model: PortableModel) -> None:
        self.model, self.go_on, self.entered = model, threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.batches: list[int] = []

    def scores(self, images: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.go_on.wait(30)
        if self.error is not None:
            raise self.error
        self.batches.append(len(images))
        return self.model.engine.scores(images)


@contextmanager
def held(model: PortableModel, **limits: float) -> Iterator[tuple[Server, Held]]:
    pytest.importorskip("fastapi")
    engine = Held(model)
    with serving(replace(model, engine=engine), replace(Limits(), **limits)) as server:  # type: ignore[arg-type]
        try:
            yield server, engine
        finally:
            engine.go_on.set()


def wait_until(condition: object, seconds: float = 20.0) -> None:
    clock = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():  # type: ignore[operator]
            return
        clock.wait(0.01)
    raise AssertionError("it did not happen")


def test_requests_that_wait_go_through_the_model_together(model: PortableModel) -> None:
    with held(model) as (server, engine), ThreadPoolExecutor(9) as clients:
        first = clients.submit(server.post, PNG)
        assert engine.entered.wait(20)
        others = [clients.submit(server.post, encoded(picture(seed))) for seed in range(8)]
        wait_until(lambda: server.service.batcher.waiting == 8)
        engine.go_on.set()
        answers = [one.result() for one in (first, *others)]
    assert engine.batches == [1, 8]
    assert [one.status for one in answers] == [200] * 9
    for seed, answer in enumerate(answers[1:]):
        found = answer.json["predictions"][0]["classes"][0]
        name, probability = model.top([picture(seed)])[0][0]
        assert (found["class"], found["probability"]) == (name, pytest.approx(probability, abs=1e-4))


def test_overload_is_said_at_once(model: PortableModel) -> None:
    with held(model, requests=3) as (server, engine), ThreadPoolExecutor(3) as clients:
        accepted = [clients.submit(server.post, PNG) for _ in range(3)]
        wait_until(lambda: server.service._requests == 3)
        refused = server.post(PNG)
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "busy" in refused.json["error"]
        engine.go_on.set()
        assert [one.result().status for one in accepted] == [200] * 3
        assert server.post(PNG).status == 200


def test_the_bytes_of_all_requests_are_bounded(model: PortableModel) -> None:
    with held(model, bytes=2 * len(PNG)) as (server, engine), ThreadPoolExecutor(2) as clients:
        accepted = [clients.submit(server.post, PNG) for _ in range(2)]
        wait_until(lambda: server.service._requests == 2)
        assert server.post(PNG).status == 503
        engine.go_on.set()
        assert [one.result().status for one in accepted] == [200] * 2


def test_many_pictures_do_not_wait_decoded_all_at_once(model: PortableModel) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.zeros((300, 8, 8, 3), np.uint8))
    with held(model, max_batch=4) as (server, engine), ThreadPoolExecutor(1) as client:
        answer = client.submit(server.post, buffer.getvalue(), "application/x-npy")
        wait_until(lambda: server.service.batcher.waiting >= 12)
        assert server.service.batcher.waiting <= 16
        engine.go_on.set()
        assert len(answer.result().json["predictions"]) == 300
    assert max(engine.batches) == 4


def test_many_links_are_not_fetched_all_at_once(model: PortableModel) -> None:
    pytest.importorskip("fastapi")
    fetched: list[str] = []

    class Fetcher:
        def fetch(self, url: str) -> bytes:
            fetched.append(url)
            return PNG

    engine = Held(model)
    limits = replace(Limits(), fetches=3)
    body = json.dumps({"urls": [f"http://a.example/{number}" for number in range(40)]}).encode()
    with (
        serving(replace(model, engine=engine), limits, Fetcher()) as server,
        ThreadPoolExecutor(1) as client,
    ):
        answer = client.submit(server.post, body, "application/json")
        wait_until(lambda: len(fetched) == 6)
        assert server.post(PNG, "application/pdf").status == 415, "others are answered meanwhile"
        assert len(fetched) == 6
        engine.go_on.set()
        assert len(answer.result().json["predictions"]) == 40


def test_a_model_that_fails_is_a_500_without_details_and_unhealthy(
    model: PortableModel, caplog: pytest.LogCaptureFixture
) -> None:
    with held(model) as (server, engine):
        engine.error = RuntimeError("secret /path")
        engine.go_on.set()
        answer = server.post(PNG)
        assert answer.status == 500
        assert b"secret" not in answer.body
        assert "secret" in caplog.text
        assert server.ask("GET", "/ping").status == 503
        engine.error = None
        assert server.ask("GET", "/ping").status == 200, "it has recovered"
        assert server.post(PNG).status == 200


def test_a_model_that_hangs_is_unhealthy_and_nobody_waits_for_ever(model: PortableModel) -> None:
    with held(model, seconds=0.2) as (server, engine):
        answer = server.post(PNG)
        assert answer.status == 503
        assert answer.headers["retry-after"]
        for _ in range(2):
            ping = server.ask("GET", "/ping")
            assert (ping.status, ping.json) == (503, {"error": "The model does not answer."})
        assert server.service.batcher.waiting == 1, "one question, however often it is asked"
        engine.go_on.set()
        wait_until(lambda: server.ask("GET", "/ping").status == 200)


def test_a_body_that_never_comes(model: PortableModel) -> None:
    pytest.importorskip("fastapi")
    with serving(model, replace(Limits(), body_seconds=0.1)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.putrequest("POST", "/invocations")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"some")
        response = connection.getresponse()
        assert response.status == 408
        connection.close()
        assert server.service._requests == 0


def test_what_was_accepted_is_answered_at_the_end(model: PortableModel) -> None:
    with held(model) as (server, engine), ThreadPoolExecutor(3) as clients:
        accepted = [clients.submit(server.post, PNG) for _ in range(3)]
        wait_until(lambda: server.service._requests == 3)
        server.stop()

        def refuses() -> bool:
            try:
                server.ask("GET", "/ping")
            except OSError:
                return True
            return False

        wait_until(refuses)
        engine.go_on.set()
        assert [one.result().status for one in accepted] == [200] * 3


def test_a_batcher_forgets_what_was_cancelled_and_ends() -> None:
    go_on = threading.Event()
    seen: list[int] = []

    def compute(images: np.ndarray) -> np.ndarray:
        assert go_on.wait(20)
        seen.append(len(images))
        return images.sum(axis=(1, 2, 3))[:, None]

    batcher = Batcher(compute, max_batch=8)
    image = np.ones((3, 2, 2), dtype=np.float32)
    first = batcher.submit(image)
    wait_until(lambda: batcher.waiting == 0)
    given_up, wanted = batcher.submit(image), batcher.submit(2 * image)
    assert given_up.cancel()
    go_on.set()
    assert [one.result(20).tolist() for one in (first, wanted)] == [[12.0], [24.0]]
    last = batcher.submit(image)
    batcher.close()
    assert last.result(0).tolist() == [12.0]
    assert not batcher.alive
    assert seen == [1, 1, 1]


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    from imgcls.errors import UserError
    from imgcls.serve.predictor import model_folder

    with pytest.raises(UserError, match=r"imgcls\.export"):
        model_folder(tmp_path)
