"""Trainings, and other work, in several processes on the CPU."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy


class Forked(DDPStrategy):
    """Processes that are forked from this one: a new one would import torch and Lightning for ten seconds.

    A forked process has none of the threads of its parent, and would wait for those of OpenMP for ever. So it computes
    in one thread. The number of threads in this process stays as it is.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(start_method="fork", process_group_backend="gloo", **options)

    def setup_environment(self) -> None:
        torch.set_num_threads(1)
        super().setup_environment()


def run_forked(work: Callable[[], object], count: int) -> None:
    """`work` in each of `count` forked processes at a time, all of which must end without an error within a minute."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count


def as_by_torchrun(count: int, work: Callable[[], object]) -> list[Any]:
    """What `work` returns in each of `count` forked processes with the variables of torchrun.

    Raises RuntimeError if it fails in one of them; the traceback is on stderr.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        variables |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in variables.items()})
        results.put((rank, work()))

    processes = [context.Process(target=run, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(120)
        if any(process.exitcode != 0 for process in processes):
            raise RuntimeError(f"exit codes {[process.exitcode for process in processes]}")
        found = dict(results.get() for _ in processes)
        return [found[rank] for rank in range(count)]
    finally:
        for process in processes:
            process.kill()
