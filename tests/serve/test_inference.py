"""The four functions under SageMaker's real handler service, from the archive that would be uploaded."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.portable import PortableModel
from imgcls.serve.archive import write_archive
from tests.serve.conftest import NAMES, encoded, picture

PNG = encoded(picture())


@dataclass
class Context:
    """What TorchServe gives a handler."""

    system_properties: dict[str, Any]
    properties: dict[str, str] = field(default_factory=dict)
    model_name: str = "model"
    status: int = 200
    phrase: str = ""
    content_type: str = ""

    @property
    def request_processor(self) -> list[Context]:
        return [self]

    def get_request_properties(self) -> dict[str, str]:
        return self.properties

    def set_response_content_type(self, index: int, value: str) -> None:
        self.content_type = value

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.status, self.phrase = code, phrase


@dataclass
class Reply:
    status: int
    content_type: str
    body: bytes


class Container:
    """The handler service with an archive unpacked where the container unpacks it."""

    def __init__(self, service: Any, context: Context) -> None:
        self.service, self.context = service, context

    @classmethod
    def of(cls, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, engine: str = "auto") -> Container:
        pytest.importorskip(
            "sagemaker_pytorch_serving_container", reason="sagemaker-pytorch-inference is not installed"
        )
        from sagemaker_pytorch_serving_container.handler_service import HandlerService

        unpack(write_archive(model, folder / "model.tar.gz"), folder / "model")
        monkeypatch.setenv("IMGCLS_ENGINE", engine)
        monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        monkeypatch.setattr(sys, "path", [*sys.path, str(folder / "model" / "code")])  # imgcls itself comes first
        monkeypatch.delitem(sys.modules, "inference", raising=False)
        context = Context({"model_dir": str(folder / "model"), "gpu_id": None})
        service = HandlerService()
        service.initialize(context)
        monkeypatch.delitem(sys.modules, "inference")
        return cls(service, context)

    def ask(self, body: bytes, content_type: str, accept: str = "application/json") -> Reply:
        self.context.properties = {"Content-Type": content_type, "Accept": accept}
        self.context.status = 200
        [answer] = self.service.handle([{"body": body}], self.context)
        content = answer if isinstance(answer, bytes) else answer.encode()
        return Reply(self.context.status, self.context.content_type, content)


def unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")


@pytest.fixture(scope="module")
def container(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Container.of(model_dir, tmp_path_factory.mktemp("container"), monkeypatch)


def test_requests(container: Container, model: PortableModel) -> None:
    [expected] = model.top([picture()])
    text = base64.b64encode(PNG)
    buffer = io.BytesIO()
    np.save(buffer, model.preprocessing.normalise(model.preprocessing.pixels(picture())[None]))
    for body, content_type in [
        (PNG, "image/jpeg"),
        (PNG, "application/x-image"),
        (PNG, "image/png"),
        (text, "text/plain"),
        (json.dumps({"image": text.decode()}).encode(), "application/json"),
        (json.dumps(np.asarray(picture()).tolist()).encode(), "application/json"),
        (buffer.getvalue(), "application/x-npy"),
    ]:
        reply = container.ask(body, content_type)
        assert (reply.status, reply.content_type) == (200, "application/json"), reply
        classes = json.loads(reply.body)["predictions"][0]["classes"]
        assert [one["class"] for one in classes] == [name for name, _ in expected]
        assert np.allclose([one["probability"] for one in classes], [value for _, value in expected], atol=1e-4)


def test_answers(container: Container) -> None:
    assert container.ask(PNG, "image/png", "text/csv").content_type == "text/csv"
    scores = json.loads(container.ask(PNG, "image/png", "application/json;format=scores").body)
    assert np.shape(scores) == (1, len(NAMES))
    npy = container.ask(PNG, "image/png", "application/x-npy")
    assert np.allclose(np.load(io.BytesIO(npy.body)), scores, atol=1e-5)
    assert (
        len(json.loads(container.ask(PNG, "image/png", "application/json;top_k=1").body)["predictions"][0]["classes"])
        == 1
    )


def test_refusals_carry_no_traceback(container: Container) -> None:
    for body, content_type, accept, status in [
        (b"hello", "image/jpeg", "application/json", 400),
        (b"{}", "application/json", "application/json", 400),
        (b'{"url": "http://169.254.169.254/"}', "application/json", "application/json", 400),
        (PNG, "application/pdf", "application/json", 415),
        (PNG, "image/png", "application/xml", 406),
        (bytes(7_000_000), "image/png", "application/json", 413),
    ]:
        reply = container.ask(body, content_type, accept)
        assert reply.status == status
        assert HTTPStatus(reply.status)
        assert reply.content_type == "application/json"
        assert list(json.loads(reply.body)) == ["error"]
        assert b"Traceback" not in reply.body
    assert container.ask(PNG, "image/png").status == 200


def test_the_archive_needs_nothing_but_what_the_container_has(model_dir: Path, tmp_path: Path) -> None:
    """Its own imgcls is what runs, and neither Lightning, Hydra nor timm's company is asked for."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    unpack(write_archive(model_dir, tmp_path / "model.tar.gz"), tmp_path / "model")
    code = """
import json, sys
sys.path.insert(0, sys.argv[1] + "/code")
import inference, imgcls
assert imgcls.__file__.startswith(sys.argv[1]), imgcls.__file__
model = inference.model_fn(sys.argv[1])
data = inference.input_fn(open(sys.argv[2], "rb").read(), "image/png")
body, kind = inference.output_fn(inference.predict_fn(data, model), None)
heavy = {"torch", "lightning", "hydra", "omegaconf", "timm", "torchvision", "fastapi"} & {*sys.modules}
print(json.dumps([json.loads(body)["predictions"][0]["classes"][0]["class"], sorted(heavy)]))
"""
    (tmp_path / "a.png").write_bytes(PNG)
    command = [sys.executable, "-c", code, str(tmp_path / "model"), str(tmp_path / "a.png")]
    environment = {**os.environ, "IMGCLS_ENGINE": "onnx"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)[0] in NAMES
    assert json.loads(done.stdout)[1] == []


def test_the_archive(model_dir: Path, tmp_path: Path) -> None:
    archive = write_archive(model_dir, tmp_path / "model.tar.gz")
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    assert {"model.json", "model.safetensors", "code/inference.py", "code/imgcls/serve/inference.py"} <= {*names}
    assert {"code/timm/__init__.py", "code/timm/models/resnet.py", "code/imgcls/models/backbones.py"} <= {*names}
    assert not any(name.endswith((".pyc", ".pkl", ".pt")) for name in names)
    assert archive.read_bytes() == write_archive(model_dir, tmp_path / "again.tar.gz").read_bytes()


def test_the_command(model_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from imgcls.errors import UserError
    from imgcls.export import _command

    _command([f"run={model_dir}", "format=sagemaker", f"output={tmp_path / 'm.tar.gz'}"])
    assert str(tmp_path / "m.tar.gz") in capsys.readouterr().out
    assert tarfile.is_tarfile(tmp_path / "m.tar.gz")
    for words, says in [
        ([], "Give the run folder: run=DIR"),
        ([f"run={model_dir}", "format=sagemakr"], "Did you mean sagemaker"),
        ([f"run={tmp_path}", "format=sagemaker"], "no exported model"),
        ([f"run={tmp_path / 'x'}", "format=sagemaker"], "no such folder"),
        ([f"run={model_dir}", "output=x"], "output= is for"),
    ]:
        with pytest.raises(UserError, match=says):
            _command(words)
