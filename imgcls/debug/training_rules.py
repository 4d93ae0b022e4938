"""Rules about the losses, the pictures and the time of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from imgcls.debug.observations import Record
from imgcls.debug.rules import Outcome, Rule

FEWEST_PICTURES = 5  # of a class in a validation that says anything about it


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
    """The mean loss of `num_steps` steps never falls `diff_percent` % below that of the first ones, or it ends more
    than `increase_threshold_percent` % above it.

    SageMaker compares single steps, which the noise of mini-batches makes fire in any training; here means are
    compared, at least `patience` of them, when the warm-up of the learning rate has been over for a while. A plateau
    after progress is none of this rule's business.
    """

    num_steps: int = 10
    diff_percent: float = 0.1
    increase_threshold_percent: float = 5.0
    patience: int = 3
    advice: ClassVar[str] = "Try another learning rate (optim.lr=auto), check the labels, and train something at all."

    def find(self, record: Record) -> Outcome:
        means = _window_means(record.losses, self.num_steps)
        if len(means) <= self.patience or not record.settled:
            return self._healthy(len(means))
        fallen, risen = means[0] * (1 - self.diff_percent / 100), means[0] * (1 + self.increase_threshold_percent / 100)
        stuck = [place for place, mean in enumerate(means) if place and not mean < fallen]
        late = range(len(means) - self.patience, len(means))
        if len(stuck) == len(means) - 1:
            told = "The loss has not fallen"
        elif all(not means[place] <= risen for place in late):  # NaN is not
            stuck, told = list(late), "The loss has risen again"
        else:
            return self._healthy(len(means))
        return self._issue(
            f"{told}: {means[0]:.4g} in the first {self.num_steps} steps, now {means[-1]:.4g}.",
            len(means),
            [place * self.num_steps for place in stuck],
        )


@dataclass(frozen=True)
class ClassImbalance(Rule):
    """The largest class has more than `threshold_imbalance` times the training pictures of the smallest; or a rare
    class is mispredicted for more than `threshold_misprediction` (0 to 1) of its validation pictures.

    SageMaker's second condition holds for every class while a training begins. Here it counts in the last validation,
    for classes of at most half the pictures of the largest, and only while the mean of all classes is mispredicted for
    at most half of the threshold: then it is the imbalance that keeps the class behind.
    """

    threshold_imbalance: float = 10.0
    threshold_misprediction: float = 0.7
    samples: int = 500
    advice: ClassVar[str] = "Use loss.class_weights=balanced or data.sampler=balanced, and look at macro F1."

    def find(self, record: Record) -> Outcome:
        counts = record.class_counts
        if sum(counts) < self.samples:
            return self._healthy(len(counts))
        if max(counts) > self.threshold_imbalance * max(1, min(counts)):
            return self._issue(
                f"The largest class has {max(counts)} pictures, the smallest {min(counts)}.", len(counts)
            )
        missed = self._missed(counts, record.recognised)
        if not missed:
            return self._healthy(len(counts))
        worst = max(missed, key=missed.__getitem__)
        return self._issue(
            f"{len(missed)} rare classes are hardly recognised; class {worst} has {counts[worst]} training pictures, "
            f"the largest {max(counts)}, and {missed[worst]:.0%} of its validation pictures are taken for others.",
            len(counts),
        )

    def _missed(self, counts: Sequence[int], recognised: Sequence[tuple[int, int]]) -> dict[int, float]:
        """Of each rare class that is mispredicted because it is one, by its position: how often."""
        wrong = {place: 1 - right / seen for place, (seen, right) in enumerate(recognised) if seen >= FEWEST_PICTURES}
        if not wrong or fmean(wrong.values()) > self.threshold_misprediction / 2:
            return {}
        return {
            place: share
            for place, share in wrong.items()
            if share > self.threshold_misprediction and 2 * counts[place] <= max(counts)
        }


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
    """A step took longer than `threshold` seconds; while it does, a thread of the Recorder says so."""

    threshold: float = 1800.0
    advice: ClassVar[str] = "Look at what the step waited for: the disk, the network, another process of the run."

    def find(self, record: Record) -> Outcome:
        steps = len(record.losses)
        long = [(step, seconds) for step, seconds in record.pauses if seconds > self.threshold]
        if not long:
            return self._healthy(steps)
        step, seconds = max(long, key=lambda pair: pair[1])
        return self._issue(f"Step {step} took {seconds:.3g} seconds.", steps, [step for step, _ in long])

    def standing(self, step: int, seconds: float) -> Outcome:
        """The outcome while `step` has not ended."""
        return self._issue(f"Step {step} has taken {seconds:.3g} seconds and has not ended.", step, [step])


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
