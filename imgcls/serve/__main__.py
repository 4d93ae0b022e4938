"""`python -m imgcls.serve run=DIR`: serve a run's model over HTTP.

usage: python -m imgcls.serve run=DIR [run=DIR …] [canary=0.1] [port=8080] [host=127.0.0.1] [engine=auto]
                              [device=cpu|cuda:0,cuda:1] [threads=N] [urls=true] [url_allow=HOST,*.HOST] [max_batch=16]
                              [max_requests=64]
                              [allowed_hosts=HOST,*.HOST] [cors=ORIGIN,ORIGIN] [api_key=KEY] [access_log=true]
                              [examples=auto|true|false|DIR] [feedback=DIR]
                              [capture=DIR] [capture_percent=100] [capture_mb=1000]
       python -m imgcls.serve serve

`run=` is the folder of a run, of a portable model or of an exported one. With several, the last is the default, of
whose requests `canary=0.1` leaves all but a tenth to the one before, and `POST /models/NAME/invocations` asks the one
whose folder is NAME. `engine=` is one of auto, onnx, onnx-cuda, onnx-tensorrt, onnx-openvino, onnx-coreml, torch,
torch-compiled: ONNX Runtime on the processor (onnx) or with one of its execution providers, or torch, also compiled, on
a GPU with a CUDA graph for each batch size; auto is torch where there is a GPU, else ONNX Runtime, in int8 where the
run has `exports/onnx-int8` whose certificate says that it is faster on this machine. Each GPU, or each in `device=`,
has its own worker. `host=0.0.0.0` lets other machines
connect. `urls=true` fetches images from public http(s) URLs, `url_allow=` only from these hosts. `allowed_hosts=`
answers only requests to these host names (but for /ping and /health), `cors=` lets the pages of these origins ask.
`api_key=`, or IMGCLS_API_KEY in the environment, is what requests must carry as `Authorization: Bearer KEY`.
`access_log=true` prints a line of JSON per request. `examples=` is a folder of images that the page offers, true: the
validation images that the model keeps, auto: these where only this machine or an API key gets an answer. `feedback=` is
a folder in which corrections made on the page are kept, with a labels.csv for data=table. `capture=` is a folder in
which answered requests are kept for `python -m imgcls.monitor`: `capture_percent` of them, the newest that have room in
`capture_mb` megabytes. SIGHUP loads the models again, without a request being lost; with an API key `POST
/models?name=NAME&run=DIR` adds one, and `DELETE /models/NAME` removes one.

The second form is for containers: it serves /opt/ml/model on all interfaces, on the port SAGEMAKER_BIND_TO_PORT or
8080, and reads IMGCLS_ENGINE, IMGCLS_DEVICE, IMGCLS_URLS, IMGCLS_URL_ALLOW, IMGCLS_ALLOWED_HOSTS, IMGCLS_CORS,
IMGCLS_ACCESS_LOG, IMGCLS_CAPTURE, IMGCLS_CAPTURE_PERCENT and IMGCLS_CAPTURE_MB from the environment. A model that
has a `certificate.json` of `python -m imgcls.verify` is served only if it has passed and its files have not changed.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.cli import Option, boolean, read_options, run_command, texts
from imgcls.errors import UserError
from imgcls.portable.engines import ENGINES
from imgcls.system.checks import choice, flag, number, whole
from imgcls.system.extras import check_installed

if TYPE_CHECKING:
    from imgcls.serve.guards import Guards
    from imgcls.serve.predictor import Predictor

log = logging.getLogger(__name__)

OPTIONS = {
    "run": Option(many=True),
    "canary": Option(1.0, number(0, 1), float),
    "host": Option("127.0.0.1"),
    "port": Option(8080, whole(0, 65535), int),
    "engine": Option("auto", choice(*ENGINES)),
    "device": Option(),
    "threads": Option(None, whole(1), int),
    "urls": Option(False, flag, boolean),
    "url_allow": Option((), parse=texts),
    "allowed_hosts": Option((), parse=texts),
    "cors": Option((), parse=texts),
    "api_key": Option(),
    "access_log": Option(False, flag, boolean),
    "examples": Option("auto"),
    "feedback": Option(None, parse=Path),
    "capture": Option(None, parse=Path),
    "capture_percent": Option(100.0, number(0, 100, open_low=True), float),
    "capture_mb": Option(1000, whole(1), int),
    "max_batch": Option(16, whole(1), int),
    "max_requests": Option(64, whole(1), int),
}
ENVIRONMENT = {
    "port": "SAGEMAKER_BIND_TO_PORT",
    "engine": "IMGCLS_ENGINE",
    "device": "IMGCLS_DEVICE",
    "urls": "IMGCLS_URLS",
    "url_allow": "IMGCLS_URL_ALLOW",
    "allowed_hosts": "IMGCLS_ALLOWED_HOSTS",
    "cors": "IMGCLS_CORS",
    "access_log": "IMGCLS_ACCESS_LOG",
    "capture": "IMGCLS_CAPTURE",
    "capture_percent": "IMGCLS_CAPTURE_PERCENT",
    "capture_mb": "IMGCLS_CAPTURE_MB",
}
"""The options that a container takes from environment variables."""


def serve(arguments: Sequence[str]) -> None:
    """Serve until SIGTERM or Ctrl-C; requests accepted before are answered."""
    in_container = "serve" in arguments
    if in_container:
        arguments = container_arguments(arguments)
    options, _, _ = read_options(arguments, OPTIONS, usage=__doc__ or "")
    options["certified"] = in_container
    if not options["run"]:
        raise UserError("Give the run folder: run=DIR")
    check_installed(["fastapi", "fastapi_offline", "uvicorn", "prometheus_client"], "serve", "Serving")
    with _listen(options["host"], options["port"]) as listener:  # before loading the model, which takes longer
        _run(options, listener)


def container_arguments(arguments: Sequence[str]) -> list[str]:
    """The options of `serve` under SageMaker's contract: the environment overrides all but `run=`."""
    model = os.environ.get("SM_MODEL_DIR", "/opt/ml/model")
    options = [argument for argument in arguments if argument != "serve"]
    overrides = [f"{name}={os.environ[variable]}" for name, variable in ENVIRONMENT.items() if variable in os.environ]
    run = [] if any(option.startswith("run=") for option in options) else [f"run={model}"]
    return [*run, *options, "host=0.0.0.0", *overrides]


def load_predictor(options: Mapping[str, Any], run: str) -> Predictor:
    """The model in `run` for the options, loaded and warmed up."""
    from imgcls import portable
    from imgcls.portable.certificate import check_certificate, faster_export
    from imgcls.portable.engines import further_gpus
    from imgcls.serve.predictor import Predictor, model_folder
    from imgcls.serve.urls import Fetcher

    folder = model_folder(run)
    if options.get("certified"):
        check_certificate(folder)
    devices = [name.strip() for name in options["device"].split(",")] if options["device"] else [None]
    if "" in devices:
        raise UserError(f"device={options['device']}: a name is missing. Write device=cuda:0,cuda:1")
    if options["engine"] == "auto" and set(devices) <= {None, "cpu"}:
        folder = faster_export(folder) or folder
    model, *copies = (portable.load(folder, options["engine"], device, options["threads"]) for device in devices)
    for device in further_gpus(model.engine) if devices == [None] else ():
        try:
            copies.append(portable.load(folder, options["engine"], device, options["threads"]))
        except UserError as error:
            log.warning("%s is not used: %s", device, error)
    fetcher = Fetcher(allow=tuple(options["url_allow"])) if options["urls"] else None
    predictor = Predictor(model, fetcher, copies=copies)
    predictor.warm_up(options["max_batch"] if options["engine"] == "torch-compiled" else 1)
    return predictor


def model_names(runs: Sequence[str]) -> list[str]:
    """What the models in these folders are called: as the folder of the run. Raises UserError for one name twice."""
    paths = [Path(run).expanduser().resolve() for run in runs]
    names = [re.sub(r"[^\w.-]", "-", path.parent.name if path.name == "model" else path.name) for path in paths]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"run=: two models are called {twice[0]}. Rename a folder.")
    return names


def create_guards(options: Mapping[str, Any]) -> Guards:
    """Who is answered. Raises UserError for a key or an origin that no request can have."""
    from imgcls.serve.guards import Guards

    key = options["api_key"] or os.environ.get("IMGCLS_API_KEY") or None
    if key is not None and not re.fullmatch(r"[!-~]{8,}", key):
        raise UserError("The API key must have at least 8 characters, which are printable ASCII without spaces.")
    for origin in options["cors"]:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s*]+", origin):
            raise UserError(f"cors={origin} is no origin. Write https://app.example.org, without a path, or *.")
    log = partial(print, flush=True) if options["access_log"] else None
    return Guards(options["allowed_hosts"], options["cors"], key, log)


def choose_examples(choice: str, run: str, *, private: bool) -> list[Path]:
    """The images that the page offers.

    Args:
        choice: a folder of images; 'true': those of the model; 'false': none; 'auto': those of the model if `private`.
        run: folder of the run or the portable model.
        private: whether strangers get no answers, who must not see images of the data set unasked.

    Raises:
        UserError: there is no image.
    """
    from imgcls.portable.examples import FOLDER, find_examples
    from imgcls.serve.predictor import model_folder

    if choice == "false" or (choice == "auto" and not private):
        return []
    folder = model_folder(run) / FOLDER if choice in ("auto", "true") else Path(choice).expanduser()
    found = find_examples(folder)
    if not found and choice != "auto":
        raise UserError(f"examples={choice}: there is no image{' in the model' if choice == 'true' else ''}.")
    return found


def _is_local(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _run(options: Mapping[str, Any], listener: socket.socket) -> None:
    import uvicorn

    from imgcls.serve.capture import Capture
    from imgcls.serve.connections import create_config
    from imgcls.serve.current import Current
    from imgcls.serve.feedback import Feedback
    from imgcls.serve.metrics import Metrics
    from imgcls.serve.models import Models
    from imgcls.serve.server import create_app
    from imgcls.serve.service import Limits, Service
    from imgcls.system.machine import available_cores

    guards, host = create_guards(options), options["host"]
    examples = choose_examples(
        options["examples"], options["run"][-1], private=guards.api_key is not None or _is_local(host)
    )
    feedback = Feedback(options["feedback"].expanduser()) if options["feedback"] else None
    capture = None
    if options["capture"]:
        capture = Capture(
            options["capture"].expanduser(), options["capture_percent"], 1_000_000 * options["capture_mb"]
        )
    names = model_names(options["run"])
    limits = Limits(
        requests=options["max_requests"], max_batch=options["max_batch"], decoders=max(2, available_cores())
    )
    metrics = Metrics()
    address = "127.0.0.1" if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    loaded = {}
    for name, run in zip(names, options["run"], strict=True):
        load = partial(load_predictor, options, run)
        loaded[name] = Current(Service(load(), limits, metrics), load)
        predictor = loaded[name].service.predictor
        model, engines = predictor.model, ", ".join(engine.name for engine in predictor.engines)
        what = f"{model.description['architecture']['name']}, {len(model.class_names)} classes"
        how = f"{'' if model.precision == 'fp32' else f'in {model.precision}, '}with {engines}"
        called = f"{name}: " if len(names) > 1 else ""
        print(f"Serving {called}{what}, {how} on http://{address}:{listener.getsockname()[1]}", flush=True)
    models = Models(loaded, partial(load_predictor, options), options["canary"])
    config = create_config(
        create_app(models, guards, None, feedback, examples, capture),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=65,  # longer than that of load balancers
        timeout_graceful_shutdown=60,
        server_header=False,
    )
    # uvicorn raises the signal again after draining; by then every accepted request is answered: exit with 0.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Naming the protocol makes asyncio turn off Nagle's algorithm; otherwise each answer waits 40 ms for the client's
    # acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise UserError(f"host={host} port={port}: {error.strerror or error}. Choose another.") from error
    return listener


def main() -> None:
    """The command line."""
    run_command(lambda: serve(sys.argv[1:]))


if __name__ == "__main__":
    main()
