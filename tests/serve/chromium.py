"""Headless Chromium for tests, driven through a pipe by the DevTools protocol: without a driver or a network."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
    "about:blank",
)


def executable() -> str | None:
    """The path of a Chromium; None if none is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Page:
    """A page of the browser."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing, self._rest, self._number = reading, writing, b"", 0
        self._session = ""
        target = next(info for info in self.call("Target.getTargets")["targetInfos"] if info["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "DOM", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the browser and wait for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._reading, 65536)
            assert part, "the browser has exited"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, url: str) -> None:
        """Go to `url` and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.value("new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))")
        assert self.value("location.href").startswith(url)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression, after awaiting a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait up to 20 s until a JavaScript condition is true."""
        self.value(
            "new Promise((done, fail) => { const end = Date.now() + 20000; const look = () => {"
            f" if ({condition}) done(); else if (Date.now() > end) fail(Error(document.body.innerText));"
            " else setTimeout(look, 20); }; look(); })"
        )

    def choose_file(self, selector: str, *files: Path) -> None:
        """Choose files for an input, as in the file dialogue or after taking a photo on a phone."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def drop_file(self, x: int, y: int, file: Path) -> None:
        """Drag a file over the page and drop it at (x, y)."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screenshot(self, file: Path) -> None:
        """Save the visible part of the page as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """The page of a browser with its profile in `folder`; all its processes are killed at the end."""
    program = executable()
    assert program is not None
    to_browser, from_browser = os.pipe(), os.pipe()

    def place_pipes() -> None:
        # The protocol uses descriptors 3 and 4. Duplicated first, because the pipes may have these numbers.
        high = os.dup(to_browser[0]), os.dup(from_browser[1])
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    process = subprocess.Popen(
        [program, *FLAGS[:-1], f"--user-data-dir={folder}", FLAGS[-1]],
        preexec_fn=place_pipes,
        close_fds=False,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        yield Page(from_browser[0], to_browser[1])
    finally:
        os.close(to_browser[1])
        os.close(from_browser[0])
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
