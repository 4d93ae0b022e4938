"""Trainings, and other work, in several processes on the CPU."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import TCPStore

from imgcls.system import interrupts
from imgcls.system.logs import LIGHTNING
from imgcls.training import worker

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
    try:
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * count
    finally:
        for process in processes:
            process.kill()


def run_and_kill(work: Callable[[], object], seconds: float | None = None) -> int:
    """The exit code of `work` in a forked process, which gets `kill -9` after `seconds`."""

    def alone() -> None:
        torch.set_num_threads(1)
        work()

    process = multiprocessing.get_context("fork").Process(target=alone)
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def as_by_torchrun(count: int, work: Callable[[], object]) -> list[Any]:
    """What `work` returns in each of `count` forked processes with the variables of torchrun.

    Raises RuntimeError if it fails in one of them; the traceback is on stderr.
    """
    store = Store()
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(count)]

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        variables |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": HOST, "MASTER_PORT": store.port}
        variables |= CLIENT
        os.environ.update({name: str(value) for name, value in variables.items()})
        pipes[rank][1].send(work())

    processes = [context.Process(target=run, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    try:
        found = []
        for process, (results, _) in zip(processes, pipes, strict=True):
            wait([results, process.sentinel], 120)
            if results.poll():  # before the process ends, which a pipe that is full would keep it from
                found.append(results.recv())
            process.join(120)
        if any(process.exitcode != 0 for process in processes):
            raise RuntimeError(f"exit codes {[process.exitcode for process in processes]}")
        return found
    finally:
        store.close()
        for process in processes:
            process.kill()


class ForkedWorker:
    """What torch's launcher uses of a `subprocess.Popen`, for `imgcls.training.worker` in a forked process."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        assert command[-3:-1] == ("-m", worker.__name__)
        self._process = multiprocessing.get_context("fork").Process(target=_work, args=(command[-1], variables))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        os.setpgid(self.pid, self.pid)  # which the launcher sends its signals to

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("imgcls.training.worker", timeout)


def _work(job: str, variables: Mapping[str, str]) -> NoReturn:
    """Be a new process as far as a training can tell."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)
    interrupts.ACTIVE.clear()
    for name in ("imgcls", *LIGHTNING):
        logging.getLogger(name).handlers = []
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.argv = [worker.__name__, job]
    code = worker.main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
