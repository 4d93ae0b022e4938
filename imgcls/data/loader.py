"""Loaders of whole batches, whose images are a function of (seed, epoch), and which are loaded ahead in a thread.

Made for Lightning, which sets the epoch with `sampler.set_epoch`, and saves and restores the position within it with
`state_dict` and `load_state_dict`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from imgcls.errors import UserError

T = TypeVar("T")


class TrainingPlan:
    """A new order per epoch, with `batch_size` images per optimiser step, split over processes and micro-batches.

    The order depends on (seed, epoch) alone, so that a step has the same images for any `world_size` and
    `accumulation`. The last, short step is dropped unless it is the only one.

    Args:
        labels: int64 (N,), the classes of the images.
        batch_size: images per optimiser step, over all processes.
        sampler: `shuffle` uses each image once per epoch; `balanced` draws N images with replacement, each class
            equally often on average.
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
                f"A batch of {self.batch_size} training images cannot be split into {parts} parts ({world_size} "
                f"processes with {accumulation} micro-batches). Set data.batch_size to {parts} or more."
            )

    def order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """(positions, draws) of the whole epoch over all processes, both int64 (N,)."""
        generator, count = self._generator(epoch), len(self.labels)
        if self.sampler == "shuffle":
            order = torch.randperm(count, generator=generator)
            return order, order
        per_class = np.bincount(self.labels)
        cumulative = torch.from_numpy(1.0 / per_class[self.labels]).cumsum(0)
        chosen = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
        order = torch.searchsorted(cumulative, chosen, right=True).clamp_(max=count - 1)
        return order, order + (_occurrence(order) << 32)

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 0x9E3779B97F4A7C15 + epoch) & ((1 << 63) - 1))

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def epoch(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """(positions, draws) of each batch of this process, both int64 (n,).

        A draw is unique within the epoch even where a position is not (`balanced`); otherwise it equals the position.
        """
        positions, draws = self.order(epoch)
        parts = self.world_size * self.accumulation
        cuts = [part * self.batch_size // parts for part in range(parts + 1)]
        own_parts = range(self.rank * self.accumulation, (self.rank + 1) * self.accumulation)
        slices = [
            slice(step * self.batch_size + cuts[part], step * self.batch_size + cuts[part + 1])
            for step in range(self.steps)
            for part in own_parts
        ]
        return [(positions[part], draws[part]) for part in slices]


class ShardedPlan(TrainingPlan):
    """The images of some shards in a random order, then those of others: the shards are in another order per epoch.

    Args:
        labels, batch_size, **options: see TrainingPlan.
        shards: int64 (N,), the shard of each image.
        together: number of shards whose images are shuffled together.
    """

    def __init__(
        self, labels: np.ndarray, batch_size: int, *, shards: np.ndarray, together: int, **options: Any
    ) -> None:
        super().__init__(labels, batch_size, **options)
        self.shards, self.together = torch.from_numpy(shards), together

    def order(self, epoch: int) -> tuple[Tensor, Tensor]:
        generator = self._generator(epoch)
        turns = torch.randperm(int(self.shards.max()) + 1, generator=generator)
        within = torch.randperm(len(self.shards), generator=generator)
        order = torch.argsort(turns[self.shards] // self.together * len(within) + within)
        return order, order


def _occurrence(values: Tensor) -> Tensor:
    """How often each value occurred earlier in the sequence, int64 (N,): [5, 3, 5, 5] gives [0, 0, 1, 2]."""
    ordered, at = torch.sort(values, stable=True)
    starts = torch.searchsorted(ordered, ordered)
    occurrence = torch.empty_like(values)
    occurrence[at] = torch.arange(len(values)) - starts
    return occurrence


class EvaluationPlan:
    """Every image once, in order: process r takes r::world_size, without padding; the last batch may be short.

    If there are fewer images than processes, those without one have an empty batch, because the others would wait for
    their part of the metrics.
    """

    accumulation = 1

    def __init__(self, count: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.positions = torch.arange(min(rank, count), count, world_size)
        self.empty = count == 0
        self.common = -(-(count // world_size) // batch_size)
        """Number of batches that every process has."""
        self.batch_size = batch_size

    def __len__(self) -> int:
        return 0 if self.empty else max(1, -(-len(self.positions) // self.batch_size))

    def epoch(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """(positions, draws) of each batch, which are equal, int64 (n,)."""
        return [] if self.empty else [(part, part) for part in self.positions.split(self.batch_size)]


Plan = TrainingPlan | EvaluationPlan
"""The images of each batch of one process."""


class Loader(Generic[T]):
    """Iterates over the batches of a plan, and loads the next ones in a thread meanwhile.

    Without Lightning, each new iteration is the next epoch; one that was left early is repeated.

    Args:
        plan: the images of each batch.
        load: called in the thread as load(positions, draws, epoch); returns the batch. The iteration raises its errors.
        finish: called on each batch in the iterating thread, before it is yielded.
        ahead: batches that are loaded before they are needed; 0 loads in the iterating thread.
        stream: instead of `load`, called as stream([(positions, draws), …], epoch); yields the batches.
    """

    batch_sampler = None
    """Read by Lightning, as of a DataLoader."""

    def __init__(
        self,
        plan: Plan,
        load: Callable[[Tensor, Tensor, int], T] | None = None,
        *,
        finish: Callable[[T], T] | None = None,
        ahead: int = 2,
        stream: Callable[[Sequence[tuple[Tensor, Tensor]], int], Generator[T, None, None]] | None = None,
    ) -> None:
        self.plan, self.load, self.finish, self.ahead, self.stream = plan, load, finish, ahead, stream
        self.epoch = 0
        self._yielded = 0
        self._resume_at = 0

    @property
    def sampler(self) -> Loader[T]:
        """The object on which Lightning calls `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch: a new epoch starts at its first batch, the same one continues."""
        if epoch != self.epoch:
            self.epoch, self._yielded, self._resume_at = epoch, 0, 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[T]:
        # A generator, so that nothing is decided before the first batch is needed: Lightning calls iter() before
        # set_epoch() in the first epoch of a run, and after it in the others.
        if self._yielded >= len(self) and not self._resume_at:
            self.set_epoch(self.epoch + 1)
        start, self._resume_at, self._yielded = self._resume_at, 0, self._resume_at
        epoch = self.epoch
        batches = self.plan.epoch(epoch)[start:]
        loaded = self._load_all(batches, epoch)
        try:
            for batch in loaded:
                self._yielded += 1
                yield self.finish(batch) if self.finish is not None else batch
        finally:
            loaded.close()

    def _load_all(self, batches: Sequence[tuple[Tensor, Tensor]], epoch: int) -> Generator[T, None, None]:
        if self.stream is not None:
            return self.stream(batches, epoch)
        load = self.load
        assert load is not None
        return run_ahead(lambda batch: load(batch[0], batch[1], epoch), batches, self.ahead)

    def state_dict(self) -> dict[str, int]:
        """The epoch and the number of batches yielded in it, without those loaded ahead."""
        return {"epoch": self.epoch, "batches": self._yielded, "accumulation": self.plan.accumulation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume after the yielded batches of `state`, or after their steps if the batch is now split differently."""
        steps, rest = divmod(int(state["batches"]), int(state.get("accumulation", 1)))
        same_split = state.get("accumulation", 1) == self.plan.accumulation
        self.epoch = int(state["epoch"])
        self._yielded = self._resume_at = int(state["batches"]) if same_split else steps * self.plan.accumulation
        if rest and not same_split:
            raise UserError("The checkpoint is from within an accumulated step; the batch must be split as before.")


def run_ahead(load: Callable[[Any], T], items: Iterable[Any], ahead: int) -> Generator[T, None, None]:
    """load(item) for each item in order, in one thread, up to `ahead` items before they are needed.

    Closing the generator ends the thread and drops the items loaded ahead.
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
