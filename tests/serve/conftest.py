"""A small model, and a real server for it on loopback."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls import portable
from imgcls.portable.conformal import ClassSets
from imgcls.serve.models import Models
from imgcls.serve.predictor import Predictor
from imgcls.serve.service import Limits, Service

NAMES = ("cat", "dog", "Eule")
SIDE = 32


def picture(seed: int = 0, width: int = 48, height: int = 40) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portable model of three classes at 32 px, with ONNX if the packages are installed."""
    import torch

    from imgcls.images.preprocessing import Preprocessing
    from imgcls.models.backbones import create_network

    torch.manual_seed(0)
    network = create_network("test_resnet", len(NAMES))
    network(torch.randn(16, 3, SIDE, SIDE) * 2)  # changes the batch-norm statistics
    with torch.no_grad():
        network.head[1].weight.mul_(30)  # so that the predicted class depends on the image
    folder = tmp_path_factory.mktemp("served") / "model"
    portable.export(
        network,
        preprocessing=Preprocessing(SIDE, 36),
        class_names=NAMES,
        metrics={"test/accuracy": 0.875},
        folder=folder,
        sets=ClassSets(0.0, 1, np.linspace(0, 1, 99), 99),
    )
    return folder


@pytest.fixture(scope="session")
def model(model_dir: Path) -> portable.PortableModel:
    return portable.load(model_dir, engine="auto")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A server in a thread."""

    port: int
    service: Service
    stop: Callable[[], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            lower = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, lower, response.read())
        finally:
            connection.close()

    def post(self, body: bytes, content_type: str = "application/x-image", path: str = "", **headers: str) -> Answer:
        return self.ask("POST", f"/invocations{path}", body, Content_Type=content_type, **headers)


@contextmanager
def serving(
    model: portable.PortableModel | Predictor | Models,
    limits: Limits | None = None,
    fetcher: Any = None,
    application: Mapping[str, Any] | None = None,
    **connections: Any,
) -> Iterator[Server]:
    import uvicorn

    from imgcls.serve.connections import create_config
    from imgcls.serve.server import create_app

    if isinstance(model, portable.PortableModel):
        model = Predictor(model, fetcher)
    served = model if isinstance(model, Models) else Service(model, limits)
    service = served.service if isinstance(served, Models) else served
    config = create_config(
        create_app(served, **(application or {})),
        port=0,
        log_level="error",
        timeout_graceful_shutdown=5,
        **connections,
    )
    server = uvicorn.Server(config)
    started = threading.Event()
    original = server.startup

    async def startup(*arguments: Any, **options: Any) -> None:
        await original(*arguments, **options)
        started.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(30)
    port = server.servers[0].sockets[0].getsockname()[1]

    def stop() -> None:
        server.should_exit = True

    try:
        yield Server(port, service, stop)
    finally:
        stop()
        thread.join(15)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(model: portable.PortableModel) -> Iterator[Server]:
    pytest.importorskip("fastapi")
    with serving(model) as running:
        yield running
