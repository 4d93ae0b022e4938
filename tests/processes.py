"""Trainings, and other work, in several processes on the CPU."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import TCPStore

HOST = "127.0.0.1"
CLIENT = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
"""The variable of torchrun by which no process of a training opens a store."""


class Store:
    """Where forked processes find each other: `port` is open, as the agent of torchrun has it, until it is closed.

    Had this process only looked for a free port, that could be another test's by the time one of them opens it. The
    store is in a forked process of its own, because it has a thread, which the others would wait for.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self._ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(self._ours, theirs), daemon=True).start()
        theirs.close()
        self.port: int = self._ours.recv()

    def close(self) -> None:
        self._ours.close()


def _serve(ours: Connection, theirs: Connection) -> None:
    ours.close()
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    theirs.send(store.port)
    with contextlib.suppress(EOFError):
        theirs.recv()  # until the other end is closed
    os._exit(0)


class WithStore(LightningEnvironment):
    """Each start of processes has a store of its own: their keys must not be those of earlier processes."""

    store: Store | None = None

    @property
    def main_port(self) -> int:
        if multiprocessing.parent_process() is None:  # Lightning asks before each start, and in each process again
            if WithStore.store is not None:
                WithStore.store.close()
            WithStore.store = Store()
        assert WithStore.store is not None
        return WithStore.store.port


class Forked(DDPStrategy):
    """Processes that are forked from this one: a new one would import torch and Lightning for ten seconds.

    A forked process has none of the threads of its parent, and would wait for those of OpenMP for ever. So it computes
    in one thread. The number of threads in this process stays as it is.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(start_method="fork", process_group_backend="gloo", cluster_environment=WithStore(), **options)

    def setup_environment(self) -> None:
        torch.set_num_threads(1)
        os.environ.update(CLIENT)
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
    store = Store()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        variables |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": HOST, "MASTER_PORT": store.port}
        variables |= CLIENT
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
        store.close()
        for process in processes:
            process.kill()
