"""A server for an unpacked `model.tar.gz` under SageMaker's contract: `GET /ping`, `POST /invocations`.

`python -m imgcls.serve.container MODEL_FOLDER [port]` runs with `MODEL_FOLDER/code` first on the path, so that the
packed code answers. It prints its port on stdout, and exits when its standard input closes, as its parent exits.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

FOLDER_PREFIX = "imgcls-container-"
Answer = tuple[int, str, bytes]
"""Status, Content-Type, body."""
Handle = Callable[[bytes, str, str], Answer]
"""Takes (body, Content-Type, Accept)."""


class Context:
    """What AWS's inference image passes to a handler: takes the request's headers, returns the answer's status."""

    model_name = "model"

    def __init__(self, model_folder: str) -> None:
        self.system_properties = {"model_dir": model_folder, "gpu_id": None}
        self.headers: dict[str, str] = {}
        self.status, self.content_type = 200, "application/json"

    @property
    def request_processor(self) -> list[Context]:
        return [self]

    def get_request_properties(self) -> dict[str, str]:
        return self.headers

    def set_response_content_type(self, index: int, value: str) -> None:
        self.content_type = value

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Called by our handlers to refuse a request."""
        self.status = code


def toolkit_handle(model_folder: str) -> Handle:
    """The handlers of `code/inference.py`, called by SageMaker's toolkit."""
    service = import_module("sagemaker_pytorch_serving_container.handler_service").HandlerService()
    context = Context(model_folder)
    service.initialize(context)

    def handle(body: bytes, content_type: str, accept: str) -> Answer:
        context.headers, context.status = {"Content-Type": content_type, "Accept": accept}, 200
        [answer] = service.handle([{"body": body}], context)
        return context.status, context.content_type, answer if isinstance(answer, bytes) else str(answer).encode()

    return handle


def plain_handle(model_folder: str) -> Handle:
    """The same handlers, called in the toolkit's way."""
    module = import_module("inference")
    model = module.model_fn(model_folder)

    def handle(body: bytes, content_type: str, accept: str) -> Answer:
        context = Context(model_folder)
        data = module.input_fn(body, content_type, context)
        answer, answer_type = module.output_fn(module.predict_fn(data, model, context), accept, context)
        return context.status, answer_type, answer

    return handle


def load(model_folder: str) -> tuple[Handle, str]:
    """The function that answers requests, and the name of what calls the handlers."""
    try:
        import_module("sagemaker_pytorch_serving_container")
    except ImportError:
        return plain_handle(model_folder), "imgcls"
    return toolkit_handle(model_folder), "SageMaker's toolkit"


class RequestHandler(BaseHTTPRequestHandler):
    """Answers the requests of a connection."""

    protocol_version = "HTTP/1.1"
    handle_request: Handle
    lock = threading.Lock()

    def do_GET(self) -> None:
        self._send((200, "application/json", b"{}") if self.path == "/ping" else (404, "application/json", b"{}"))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.partition("?")[0] != "/invocations":
            self._send((404, "application/json", b'{"error": "No such path."}'))
            return
        kind, accept = self.headers.get("Content-Type", ""), self.headers.get("Accept") or "application/json"
        try:
            with self.lock:
                answer = type(self).handle_request(body, kind, accept)
        except Exception as error:  # as in AWS's image: any exception of a handler is a 500
            text = json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
            answer = 500, "application/json", text
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        status, kind, body = answer
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *values: Any) -> None:
        pass


def main() -> int:
    """Serve until the standard input closes."""
    folder, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever handlers print goes to stderr
    code = str(Path(folder) / "code")
    if code not in sys.path:
        sys.path.insert(0, code)
    try:
        handle, caller = load(folder)
        RequestHandler.handle_request = staticmethod(handle)
        server = ThreadingHTTPServer(("127.0.0.1", port), RequestHandler)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=report, flush=True)
        return 1
    source = str(Path(str(import_module("imgcls").__file__)).parent)
    print(json.dumps({"port": server.server_port, "caller": caller, "source": source}), file=report, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.buffer.read()
    if Path(folder).parent.name.startswith(FOLDER_PREFIX):  # left behind if the parent was killed
        shutil.rmtree(Path(folder).parent, ignore_errors=True)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
