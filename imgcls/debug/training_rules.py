"""Rules about the losses, the pictures and the time of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from imgcls.debug.observations import Record
from imgcls.debug.rules import Outcome, Rule


@dataclass(frozen=True)
class Overfit(Rule):
    """Validation loss exceeds training loss by more than `ratio_threshold` of it, `patience` evaluations in a row.

    The training loss holds smoothing and augmentation, so it is rather too high than too low: what fires is no
    artefact of them. It counts only while validation loss is above its best, as memorising costs nothing before.
    """

    patience: int = 1
    start_step: int = 0
    ratio_threshold: float = 0.1
    advice: ClassVar[str] = (
        "Train fewer epochs, augment more (augment=strong, mixup), freeze more of the backbone, or find more pictures."
    )

    def find(self, record: Record) -> Outcome:
        rows = [row for row in record.history if "val/loss" in row and row.get("step", 0) >= self.start_step]
        best, in_a_row, steps = math.inf, 0, []
        for row in rows:
            train, val = row["train/loss"], row["val/loss"]
            over = (
                train > 0 and (val - train) / train > self.ratio_threshold and val > best * (1 + self.ratio_threshold)
            )
            in_a_row = in_a_row + 1 if over else 0
            if in_a_row >= self.patience:
                steps.append(int(row.get("step", row["epoch"])))
            best = min(best, val)
        if in_a_row < self.patience:  # a bad epoch that was followed by better ones is none
            return self._healthy(len(rows))
        last = rows[-1]
        return self._issue(
            f"Validation loss rose from its best {best:.3g} to {last['val/loss']:.3g} while training loss fell to "
            f"{last['train/loss']:.3g}.",
            len(rows),
            steps,
        )


@dataclass(frozen=True)
class Overtraining(Rule):
    """No gain of `delta` for `patience_train` evaluations in training and `patience_validation` in validation."""

    patience_train: int = 5
    patience_validation: int = 10
    delta: float = 0.01
    advice: ClassVar[str] = "Train fewer epochs, or use early_stopping=patience."

    def find(self, record: Record) -> Outcome:
        rows = record.history
        waited = {name: _without_improvement(rows, name, self.delta) for name in ("train/loss", "val/loss")}
        if waited["train/loss"] >= self.patience_train and waited["val/loss"] >= self.patience_validation:
            last = int(rows[-1].get("step", rows[-1]["epoch"]))
            return self._issue(
                f"Nothing has improved for {waited['train/loss']} epochs in training and {waited['val/loss']} in "
                "validation.",
                len(rows),
                [last],
            )
        return self._healthy(len(rows))


@dataclass(frozen=True)
class LossNotDecreasing(Rule):
    """The mean loss of `num_steps` steps never falls `diff_percent` % below that of the first ones.

    SageMaker compares single steps, which the noise of mini-batches makes fire in any training; here means are
    compared, `patience` in a row must be no better than the first, and the run's end counts, not a plateau after
    progress.
    """

    num_steps: int = 10
    diff_percent: float = 0.1
    patience: int = 3
    advice: ClassVar[str] = "Try another learning rate (optim.lr=auto), check the labels, and train something at all."

    def find(self, record: Record) -> Outcome:
        means = _window_means(record.losses, self.num_steps)
        limit = means[0] * (1 - self.diff_percent / 100) if means else 0.0
        stuck = [position for position, mean in enumerate(means) if position and not mean < limit]
        if len(means) <= self.patience or len(stuck) < len(means) - 1:
            return self._healthy(len(means))
        return self._issue(
            f"The loss has not fallen: {means[0]:.4g} in the first {self.num_steps} steps, now {means[-1]:.4g}.",
            len(means),
            [position * self.num_steps for position in stuck],
        )


@dataclass(frozen=True)
class ClassImbalance(Rule):
    """The largest class has more than `threshold_imbalance` times the training pictures of the smallest."""

    threshold_imbalance: float = 10.0
    samples: int = 500
    advice: ClassVar[str] = "Use loss.class_weights=balanced or data.sampler=balanced, and look at macro F1."

    def find(self, record: Record) -> Outcome:
        counts = record.class_counts
        if sum(counts) < self.samples or max(counts) <= self.threshold_imbalance * max(1, min(counts)):
            return self._healthy(len(counts))
        return self._issue(f"The largest class has {max(counts)} pictures, the smallest {min(counts)}.", len(counts))


@dataclass(frozen=True)
class CheckInputImages(Rule):
    """The mean of the normalised pictures is further than `threshold_mean` from 0, over `threshold_samples` of them."""

    threshold_mean: float = 0.2
    threshold_samples: int = 500
    advice: ClassVar[str] = "Use data.normalization=dataset, which takes the mean of your own pictures."

    def find(self, record: Record) -> Outcome:
        seen = [(one.images, one.input_mean) for one in record.observations if one.input_mean is not None]
        images = sum(count for count, _ in seen)
        if images < self.threshold_samples:
            return self._healthy(images)
        mean = sum(count * value for count, value in seen) / images
        if abs(mean) <= self.threshold_mean:
            return self._healthy(images)
        return self._issue(f"The mean of {images} normalised pictures is {mean:.2f} instead of about 0.", images)


@dataclass(frozen=True)
class StalledTraining(Rule):
    """A step took longer than `threshold` seconds."""

    threshold: float = 1800.0
    advice: ClassVar[str] = "Look at what the step waited for: the disk, the network, another process of the run."

    def find(self, record: Record) -> Outcome:
        long = [(step, seconds) for step, seconds in record.pauses if seconds > self.threshold]
        if not long:
            return self._healthy(len(record.pauses))
        step, seconds = max(long, key=lambda pair: pair[1])
        return self._issue(f"Step {step} took {seconds:.0f} seconds.", len(record.pauses), [step for step, _ in long])


def _without_improvement(rows: Sequence[Mapping[str, float]], name: str, delta: float) -> int:
    best, waited = math.inf, 0
    for row in rows:
        if name not in row:
            continue
        improved = row[name] < best - delta
        best, waited = (row[name], 0) if improved else (best, waited + 1)
    return waited


def _window_means(values: Sequence[float], size: int) -> list[float]:
    whole = len(values) // size
    return [fmean(values[position * size : (position + 1) * size]) for position in range(whole)]
