"""How fast a run trained, and where the time of its steps went."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import lightning as L

from imgcls.system.lightning_internals import batch_number


class Timing(L.Callback):
    """Measures training time, images and the wait for data, by the host's clock and without synchronisation.

    The wait is the gap from the end of one training batch to the start of the next, which agrees with Lightning's
    profile of the loader to within 1 %. A GPU works asynchronously, so on it the parts of a step measure when the host
    queued the work; the step as a whole is correct, because the host cannot run far ahead.

    Attributes:
        unit: what a batch holds: images, or feature_vectors of a backbone that ran before.
        keep_steps: collect a StepTime per batch in `steps`; the reader must empty the list.
        began: monotonic time at which this object was made.
        initialisation_seconds: from then to the first batch; None before it.
        wall_seconds: from the first batch to the end of the training, including everything in between; of the time
            before a resume, up to its checkpoint.
        validation_seconds: time spent in validation.
        finished: monotonic time at which the training ended; None before.
    """

    def __init__(self) -> None:
        self.unit = "images"
        self.images = 0
        self.seconds = 0.0
        self.wait_seconds = 0.0
        self.wall_seconds = 0.0
        self.keep_steps = False
        self.steps: list[StepTime] = []
        self.began = time.monotonic()
        self.initialisation_seconds: float | None = None
        self.validation_seconds = 0.0
        self.finished: float | None = None
        self._first = 0.0
        self._mark = 0.0
        self._wait = 0.0
        self._validation_began = 0.0
        self._times = [0.0, 0.0, 0.0]  # start of the batch, of the backward pass, its end

    def state_dict(self) -> dict[str, Any]:
        wall = self.wall_seconds + (time.monotonic() - self._first if self._first else 0.0)
        return {"images": self.images, "seconds": self.seconds, "waited": self.wait_seconds, "wall_seconds": wall}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images, self.seconds, self.wait_seconds = (state_dict[name] for name in ("images", "seconds", "waited"))
        self.wall_seconds = state_dict.get("wall_seconds", 0.0)

    def on_train_epoch_start(self, *args: Any) -> None:
        self._mark = time.monotonic()

    def on_train_start(self, *args: Any) -> None:  # a resume within an epoch does not start the epoch
        self._mark = time.monotonic()

    def on_train_batch_start(self, *args: Any) -> None:
        now = time.monotonic()
        if self.initialisation_seconds is None:
            self.initialisation_seconds = now - self.began
            self._first = now
        self._wait = now - self._mark
        self.wait_seconds += self._wait
        self.seconds += self._wait
        self._times = [now, now, now]
        self._mark = now

    def on_before_backward(self, *args: Any) -> None:
        self._times[1] = time.monotonic()

    def on_after_backward(self, *args: Any) -> None:
        self._times[2] = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        now = time.monotonic()
        self.seconds += now - self._mark
        self.images += len(batch[0]) * trainer.world_size
        self._mark = now
        if self.keep_steps:
            start, backward, ended = self._times
            number = batch_number(trainer)
            began = time.time() - (now - start) - self._wait
            self.steps.append(StepTime(number, began, self._wait, backward - start, ended - backward, now - ended))

    def on_validation_start(self, *args: Any) -> None:
        self._validation_began = time.monotonic()

    def on_validation_end(self, *args: Any) -> None:
        self._mark = time.monotonic()
        self.validation_seconds += self._mark - self._validation_began

    def on_train_end(self, *args: Any) -> None:
        self.finished = time.monotonic()
        if self._first:
            self.wall_seconds += self.finished - self._first
            self._first = 0.0

    def summary(self) -> dict[str, float]:
        """Speed and waiting.

        `images_per_second` (or `feature_vectors_per_second`) of training, `training_seconds`, `wall_seconds` and
        `data_wait_fraction` (0 to 1).
        """
        return {
            f"{self.unit}_per_second": round(self.images / self.seconds, 2) if self.seconds else 0.0,
            "training_seconds": round(self.seconds, 3),
            "wall_seconds": round(self.wall_seconds, 3),
            "data_wait_fraction": round(self.wait_seconds / self.seconds, 4) if self.seconds else 0.0,
        }


@dataclass(frozen=True)
class StepTime:
    """Durations within one training batch, in seconds of the host's clock."""

    batch: int
    """Number of training batches of the run before this one."""
    began: float
    """Start of the wait for its images, in seconds since 1970."""
    data_wait: float
    forward: float
    backward: float
    optimiser: float
    """Clipping, step and learning rate; near 0 if the gradients are only accumulated."""

    @property
    def seconds(self) -> float:
        """Total of the step, with its wait for data."""
        return self.data_wait + self.forward + self.backward + self.optimiser
