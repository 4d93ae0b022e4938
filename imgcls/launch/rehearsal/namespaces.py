"""Linux namespaces as the hosts of a job, with separate /opt/ml, process IDs and host names."""

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

UNAVAILABLE = (
    "launch=rehearsal needs Linux namespaces (the program `unshare`, with permission to use it): {}. "
    "Run it on Linux, or in a container that was started with --privileged."
)


@cache
def check_namespaces() -> None:
    """Raise UserError if namespaces cannot be created."""
    if not sys.platform.startswith("linux"):
        raise UserError(UNAVAILABLE.format(f"this system is {sys.platform}"))
    if shutil.which("unshare") is None:
        raise UserError(UNAVAILABLE.format("`unshare` is not installed"))
    if not Path("/opt").is_dir():
        raise UserError(UNAVAILABLE.format("the folder /opt does not exist"))
    probe = [*unshare(), "sh", "-c", "mount --bind /opt /opt"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=60)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(UNAVAILABLE.format(reason))


def unshare(*, network: bool = False) -> list[str]:
    """Command prefix that runs a command in new namespaces, or only in a new network."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    if network:
        return ["unshare", *user, "--net"]
    return ["unshare", *user, "--mount", "--pid", "--fork", "--kill-child=KILL"]


def host_command(folder: Path, command: Sequence[str], hosts: Sequence[str], links: Mapping[str, Path]) -> list[str]:
    """The command that runs `command` as a host of a job.

    Args:
        folder: of the host; its subfolder `ml` becomes /opt/ml.
        command: entrypoint and arguments of the container.
        hosts: names of all hosts, which refer to this machine.
        links: channels to the local folders that they read in place, without write access.
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
    existing = Path("/etc/hosts").read_text() if Path("/etc/hosts").is_file() else ""
    names.write_text(f"{existing.rstrip()}\n127.0.0.1 {' '.join(hosts)}\n")
    lines += [f"mount --bind {_q(names)} /etc/hosts", "mount -t proc proc /proc 2>/dev/null || true", "cd /"]
    lines += ["exec " + shlex.join(command)]
    return [*unshare(), "sh", "-c", "\n".join(lines)]


def _q(path: Path | str) -> str:
    return shlex.quote(str(path))
