"""Rules about where the time goes, by the names, parameters and default thresholds of SageMaker's profiler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import pstdev
from typing import ClassVar

from imgcls.debug.profile import PARTS, Profile, mean, quantile
from imgcls.debug.rules import Outcome, Rule
from imgcls.debug.sampler import Sample


@dataclass(frozen=True)
class LowGPUUtilization(Rule):
    """In a window a GPU's 95th percentile is below `threshold_p95` %, or it is above and the 5th below `threshold_p5`.

    The first `patience` samples are left out.
    """

    threshold_p95: float = 70.0
    threshold_p5: float = 10.0
    window: int = 500
    patience: int = 1000
    advice: ClassVar[str] = "Give it more at a time (data.batch_size), or look at what it waits for."

    def find(self, record: Profile) -> Outcome:
        low, fluctuating, looked_at = 0, 0, 0
        worst = ""
        for gpu, series in _gpus(record.samples[self.patience :]).items():
            for values in _windows(series, self.window):
                p95, p5 = quantile(values, 0.95), quantile(values, 0.05)
                looked_at += len(values)
                low += p95 < self.threshold_p95
                fluctuating += p95 >= self.threshold_p95 and p5 < self.threshold_p5
                if not worst and (p95 < self.threshold_p95 or p5 < self.threshold_p5):
                    worst = f"the 95th percentile of GPU {gpu} is {p95:.0f}% and the 5th {p5:.0f}%"
        if not worst:
            return self._healthy(looked_at)
        found = self._issue(
            f"In {low} windows of {self.window} samples a GPU was little used, in {fluctuating} its use went up and "
            f"down: {worst}.",
            looked_at,
        )
        wait = record.part("data_wait")
        if wait > 0.1:
            return replace(found, advice=_faster_loading(record))
        return replace(found, advice=_larger_batch(record)) if low else found


@dataclass(frozen=True)
class CPUBottleneck(Rule):
    """In over `threshold` % of the samples a GPU is below `gpu_threshold` % and a core above `cpu_threshold` %."""

    threshold: float = 50.0
    gpu_threshold: float = 10.0
    cpu_threshold: float = 90.0
    patience: int = 1000
    advice: ClassVar[str] = "The processor holds the GPU up."

    def find(self, record: Profile) -> Outcome:
        samples = [one for one in record.samples[self.patience :] if one.gpu]
        hit = [one for one in samples if min(one.gpu) < self.gpu_threshold and max(one.cpu) > self.cpu_threshold]
        if not samples or 100 * len(hit) / len(samples) <= self.threshold:
            return self._healthy(len(samples))
        share = len(hit) / len(samples)
        found = self._issue(
            f"In {share:.0%} of {len(samples)} samples a GPU was idle (below {self.gpu_threshold:.0f}%) while a core "
            f"was busy (above {self.cpu_threshold:.0f}%).",
            len(samples),
        )
        return replace(found, advice=f"{self.advice} {_faster_loading(record)}")


@dataclass(frozen=True)
class IOBottleneck(Rule):
    """In over `threshold` % of the samples a GPU is below `gpu_threshold` % and I/O wait above `io_threshold` %."""

    threshold: float = 50.0
    gpu_threshold: float = 10.0
    io_threshold: float = 50.0
    patience: int = 1000
    advice: ClassVar[str] = "Reading holds the GPU up; a faster disk would help."

    def find(self, record: Profile) -> Outcome:
        samples = [one for one in record.samples[self.patience :] if one.gpu]
        hit = [one for one in samples if min(one.gpu) < self.gpu_threshold and one.io_wait > self.io_threshold]
        if not samples or 100 * len(hit) / len(samples) <= self.threshold:
            return self._healthy(len(samples))
        share = len(hit) / len(samples)
        found = self._issue(
            f"In {share:.0%} of {len(samples)} samples a GPU was idle while the processor waited for the disk, "
            f"{mean([one.io_wait for one in hit]):.0f}% of its time.",
            len(samples),
        )
        return replace(found, advice=f"{self.advice} {_faster_loading(record)}")


@dataclass(frozen=True)
class BatchSize(Rule):
    """The 95th percentiles of processor, GPUs and their memory are all below their thresholds, in %."""

    cpu_threshold_p95: float = 70.0
    gpu_threshold_p95: float = 70.0
    gpu_memory_threshold_p95: float = 70.0
    window: int = 500
    patience: int = 1000
    advice: ClassVar[str] = "Raise data.batch_size, or take a smaller machine."

    def find(self, record: Profile) -> Outcome:
        samples = [one for one in record.samples[self.patience :] if one.gpu]
        for part in _windows(samples, self.window):
            cpu = quantile([mean(one.cpu) for one in part], 0.95)
            gpu = quantile([max(one.gpu) for one in part], 0.95)
            memory = quantile([max(one.gpu_memory, default=0.0) for one in part], 0.95)
            if cpu < self.cpu_threshold_p95 and gpu < self.gpu_threshold_p95 and memory < self.gpu_memory_threshold_p95:
                found = self._issue(
                    f"Nothing is used to the full: 95% of the time the processor is below {cpu:.0f}%, the GPU below "
                    f"{gpu:.0f}% and its memory below {memory:.0f}%.",
                    len(samples),
                )
                return replace(found, advice=_larger_batch(record))
        return self._healthy(len(samples))


@dataclass(frozen=True)
class GPUMemoryIncrease(Rule):
    """The mean of `window` samples of a GPU's memory is `increase` points above that of an earlier window."""

    increase: float = 5.0
    window: int = 10
    patience: int = 1000
    advice: ClassVar[str] = "Look for tensors that are kept over the steps: losses or outputs without .detach()."

    def find(self, record: Profile) -> Outcome:
        memories = _gpus(record.samples[self.patience :], memory=True)
        looked_at = sum(map(len, memories.values()))
        for gpu, series in memories.items():
            averages = [mean(part) for part in _windows(series, self.window)]
            lowest = math.inf
            for average in averages:
                lowest = min(lowest, average)
                if average - lowest > self.increase:
                    return self._issue(
                        f"The memory of GPU {gpu} rose from {lowest:.0f}% to {max(averages):.0f}% while it trained.",
                        looked_at,
                    )
        return self._healthy(looked_at)


@dataclass(frozen=True)
class LoadBalancing(Rule):
    """The histograms of two GPUs' utilisation differ by more than `threshold`.

    The difference is the root of the mean Kullback-Leibler divergence from their average: 0 for equal ones, 0.83 for
    those that share no bin.
    """

    threshold: float = 0.5
    bins: int = 10
    patience: int = 1000
    advice: ClassVar[str] = "Give the devices equal work: equal GPUs, equal batches, one process each."

    def find(self, record: Profile) -> Outcome:
        series = _gpus(record.samples[self.patience :])
        shares = {gpu: _histogram(values, self.bins) for gpu, values in series.items() if values}
        looked_at = sum(map(len, series.values()))
        for first, second in combinations(shares, 2):
            distance = _distance(shares[first], shares[second])
            if distance > self.threshold:
                return self._issue(
                    f"GPU {first} is used {mean(series[first]):.0f}% and GPU {second} {mean(series[second]):.0f}% in "
                    f"the mean; their distributions are {distance:.2f} apart.",
                    looked_at,
                )
        return self._healthy(looked_at)


@dataclass(frozen=True)
class StepOutlier(Rule):
    """More than `n_outliers` steps take longer than the mean and `stddev` standard deviations."""

    stddev: float = 3.0
    n_outliers: int = 10
    advice: ClassVar[str] = "Look at what else ran on the machine then, and at checkpoints and the disk."

    def find(self, record: Profile) -> Outcome:
        seconds = [step.seconds for step in record.steps]
        if len(seconds) < 2:
            return self._healthy(len(seconds))
        limit = mean(seconds) + self.stddev * pstdev(seconds)
        late = [step for step in record.steps if step.seconds > limit]
        if len(late) <= self.n_outliers:
            return self._healthy(len(seconds))
        usual = quantile(seconds, 0.5)
        parts = {name: sum(getattr(step, name) for step in late) for name in PARTS}
        longest = max(parts, key=parts.__getitem__)
        lost = sum(step.seconds - usual for step in late)
        found = self._issue(
            f"{len(late)} of {len(seconds)} steps took longer than {limit:.3g} s (usual: {usual:.3g} s), "
            f"{lost:.1f} s in all, most of it in {longest.replace('_', ' ')}.",
            len(seconds),
            (step.batch for step in late),
        )
        return replace(found, advice=_faster_loading(record)) if longest == "data_wait" else found


@dataclass(frozen=True)
class MaxInitializationTime(Rule):
    """The time before the first step is longer than `threshold` minutes."""

    threshold: float = 20.0
    advice: ClassVar[str] = "Keep decoded pictures on disk (data.store=disk) and weights in the cache between runs."

    def find(self, record: Profile) -> Outcome:
        seconds = record.phases.get("initialisation", 0.0)
        looked_at = int("initialisation" in record.phases)
        if seconds <= 60 * self.threshold:
            return self._healthy(looked_at)
        return self._issue(f"It took {seconds / 60:.0f} minutes until the first step.", looked_at)


@dataclass(frozen=True)
class Dataloader(Rule):
    """The model waits for pictures for more than `wait_threshold` % of the time of its steps.

    SageMaker looks at the number of loader processes alone: below `min_threshold` % or above `max_threshold` % of the
    cores. Here that is what the advice looks at, because a number of threads costs nobody anything where nobody waits.
    """

    min_threshold: float = 70.0
    max_threshold: float = 200.0
    wait_threshold: float = 10.0
    advice: ClassVar[str] = "Decode once, and augment less."

    def find(self, record: Profile) -> Outcome:
        share = record.part("data_wait")
        if 100 * share <= self.wait_threshold:
            return self._healthy(len(record.steps))
        workers, cores = record.loader.get("workers"), record.loader.get("cores")
        threads = ""
        if workers and cores and not self.min_threshold <= 100 * workers / cores <= self.max_threshold:
            threads = f" Pictures were decoded by {workers} threads on {cores} cores: set data.num_workers={cores}."
        seconds = mean([step.data_wait for step in record.steps])
        found = self._issue(
            f"The model waited {share:.0%} of each step for pictures, {seconds:.3g} s in the mean.",
            len(record.steps),
            (step.batch for step in record.steps if step.data_wait > 0.5 * step.seconds),
        )
        return replace(found, advice=_faster_loading(record) + threads)


@dataclass(frozen=True)
class OverallSystemUsage(Rule):
    """How much of the machine was used; it states and never fires."""

    advice: ClassVar[str] = ""

    def find(self, record: Profile) -> Outcome:
        samples = record.samples
        if not samples:
            return self._healthy(0)
        gpus = {f"GPU {gpu}": mean(values) for gpu, values in _gpus(samples).items()}
        used = {
            "processor": mean([mean(one.cpu) for one in samples]),
            "memory": mean([one.memory for one in samples]),
            "I/O wait": mean([one.io_wait for one in samples]),
            **gpus,
        }
        words = ", ".join(f"{name} {share:.0f}%" for name, share in used.items())
        return replace(self._healthy(len(samples)), sentence=f"In the mean: {words}.")


@dataclass(frozen=True)
class OverallFrameworkMetrics(Rule):
    """Where the time of a step went; it states and never fires."""

    advice: ClassVar[str] = ""

    def find(self, record: Profile) -> Outcome:
        if not record.steps:
            return self._healthy(0)
        seconds = mean([step.seconds for step in record.steps])
        words = ", ".join(f"{name.replace('_', ' ')} {record.part(name):.0%}" for name in PARTS)
        return replace(
            self._healthy(len(record.steps)),
            sentence=f"A step took {seconds:.3g} s in the mean over {len(record.steps)} steps: {words}.",
        )


def _faster_loading(record: Profile) -> str:
    """What would give the model its pictures sooner, from where they are held (`loader.held`) in this run."""
    held, share = record.loader.get("held"), record.part("data_wait")
    gain = f"up to {share:.0%} of the time of the steps" if record.steps else "the wait"
    if held == "features":
        return f"The features of the frozen backbone are in memory already: a larger data.batch_size may spare {gain}."
    if held in ("memory", "device"):
        return (
            f"The pictures are decoded and in memory already, so the wait ({gain}) is for their augmentation: augment "
            "less (augment=none), or use a machine with more cores."
        )
    if held == "disk":
        return f"The decoded pictures are read from disk; data.store=memory would spare that: {gain}."
    if held == "none" and record.loader.get("store") != "none":
        return (
            f"Each picture is decoded in every epoch, as neither disk nor memory has room for all: {gain}. "
            "Free some disk (IMGCLS_CACHE names another), or lower data.image_size."
        )
    return f"data.store=memory would remove it: {gain}."


def _larger_batch(record: Profile) -> str:
    size = record.loader.get("batch_size")
    return f"Try data.batch_size={2 * size} (now {size})." if size else BatchSize.advice


def _gpus(samples: Sequence[Sample], *, memory: bool = False) -> dict[int, list[float]]:
    """Utilisation, or memory in use, of each GPU over time."""
    series: dict[int, list[float]] = {}
    for one in samples:
        for place, value in enumerate(one.gpu_memory if memory else one.gpu):
            series.setdefault(place, []).append(value)
    return series


def _windows(values: Sequence, size: int) -> list[Sequence]:
    """Whole windows of `size`; all values as one where they are fewer."""
    whole = [values[start : start + size] for start in range(0, len(values) - size + 1, size)]
    return whole or ([values] if values else [])


def _histogram(values: Sequence[float], bins: int) -> list[float]:
    """Shares (0 to 1) of values of 0 to 100 in equal bins."""
    counts = [0] * bins
    for value in values:
        counts[min(int(value * bins / 100), bins - 1)] += 1
    return [count / len(values) for count in counts]


def _distance(first: Sequence[float], second: Sequence[float]) -> float:
    def divergence(of: Sequence[float]) -> float:
        return sum(
            p * math.log(2 * p / (p + q)) for p, q in zip(of, second if of is first else first, strict=True) if p
        )

    return math.sqrt(max(0.0, (divergence(first) + divergence(second)) / 2))
