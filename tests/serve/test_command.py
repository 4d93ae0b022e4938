"""`python -m imgcls.serve` as a process: imports little, answers, stops on a signal."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from imgcls.errors import UserError
from imgcls.portable.certificate import CERTIFICATE, file_digests
from imgcls.portable.engines import further_gpus
from imgcls.serve.__main__ import _listen, load_predictor, serve
from imgcls.serve.archive import write_archive
from tests.inputs.images import encoded
from tests.serve.conftest import picture

PNG = encoded(picture(), "PNG")


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The running command and its port, once it has printed its address."""
    command = [sys.executable, "-m", "imgcls.serve", *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        match = re.search(r"on http://127\.0\.0\.1:(\d+)$", line.strip())
        assert match, line
        yield running, int(match[1])
    finally:
        running.kill()
        running.wait(10)
        assert running.stdout is not None
        running.stdout.close()


def test_the_container_entrypoint_answers_and_exits_cleanly(model_dir: Path) -> None:
    pytest.importorskip("fastapi")
    with process("serve", SM_MODEL_DIR=str(model_dir), SAGEMAKER_BIND_TO_PORT="0") as (running, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/ping")
        ping = connection.getresponse()
        assert (ping.status, ping.read()) == (200, b'{"status":"healthy"}')
        connection.request("POST", "/invocations", PNG, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert b'"predictions"' in answer.read()
        # a request in progress when the signal arrives: its head has been sent, its body has not
        connection.putrequest("POST", "/invocations")
        connection.putheader("Content-Length", str(len(PNG)))
        connection.endheaders(PNG[:10])
        _wait_for_requests(port, 1)
        running.send_signal(signal.SIGTERM)
        _wait_until_refused(port)
        connection.send(PNG[10:])
        assert connection.getresponse().status == 200
        connection.close()
        assert running.wait(20) == 0


def test_a_hangup_loads_the_new_model(model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    model = shutil.copytree(model_dir, tmp_path / "model")
    with process(f"run={model}", "port=0") as (running, port):
        assert _version(port)["run"] is None
        description = json.loads((model / "model.json").read_text())
        (model / "model.json").write_text(json.dumps(description | {"origin": {"run": "second"}}))
        running.send_signal(signal.SIGHUP)
        for _ in range(20_000):
            if _version(port)["run"] == "second":
                return
    raise AssertionError("the new model was not loaded")


def _version(port: int) -> dict[str, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/version")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def _wait_for_requests(port: int, count: int) -> None:
    for _ in range(2000):
        other = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        other.request("GET", "/metrics")
        text = other.getresponse().read().decode()
        other.close()
        if f"imgcls_requests_in_progress {count}.0" in text:
            return
    raise AssertionError("the request did not arrive")


def _wait_until_refused(port: int) -> None:
    for _ in range(100_000):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return
    raise AssertionError("it is still listening")


def test_serving_imports_neither_the_training_stack_nor_torch() -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("onnxruntime")
    code = (
        "import sys, imgcls.serve.__main__, imgcls.serve.server, imgcls.serve.inference, imgcls.portable, onnxruntime;"
        "print({'torch', 'lightning', 'hydra', 'omegaconf', 'timm', 'torchvision', 'torchmetrics'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == "set()\n"


def test_predict_starts_without_torch_too(model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    (tmp_path / "run" / "model").symlink_to(model_dir)
    (tmp_path / "a.png").write_bytes(PNG)
    code = (
        "import sys; from imgcls.predict import predict; predict(sys.argv[1:]);"
        "print({'torch', 'lightning', 'hydra', 'omegaconf', 'timm'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, f"run={tmp_path / 'run'}", "engine=onnx", str(tmp_path / "a.png")]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout.splitlines()[1] == "set()"


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """asyncio sets TCP_NODELAY only if the listening socket names its protocol."""
    with _listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_mistakes_give_one_clear_line(model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    run = f"run={model_dir}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in [
            ([], "Give the run folder: run=DIR"),
            (["picture.jpg"], "Unexpected argument 'picture.jpg'"),
            ([run, "prot=1"], "Did you mean port"),
            ([run, "port=many"], "whole number"),
            ([run, "port=99999"], "from 0 to 65535"),
            ([run, f"port={port}"], "in use"),
            ([run, "port=0", "engine=onx"], "Did you mean onnx"),
            ([run, "port=0", "urls=perhaps"], "true or false"),
            ([run, "port=0", "max_batch=0"], "at least 1"),
            ([f"run={tmp_path / 'nothing'}", "port=0"], "no such folder"),
            ([f"run={tmp_path}", "port=0"], "no exported model"),
            ([run, "port=0", "api_key=short"], "at least 8"),
            ([run, "port=0", "cors=app.example.org"], "is no origin"),
            ([run, "port=0", f"examples={tmp_path}"], "there is no image"),
        ]:
            with pytest.raises(UserError, match=message):
                serve(arguments)


def test_each_device_of_the_machine_gets_a_copy_of_the_model(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"engine": "torch", "device": "cpu,cpu", "threads": None, "urls": False, "max_batch": 1}
    first, second = load_predictor(options, str(model_dir)).engines
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    assert first is not second
    assert first.outputs(images).tolist() == second.outputs(images).tolist()
    for name in ("abacus", "meta", "CPU"):
        with pytest.raises(UserError, match=f"device={name}: there is no such device"):
            load_predictor({**options, "device": f"cpu, {name}"}, str(model_dir))
    with pytest.raises(UserError, match="device=abacus"):  # not ONNX Runtime, which would not ask
        load_predictor({**options, "engine": "auto", "device": "abacus"}, str(model_dir))
    if importlib.util.find_spec("onnxruntime"):
        with pytest.raises(UserError, match="device=cuda:0: engine=onnx takes no device"):
            load_predictor({**options, "engine": "onnx", "device": "cuda:0"}, str(model_dir))
    monkeypatch.setattr("imgcls.portable.engines.gpu_count", lambda: 3)
    assert len(load_predictor({**options, "device": None}, str(model_dir)).engines) == 1, "torch finds no GPU"
    assert further_gpus(SimpleNamespace(device="cuda:0")) == ["cuda:1", "cuda:2"]  # type: ignore[arg-type]
    assert further_gpus(SimpleNamespace(device="cpu")) == []  # type: ignore[arg-type]


def test_a_container_starts_only_with_the_model_that_was_verified(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    certificate, verified = folder / CERTIFICATE, {"passed": True, "sha256": file_digests(folder)}
    options = {"engine": "auto", "device": None, "threads": None, "urls": False, "certified": True}
    certificate.write_text(json.dumps(verified))
    assert load_predictor(options, str(folder)).model.class_names
    monkeypatch.setenv("SM_MODEL_DIR", str(folder))
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "0")
    for content, reason in [
        (json.dumps({**verified, "sha256": {**verified["sha256"], "model.json": "0"}}), "model.json changed after"),
        (json.dumps({**verified, "sha256": {}}), "changed after the certificate"),
        ("{}", "is no certificate"),
    ]:
        certificate.write_text(content)
        with pytest.raises(UserError, match=reason):
            serve(["serve"])
        with pytest.raises(UserError, match=reason):  # it is not deployed either
            write_archive(folder, tmp_path / "model.tar.gz")
    certificate.write_text(json.dumps({**verified, "passed": False}))
    done = subprocess.run([sys.executable, "-m", "imgcls.serve", "serve"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert not done.stdout
    [line] = done.stderr.splitlines()
    assert "its certificate says that it answers worse than it may" in line
