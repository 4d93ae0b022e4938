"""Loaders of whole batches: which pictures a batch takes is decided by (seed, epoch), and loading runs ahead.

Made for Lightning: an epoch is set through `sampler.set_epoch`, the position within it is saved and restored with
`state_dict` and `load_state_dict`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from imgcls.errors import UserError

T = TypeVar("T")


class Plan(ABC):
    """Which pictures, of `pictures` in the split, each batch of one process takes."""

    accumulation: int = 1
    """Consecutive batches that make up one optimiser step of this process."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches in an epoch."""

    @abstractmethod
    def epoch(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """For each batch (positions, draws), both int64 (n,).

        A draw is unique within the epoch even where a position is not (`balanced`); it equals the position otherwise.
        """


class TrainingPlan(Plan):
    """Each epoch a new order; each optimiser step takes `batch_size` pictures, cut over processes and micro-batches.

    The order depends on (seed, epoch) alone, so the pictures of a step are the same for any `world_size` and
    `accumulation`. The last, short step is dropped unless it is the only one.

    Args:
        labels: int64 (N,), the classes of the pictures.
        batch_size: pictures in one optimiser step, over all processes.
        sampler: `shuffle` sees each picture once an epoch; `balanced` draws N pictures with replacement, each class
            equally often in the mean.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        sampler: str = "shuffle",
    ) -> None:
        self.labels, self.seed, self.sampler = np.asarray(labels, dtype=np.int64), seed, sampler
        self.batch_size = min(batch_size, len(self.labels))
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation
        self.steps = len(self.labels) // self.batch_size if self.batch_size else 0
        parts = world_size * accumulation
        if self.batch_size < parts:
            raise UserError(
                f"A batch of {self.batch_size} training pictures cannot be cut into {parts} parts ({world_size} "
                f"processes of {accumulation} micro-batches). Set data.batch_size to {parts} or more."
            )

    @property
    def micro_batch(self) -> float:
        """Pictures of a micro-batch in the mean; slices may differ by one."""
        return self.batch_size / (self.world_size * self.accumulation)

    def order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """(positions, draws) of the whole epoch over all processes, both int64 (N,)."""
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B97F4A7C15 + epoch) & ((1 << 63) - 1))
        count = len(self.labels)
        if self.sampler == "shuffle":
            order = torch.randperm(count, generator=generator)
            return order, order
        per_class = np.bincount(self.labels)
        weights = torch.from_numpy(1.0 / per_class[self.labels])
        cumulative = weights.cumsum(0)
        chosen = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
        order = torch.searchsorted(cumulative, chosen, right=True).clamp_(max=count - 1)
        return order, order + (_occurrence(order) << 32)

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def epoch(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        positions, draws = self.order(epoch)
        parts = self.world_size * self.accumulation
        cuts = [part * self.batch_size // parts for part in range(parts + 1)]
        mine = range(self.rank * self.accumulation, (self.rank + 1) * self.accumulation)
        slices = [
            slice(step * self.batch_size + cuts[part], step * self.batch_size + cuts[part + 1])
            for step in range(self.steps)
            for part in mine
        ]
        return [(positions[cut], draws[cut]) for cut in slices]


def _occurrence(values: Tensor) -> Tensor:
    """How often each value stood before in the sequence, int64 (N,): [5, 3, 5, 5] gives [0, 0, 1, 2]."""
    ordered, at = torch.sort(values, stable=True)
    starts = torch.searchsorted(ordered, ordered)
    occurrence = torch.empty_like(values)
    occurrence[at] = torch.arange(len(values)) - starts
    return occurrence


class EvaluationPlan(Plan):
    """Every picture once, in order: process r takes r::world_size, nothing is padded, the last batch may be short.

    A process that is left without any, because there are fewer pictures than processes, has one batch of none: one
    that skipped the evaluation would let the others wait for its part of the metrics.
    """

    def __init__(self, count: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.positions = torch.arange(min(rank, count), count, world_size)
        self.nothing = count == 0
        self.batch_size = batch_size

    def __len__(self) -> int:
        return 0 if self.nothing else max(1, -(-len(self.positions) // self.batch_size))

    def epoch(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        return [] if self.nothing else [(part, part) for part in self.positions.split(self.batch_size)]


class Loader(Generic[T]):
    """Iterates over the batches of a plan, loading the next ones in a thread while the current one is worked on.

    Args:
        plan: which pictures each batch takes.
        load: called in the thread as load(positions, draws, epoch); what it returns is the batch, what it raises is
            raised by the iteration.
        finish: called on each batch in the thread that iterates, as it is handed out.
        ahead: how many batches are loaded before they are asked for; 0 loads in the calling thread.

    Used without Lightning, each new pass is the next epoch; a pass that was broken off is begun again.
    """

    batch_sampler = None
    """Asked for by Lightning, as DataLoader has it."""

    def __init__(
        self,
        plan: Plan,
        load: Callable[[Tensor, Tensor, int], T],
        *,
        finish: Callable[[T], T] | None = None,
        ahead: int = 2,
    ) -> None:
        self.plan, self.load, self.finish, self.ahead = plan, load, finish, ahead
        self.epoch = 0
        self._given = 0
        self._resume_at = 0

    @property
    def sampler(self) -> Loader[T]:
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch: a new epoch begins at its first batch, the same one goes on."""
        if epoch != self.epoch:
            self.epoch, self._given, self._resume_at = epoch, 0, 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[T]:
        # A generator, so that nothing is decided before the first batch is asked for: Lightning calls iter() before
        # set_epoch() in the first epoch of a run, and after it in the others.
        if self._given >= len(self) and not self._resume_at:
            self.set_epoch(self.epoch + 1)
        start, self._resume_at, self._given = self._resume_at, 0, self._resume_at
        epoch = self.epoch
        batches = self.plan.epoch(epoch)[start:]
        loaded = run_ahead(lambda batch: self.load(batch[0], batch[1], epoch), batches, self.ahead)
        try:
            for batch in loaded:
                self._given += 1
                yield self.finish(batch) if self.finish is not None else batch
        finally:
            loaded.close()

    def state_dict(self) -> dict[str, int]:
        """The epoch and the batches that were handed out in it; those loaded ahead do not count."""
        return {"epoch": self.epoch, "batches": self._given, "accumulation": self.plan.accumulation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that `state` says were handed out, at the same step if the batch is cut otherwise."""
        steps, rest = divmod(int(state["batches"]), int(state.get("accumulation", 1)))
        same_cut = state.get("accumulation", 1) == self.plan.accumulation
        self.epoch = int(state["epoch"])
        self._given = self._resume_at = int(state["batches"]) if same_cut else steps * self.plan.accumulation
        if rest and not same_cut:
            raise UserError("The checkpoint lies within an accumulated step, and the batch is now cut otherwise.")


def run_ahead(load: Callable[[Any], T], items: Iterable[Any], ahead: int) -> Generator[T, None, None]:
    """load(item) for each item in order, up to `ahead` of them before they are asked for, in one thread.

    Closing the generator ends the thread and drops what was loaded ahead.
    """
    if ahead < 1:
        yield from map(load, items)
        return
    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="imgcls-loader")
    try:
        for item in items:
            pending.append(pool.submit(load, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
