"""The writing side of a run folder: who may write, what state the run is in, its log."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from imgcls.cli import handled_by
from imgcls.errors import UserError
from imgcls.files import atomic_write_text, explain_os_errors
from imgcls.interrupts import Interrupted

log = logging.getLogger("imgcls")

# What may differ when a run is resumed: where it runs, not what it computes.
MOVABLE = (
    "run_dir",
    "resume",
    "launch",
    "data.root",
    "data.num_workers",
    "data.store",
    "trainer.devices",
    "debug",
    "logger",
    "report",
    "quiet",
    "search",
    "callbacks.search",
)


def without_passwords(text: str) -> str:
    """`text` without the passwords of the addresses in it.

    >>> without_passwords("search.storage=postgresql://me:secret@host/db")
    'search.storage=postgresql://me:…@host/db'
    """
    return re.sub(r"(\w://[^\s:/@]*:)[^\s@]+@", r"\1…@", text)


def read_status(folder: Path) -> dict[str, Any]:
    """The content of `status.json`, empty where the folder holds no run."""
    try:
        return json.loads((folder / "status.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise UserError(
            f"{folder / 'status.json'} is damaged: {error}. Remove the folder or choose another."
        ) from error


@dataclass
class Recording:
    """A run folder while its run is written: locked against a second writer, with its status kept up to date.

    Entering takes the lock and writes `config.yaml`; leaving writes how the run ended. A kill leaves the status
    `running` behind and frees the lock, which is how the next start knows that it has to go on.
    """

    folder: Path
    config: Mapping[str, Any]
    overrides: list[str] = field(default_factory=list)
    resume: str = "auto"
    _lock: IO[str] | None = None

    @property
    def status(self) -> dict[str, Any]:
        return read_status(self.folder)

    @property
    def finished(self) -> bool:
        return self.status.get("state") == "finished"

    def update(self, **values: Any) -> None:
        """Change fields of `status.json`."""
        status = {**self.status, **values, "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        atomic_write_text(self.folder / "status.json", json.dumps(status, indent=2) + "\n")

    def ended_by(self, error: BaseException) -> None:
        """Write down that `error` ended the run."""
        state = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # A full disk is often the very reason; the run's own error must still be the one that is shown.
        with contextlib.suppress(OSError, UserError):
            self.update(state=state, reason=reason)

    def __enter__(self) -> Recording:
        with explain_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        try:
            self._begin()
        except BaseException:
            self._free_lock()
            raise
        return self

    def _begin(self) -> None:
        state = self.status.get("state")
        if state is not None:
            self._check_may_resume(state)
        if state == "finished":
            return
        if state is None:
            self._remember_configuration()
        self.update(
            state="running",
            reason=None,
            pid=os.getpid(),
            host=socket.gethostname(),
            started=self.status.get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            resumed=self.status.get("resumed", -1) + 1,
        )

    def _remember_configuration(self) -> None:
        write_configuration(self.folder, self.config, self.overrides)
        told = without_passwords(json.dumps(environment(), indent=2))
        atomic_write_text(self.folder / "environment.json", told + "\n")

    def _check_may_resume(self, state: str) -> None:
        if self.resume == "never":
            raise UserError(
                f"{self.folder} already holds a run ({state}). Choose another run_dir, or resume=auto to go on with it."
            )
        stored = stored_configuration(self.folder)
        changed = [change for change in differences(stored, self.config) if not change[0].startswith(MOVABLE)]
        if changed:
            name, before, now = changed[0]
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise UserError(
                f"{self.folder} holds a run with another configuration: {name} was {before}, now {now}{more}. "
                "Choose another run_dir, or the same options to go on with it."
            )

    def _take_lock(self) -> None:
        import fcntl

        self._lock = (self.folder / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._free_lock()
            pid = self.status.get("pid", "?")
            raise UserError(
                f"Another process ({pid}) is writing to {self.folder}. Wait for it, or choose another run_dir."
            ) from None

    def _free_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self.ended_by(error)
        finally:
            self._free_lock()


def write_configuration(folder: Path, config: Mapping[str, Any], overrides: list[str] | None = None) -> None:
    """Write `config.yaml` and `overrides.yaml`, without passwords."""
    import yaml

    content = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=1000)
    words = yaml.safe_dump(overrides or [], allow_unicode=True, width=1000)
    atomic_write_text(folder / "config.yaml", without_passwords(content))
    atomic_write_text(folder / "overrides.yaml", without_passwords(words))


def stored_configuration(folder: Path) -> dict[str, Any]:
    """The content of `config.yaml`."""
    import yaml

    content: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    return content


def stored_overrides(folder: Path) -> list[str]:
    """The content of `overrides.yaml`."""
    import yaml

    content: list[str] = yaml.safe_load((folder / "overrides.yaml").read_text())
    return content


def differences(before: Any, now: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, value before, value now) of every option that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys([*before, *now])
        changes = [differences(before.get(name), now.get(name), f"{prefix}{name}.") for name in names]
        return [one for change in changes for one in change]
    return [] if before == now else [(prefix.rstrip("."), before, now)]


def environment() -> dict[str, Any]:
    """Versions, machine and git state: what a reader needs to know to believe a number."""
    import importlib.metadata as metadata
    import subprocess

    versions = {}
    for name in (
        "imgcls",
        "torch",
        "torchvision",
        "lightning",
        "timm",
        "torchmetrics",
        "hydra-core",
        "numpy",
        "pillow",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    git: dict[str, str] = {}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        run = {"capture_output": True, "text": True, "timeout": 5}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run)  # type: ignore[call-overload]
        if commit.returncode == 0:
            changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **run)  # type: ignore[call-overload]
            git = {"commit": commit.stdout.strip(), "changed": "yes" if changed.stdout.strip() else "no"}
    return {
        "python": platform.python_version(),
        "versions": versions,
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "git": git,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


class _QuietFileHandler(logging.FileHandler):
    """A log that cannot be written (a full disk) must not bury the message that says so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


@contextlib.contextmanager
def logging_to(file: Path, *, terminal: bool = True) -> Iterator[None]:
    """Send what imgcls and Lightning say to `file`, and imgcls's own messages also to stderr."""
    with explain_os_errors(file):
        to_file = _QuietFileHandler(file, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(logging.Formatter("%(message)s"))
    handlers: dict[str, list[logging.Handler]] = {
        "imgcls": [to_file, *([to_terminal] if terminal else [])],
        "lightning": [to_file],
        "lightning.pytorch": [],
        "lightning.fabric": [],
        "py.warnings": [to_file],
    }
    try:
        with handled_by(handlers, onward=("lightning.pytorch", "lightning.fabric")):
            yield
    finally:
        to_file.close()
