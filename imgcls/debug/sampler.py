"""Samples the machine while a run trains: CPU, memory, GPUs, disk and network, in files of SageMaker's format."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from imgcls.errors import UserError
from imgcls.system.files import atomic_write_text

log = logging.getLogger(__name__)

NODE = "algo-1"
FLUSH_SECONDS = 60.0


@dataclass(frozen=True)
class Sample:
    """One moment of one machine; shares in %, rates in bytes per second."""

    timestamp: float
    cpu: tuple[float, ...] = ()
    """Usage of each core."""
    io_wait: float = 0.0
    """Mean over the cores."""
    memory: float = 0.0
    gpu: tuple[float, ...] = ()
    gpu_memory: tuple[float, ...] = ()
    disk: float = 0.0
    network: float = 0.0


class SystemSampler(threading.Thread):
    """Takes a Sample every `seconds` and writes one file per minute below `folder`/system/incremental.

    A thread that does nothing else; a sample takes half a millisecond of CPU time.
    """

    def __init__(self, folder: Path, seconds: float = 0.5) -> None:
        super().__init__(name="imgcls-sampler", daemon=True)
        self.folder, self.seconds = folder, seconds
        self._ended = threading.Event()
        self._samples: list[Sample] = []

    def run(self) -> None:
        """Sample until `end`."""
        try:
            machine = _Machine()
            flushed = time.monotonic()
            while not self._ended.wait(self.seconds):
                self._samples.append(machine.sample())
                if time.monotonic() - flushed > FLUSH_SECONDS:
                    self._flush()
                    flushed = time.monotonic()
            self._samples.append(machine.sample())
            self._flush()
        except (OSError, UserError) as error:  # a profile must never end a training
            log.warning("The machine is no longer sampled: %s", error)

    def end(self) -> None:
        """Stop, and write the last samples."""
        self._ended.set()
        self.join(timeout=10)

    def _flush(self) -> None:
        samples, self._samples = self._samples, []
        if samples:
            write_samples(self.folder, samples)


def write_samples(folder: Path, samples: Sequence[Sample]) -> None:
    """Write a file of JSON lines, named after its last sample like the files of SageMaker's profiler."""
    last = samples[-1].timestamp
    hour = time.strftime("%Y%m%d%H", time.gmtime(last))
    file = folder / "system" / "incremental" / hour / f"{int(last * 1e6)}.{NODE}.json"
    atomic_write_text(file, "".join(json.dumps(line) + "\n" for sample in samples for line in _lines(sample)))


def read_samples(folder: Path) -> list[Sample]:
    """All samples below `folder`, of imgcls or of a SageMaker job, in order; a truncated last line is skipped."""
    moments: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("system/incremental/*/*.json")):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError):
                event = json.loads(line)
                moments.setdefault((str(event["NodeId"]), float(event["Timestamp"])), []).append(event)
    return [_sample(moment[1], moments[moment]) for moment in sorted(moments, key=lambda moment: moment[1])]


def _lines(sample: Sample) -> Iterator[dict[str, Any]]:
    def event(kind: str, name: str, dimension: str, value: float) -> dict[str, Any]:
        return {
            "Type": kind,
            "Name": name,
            "Dimension": dimension,
            "Value": round(value, 2),
            "NodeId": NODE,
            "Timestamp": round(sample.timestamp, 6),
        }

    for core, share in enumerate(sample.cpu):
        yield event("cpu", f"cpu{core}", "CPUUtilization", share)
        yield event("cpu", f"cpu{core}", "I/OWaitPercentage", sample.io_wait)
    yield event("memory", "memory", "MemoryUsedPercent", sample.memory)
    for gpu, share in enumerate(sample.gpu):
        yield event("gpu", f"gpu{gpu}", "GPUUtilization", share)
    for gpu, share in enumerate(sample.gpu_memory):
        yield event("gpu", f"gpu{gpu}", "GPUMemoryUtilization", share)
    yield event("disk", "disk", "BytesPerSecond", sample.disk)
    yield event("network", "network", "BytesPerSecond", sample.network)


def _sample(timestamp: float, events: Sequence[dict[str, Any]]) -> Sample:
    def values(dimension: str, kind: str = "") -> tuple[float, ...]:
        matching = [event for event in events if event["Dimension"] == dimension and kind in ("", event["Type"])]
        return tuple(float(event["Value"]) for event in sorted(matching, key=_device_number))

    def mean(values: tuple[float, ...]) -> float:
        return fmean(values or (0.0,))

    return Sample(
        timestamp,
        cpu=values("CPUUtilization"),
        io_wait=mean(values("I/OWaitPercentage")),
        memory=mean(values("MemoryUsedPercent") or values("MemoryUtilization")),
        gpu=values("GPUUtilization"),
        gpu_memory=values("GPUMemoryUtilization"),
        disk=mean(values("BytesPerSecond", "disk")),
        network=mean(values("BytesPerSecond", "network")),
    )


def _device_number(event: dict[str, Any]) -> int:
    return int("".join(filter(str.isdigit, str(event.get("Name", "")))) or 0)


class _Machine:
    """Reads the machine's counters."""

    def __init__(self) -> None:
        psutil.cpu_percent(percpu=True)
        psutil.cpu_times_percent()
        self._gpus = _gpu_readers()
        self._bytes = self._count_bytes()
        self._at = time.monotonic()

    def sample(self) -> Sample:
        """The machine since the last sample."""
        counts, now = self._count_bytes(), time.monotonic()
        passed = max(now - self._at, 1e-3)
        disk, network = ((after - before) / passed for after, before in zip(counts, self._bytes, strict=True))
        self._bytes, self._at = counts, now
        cpu = tuple(psutil.cpu_percent(percpu=True))
        gpus = [read() for read in self._gpus]
        return Sample(
            time.time(),
            cpu=cpu,
            io_wait=float(getattr(psutil.cpu_times_percent(), "iowait", 0.0)),
            memory=float(psutil.virtual_memory().percent),
            gpu=tuple(used for used, _ in gpus),
            gpu_memory=tuple(memory for _, memory in gpus),
            disk=disk,
            network=network,
        )

    def _count_bytes(self) -> tuple[int, int]:
        disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
        return (
            disk.read_bytes + disk.write_bytes if disk else 0,
            network.bytes_recv + network.bytes_sent if network else 0,
        )


def _gpu_readers() -> list[Callable[[], tuple[float, float]]]:
    """For each GPU a function to (% busy, % of memory used); empty without nvidia-ml-py or a GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver or no device, each with an error of its own
        return []

    def reader(handle: Any) -> Callable[[], tuple[float, float]]:
        def read() -> tuple[float, float]:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu), 100.0 * memory.used / memory.total

        return read

    return [reader(pynvml.nvmlDeviceGetHandleByIndex(gpu)) for gpu in range(pynvml.nvmlDeviceGetCount())]
