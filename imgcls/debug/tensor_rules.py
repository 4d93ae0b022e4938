"""Rules about gradients, weights and activations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from imgcls.debug.observations import Observation, Record, share_below
from imgcls.debug.rules import Outcome, Rule, some


@dataclass(frozen=True)
class VanishingGradient(Rule):
    """The mean absolute gradient of a trained layer is below `threshold`, `patience` observed steps in a row.

    SageMaker fires on the first one. Residual branches that begin with a norm of zero have hardly any while the
    learning rate warms up, and train well; so only steps from `start_step` on count.
    """

    threshold: float = 1e-7
    patience: int = 2
    start_step: int = 10
    advice: ClassVar[str] = (
        "Use batch norms or residual connections, ReLU instead of sigmoid, or a larger learning rate for lower layers."
    )

    def find(self, record: Record) -> Outcome:
        return self._layers(
            record,
            lambda one: one.gradient_size if one.step >= self.start_step else {},
            lambda size: size < self.threshold,
            "The gradients of {count} layer{s} vanish; first in step {step}, where those of {layer} are {value:.1e}.",
            self.patience,
        )


@dataclass(frozen=True)
class ExplodingTensor(Rule):
    """The loss, a gradient, a weight or a layer's input holds an infinity or NaN; with `only_nan` a NaN.

    Infinite gradients of 16 bits that a gradient scaler leaves out are none.
    """

    only_nan: bool = False
    advice: ClassVar[str] = (
        "Lower optim.lr, lengthen optim.warmup_epochs, keep trainer.gradient_clip_val, or use bf16 instead of 16 bits."
    )

    def find(self, record: Record) -> Outcome:
        def found(one: Observation) -> tuple[str, ...]:
            return one.nan if self.only_nan else one.infinite

        bad = [one for one in record.observations if found(one)]
        late = [
            step
            for step, loss in enumerate(record.losses)
            if math.isnan(loss) or (math.isinf(loss) and not self.only_nan)
        ]
        count = len(record.observations) + len(record.losses)
        if not bad and not late:
            return self._healthy(count)
        what = found(bad[0]) if bad else ("loss",)
        first = min([*(one.step for one in bad[:1]), *late[:1]])
        steps = sorted({*(one.step for one in bad), *late})
        return self._issue(f"Values are no longer finite from step {first} on: {some(what)}.", count, steps, what)


@dataclass(frozen=True)
class PoorWeightInitialization(Rule):
    """In the first `steps` observed steps: a flat loss, with inputs of layers whose variances differ by more than
    `threshold`, or gradients of less spread than `distribution_range`.

    SageMaker fires on each of the three alone; residual networks that train well have such variances and gradients, so
    here the loss must be flat as well, still be so after the warm-up of the learning rate, and stay so.
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
        if min(after, fmean(record.losses[-2 * self.patience :])) < before * 0.999:
            return self._healthy(len(early))
        for one in early:
            variances = [value for value in one.input_variance.values() if math.isfinite(value)]
            ratio = max(variances) / max(min(variances), 1e-30) if variances else 1.0
            spreads = [3.29 * value for value in one.gradient_spread.values()]  # p95 - p5 of a normal distribution
            narrow = spreads and max(spreads) < self.distribution_range
            if ratio > self.threshold or narrow:
                why = f"the variances of layers' inputs differ by a factor of {ratio:.3g}" if not narrow else (
                    f"no gradient spreads over more than {max(spreads):.1e}"
                )  # fmt: skip
                return self._issue(f"The loss is flat from the start, and {why}.", len(early), [one.step])
        return self._healthy(len(early))


@dataclass(frozen=True)
class DeadRelu(Rule):
    """More than `threshold_layer` % of the channels of a ReLU are active for less than `threshold_inactivity` %."""

    threshold_inactivity: float = 1.0
    threshold_layer: float = 50.0
    advice: ClassVar[str] = "Lower optim.lr, use head=mlp with model.head.activation=gelu, or another initialisation."

    def find(self, record: Record) -> Outcome:
        def dead(one: Observation) -> dict[str, float]:
            return {layer: share_below(shares, self.threshold_inactivity / 100) for layer, shares in one.active.items()}

        return self._layers(
            record,
            dead,
            lambda share: 100 * share > self.threshold_layer,
            "{count} ReLU layer{s} {are} mostly dead; first {layer} in step {step}, with {value:.0%} of its channels.",
        )


@dataclass(frozen=True)
class SaturatedActivation(Rule):
    """More than `threshold_layer` % of the channels of a sigmoid or tanh are flat for nearly the whole batch.

    A channel counts where less than `threshold_inactivity` % of the batch gives it an input between its minimum and
    maximum. Those two are looked at while it trains; the other thresholds can be changed afterwards.
    """

    threshold_tanh_min: float = -9.4999
    threshold_tanh_max: float = 9.4999
    threshold_sigmoid_min: float = -23.0
    threshold_sigmoid_max: float = 16.99999
    threshold_inactivity: float = 1.0
    threshold_layer: float = 50.0
    advice: ClassVar[str] = "Use ReLU or GELU, add a norm before the activation, or lower optim.lr."

    def find(self, record: Record) -> Outcome:
        def flat(one: Observation) -> dict[str, float]:
            limit = self.threshold_inactivity / 100
            return {layer: share_below(shares, limit) for layer, shares in one.unsaturated.items()}

        return self._layers(
            record,
            flat,
            lambda share: 100 * share > self.threshold_layer,
            "{count} layer{s} {are} saturated; first {layer} in step {step}, with {value:.0%} of its channels.",
        )


@dataclass(frozen=True)
class UnchangedTensor(Rule):
    """A trained layer does not change over `num_steps` observed steps in which its learning rate is not zero."""

    num_steps: int = 3
    rtol: float = 1e-5
    atol: float = 1e-8
    advice: ClassVar[str] = "Raise optim.lr or optim.backbone_lr_scale, or freeze on purpose with model.freeze."

    def find(self, record: Record) -> Outcome:
        still: dict[str, int] = {}
        found: list[tuple[int, str]] = []
        for one in record.observations:
            if one.step < len(record.rates) and record.rates[one.step] <= 0:
                continue  # the end of a schedule
            for layer, ratio in one.update_ratio.items():
                size = one.weight_size.get(layer, 0.0)
                unchanged = ratio * size <= self.atol + self.rtol * size  # numpy's allclose
                still[layer] = still.get(layer, 0) + 1 if unchanged else 0
                if still[layer] >= self.num_steps:
                    found.append((one.step, layer))
        looked_at = sum(len(one.update_ratio) for one in record.observations)
        if not found:
            return self._healthy(looked_at)
        step, layer = found[0]
        layers = list(dict.fromkeys(layer for _, layer in found))
        return self._issue(
            f"{len(layers)} layers do not change any more; first {layer}, up to step {step}.",
            looked_at,
            (step for step, _ in found),
            layers,
        )


@dataclass(frozen=True)
class WeightUpdateRatio(Rule):
    """A step changes a layer by more than `large_threshold` or less than `small_threshold` of its weights."""

    large_threshold: float = 10.0
    small_threshold: float = 1e-8
    advice: ClassVar[str] = "Large: lower optim.lr. Small: raise it, or look for gradients that vanish."

    def find(self, record: Record) -> Outcome:
        def wrong(ratio: float) -> bool:
            return ratio > self.large_threshold or 0 < ratio < self.small_threshold

        return self._layers(
            record,
            lambda one: one.update_ratio,
            wrong,
            "The updates of {count} layer{s} are out of proportion; "
            "in step {step} that of {layer} is {value:.1e} of it.",
        )


@dataclass(frozen=True)
class AllZero(Rule):
    """A trained weight or its gradient is zero altogether (`threshold` %), in `patience` observed steps in a row.

    Biases and norms begin with zeros on purpose, and residual branches with gradients of zero in the first step, so one
    observation is not enough.
    """

    threshold: float = 100.0
    patience: int = 3
    advice: ClassVar[str] = "Look for a layer that is cut off: dead ReLUs, a wrong mask, a branch that is never used."

    def find(self, record: Record) -> Outcome:
        runs: dict[str, int] = {}
        found: list[tuple[int, str]] = []
        for one in record.observations:
            for kind, shares in (("gradient", one.gradient_zeros), ("weight", one.weight_zeros)):
                for layer, share in shares.items():
                    name = f"{kind} of {layer}"
                    runs[name] = runs.get(name, 0) + 1 if 100 * share >= self.threshold else 0
                    if runs[name] >= self.patience:
                        found.append((one.step, name))
        looked_at = sum(len(one.gradient_zeros) + len(one.weight_zeros) for one in record.observations)
        if not found:
            return self._healthy(looked_at)
        names = list(dict.fromkeys(name for _, name in found))
        return self._issue(
            f"{len(names)} tensors are all zeros: {some(names)}.", looked_at, (step for step, _ in found), names
        )


@dataclass(frozen=True)
class TensorVariance(Rule):
    """The variance of what a layer is given is above `max_threshold` or below `min_threshold`."""

    max_threshold: float = 1e6
    min_threshold: float = 1e-12
    advice: ClassVar[str] = "Add norms, check the normalisation of the pictures, or lower optim.lr."

    def find(self, record: Record) -> Outcome:
        return self._layers(
            record,
            lambda one: one.input_variance,
            lambda variance: not self.min_threshold <= variance <= self.max_threshold,
            "The inputs of {count} layer{s} have no sensible variance; in step {step} {layer} is given {value:.1e}.",
        )
