"""Starts and stops the hosts of a rehearsed job, and cleans up after them even if the rehearsal is killed.

Run as `python supervisor.py SPEC` with a pipe as its standard input. It needs nothing but Python, and reads commands
from the pipe: `start` starts the hosts of SPEC, `term` sends SIGTERM to the first process of each, `kill` kills them.
When the pipe closes, also because the rehearsal was killed, it kills all hosts and removes the folder. It reports
hosts that end as lines of JSON on standard output.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40
PR_SET_PDEATHSIG = 1
TICK = 0.05  # seconds
LOCK = ".lock"  # held while the folder is in use


def main() -> None:
    """Execute commands until the pipe closes."""
    spec = Path(sys.argv[1])
    work = spec.parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rehearsal handles Ctrl-C
    lock = (work / LOCK).open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    if "isolated" in sys.argv[2:]:
        _raise_loopback()
    hosts: dict[str, subprocess.Popen[bytes]] = {}
    try:
        _serve(spec, hosts)
    finally:
        for process in hosts.values():
            _kill(process)
        shutil.rmtree(work, ignore_errors=True)


def _start(host: dict[str, Any]) -> subprocess.Popen[bytes]:
    with Path(host["log"]).open("ab") as log:
        return subprocess.Popen(
            host["command"],
            env=host["environment"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=_die_with_parent,
        )


def _serve(spec: Path, hosts: dict[str, subprocess.Popen[bytes]]) -> None:
    """Execute commands and report hosts that end, until the pipe closes."""
    while True:
        for name in [name for name, process in hosts.items() if process.poll() is not None]:
            print(json.dumps({"host": name, "code": hosts.pop(name).returncode}), flush=True)
        if not select.select([sys.stdin], [], [], TICK)[0]:
            continue
        commands = os.read(0, 1024).split()
        if not commands:
            return
        for command in commands:
            if command == b"start":
                for host in json.loads(spec.read_text()):
                    hosts[host["name"]] = _start(host)
            else:
                for process in hosts.values():
                    _signal_first_process(process, signal.SIGTERM if command == b"term" else signal.SIGKILL)


def _signal_first_process(process: subprocess.Popen[bytes], signum: int) -> None:
    """Signal the first process in the namespace, the only child of `unshare`."""
    if process.poll() is not None:
        return
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]) if children else process.pid, signum)
    except (OSError, IndexError):
        return


def _kill(process: subprocess.Popen[bytes]) -> None:
    _signal_first_process(process, signal.SIGKILL)  # all other processes of the namespace end with the first one
    if process.poll() is None:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _raise_loopback() -> None:
    """Bring up the loopback interface of a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        fcntl.ioctl(device, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP | IFF_RUNNING))


if __name__ == "__main__":
    main()
