"""Writes a run folder: its lock, its status and its configuration."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from imgcls.errors import UserError, first_line
from imgcls.runs.earlier import complete
from imgcls.runs.provenance import differences, environment, read_configuration, redact, write_configuration
from imgcls.runs.reading import read_status
from imgcls.system.files import atomic_write_text, explain_os_errors, overwrite_text, take_lock
from imgcls.system.interrupts import Interrupted

# Options that may differ when a run is resumed: where it runs, not what it computes.
MOVABLE = (
    "run_dir",
    "resume",
    "launch",
    "data.root",
    "data.table",
    "data.num_workers",
    "data.store",
    "trainer.devices",
    "debug",
    "logger",
    "report",
    "export.calibrate",
    "quiet",
    "search",
    "callbacks.search",
)


@dataclass
class Recording:
    """A run folder during its run: locked against a second writer, with an up-to-date status.

    Entering takes the lock and writes `config.yaml`; leaving writes how the run ended. A kill leaves the status
    `running` and releases the lock, so the next start knows that it must resume.
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
        atomic_write_text(self.folder / "status.json", self._status_with(values))

    def _status_with(self, values: Mapping[str, Any]) -> str:
        status = {**self.status, **values, "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        return json.dumps(status, indent=2) + "\n"

    def record_failure(self, error: BaseException) -> None:
        """Write to the status that `error` ended the run."""
        state = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
        ended = {"state": state, "reason": first_line(error)}
        try:
            self.update(**ended)
        except (OSError, UserError):
            # A full disk, or one without inodes, may be the reason; the run's own error must still be the one shown.
            with contextlib.suppress(OSError, UserError):
                overwrite_text(self.folder / "status.json", self._status_with(ended))

    def __enter__(self) -> Recording:
        with explain_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._acquire_lock()
        try:
            self._begin()
        except BaseException:
            self._release_lock()
            raise
        return self

    def _begin(self) -> None:
        state = self.status.get("state")
        if state is not None:
            self._check_may_resume(state)
        if state == "finished":
            return
        if state is None:
            self._write_configuration()
        self.update(
            state="running",
            reason=None,
            pid=os.getpid(),
            host=socket.gethostname(),
            started=self.status.get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            resumed=self.status.get("resumed", -1) + 1,
        )

    def _write_configuration(self) -> None:
        write_configuration(self.folder, self.config, self.overrides)
        atomic_write_text(self.folder / "environment.json", json.dumps(redact(environment()), indent=2) + "\n")

    def _check_may_resume(self, state: str) -> None:
        if self.resume == "never":
            raise UserError(
                f"{self.folder} already holds a run ({state}). Choose another run_dir, or resume it with resume=auto."
            )
        stored, config = redact(read_configuration(self.folder)), redact(complete(self.config))
        roots = [(values.get("data") or {}).get("root") for values in (stored, config)]
        if state == "finished" and roots[0] != roots[1]:
            raise UserError(
                f"{self.folder} holds a finished run on data.root={roots[0]}, not on {roots[1]}. "
                "Choose another run_dir; to test its model on other images, use python -m imgcls.evaluate."
            )
        changed = [change for change in differences(stored, config) if not change[0].startswith(MOVABLE)]
        if changed:
            name, before, now = changed[0]
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise UserError(
                f"{self.folder} holds a run with another configuration: {name} was {before}, is now {now}{more}. "
                "Choose another run_dir, or the same options to resume it."
            )

    def _acquire_lock(self) -> None:
        self._lock = (self.folder / ".lock").open("a")
        if not take_lock(self._lock, wait=False):
            self._release_lock()
            pid = self.status.get("pid", "?")
            raise UserError(
                f"Another process ({pid}) is writing to {self.folder}. Wait for it, or choose another run_dir."
            )
        for leftover in self.folder.rglob(".*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is not None:
                self.record_failure(error)
        finally:
            self._release_lock()
