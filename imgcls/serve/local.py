"""Serving a `model.tar.gz` on this machine: unpacked, and run by the code in it in a separate process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from imgcls.errors import UserError
from imgcls.serve.container import FOLDER_PREFIX
from imgcls.system.unpacking import extract


@dataclass
class Container:
    """A process that serves an archive.

    Attributes:
        port: on 127.0.0.1.
        caller: what calls the handlers: SageMaker's toolkit or imgcls.
        source: the folder of the imgcls that answers.
        process: the process.
    """

    port: int
    caller: str
    source: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """http://127.0.0.1:port"""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, body: bytes, content_type: str, accept: str) -> tuple[int, str, bytes]:
        """Status, Content-Type and body of the answer. Raises OSError if the process has ended."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", "/invocations", body, {"Content-Type": content_type, "Accept": accept})
            response = connection.getresponse()
            return response.status, response.headers.get("Content-Type", ""), response.read()
        finally:
            connection.close()


@contextlib.contextmanager
def serve_archive(archive: Path, environment: Mapping[str, str], port: int = 0) -> Iterator[Container]:
    """Serve the archive within the context; its process and files are removed at the end.

    Args:
        archive: a model.tar.gz.
        environment: environment variables for the handlers.
        port: on 127.0.0.1; 0: any.

    Raises:
        UserError: its model cannot be loaded, or the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, ignore_cleanup_errors=True) as work:
        model = Path(work) / "model"
        extract(archive, model)
        with subprocess.Popen(
            [sys.executable, "-m", "imgcls.serve.container", str(model), str(port)],
            cwd=model / "code",  # the first place where Python looks for modules
            env={**os.environ, **environment, "PYTHONPATH": str(model / "code"), "TMPDIR": work},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches only the parent
        ) as process:
            try:
                yield _read_start(process)
            finally:
                process.kill()


def _read_start(process: subprocess.Popen[bytes]) -> Container:
    assert process.stdout is not None
    try:
        start = json.loads(process.stdout.readline())
    except ValueError:
        start = {"error": f"its process exited with {process.wait()}"}
    if "error" in start:
        raise UserError(f"The model.tar.gz does not start: {start['error']}")
    return Container(**start, process=process)
