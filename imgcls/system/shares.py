"""The share of one of several processes in work that needs no other process, joined by the last that is done.

The processes are those of torchrun or srun, on any number of machines with one file system. They do not talk to each
other: each writes its part beside the output, and whoever finds all parts there joins them. A part that is complete is
kept if another process fails, so that the same command, started again, does only what is left.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from imgcls.system.files import check_replaceable, take_lock

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """One of `count` equal shares."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> Share:
        """By the variables of torchrun, or those of a step of srun; everything where there are none."""
        for rank, count in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
            if rank in os.environ and count in os.environ:
                return cls(int(os.environ[rank]), int(os.environ[count]))
        return cls()

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this share, which follow each other: all shares together are `items` in their order."""
        return items[self.rank * len(items) // self.count : (self.rank + 1) * len(items) // self.count]

    def parts(self, output: Path, key: Sequence[object]) -> list[Path]:
        """The file of each share, beside `output`, named after everything that its content depends on.

        Raises UserError where no file may take the place of `output`.
        """
        check_replaceable(output)
        digest = hashlib.blake2b(json.dumps([*key, self.count]).encode("utf-8", "surrogateescape"), digest_size=6)
        name = f".{output.name}.{digest.hexdigest()}"
        return [output.with_name(f"{name}.{rank + 1}-of-{self.count}{output.suffix}") for rank in range(self.count)]


ALL = Share()


def join_if_last(parts: Sequence[Path], join: Callable[[], object]) -> bool:
    """Call `join` if all `parts` are complete, and remove them then; in one process only, also if several see them all.

    Each process calls it when its own part is complete. Returns whether this process has joined them.
    """
    with ExitStack() as stack:
        try:
            take_lock(stack.enter_context(parts[0].open("rb")), wait=True)
        except FileNotFoundError:
            return False
        if not all(part.is_file() for part in parts):  # one is missing, or all have been joined meanwhile
            return False
        join()
        for part in parts:
            part.unlink()
    return True
