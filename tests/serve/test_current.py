"""The model is replaced while the server runs."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from imgcls.errors import UserError
from imgcls.portable import PortableModel
from imgcls.serve.predictor import Predictor
from tests.inputs.images import encoded
from tests.serve.conftest import picture, serving

pytest.importorskip("fastapi")

from imgcls.serve.guards import Guards

PNG = encoded(picture(), "PNG")
KEY = "correct-horse"


class Fixed:
    """An engine that always gives the same class, after `gate` is open."""

    name = "fixed"

    def __init__(self, index: int, gate: threading.Event | None = None) -> None:
        self.index, self.gate, self.entered = index, gate, threading.Event()

    def outputs(self, images: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.gate is None or self.gate.wait(20)
        return np.tile(10 * np.eye(3, dtype=np.float32)[self.index], (len(images), 1))


def fixed(model: PortableModel, index: int, gate: threading.Event | None = None) -> Any:
    return dataclasses.replace(model, engine=Fixed(index, gate))


def test_a_new_model_answers_new_requests_and_the_old_one_those_that_have_begun(model: PortableModel) -> None:
    gate = threading.Event()
    old, new = fixed(model, 0, gate), Predictor(fixed(model, 1))
    application = {"load": lambda: new, "guards": Guards(api_key=KEY)}
    with serving(old, application=application) as server, ThreadPoolExecutor() as clients:
        begun = clients.submit(server.post, PNG, X_API_Key=KEY)
        assert old.engine.entered.wait(20)
        assert server.ask("POST", "/reload", X_API_Key=KEY).json == {"status": "loaded"}
        answers = [server.post(PNG, X_API_Key=KEY)]
        gate.set()
        answers.append(begun.result())
    assert [answer.json["predictions"][0]["classes"][0]["class"] for answer in answers] == ["dog", "cat"]


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(model: PortableModel) -> None:
    def load() -> Predictor:
        raise UserError("model.json is damaged.")

    with serving(fixed(model, 2), application={"load": load, "guards": Guards(api_key=KEY)}) as server:
        refused = server.ask("POST", "/reload", X_API_Key=KEY)
        assert (refused.status, list(refused.json)) == (409, ["error"])
        assert server.post(PNG, X_API_Key=KEY).json["predictions"][0]["classes"][0]["class"] == "Eule"


def test_nobody_reloads_a_server_without_a_key(model: PortableModel) -> None:
    with serving(model, application={"load": lambda: Predictor(model)}) as server:
        assert server.ask("POST", "/reload").status == 404
