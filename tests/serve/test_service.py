"""Batches, overload, timeouts, a model that fails or hangs, and a shutdown that answers every request."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.errors import UserError
from imgcls.portable import PortableModel
from imgcls.serve.batching import Batcher
from imgcls.serve.payloads import Encoded
from imgcls.serve.predictor import LargeImage, Predictor
from imgcls.serve.refusals import Refusal
from imgcls.serve.service import Limits
from tests.inputs.images import encoded
from tests.serve.conftest import Server, picture, serving

PNG = encoded(picture(), "PNG")


class GatedEngine:
    """An engine that waits until its gate is opened."""

    name = "gated"

    def __init__(self, model: PortableModel) -> None:
        self.model, self.gate, self.entered = model, threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.batches: list[int] = []

    def outputs(self, images: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        self.batches.append(len(images))
        return self.model.engine.outputs(images)


@contextmanager
def gated(model: PortableModel, **limits: float) -> Iterator[tuple[Server, GatedEngine]]:
    pytest.importorskip("fastapi")
    engine = GatedEngine(model)
    with serving(replace(model, engine=engine), replace(Limits(), **limits)) as server:  # type: ignore[arg-type]
        try:
            yield server, engine
        finally:
            engine.gate.set()


def wait_until(condition: object, seconds: float = 20.0) -> None:
    clock = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():  # type: ignore[operator]
            return
        clock.wait(0.01)
    raise AssertionError("the condition did not become true")


def test_waiting_requests_go_through_the_model_together(model: PortableModel) -> None:
    with gated(model) as (server, engine), ThreadPoolExecutor(9) as clients:
        first = clients.submit(server.post, PNG)
        assert engine.entered.wait(20)
        others = [clients.submit(server.post, encoded(picture(seed), "PNG")) for seed in range(8)]
        wait_until(lambda: server.service.batchers[0].waiting == 8)
        engine.gate.set()
        answers = [future.result() for future in (first, *others)]
    assert engine.batches == [1, 8]
    assert [answer.status for answer in answers] == [200] * 9
    for seed, answer in enumerate(answers[1:]):
        best = answer.json["predictions"][0]["classes"][0]
        name, probability = model.top([picture(seed)])[0][0]
        assert (best["class"], best["probability"]) == (name, pytest.approx(probability, abs=1e-4))


def test_overload_is_refused_at_once(model: PortableModel) -> None:
    with gated(model, requests=3) as (server, engine), ThreadPoolExecutor(3) as clients:
        accepted = [clients.submit(server.post, PNG) for _ in range(3)]
        wait_until(lambda: server.service._requests == 3)
        refused = server.post(PNG)
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "busy" in refused.json["error"]
        engine.gate.set()
        assert [future.result().status for future in accepted] == [200] * 3
        assert server.post(PNG).status == 200


def test_the_bytes_of_all_requests_are_bounded(model: PortableModel) -> None:
    with gated(model, bytes=2 * len(PNG)) as (server, engine), ThreadPoolExecutor(2) as clients:
        accepted = [clients.submit(server.post, PNG) for _ in range(2)]
        wait_until(lambda: server.service._requests == 2)
        assert server.post(PNG).status == 503
        engine.gate.set()
        assert [future.result().status for future in accepted] == [200] * 2


def test_decoded_images_that_wait_are_bounded(model: PortableModel) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.zeros((300, 8, 8, 3), np.uint8))
    with gated(model, max_batch=4) as (server, engine), ThreadPoolExecutor(1) as client:
        answer = client.submit(server.post, buffer.getvalue(), "application/x-npy")
        wait_until(lambda: server.service.batchers[0].waiting >= 12)
        assert server.service.batchers[0].waiting <= 16
        engine.gate.set()
        assert len(answer.result().json["predictions"]) == 300
    assert max(engine.batches) == 4


def test_large_images_are_decoded_one_at_a_time_and_small_ones_do_not_wait(
    model: PortableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.setattr("imgcls.serve.service.LARGE_PIXELS", 100)
    gate, lock = threading.Event(), threading.Lock()
    entered: list[bool] = []
    with serving(model) as server, ThreadPoolExecutor(6) as clients:
        decode = server.service.predictor.image

        def image(item: Any, max_pixels: int | None = None) -> np.ndarray:
            if max_pixels is not None:
                return decode(item, max_pixels)
            assert lock.acquire(blocking=False), "two large images at once"
            entered.append(gate.wait(30))
            lock.release()
            return decode(item)

        monkeypatch.setattr(server.service.predictor, "image", image)
        large = [clients.submit(server.post, PNG) for _ in range(6)]
        wait_until(lock.locked)
        wait_until(lambda: server.service._requests == 6)
        assert server.post(encoded(picture(0, 8, 8), "PNG")).status == 200
        assert not entered
        gate.set()
        assert [answer.result().status for answer in large] == [200] * 6
    assert entered == [True] * 6
    predictor = Predictor(model)
    with pytest.raises(LargeImage):
        predictor.image(Encoded(PNG), 100)
    results = predictor.results([Encoded(encoded(picture(0, 2001, 2000), "PNG"))] * 3)
    assert [np.shape(result) for result in results] == [(3,)] * 3


def test_concurrent_fetches_are_bounded(model: PortableModel) -> None:
    pytest.importorskip("fastapi")
    fetched: list[str] = []

    class Fetcher:
        def fetch(self, url: str) -> bytes:
            fetched.append(url)
            return PNG

    engine = GatedEngine(model)
    limits = replace(Limits(), fetches=3)
    body = json.dumps({"urls": [f"http://a.example/{number}" for number in range(40)]}).encode()
    with (
        serving(replace(model, engine=engine), limits, Fetcher()) as server,
        ThreadPoolExecutor(1) as client,
    ):
        answer = client.submit(server.post, body, "application/json")
        wait_until(lambda: len(fetched) == 6)
        assert server.post(PNG, "application/pdf").status == 415, "other requests are answered meanwhile"
        assert len(fetched) == 6
        engine.gate.set()
        assert len(answer.result().json["predictions"]) == 40


def test_a_failing_model_is_unhealthy_and_gives_500_without_details(
    model: PortableModel, caplog: pytest.LogCaptureFixture
) -> None:
    with gated(model) as (server, engine):
        engine.error = RuntimeError("secret /path")
        engine.gate.set()
        answer = server.post(PNG)
        assert answer.status == 500
        assert b"secret" not in answer.body
        assert "secret" in caplog.text
        assert server.ask("GET", "/ping").status == 503
        engine.error = None
        assert server.ask("GET", "/ping").status == 200, "it has recovered"
        assert server.post(PNG).status == 200


class BrokenEngine:
    """An engine whose outputs are not finite for images with a mean above `limit`."""

    name = "broken"

    def __init__(self, model: PortableModel, limit: float = -np.inf) -> None:
        self.model, self.limit = model, limit

    def outputs(self, images: np.ndarray) -> np.ndarray:
        scores = self.model.engine.outputs(images).copy()
        scores[images.mean(axis=(1, 2, 3)) > self.limit, 0] = np.nan
        return scores


def test_a_model_without_finite_outputs_is_unhealthy_and_not_served(model: PortableModel) -> None:
    broken = replace(model, engine=BrokenEngine(model))  # type: ignore[arg-type]
    predictor = Predictor(broken)
    with pytest.raises(UserError, match="not finite"):
        predictor.warm_up()
    with pytest.raises(Refusal, match="not finite"):
        predictor.outputs([np.zeros(predictor.shape, np.float32)])
    pytest.importorskip("fastapi")
    with serving(broken) as server:
        for kind in ("application/json", "application/x-npy", "text/csv;format=scores"):
            answer = server.post(PNG, Accept=kind)
            assert (answer.status, answer.json) == (500, {"error": "The model's outputs are not finite."})
        assert server.ask("GET", "/ping").status == 503


def test_an_image_without_finite_outputs_harms_no_other(model: PortableModel) -> None:
    batcher = Batcher(BrokenEngine(model, limit=0.5).outputs)
    side = model.preprocessing.image_size
    bad, good = (batcher.submit(np.full((3, side, side), value, np.float32)) for value in (1.0, 0.0))
    with pytest.raises(Refusal):
        bad.result(20)
    assert np.isfinite(good.result(20)).all()
    batcher.close()


def test_a_hanging_model_is_unhealthy_and_requests_time_out(model: PortableModel) -> None:
    with gated(model, seconds=0.2) as (server, engine):
        answer = server.post(PNG)
        assert answer.status == 503
        assert answer.headers["retry-after"]
        for _ in range(2):
            ping = server.ask("GET", "/ping")
            assert (ping.status, ping.json) == (503, {"error": "The model does not answer."})
        assert server.service.batchers[0].waiting == 1, "a single probe for all health checks"
        engine.gate.set()
        wait_until(lambda: server.ask("GET", "/ping").status == 200)


def test_each_device_has_a_worker_and_the_idle_one_computes(model: PortableModel) -> None:
    pytest.importorskip("fastapi")
    busy, idle = GatedEngine(model), GatedEngine(model)
    idle.gate.set()
    predictor = Predictor(replace(model, engine=busy), copies=[replace(model, engine=idle)])
    with serving(predictor) as server, ThreadPoolExecutor(1) as client:
        waiting = client.submit(server.post, PNG)
        assert busy.entered.wait(20)
        assert [server.post(PNG).status for _ in range(4)] == [200] * 4
        assert (busy.batches, idle.batches) == ([], [1] * 4)
        assert server.ask("GET", "/ping").json == {"error": "The model does not answer."}, "one of them hangs"
        busy.gate.set()
        assert waiting.result().status == 200
        wait_until(lambda: server.ask("GET", "/ping").status == 200)


def test_all_devices_are_asked_for_their_health(model: PortableModel) -> None:
    pytest.importorskip("fastapi")
    broken = replace(model, engine=BrokenEngine(model, limit=-1.0))
    with serving(Predictor(model, copies=[broken])) as server:
        assert server.ask("GET", "/ping").json == {"error": "The model failed."}
    with pytest.raises(UserError, match="not finite"):
        Predictor(model, copies=[broken]).warm_up()


def test_a_body_that_never_arrives(model: PortableModel) -> None:
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


def test_accepted_requests_are_answered_during_shutdown(model: PortableModel) -> None:
    with gated(model) as (server, engine), ThreadPoolExecutor(3) as clients:
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
        engine.gate.set()
        assert [future.result().status for future in accepted] == [200] * 3


def test_a_batcher_drops_cancelled_images_and_ends() -> None:
    gate = threading.Event()
    batches: list[int] = []

    def compute(images: np.ndarray) -> np.ndarray:
        assert gate.wait(20)
        batches.append(len(images))
        return images.sum(axis=(1, 2, 3))[:, None]

    batcher = Batcher(compute, max_batch=8)
    image = np.ones((3, 2, 2), dtype=np.float32)
    first = batcher.submit(image)
    wait_until(lambda: batcher.waiting == 0)
    cancelled, second = batcher.submit(image), batcher.submit(2 * image)
    assert cancelled.cancel()
    gate.set()
    assert [future.result(20).tolist() for future in (first, second)] == [[12.0], [24.0]]
    last = batcher.submit(image)
    batcher.close()
    assert last.result(0).tolist() == [12.0]
    assert not batcher.alive
    assert batches == [1, 1, 1]


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    from imgcls.serve.predictor import model_folder

    with pytest.raises(UserError, match=r"imgcls\.export"):
        model_folder(tmp_path)
