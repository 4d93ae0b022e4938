"""An account on loopback whose endpoints answer, and a run to deploy."""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from imgcls.deploy.__main__ import command
from imgcls.errors import UserError
from imgcls.serve.container import Context
from tests.aws_account import MOTO

ROLE = "role=endpoints"
SAMPLE = Path(__file__).parent.parent / "samples" / "portable-v1.tar.xz"
QUICK = ["poll=0.01", "image=own/image:1", ROLE]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portable model that needs no training."""
    folder = tmp_path_factory.mktemp("deployed") / "model"
    with tarfile.open(SAMPLE) as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, `runs/dogs` of the current one, with its test images."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "dogs"
    folder.mkdir(parents=True)
    (folder / "model").symlink_to(model)
    rows = ["file,label"]
    for number in range(12):
        small = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        picture = tmp_path / "pictures" / f"{number:02}.jpg"
        picture.parent.mkdir(exist_ok=True)
        Image.fromarray(small).resize((48, 40)).save(picture)
        rows.append(f"{picture.name},x")
    (folder / "predictions.csv").write_text("\n".join(rows))
    (folder / "config.yaml").write_text(f"data:\n  root: {tmp_path / 'pictures'}\n")
    return folder


class Fake:
    """Answers as a container does, in this process."""

    def __init__(self, model: Path, account: Account, environment: Mapping[str, str]) -> None:
        from imgcls.serve import inference

        self.handlers, self.model, self.account = inference, inference.model_fn(str(model)), account
        self.environment = environment

    def ask(self, body: bytes, content_type: str, accept: str) -> tuple[int, str, bytes]:
        if self.account.asked_fails:
            return 500, "application/json", b'{"error": "out of memory"}'
        data, context = self.handlers.input_fn(body, content_type), Context("")
        with mock.patch.dict("os.environ", self.environment):
            answer, kind = self.handlers.output_fn(self.handlers.predict_fn(data, self.model), accept, context)
        if context.status != 200:
            return context.status, kind, answer
        if self.account.lies:
            content = json.loads(answer)
            classes = content["predictions"][0]["classes"]
            classes[0]["probability"], classes[1]["probability"] = 0.0, 1.0
            answer = json.dumps(content).encode()
        return 200, kind, answer


class Account:
    """What the tests know of the account, and what they let go wrong."""

    def __init__(self, aws: Any) -> None:
        self.aws = aws
        self.starts: list[Mapping[str, str]] = []
        """The environment of each container that was started."""
        self.broken: str | None = None
        """Why containers do not start."""
        self.lies = self.asked_fails = False
        self._session, self._made_by = aws.session(), aws.session
        self._clients: dict[str, Any] = {}

    def cloud(self, region: str | None = None, profile: str | None = None, **options: Any) -> Any:
        from imgcls.aws.account import Account

        if self.aws.session == self._made_by:  # clients take long to make
            return Account(self._session, **options, _clients=self._clients)
        return Account(self.aws.session(), **options)

    def sent(self, operation: str) -> list[dict[str, Any]]:
        """The requests of one operation, in order."""
        return [call.params for call in self.aws.calls if call.operation == operation]

    def endpoint(self, name: str) -> dict[str, Any]:
        return dict(self.cloud().client("sagemaker").describe_endpoint(EndpointName=name))

    @property
    def endpoints(self) -> list[str]:
        found = self.cloud().client("sagemaker").list_endpoints()["Endpoints"]
        return [one["EndpointName"] for one in found]


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, model: Path) -> Iterator[Account]:
    if not MOTO:
        pytest.skip("moto and flask are not installed")
    from imgcls.launch.rehearsal import endpoints as running
    from imgcls.launch.rehearsal.aws import LocalAws

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("SAGEMAKER_ROLE", raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with LocalAws(lambda request: None, lambda name: None, strict=True) as aws:
        known = Account(aws)
        aws.add_role("endpoints")
        aws.add_role("imgcls-functions", "lambda.amazonaws.com")

        @contextlib.contextmanager
        def serve_archive(archive: Path, environment: Mapping[str, str]) -> Iterator[Fake]:
            if known.broken is not None:
                raise UserError(known.broken)
            known.starts.append(environment)
            yield Fake(model, known, environment)

        def write_archive(folder: Path, target: Path) -> Path:
            """Without the sources, which take a second to pack."""
            target.write_bytes((folder / "model" / "model.json").read_bytes())
            return target

        # In the modules that have imported it: one imported while it is replaced would keep the replacement.
        for module in ("deployment", "rehearsal", "batch_command"):
            monkeypatch.setattr(f"imgcls.deploy.{module}.write_archive", write_archive)
        monkeypatch.setattr(running, "serve_archive", serve_archive)
        monkeypatch.setattr("imgcls.aws.account.Account.connect", known.cloud)
        endpoints = running.Endpoints(aws)
        yield known
        endpoints.close()


def deploy(*words: str) -> None:
    """`python -m imgcls.deploy run=runs/dogs` with `words`, quickly."""
    command(["run=runs/dogs", "name=dogs", *QUICK, *words])
