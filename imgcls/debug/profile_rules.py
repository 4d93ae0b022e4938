"""Rules about where the time goes, with the names, parameters and default thresholds of SageMaker's profiler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import pstdev
from typing import ClassVar

import numpy as np

from imgcls.debug.profile import PARTS, Profile, gpu_series, mean, quantile
from imgcls.debug.rules import Outcome, Rule
from imgcls.debug.sampler import Sample


@dataclass(frozen=True)
class LowGPUUtilization(Rule):
    """In a window a GPU's 95th percentile is below `threshold_p95` %, or it is above and the 5th below `threshold_p5`.

    The first `patience` samples are skipped.
    """

    threshold_p95: float = 70.0
    threshold_p5: float = 10.0
    window: int = 500
    patience: int = 1000
    advice: ClassVar[str] = "Give it larger batches (data.batch_size), or check what it waits for."

    def find(self, record: Profile) -> Outcome:
        low, fluctuating, datapoints = 0, 0, 0
        first = ""
        for gpu, series in gpu_series(record.samples[self.patience :]).items():
            for values in _windows(series, self.window):
                p95, p5 = quantile(values, 0.95), quantile(values, 0.05)
                datapoints += len(values)
                low += p95 < self.threshold_p95
                fluctuating += p95 >= self.threshold_p95 and p5 < self.threshold_p5
                if not first and (p95 < self.threshold_p95 or p5 < self.threshold_p5):
                    first = f"the 95th percentile of GPU {gpu} is {p95:.0f}% and the 5th {p5:.0f}%"
        if not first:
            return self._healthy(datapoints)
        advice = self.advice
        if record.part("data_wait") > 0.1:
            advice = _faster_loading(record)
        elif low:
            advice = _larger_batch(record)
        return self._issue(
            f"In {low} windows of {self.window} samples a GPU was hardly used, in {fluctuating} its utilisation "
            f"fluctuated: {first}.",
            datapoints,
            advice=advice,
        )


@dataclass(frozen=True)
class CPUBottleneck(Rule):
    """In over `threshold` % of the samples a GPU is below `gpu_threshold` % and a core above `cpu_threshold` %."""

    threshold: float = 50.0
    gpu_threshold: float = 10.0
    cpu_threshold: float = 90.0
    patience: int = 1000
    advice: ClassVar[str] = "The GPU waits for the CPU."

    def find(self, record: Profile) -> Outcome:
        samples, share, _ = _while_idle(self, record, lambda sample: max(sample.cpu) > self.cpu_threshold)
        if 100 * share <= self.threshold:
            return self._healthy(samples)
        return self._issue(
            f"In {share:.0%} of {samples} samples a GPU was idle (below {self.gpu_threshold:.0f}%) while a CPU core "
            f"was busy (above {self.cpu_threshold:.0f}%).",
            samples,
            advice=f"{self.advice} {_faster_loading(record)}",
        )


@dataclass(frozen=True)
class IOBottleneck(Rule):
    """In over `threshold` % of the samples a GPU is below `gpu_threshold` % and I/O wait above `io_threshold` %."""

    threshold: float = 50.0
    gpu_threshold: float = 10.0
    io_threshold: float = 50.0
    patience: int = 1000
    advice: ClassVar[str] = "The GPU waits for files to be read; a faster disk would help."

    def find(self, record: Profile) -> Outcome:
        samples, share, hits = _while_idle(self, record, lambda sample: sample.io_wait > self.io_threshold)
        if 100 * share <= self.threshold:
            return self._healthy(samples)
        return self._issue(
            f"In {share:.0%} of {samples} samples a GPU was idle while the CPU waited for the disk, "
            f"{mean([sample.io_wait for sample in hits]):.0f}% of its time.",
            samples,
            advice=f"{self.advice} {_faster_loading(record)}",
        )


@dataclass(frozen=True)
class BatchSize(Rule):
    """The 95th percentiles of CPU, GPUs and GPU memory are all below their thresholds, in %."""

    cpu_threshold_p95: float = 70.0
    gpu_threshold_p95: float = 70.0
    gpu_memory_threshold_p95: float = 70.0
    window: int = 500
    patience: int = 1000
    advice: ClassVar[str] = "Raise data.batch_size, or use a smaller machine."

    def find(self, record: Profile) -> Outcome:
        samples = [sample for sample in record.samples[self.patience :] if sample.gpu]
        for window in _windows(samples, self.window):
            cpu = quantile([mean(sample.cpu) for sample in window], 0.95)
            gpu = quantile([max(sample.gpu) for sample in window], 0.95)
            memory = quantile([max(sample.gpu_memory, default=0.0) for sample in window], 0.95)
            if cpu < self.cpu_threshold_p95 and gpu < self.gpu_threshold_p95 and memory < self.gpu_memory_threshold_p95:
                return self._issue(
                    f"Nothing is fully used: 95% of the time the CPU is below {cpu:.0f}%, the GPU below {gpu:.0f}% and "
                    f"its memory below {memory:.0f}%.",
                    len(samples),
                    advice=_larger_batch(record),
                )
        return self._healthy(len(samples))


@dataclass(frozen=True)
class GPUMemoryIncrease(Rule):
    """The mean of `window` samples of a GPU's memory is `increase` points above that of an earlier window."""

    increase: float = 5.0
    window: int = 10
    patience: int = 1000
    advice: ClassVar[str] = "Look for tensors that are kept over the steps: losses or outputs without .detach()."

    def find(self, record: Profile) -> Outcome:
        memories = gpu_series(record.samples[self.patience :], memory=True)
        datapoints = sum(map(len, memories.values()))
        for gpu, series in memories.items():
            averages = [mean(window) for window in _windows(series, self.window)]
            lowest = math.inf
            for average in averages:
                lowest = min(lowest, average)
                if average - lowest > self.increase:
                    sentence = f"The memory use of GPU {gpu} rose from {lowest:.0f}% to {max(averages):.0f}%."
                    return self._issue(sentence, datapoints)
        return self._healthy(datapoints)


@dataclass(frozen=True)
class LoadBalancing(Rule):
    """The histograms of two GPUs' utilisation differ by more than `threshold`.

    The difference is their Jensen-Shannon distance: 0 for equal histograms, 0.83 for those that share no bin.
    """

    threshold: float = 0.5
    bins: int = 10
    patience: int = 1000
    advice: ClassVar[str] = "Give the devices equal work: equal GPUs, equal batches, one process each."

    def find(self, record: Profile) -> Outcome:
        series = gpu_series(record.samples[self.patience :])
        shares = {gpu: _histogram(values, self.bins) for gpu, values in series.items() if values}
        datapoints = sum(map(len, series.values()))
        for first, second in combinations(shares, 2):
            distance = _distance(shares[first], shares[second])
            if distance > self.threshold:
                return self._issue(
                    f"The mean utilisation of GPU {first} is {mean(series[first]):.0f}% and that of GPU {second} "
                    f"{mean(series[second]):.0f}%; their distributions are {distance:.2f} apart.",
                    datapoints,
                )
        return self._healthy(datapoints)


@dataclass(frozen=True)
class StepOutlier(Rule):
    """More than `n_outliers` steps take longer than the mean and `stddev` standard deviations."""

    stddev: float = 3.0
    n_outliers: int = 10
    advice: ClassVar[str] = "Check what else ran on the machine then, and checkpoints and the disk."

    def find(self, record: Profile) -> Outcome:
        seconds = [step.seconds for step in record.steps]
        limit = mean(seconds) + self.stddev * pstdev(seconds) if len(seconds) > 1 else math.inf
        slow = [step for step in record.steps if step.seconds > limit]
        if len(slow) <= self.n_outliers:
            return self._healthy(len(seconds))
        median = quantile(seconds, 0.5)
        parts = {name: sum(getattr(step, name) for step in slow) for name in PARTS}
        longest = max(parts, key=parts.__getitem__)
        return self._issue(
            f"{len(slow)} of {len(seconds)} steps took longer than {limit:.3g} s (median: {median:.3g} s), "
            f"{sum(step.seconds - median for step in slow):.1f} s in total, most of it in {longest.replace('_', ' ')}.",
            len(seconds),
            (step.batch for step in slow),
            advice=_faster_loading(record) if longest == "data_wait" else None,
        )


@dataclass(frozen=True)
class MaxInitializationTime(Rule):
    """The time before the first step is longer than `threshold` minutes."""

    threshold: float = 20.0
    advice: ClassVar[str] = "Keep decoded images on disk (data.store=disk) and weights in the cache between runs."

    def find(self, record: Profile) -> Outcome:
        seconds = record.phases.get("initialisation", 0.0)
        datapoints = int("initialisation" in record.phases)
        if seconds <= 60 * self.threshold:
            return self._healthy(datapoints)
        return self._issue(f"The first step began only after {seconds / 60:.0f} minutes.", datapoints)


@dataclass(frozen=True)
class Dataloader(Rule):
    """The model waits for images for more than `wait_threshold` % of the time of its steps, `min_seconds` in total.

    SageMaker checks only the number of loader processes: below `min_threshold` % or above `max_threshold` % of the
    cores. Here that affects the advice alone, because a wrong number of threads does no harm while nothing waits.
    """

    min_threshold: float = 70.0
    max_threshold: float = 200.0
    wait_threshold: float = 10.0
    min_seconds: float = 10.0
    advice: ClassVar[str] = "Decode once, and augment less."

    def find(self, record: Profile) -> Outcome:
        share = record.part("data_wait")
        if 100 * share <= self.wait_threshold or sum(step.data_wait for step in record.steps) < self.min_seconds:
            return self._healthy(len(record.steps))
        workers, cores = record.loader.get("workers"), record.loader.get("cores")
        threads = ""
        if workers and cores and not self.min_threshold <= 100 * workers / cores <= self.max_threshold:
            threads = f" Images were decoded by {workers} threads on {cores} cores: set data.num_workers={cores}."
        seconds = mean([step.data_wait for step in record.steps])
        return self._issue(
            f"The model waited for images during {share:.0%} of each step, {seconds:.3g} s on average.",
            len(record.steps),
            (step.batch for step in record.steps if step.data_wait > 0.5 * step.seconds),
            advice=_faster_loading(record) + threads,
        )


@dataclass(frozen=True)
class OverallSystemUsage(Rule):
    """How much of the machine was used; informative only, never fires."""

    advice: ClassVar[str] = ""

    def find(self, record: Profile) -> Outcome:
        samples = record.samples
        if not samples:
            return self._healthy(0)
        usage = {
            "CPU": mean([mean(sample.cpu) for sample in samples]),
            "memory": mean([sample.memory for sample in samples]),
            "I/O wait": mean([sample.io_wait for sample in samples]),
            **{f"GPU {gpu}": mean(values) for gpu, values in gpu_series(samples).items()},
        }
        text = ", ".join(f"{name} {share:.0f}%" for name, share in usage.items())
        return replace(self._healthy(len(samples)), sentence=f"On average: {text}.")


@dataclass(frozen=True)
class OverallFrameworkMetrics(Rule):
    """Where the time of a step went; informative only, never fires."""

    advice: ClassVar[str] = ""

    def find(self, record: Profile) -> Outcome:
        steps = record.steps
        if not steps:
            return self._healthy(0)
        parts = ", ".join(f"{name.replace('_', ' ')} {record.part(name):.0%}" for name in PARTS)
        seconds = mean([step.seconds for step in steps])
        sentence = f"A step took {seconds:.3g} s on average over {len(steps)} steps: {parts}."
        return replace(self._healthy(len(steps)), sentence=sentence)


def _faster_loading(record: Profile) -> str:
    """How to deliver images to the model sooner, given where this run kept them (`loader.held`)."""
    held, share = record.loader.get("held"), record.part("data_wait")
    gain = f"up to {share:.0%} of the step time" if record.steps else "the wait"
    if held == "features":
        return f"The features of the frozen backbone are already in memory: a larger data.batch_size may save {gain}."
    if held in ("memory", "device"):
        return (
            f"The images are already decoded and in memory, so the wait ({gain}) is for their augmentation: augment "
            "less (augment=none), or use a machine with more cores."
        )
    if held == "disk":
        return f"The decoded images are read from disk; data.store=memory would save {gain}."
    if held == "none" and record.loader.get("store") != "none":
        return (
            f"Each image is decoded in every epoch, because neither disk nor memory has room for all of them: {gain}. "
            "Free some disk space (IMGCLS_CACHE names another disk), or lower data.image_size."
        )
    return f"data.store=memory would save {gain}."


def _larger_batch(record: Profile) -> str:
    size = record.loader.get("batch_size")
    return f"Try data.batch_size={2 * size} (now {size})." if size else BatchSize.advice


def _while_idle(
    rule: CPUBottleneck | IOBottleneck, record: Profile, is_busy: Callable[[Sample], bool]
) -> tuple[int, float, list[Sample]]:
    """The number of samples with GPUs; of those with an idle GPU while `is_busy`: their share (0 to 1), themselves."""
    samples = [sample for sample in record.samples[rule.patience :] if sample.gpu]
    hits = [sample for sample in samples if min(sample.gpu) < rule.gpu_threshold and is_busy(sample)]
    return len(samples), len(hits) / len(samples) if samples else 0.0, hits


def _windows(values: Sequence, size: int) -> list[Sequence]:
    """Full windows of `size`; a single shorter one if there are fewer values."""
    full = [values[start : start + size] for start in range(0, len(values) - size + 1, size)]
    return full or ([values] if values else [])


def _histogram(values: Sequence[float], bins: int) -> np.ndarray:
    """The share (0 to 1) of the values, 0 to 100, in each of equal bins."""
    return np.histogram(np.clip(values, 0, 100), bins, (0, 100))[0] / len(values)


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    middle = (first + second) / 2
    divergences = [(part[part > 0] * np.log(part[part > 0] / middle[part > 0])).sum() for part in (first, second)]
    return math.sqrt(max(0.0, float(sum(divergences)) / 2))
