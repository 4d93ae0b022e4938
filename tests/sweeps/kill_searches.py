"""Repeatedly starts a search and kills it at random moments; a program, because torch does not survive a fork.

    python -m tests.sweeps.kill_searches JOB

Imports once and forks before torch has started a thread. Prints how often the search was killed, and its exit
status when it was not.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import imgcls
import imgcls.sweeps.storage
import imgcls.training.pipeline


def start(job: dict[str, Any]) -> int:
    """Start the search in a child; return its process id."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            imgcls.search(job["overrides"], job["space"], folder=Path(job["folder"]), trials=job["trials"])
            os._exit(0)
        finally:
            os._exit(1)
    return child


def main() -> None:
    """Kill the search until it ends by itself, or often enough."""
    job = json.loads(sys.argv[1])
    dice = random.Random(1)
    kills, status = 0, -1
    while kills < job["kills"] and status == -1:
        child = start(job)
        deadline = time.monotonic() + dice.uniform(0.5, 4)
        done = 0
        while not done and time.monotonic() < deadline:
            time.sleep(0.02)
            done, ended = os.waitpid(child, os.WNOHANG)
            status = ended if done else -1
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
    print(json.dumps([kills, status]))


if __name__ == "__main__":
    main()
