"""`python -m imgcls.serve run=DIR`: answer requests with a run's model.

usage: python -m imgcls.serve run=DIR [port=8080] [host=127.0.0.1] [engine=auto|onnx|torch] [device=cpu|cuda]
                              [threads=N] [urls=true] [url_allow=HOST,*.HOST] [max_batch=16] [max_requests=64]
       python -m imgcls.serve serve

`run=` is a run's folder, or that of a portable model. `host=0.0.0.0` lets other machines in. `urls=true` fetches
pictures from public http(s) URLs, `url_allow=` only from these hosts. The second form is for containers: the model in
/opt/ml/model, all interfaces, the port of SAGEMAKER_BIND_TO_PORT or 8080, IMGCLS_URLS and IMGCLS_URL_ALLOW from the
environment.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imgcls.cli import guarded, parse_arguments
from imgcls.errors import UserError, nearest

if TYPE_CHECKING:
    from imgcls.serve.service import Service

NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
OPTIONS = {
    "run": "",
    "host": "127.0.0.1",
    "port": "8080",
    "engine": "auto",
    "device": "",
    "threads": "",
    "urls": "false",
    "url_allow": "",
    "max_batch": "16",
    "max_requests": "64",
}


def serve(arguments: Sequence[str]) -> None:
    """Serve until SIGTERM or Ctrl-C; what was accepted before is answered."""
    options, _, rest = parse_arguments(arguments, OPTIONS, usage=__doc__ or "")
    if rest == ["serve"]:
        options = {**options, **container_options(options)}
    elif rest or not options["run"]:
        raise UserError(f"What is {rest[0]!r}?" if rest else "Which run? Give its folder: run=DIR")
    missing = [package for module, package in NEEDED.items() if not importlib.util.find_spec(module)]
    if missing:
        raise UserError(f"Serving needs {' and '.join(missing)}: pip install 'imgcls[serve]'.")
    port = _whole(options, "port", least=0)
    listening = _listen(options["host"], port)  # before the model is read: a port that is taken is said at once
    try:
        service = create_service(options)
        _run(service, listening, options["host"])
    finally:
        listening.close()


def container_options(options: dict[str, str]) -> dict[str, str]:
    """What SageMaker's contract and the environment say, for `serve`."""
    environment = os.environ
    return {
        "run": options["run"] or environment.get("SM_MODEL_DIR", "/opt/ml/model"),
        "host": "0.0.0.0",
        "port": environment.get("SAGEMAKER_BIND_TO_PORT", options["port"]),
        "engine": environment.get("IMGCLS_ENGINE", options["engine"]),
        "device": environment.get("IMGCLS_DEVICE", options["device"]),
        "urls": environment.get("IMGCLS_URLS", options["urls"]),
        "url_allow": environment.get("IMGCLS_URL_ALLOW", options["url_allow"]),
    }


def create_service(options: dict[str, str]) -> Service:
    """The service that the options describe, its model loaded and warm."""
    from imgcls import portable
    from imgcls.portable.engines import ENGINES
    from imgcls.serve.inference import fetcher_from
    from imgcls.serve.predictor import Predictor, model_folder
    from imgcls.serve.service import Limits, Service
    from imgcls.system.machine import available_cores

    if options["engine"] not in ENGINES:
        raise UserError(f"engine={options['engine']}: {nearest(options['engine'], ENGINES)}")
    if options["urls"].lower() not in ("true", "false"):
        raise UserError(f"urls={options['urls']}: true or false.")
    threads = _whole(options, "threads") if options["threads"] else None
    limits = Limits(
        requests=_whole(options, "max_requests"),
        max_batch=_whole(options, "max_batch"),
        decoders=max(2, available_cores()),
    )
    model = portable.load(model_folder(options["run"]), options["engine"], options["device"] or None, threads)
    urls = {"IMGCLS_URLS": options["urls"], "IMGCLS_URL_ALLOW": options["url_allow"]}
    predictor = Predictor(model, fetcher_from(urls))
    predictor.warm_up()
    return Service(predictor, limits)


def _run(service: Service, listening: socket.socket, host: str) -> None:
    import uvicorn

    from imgcls.serve.server import create_app

    port = listening.getsockname()[1]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    model = service.predictor.model
    name, address = model.description["architecture"]["name"], f"[{shown}]" if ":" in shown else shown
    what = f"{name}, {len(model.class_names)} classes, with {model.engine.name}"
    print(f"Serving {what} on http://{address}:{port}", flush=True)
    config = uvicorn.Config(
        create_app(service),
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_keep_alive=65,  # longer than load balancers keep theirs
        timeout_graceful_shutdown=60,
        limit_concurrency=2048,
        server_header=False,
    )
    # uvicorn raises the signal again once it has drained; what was accepted is answered, and all is well then.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio turns Nagle's algorithm off for such sockets alone, and each answer would wait
    # 40 ms for the client's acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"host={host} port={port}: {reason}. Choose another.") from error
    return listening


def _whole(options: dict[str, str], name: str, least: int = 1) -> int:
    value = options[name]
    if not (value.isascii() and value.isdigit() and int(value) >= least):
        raise UserError(f"{name}={value}: must be a whole number of at least {least}.")
    return int(value)


def main() -> None:
    """The command line."""
    sys.exit(guarded(lambda: serve(sys.argv[1:])))


if __name__ == "__main__":
    main()
