"""Rules about the losses, the images and the duration of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from imgcls.debug.observations import Record
from imgcls.debug.rules import Outcome, Rule

MIN_IMAGES = 5  # of a class in the validation, to judge how well it is classified


@dataclass(frozen=True)
class Overfit(Rule):
    """Validation loss exceeds training loss by more than `ratio_threshold` of it in `patience` evaluations in a row.

    Label smoothing and augmentation raise the training loss, so they cannot make the rule fire. It fires only while the
    validation loss is above its best, because memorising does no harm before.
    """

    patience: int = 1
    start_step: int = 0
    ratio_threshold: float = 0.1
    advice: ClassVar[str] = (
        "Train fewer epochs, augment more (augment=strong, mixup), freeze more of the backbone, or find more images."
    )

    def find(self, record: Record) -> Outcome:
        rows = [row for row in record.history if "val/loss" in row and row.get("step", 0) >= self.start_step]
        best, in_a_row, steps = math.inf, 0, []
        for row in rows:
            train, val = row["train/loss"], row["val/loss"]
            over = train > 0 and (val - train) / train > self.ratio_threshold
            in_a_row = in_a_row + 1 if over and val > best * (1 + self.ratio_threshold) else 0
            if in_a_row >= self.patience:
                steps.append(_step_of(row))
            best = min(best, val)
        if in_a_row < self.patience:  # better epochs have followed
            return self._healthy(len(rows))
        last = rows[-1]
        return self._issue(
            f"Validation loss rose from its best {best:.3g} to {last['val/loss']:.3g} while training loss fell to "
            f"{last['train/loss']:.3g}.",
            len(rows),
            steps,
        )


@dataclass(frozen=True)
class GeneralizationGap(Rule):
    """At the end, training accuracy is more than `threshold` points above validation accuracy.

    SageMaker has no such rule; its Overfit compares losses, and is silent where the validation loss never rises, as for
    the head of a frozen backbone that knows all training images and a third of the others.
    """

    threshold: float = 25.0
    advice: ClassVar[str] = (
        "The network knows its training images, but not what they have in common: augment more, train less of it "
        "(model.freeze=backbone) or, if it is frozen already, fine-tune it with augmentation, or find more images."
    )

    def find(self, record: Record) -> Outcome:
        rows = [row for row in record.history if {"train/accuracy", "val/accuracy"} <= row.keys()]
        if not rows or 100 * (rows[-1]["train/accuracy"] - rows[-1]["val/accuracy"]) <= self.threshold:
            return self._healthy(len(rows))
        last = rows[-1]
        train, val = last["train/accuracy"], last["val/accuracy"]
        sentence = f"Accuracy is {train:.1%} in training, but {val:.1%} in validation."
        return self._issue(sentence, len(rows), [_step_of(last)])


@dataclass(frozen=True)
class Overtraining(Rule):
    """No gain of `delta` for `patience_train` evaluations in training and `patience_validation` in validation."""

    patience_train: int = 5
    patience_validation: int = 10
    delta: float = 0.01
    advice: ClassVar[str] = "Train fewer epochs, or use early_stopping=patience."

    def find(self, record: Record) -> Outcome:
        rows = record.history
        train, val = (_epochs_without_gain(rows, name, self.delta) for name in ("train/loss", "val/loss"))
        if train < self.patience_train or val < self.patience_validation:
            return self._healthy(len(rows))
        sentence = f"Training loss has not improved for {train} epochs, validation loss for {val}."
        return self._issue(sentence, len(rows), [_step_of(rows[-1])])


@dataclass(frozen=True)
class LossNotDecreasing(Rule):
    """The mean loss of `num_steps` steps never falls `diff_percent` % below that of the first ones, or ends more than
    `increase_threshold_percent` % above it.

    SageMaker compares single steps, which would fire in any training because mini-batch losses are noisy. Here means
    are compared, at least `patience` of them, and only some time after the learning rate's warm-up. A plateau after
    progress does not count, nor does a loss that was good from the start, as that of a solved head, and still is.
    """

    num_steps: int = 10
    diff_percent: float = 0.1
    increase_threshold_percent: float = 5.0
    patience: int = 3
    advice: ClassVar[str] = (
        "Try another learning rate (optim.lr=auto), check the labels, and that not everything is frozen."
    )

    def find(self, record: Record) -> Outcome:
        windows = record.losses.windows(self.num_steps)
        means = windows.means
        if (
            len(means) <= self.patience
            or not record.settled
            or (record.is_good(means[0]) and record.is_good(means[-1]))
        ):
            return self._healthy(len(means))
        fallen, risen = means[0] * (1 - self.diff_percent / 100), means[0] * (1 + self.increase_threshold_percent / 100)
        late = range(len(means) - self.patience, len(means))
        if not windows.lowest < fallen:  # also true of NaN
            stuck, what = range(1, len(means)), "The loss has not fallen"
        elif all(not means[window] <= risen for window in late):
            stuck, what = late, "The loss has risen again"
        else:
            return self._healthy(len(means))
        return self._issue(
            f"{what}: {means[0]:.4g} in the first {self.num_steps} steps, now {means[-1]:.4g}.",
            len(means),
            [window * self.num_steps for window in stuck],
        )


@dataclass(frozen=True)
class ClassImbalance(Rule):
    """The largest class has more than `threshold_imbalance` times the training images of the smallest; or a rare
    class is mispredicted for more than `threshold_misprediction` (0 to 1) of its validation images.

    SageMaker's second condition is true of every class when a training begins. Here it is checked in the last
    validation, for classes with at most half the images of the largest, and only while the classes' mean misprediction
    is at most half the threshold: then the imbalance is the likely reason.
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
            sentence = f"The largest class has {max(counts)} images, the smallest {min(counts)}."
            return self._issue(sentence, len(counts))
        missed = self._missed_classes(counts, record.recognised)
        if not missed:
            return self._healthy(len(counts))
        worst = max(missed, key=missed.__getitem__)
        return self._issue(
            f"{len(missed)} rare classes are mostly misclassified; class {worst} has {counts[worst]} training images, "
            f"the largest {max(counts)}, and {missed[worst]:.0%} of its validation images are assigned to others.",
            len(counts),
        )

    def _missed_classes(self, counts: Sequence[int], results: Sequence[tuple[int, int]]) -> dict[int, float]:
        """The misprediction (0 to 1) of each class, by its index, that is mispredicted because it is rare."""
        wrong = {index: 1 - correct / count for index, (count, correct) in enumerate(results) if count >= MIN_IMAGES}
        if not wrong or fmean(wrong.values()) > self.threshold_misprediction / 2:
            return {}
        rare = {index for index, count in enumerate(counts) if 2 * count <= max(counts)}
        return {
            index: share for index, share in wrong.items() if share > self.threshold_misprediction and index in rare
        }


@dataclass(frozen=True)
class CheckInputImages(Rule):
    """The mean of the normalised images is further than `threshold_mean` from 0, over `threshold_samples` of them."""

    threshold_mean: float = 0.2
    threshold_samples: int = 500
    advice: ClassVar[str] = "Use data.normalization=dataset, which takes the mean of your own images."

    def find(self, record: Record) -> Outcome:
        means = [
            (observation.images, observation.input_mean)
            for observation in record.observations
            if observation.input_mean is not None
        ]
        images = sum(count for count, _ in means)
        if images < self.threshold_samples:
            return self._healthy(images)
        mean = sum(count * value for count, value in means) / images
        if abs(mean) <= self.threshold_mean:
            return self._healthy(images)
        return self._issue(f"The mean of {images} normalised images is {mean:.2f} instead of about 0.", images)


@dataclass(frozen=True)
class StalledTraining(Rule):
    """A step took longer than `threshold` seconds; a thread of the Recorder reports it while the step still runs."""

    threshold: float = 1800.0
    advice: ClassVar[str] = "Check what the step waited for: the disk, the network, another process of the run."

    def find(self, record: Record) -> Outcome:
        steps = len(record.losses)
        long = [(step, seconds) for step, seconds in record.pauses if seconds > self.threshold]
        if not long:
            return self._healthy(steps)
        step, seconds = max(long, key=lambda pause: pause[1])
        return self._issue(f"Step {step} took {seconds:.3g} seconds.", steps, [step for step, _ in long])

    def report_stall(self, step: int, seconds: float) -> Outcome:
        """The outcome while `step` still runs, after `seconds`."""
        return self._issue(f"Step {step} has taken {seconds:.3g} seconds and has not ended.", step, [step])


def _step_of(row: Mapping[str, float]) -> int:
    return int(row.get("step", row["epoch"]))


def _epochs_without_gain(rows: Sequence[Mapping[str, float]], name: str, delta: float) -> int:
    best, waited = math.inf, 0
    for value in (row[name] for row in rows if name in row):
        best, waited = (value, 0) if value < best - delta else (best, waited + 1)
    return waited
