"""The four handlers under SageMaker's real handler service, from the archive that would be uploaded."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pytest

from imgcls.errors import UserError
from imgcls.export import _command
from imgcls.portable import PortableModel
from imgcls.serve.archive import write_archive
from imgcls.serve.container import toolkit_handle
from tests.inputs.images import encoded
from tests.serve.conftest import NAMES, picture

PNG = encoded(picture(), "PNG")


class Reply(NamedTuple):
    status: int
    content_type: str
    body: bytes


class Ask(Protocol):
    def __call__(self, body: bytes, content_type: str, accept: str = ...) -> Reply: ...


def start_container(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, engine: str = "auto") -> Ask:
    """The handler service of SageMaker's toolkit on the model's archive, unpacked as in the container."""
    pytest.importorskip("sagemaker_pytorch_serving_container", reason="sagemaker-pytorch-inference is not installed")
    unpack(write_archive(model, folder / "model.tar.gz"), folder / "model")
    monkeypatch.setenv("IMGCLS_ENGINE", engine)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder / "model" / "code")])  # last: the imgcls under test runs
    monkeypatch.delitem(sys.modules, "inference", raising=False)
    handle = toolkit_handle(str(folder / "model"))
    monkeypatch.delitem(sys.modules, "inference")
    return lambda body, content_type, accept="application/json": Reply(*handle(body, content_type, accept))


def unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")


@pytest.fixture(scope="module")
def ask(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield start_container(model_dir, tmp_path_factory.mktemp("container"), monkeypatch)


def test_requests(ask: Ask, model: PortableModel) -> None:
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
        reply = ask(body, content_type)
        assert (reply.status, reply.content_type) == (200, "application/json"), reply
        classes = json.loads(reply.body)["predictions"][0]["classes"]
        assert [entry["class"] for entry in classes] == [name for name, _ in expected]
        assert np.allclose([entry["probability"] for entry in classes], [value for _, value in expected], atol=1e-4)


def test_answers(ask: Ask) -> None:
    assert ask(PNG, "image/png", "text/csv").content_type == "text/csv"
    logits = json.loads(ask(PNG, "image/png", "application/json;format=scores").body)
    assert np.shape(logits) == (1, len(NAMES))
    npy = ask(PNG, "image/png", "application/x-npy")
    assert np.allclose(np.load(io.BytesIO(npy.body)), logits, atol=1e-5)
    top = json.loads(ask(PNG, "image/png", "application/json;top_k=1").body)
    assert len(top["predictions"][0]["classes"]) == 1
    all_of_them = json.loads(ask(PNG, "image/png", "application/json;coverage=0.999").body)
    assert len(all_of_them["predictions"][0]["classes"]) == len(NAMES)


def test_refusals_carry_no_traceback(ask: Ask) -> None:
    for body, content_type, accept, status in [
        (b"hello", "image/jpeg", "application/json", 400),
        (b"{}", "application/json", "application/json", 400),
        (b'{"url": "http://169.254.169.254/"}', "application/json", "application/json", 400),
        (PNG, "application/pdf", "application/json", 415),
        (PNG, "image/png", "application/xml", 406),
        (bytes(7_000_000), "image/png", "application/json", 413),
    ]:
        reply = ask(body, content_type, accept)
        assert reply.status == status
        assert HTTPStatus(reply.status)
        assert reply.content_type == "application/json"
        assert list(json.loads(reply.body)) == ["error"]
        assert b"Traceback" not in reply.body
    assert ask(PNG, "image/png").status == 200


def test_the_archive_needs_only_the_containers_packages(model_dir: Path, tmp_path: Path) -> None:
    """The imgcls of the archive runs, without importing torch, Lightning, Hydra or timm."""
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
    result = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    best, imported = json.loads(result.stdout)
    assert best in NAMES
    assert imported == []


def test_the_archive(model_dir: Path, tmp_path: Path) -> None:
    archive = write_archive(model_dir, tmp_path / "model.tar.gz")
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    assert {"model.json", "model.safetensors", "code/inference.py", "code/imgcls/serve/inference.py"} <= {*names}
    assert {"code/timm/__init__.py", "code/timm/models/resnet.py", "code/imgcls/models/backbones.py"} <= {*names}
    assert not any(name.endswith((".pyc", ".pkl", ".pt")) for name in names)
    assert archive.read_bytes() == write_archive(model_dir, tmp_path / "again.tar.gz").read_bytes()


def test_the_command(model_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _command([f"run={model_dir}", "format=sagemaker", f"output={tmp_path / 'm.tar.gz'}"])
    assert str(tmp_path / "m.tar.gz") in capsys.readouterr().out
    assert tarfile.is_tarfile(tmp_path / "m.tar.gz")
    for arguments, message in [
        ([], "Give the run folder: run=DIR"),
        ([f"run={model_dir}", "format=sagemakr"], "Did you mean sagemaker"),
        ([f"run={tmp_path}", "format=sagemaker"], "no exported model"),
        ([f"run={tmp_path / 'x'}", "format=sagemaker"], "no such folder"),
        ([f"run={model_dir}", "output=x"], "output= is for"),
    ]:
        with pytest.raises(UserError, match=message):
            _command(arguments)
