"""A `model.tar.gz` at work on this machine: unpacked, and served by what is in it, in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from imgcls.errors import UserError
from imgcls.serve.container import TEMPORARY


@dataclass
class Container:
    """A process that serves an archive.

    Attributes:
        port: on 127.0.0.1.
        through: what calls the handlers.
        source: the folder of the imgcls that answers.
        process: the process itself.
    """

    port: int
    through: str
    source: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """http://127.0.0.1:port"""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, body: bytes, content_type: str, accept: str) -> tuple[int, str, bytes]:
        """Status, Content-Type and body of the answer. Raises OSError where the process is gone."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", "/invocations", body, {"Content-Type": content_type, "Accept": accept})
            response = connection.getresponse()
            return response.status, response.headers.get("Content-Type", ""), response.read()
        finally:
            connection.close()


@contextlib.contextmanager
def serving(archive: Path, environment: Mapping[str, str], port: int = 0) -> Iterator[Container]:
    """While active, the archive is served; nothing is left behind.

    Args:
        archive: a model.tar.gz.
        environment: variables that the handlers see.
        port: on 127.0.0.1; 0: any.

    Raises:
        UserError: the model in it cannot be loaded, and why; or the port is taken.
    """
    work = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    process = None
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(work / "model", filter="data")
        code = work / "model" / "code"
        process = subprocess.Popen(
            [sys.executable, "-m", "imgcls.serve.container", str(work / "model"), str(port)],
            cwd=code,  # of all places for modules the first one
            env={**os.environ, **environment, "PYTHONPATH": str(code), "TMPDIR": str(work)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the one who started it
        )
        assert process.stdout is not None
        yield _started(process, process.stdout.readline())
    finally:
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        shutil.rmtree(work, ignore_errors=True)


def _started(process: subprocess.Popen[bytes], line: bytes) -> Container:
    try:
        said = json.loads(line)
    except ValueError:
        said = {"error": f"its process ended ({process.wait()})"}
    if "error" in said:
        raise UserError(f"The model.tar.gz does not start: {said['error']}")
    return Container(said["port"], said["through"], said["source"], process)
