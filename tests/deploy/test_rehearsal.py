"""Deployments without an account: the archive really unpacked and served, the whole way walked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from imgcls.deploy.__main__ import command
from imgcls.errors import UserError
from imgcls.serve.archive import write_archive
from imgcls.serve.client import Client, EndpointError
from imgcls.serve.local import serve_archive
from tests.aws_account import needs_sdk
from tests.documents import ROOT


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made; empty again at the end."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_what_answers_is_what_was_packed(run: Path, tmp_path: Path, temporary: Path) -> None:
    archive = write_archive(run, tmp_path / "model.tar.gz")
    with serve_archive(archive, {"IMGCLS_URLS": "false"}) as container:
        assert Path(container.source).is_relative_to(temporary), "not the imgcls of these tests"
        client = Client(container.url)
        [[(name, probability), *_]] = client.predict([sorted((tmp_path / "pictures").iterdir())[0]])
        assert name in ("cat", "dog", "owl")
        assert 0 < probability < 1
        with pytest.raises(EndpointError, match=r"refused \(400\): The image cannot be used"):
            client.predict([b"no picture"])
    assert container.process.poll() is not None
    assert not list(temporary.glob("imgcls*"))

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.json").write_text("{}")
    with (
        pytest.raises(UserError, match=r"The model\.tar\.gz does not start: "),
        serve_archive(write_archive(tmp_path / "broken", archive), {}),
    ):
        pass
    assert not list(temporary.glob("imgcls*"))


def test_local_serves_until_it_is_ended_and_leaves_nothing(run: Path, tmp_path: Path, temporary: Path) -> None:
    words = ["run=runs/dogs", "target=local", "port=0", "samples=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [sys.executable, "-m", "imgcls.deploy", *words]
    for how, expected in ((signal.SIGTERM, 0), (signal.SIGKILL, -9)):  # a shell may have SIGINT ignored
        with subprocess.Popen(started, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                assert "2 of 2 images with the same top class" in process.stdout.readline()
                url = process.stdout.readline().partition("/invocations answers until Ctrl-C")[0]
                assert Client(url).predict([tmp_path / "pictures" / "00.jpg"])
                process.send_signal(how)
                assert process.wait(60) == expected
            finally:
                process.kill()
        left = [path for path in temporary.iterdir() if path.name.startswith("imgcls-container-")]
        deadline = time.monotonic() + 30
        while left and time.monotonic() < deadline:  # the container hears of the end of its starter by itself
            time.sleep(0.05)
            left = [path for path in left if path.exists()]
        assert not left
        with pytest.raises(EndpointError, match="does not answer"):
            Client(url, attempts=1).predict([tmp_path / "pictures" / "00.jpg"])


@needs_sdk
def test_rehearsal_walks_the_whole_way(
    run: Path, temporary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    command(["run=runs/dogs", "target=rehearsal", "samples=2", "max_instances=3"])
    said = capsys.readouterr()
    steps = ["Deploy", "Update", "Roll back", "Put a Lambda function in front", "Register a version", "List and delete"]
    places = [said.out.index(f"\n{step}") for step in steps]
    assert places == sorted(places)
    assert said.out.count("test: 2 of 2 images with the same top class as the local model") == 2
    assert "test: 2 answers are the local model's" in said.out
    assert "removed role" in said.out
    assert "all to this machine. All resources are deleted." in said.out
    assert not (run / "deploy.json").exists(), "a rehearsal is not remembered as an endpoint"
    assert not list(temporary.glob("imgcls*"))
