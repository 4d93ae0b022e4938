"""Several models in one server: named, added, removed, and one of them a canary."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from imgcls.errors import UserError
from imgcls.portable import PortableModel
from imgcls.serve.predictor import Predictor
from tests.inputs.images import encoded
from tests.serve.conftest import picture, serving
from tests.serve.test_current import KEY, fixed

pytest.importorskip("fastapi")

from imgcls.serve.__main__ import model_names
from imgcls.serve.current import Current
from imgcls.serve.guards import Guards
from imgcls.serve.models import Models
from imgcls.serve.service import Service

PNG = encoded(picture(), "PNG")
APPLICATION = {"guards": Guards(api_key=KEY)}


def class_of(answer: Any) -> str:
    assert answer.status == 200, answer.body
    return str(answer.json["predictions"][0]["classes"][0]["class"])


def models(model: PortableModel, gate: Event | None = None, **options: Any) -> Models:
    """`first` always answers cat, `second`, the newer one, dog; a folder `third` is Eule."""

    def load(folder: str) -> Predictor:
        if folder != "third":
            raise UserError(f"{folder}: no such folder.")
        return Predictor(fixed(model, 2))

    served = {"first": fixed(model, 0, gate), "second": fixed(model, 1)}
    return Models({name: Current(Service(Predictor(each))) for name, each in served.items()}, load, **options)


def test_each_model_answers_under_its_name_and_the_newest_by_default(model: PortableModel) -> None:
    with serving(models(model), application=APPLICATION) as server:
        paths = ("/invocations", "/models/first/invocations", "/models/second/invoke")
        answers = [server.ask("POST", path, PNG, Content_Type="image/png", X_API_Key=KEY) for path in paths]
        assert [class_of(answer) for answer in answers] == ["dog", "cat", "dog"]
        assert [answer.headers["x-model"] for answer in answers] == ["second", "first", "second"]
        listed = server.ask("GET", "/models", X_API_Key=KEY).json["models"]
        assert [(each["model"], each["default"]) for each in listed] == [("first", False), ("second", True)]
        unknown = server.ask("POST", "/models/third/invocations", PNG, Content_Type="image/png", X_API_Key=KEY)
        assert (unknown.status, unknown.json) == (404, {"error": "There is no such model. Models: first, second."})


def test_models_are_added_and_removed_without_a_restart(model: PortableModel) -> None:
    gate = Event()
    served = models(model, gate)
    first = served.find("first").service.predictor.model.engine
    with serving(served, application=APPLICATION) as server, ThreadPoolExecutor() as clients:

        def ask(method: str, path: str, body: bytes | None = None) -> Any:
            return server.ask(method, path, body, Content_Type="image/png", X_API_Key=KEY)

        assert ask("POST", "/models?name=new&run=third").status == 200
        assert class_of(ask("POST", "/invocations", PNG)) == "Eule"
        assert ask("POST", "/models?name=new&run=third").status == 409
        assert ask("POST", "/models?name=a%2Fb&run=third").status == 400
        assert ask("POST", "/models?name=bad&run=nowhere").json["error"].startswith("The model was not loaded")
        begun = clients.submit(ask, "POST", "/models/first/invocations", PNG)
        assert first.entered.wait(20)
        removed = clients.submit(ask, "DELETE", "/models/first")
        while served.names != ["second", "new"]:
            assert not removed.done()
        gate.set()
        assert class_of(begun.result()) == "cat"  # a request that has begun is answered
        assert removed.result().json == {"status": "removed"}
        assert ask("POST", "/models/first/invocations", PNG).status == 404
        assert ask("DELETE", "/models/second").status == 200
        assert ask("DELETE", "/models/new").status == 409
        assert server.ask("DELETE", "/models/new").status == 401


def test_a_canary_gets_its_share(model: PortableModel) -> None:
    served = models(model, canary=0.25)
    assert Counter(served.choose() for _ in range(40)) == {"first": 30, "second": 10}
    assert {models(model, canary=0.0).choose() for _ in range(9)} == {"first"}
    assert {models(model).choose() for _ in range(9)} == {"second"}


def test_models_are_called_as_their_runs(tmp_path: Path) -> None:
    assert model_names([str(tmp_path / "dogs"), str(tmp_path / "cats" / "model")]) == ["dogs", "cats"]
    with pytest.raises(UserError, match="two models are called dogs"):
        model_names([str(tmp_path / "dogs"), str(tmp_path / "old" / "dogs")])
