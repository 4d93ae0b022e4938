"""A host of a job as a private place of this machine: its own /opt/ml, process numbers and host names."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from imgcls.errors import UserError

WITHOUT = (
    "launch=rehearsal needs namespaces of Linux (the program `unshare`, allowed to this user), which are not here: {}. "
    "Run it on Linux, or in a container that is started with --privileged."
)


@cache
def check_namespaces() -> None:
    """Raise UserError where a private place cannot be made."""
    if not sys.platform.startswith("linux"):
        raise UserError(WITHOUT.format(f"this is {sys.platform}"))
    if shutil.which("unshare") is None:
        raise UserError(WITHOUT.format("there is no program `unshare`"))
    if not Path("/opt").is_dir():
        raise UserError(WITHOUT.format("there is no folder /opt"))
    probe = [*unshare(), "sh", "-c", "mount --bind /opt /opt"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=60)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(WITHOUT.format(reason))


def unshare(*, network: bool = False) -> list[str]:
    """The words that start a command in new namespaces, or only with a new network."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    if network:
        return ["unshare", *user, "--net"]
    return ["unshare", *user, "--mount", "--pid", "--fork", "--kill-child=KILL"]


def host_command(folder: Path, command: Sequence[str], hosts: Sequence[str], links: Mapping[str, Path]) -> list[str]:
    """The words that run `command` as a host of a job would.

    Args:
        folder: of the host; its `ml` becomes /opt/ml.
        command: entrypoint and arguments of the container.
        hosts: all names, which mean this machine.
        links: channel to a folder of this machine that it is read from in place, and cannot be written to.
    """
    root, ml = folder / "opt", folder / "ml"
    lines = ["set -e", f"mkdir -p {_q(root)}"]
    for entry in sorted(Path("/opt").iterdir()):
        if entry.name != "ml" and entry.is_dir() and not entry.is_symlink():
            lines += [f"mkdir -p {_q(root / entry.name)}", f"mount --rbind {_q(entry)} {_q(root / entry.name)}"]
    lines += [f"mkdir -p {_q(root / 'ml')}", f"mount --rbind {_q(root)} /opt", f"mount --bind {_q(ml)} /opt/ml"]
    for channel, source in sorted(links.items()):
        target = _q(f"/opt/ml/input/data/{channel}")
        lines += [f"mkdir -p {target}", f"mount --bind {_q(source)} {target}", f"mount -o remount,bind,ro {target}"]
    names = folder / "hosts"
    known = Path("/etc/hosts").read_text() if Path("/etc/hosts").is_file() else ""
    names.write_text(f"{known.rstrip()}\n127.0.0.1 {' '.join(hosts)}\n")
    lines += [f"mount --bind {_q(names)} /etc/hosts", "mount -t proc proc /proc 2>/dev/null || true", "cd /"]
    lines += ["exec " + " ".join(shlex.quote(word) for word in command)]
    return [*unshare(), "sh", "-c", "\n".join(lines)]


def _q(path: Path | str) -> str:
    return shlex.quote(str(path))
