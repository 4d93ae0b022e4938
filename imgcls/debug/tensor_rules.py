"""Rules about gradients, weights and activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean
from typing import ClassVar

from imgcls.debug.observations import Observation, Record, Spreads, share_below
from imgcls.debug.rules import Outcome, Rule, some


@dataclass(frozen=True)
class VanishingGradient(Rule):
    """The mean absolute gradients of the first trained layers are below `threshold` in `patience` steps in a row.

    Gradients vanish on their way down to the first layers (Hochreiter 1991). SageMaker fires at any layer, but the
    branches of a residual network, whose last norm starts at zero, have almost no gradient and train well beside the
    layers below, which have one. Steps before `start_step`, while the learning rate warms up, are ignored.
    """

    threshold: float = 1e-7
    patience: int = 2
    start_step: int = 10
    advice: ClassVar[str] = (
        "Use batch norms or residual connections, ReLU instead of sigmoid, or a larger learning rate for lower layers."
    )

    def find(self, record: Record) -> Outcome:
        return self._check_layers(
            record,
            lambda observation: self._from_below(observation) if observation.step >= self.start_step else {},
            lambda size: size < self.threshold,
            "The gradients of {count} layer{s} vanish; first in step {step}, where the mean in {layer} is {value:.1e}.",
            self.patience,
        )

    def _from_below(self, observation: Observation) -> dict[str, float]:
        """The gradients, those above a layer with a sufficient one as infinite."""
        sizes = observation.gradient_size
        lowest = sum(1 for _ in takewhile(lambda size: size < self.threshold, sizes.values()))
        return {layer: size if place < lowest else math.inf for place, (layer, size) in enumerate(sizes.items())}


@dataclass(frozen=True)
class ExplodingTensor(Rule):
    """The loss, a gradient, a weight or a layer's input holds an infinity or NaN; with `only_nan` only NaN counts.

    Infinite 16-bit gradients that the gradient scaler skips do not count.
    """

    only_nan: bool = False
    advice: ClassVar[str] = (
        "Lower optim.lr, lengthen optim.warmup_epochs, keep trainer.gradient_clip_val, or use bf16 instead of 16 bits."
    )

    def find(self, record: Record) -> Outcome:
        tensors = {
            observation.step: observation.nan if self.only_nan else observation.infinite
            for observation in record.observations
        }
        observed = [step for step, names in tensors.items() if names]
        losses = record.losses
        bad = (step for step in losses.not_finite if not self.only_nan or math.isnan(losses[step]))
        steps = sorted({*observed, *bad})
        datapoints = len(record.observations) + len(record.losses)
        if not steps:
            return self._healthy(datapoints)
        names = tensors[observed[0]] if observed else ("loss",)
        sentence = f"Values are no longer finite from step {steps[0]} on: {some(names)}."
        return self._issue(sentence, datapoints, steps, names)


@dataclass(frozen=True)
class PoorWeightInitialization(Rule):
    """In the first `steps` observed steps the loss is flat, and either the variances of layers' inputs differ by more
    than a factor of `threshold`, or the gradients spread over less than `distribution_range`.

    SageMaker fires on each of the three alone. Residual networks that train well have such variances and gradients, so
    here the loss must be flat as well, still be flat after the learning rate's warm-up, and stay so. A loss far below
    that of a guess shows that the weights are good from the start, as those of a solved head.
    """

    threshold: float = 10.0
    distribution_range: float = 0.001
    patience: int = 5
    steps: int = 10
    advice: ClassVar[str] = "Use timm's initialisation or pretrained weights, batch norms, or a longer warm-up."

    def find(self, record: Record) -> Outcome:
        early = record.observations[: self.steps]
        losses = record.losses[: (record.warm_up or 0) + max(self.steps, self.patience * 2)]
        if len(losses) < self.patience * 2 or not early or not record.settled:
            return self._healthy(len(early))
        before, after = fmean(losses[: self.patience]), fmean(losses[-self.patience :])
        if record.is_good(before) or min(after, fmean(record.losses[-2 * self.patience :])) < before * 0.999:
            return self._healthy(len(early))
        for observation in early:
            variances = [value for value in observation.input_variance.values() if math.isfinite(value)]
            ratio = max(variances) / max(min(variances), 1e-30) if variances else 1.0
            # 3.29 standard deviations: the 5th to the 95th percentile of a normal distribution
            spread = 3.29 * max(observation.gradient_spread.values(), default=math.inf)
            if spread < self.distribution_range:
                reason = f"no gradient spreads over more than {spread:.1e}"
            elif ratio > self.threshold:
                reason = f"the variances of layers' inputs differ by a factor of {ratio:.3g}"
            else:
                continue
            return self._issue(f"The loss is flat from the start, and {reason}.", len(early), [observation.step])
        return self._healthy(len(early))


@dataclass(frozen=True)
class DeadRelu(Rule):
    """More than `threshold_layer` % of a ReLU's channels are active for under `threshold_inactivity` % of the batch."""

    threshold_inactivity: float = 1.0
    threshold_layer: float = 50.0
    advice: ClassVar[str] = "Lower optim.lr, use head=mlp with model.head.activation=gelu, or another initialisation."

    def find(self, record: Record) -> Outcome:
        return self._check_layers(
            record,
            lambda observation: _rare_channels(observation.active, self.threshold_inactivity),
            lambda share: 100 * share > self.threshold_layer,
            "{count} ReLU layer{s} {are} mostly dead; first {layer} in step {step}, with {value:.0%} of its channels.",
        )


@dataclass(frozen=True)
class SaturatedActivation(Rule):
    """More than `threshold_layer` % of the channels of a sigmoid or tanh are saturated for nearly the whole batch.

    A channel counts if less than `threshold_inactivity` % of the batch gives it an input between its minimum and
    maximum. The minimum and maximum are applied during training; the other thresholds can be changed afterwards.
    """

    threshold_tanh_min: float = -9.4999
    threshold_tanh_max: float = 9.4999
    threshold_sigmoid_min: float = -23.0
    threshold_sigmoid_max: float = 16.99999
    threshold_inactivity: float = 1.0
    threshold_layer: float = 50.0
    advice: ClassVar[str] = "Use ReLU or GELU, add a norm before the activation, or lower optim.lr."

    def find(self, record: Record) -> Outcome:
        return self._check_layers(
            record,
            lambda observation: _rare_channels(observation.unsaturated, self.threshold_inactivity),
            lambda share: 100 * share > self.threshold_layer,
            "{count} layer{s} {are} saturated; first {layer} in step {step}, with {value:.0%} of its channels.",
        )


@dataclass(frozen=True)
class UnchangedTensor(Rule):
    """A trained layer does not change over `num_steps` observed steps after the warm-up, with a rate above zero.

    A change is counted as it would be at the largest rate: at the end of a schedule those of all layers are tiny.
    """

    num_steps: int = 3
    rtol: float = 1e-5
    atol: float = 1e-8
    advice: ClassVar[str] = "Raise optim.lr or optim.backbone_lr_scale, or freeze on purpose with model.freeze."

    def find(self, record: Record) -> Outcome:
        warm_up = record.warm_up

        def changes(observation: Observation) -> dict[str, float]:
            """How far the change of each layer exceeds the tolerance of numpy's allclose."""
            rate = record.rates[observation.step] if observation.step < len(record.rates) else record.rates.peak
            if record.rates and rate <= 0:
                return {}  # the end of a schedule
            slowed = record.rates.peak / rate if record.rates else 1.0
            if warm_up is None or observation.step < warm_up:
                return {}  # steps are still tiny on purpose
            sizes = {layer: observation.weight_size.get(layer, 0.0) for layer in observation.update_ratio}
            return {
                layer: slowed * ratio * sizes[layer] - (self.atol + self.rtol * sizes[layer])
                for layer, ratio in observation.update_ratio.items()
            }

        return self._check_layers(
            record,
            changes,
            lambda excess: excess <= 0,
            "{count} layer{s} {do} not change any more; first {layer}, up to step {step}.",
            self.num_steps,
        )


@dataclass(frozen=True)
class WeightUpdateRatio(Rule):
    """A step changes a layer by more than `large_threshold` or less than `small_threshold` of its weights."""

    large_threshold: float = 10.0
    small_threshold: float = 1e-8
    advice: ClassVar[str] = "If large, lower optim.lr; if small, raise it, or look for vanishing gradients."

    def find(self, record: Record) -> Outcome:
        return self._check_layers(
            record,
            lambda observation: observation.update_ratio,
            lambda ratio: ratio > self.large_threshold or 0 < ratio < self.small_threshold,
            "The updates of {count} layer{s} are out of proportion; "
            "in step {step} the update of {layer} is {value:.1e} times its weights.",
        )


@dataclass(frozen=True)
class AllZero(Rule):
    """A trained weight or its gradient is all zeros (`threshold` %) in `patience` observed steps in a row.

    Biases and norms start at zero on purpose, and residual branches have zero gradients in the first step, so one
    observation is not enough.
    """

    threshold: float = 100.0
    patience: int = 3
    advice: ClassVar[str] = "Look for a layer that is cut off: dead ReLUs, a wrong mask, a branch that is never used."

    def find(self, record: Record) -> Outcome:
        def zeros(observation: Observation) -> dict[str, float]:
            kinds = {"gradient": observation.gradient_zeros, "weight": observation.weight_zeros}
            return {f"{kind} of {layer}": share for kind, part in kinds.items() for layer, share in part.items()}

        return self._check_layers(
            record,
            zeros,
            lambda share: 100 * share >= self.threshold,
            "{count} tensor{s} {are} all zeros: {layers}.",
            self.patience,
        )


@dataclass(frozen=True)
class TensorVariance(Rule):
    """The variance of a layer's input is above `max_threshold` or below `min_threshold`."""

    max_threshold: float = 1e6
    min_threshold: float = 1e-12
    advice: ClassVar[str] = "Add norms, check the normalisation of the images, or lower optim.lr."

    def find(self, record: Record) -> Outcome:
        return self._check_layers(
            record,
            lambda observation: observation.input_variance,
            lambda variance: not self.min_threshold <= variance <= self.max_threshold,
            "The inputs of {count} layer{s} have an extreme variance; in step {step} that of {layer} is {value:.1e}.",
        )


def _rare_channels(spreads: Spreads, percent: float) -> dict[str, float]:
    """The share (0 to 1) of each layer's channels whose value is below `percent` % of the batch."""
    return {layer: share_below(shares, percent / 100) for layer, shares in spreads.items()}
