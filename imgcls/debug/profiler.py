"""The callbacks that record where the time of a run goes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch.profiler

from imgcls.callbacks.timing import Timing
from imgcls.data.feature_module import FeatureDataModule
from imgcls.data.module import ImageDataModule
from imgcls.data.stores.store import ArrayStore
from imgcls.debug.device_use import device_use
from imgcls.debug.profile import read_profile, write_profile, write_steps
from imgcls.debug.rules import Rule
from imgcls.debug.sampler import SystemSampler
from imgcls.system.files import atomic_path, atomic_write_text
from imgcls.system.machine import available_cores
from imgcls.system.tables import as_csv


class Profiler(L.Callback):
    """Samples the machine and keeps the durations of steps in `folder`; writes `profile.json` there at the end.

    Only the first process writes. The durations come from the Timing among the trainer's callbacks.

    Args:
        folder: `debug/profile` in the run folder.
        rules: profile rules by name.
        sample_seconds: time between two samples of the machine.
    """

    def __init__(self, folder: Path, *, rules: Mapping[str, Rule] | None = None, sample_seconds: float = 0.5) -> None:
        self.folder, self.rules, self.sample_seconds = folder, dict(rules or {}), sample_seconds
        self._sampler: SystemSampler | None = None
        self._timing: Timing | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        self._timing = next((callback for callback in callbacks if isinstance(callback, Timing)), None)
        if self._timing is not None:
            self._timing.keep_steps = stage == "fit"
        self._sampler = SystemSampler(self.folder, self.sample_seconds)
        self._sampler.start()

    def on_train_epoch_end(self, *args: Any) -> None:
        self._write_steps()

    def on_save_checkpoint(self, *args: Any) -> None:
        self._write_steps()

    def on_exception(self, *args: Any) -> None:
        self._end_sampling()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._sampler is None:
            return
        self._end_sampling()
        self._write_steps()
        facts = {
            "phases": self._phases(),
            "loader": _loader(getattr(trainer, "datamodule", None)),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        }
        atomic_write_text(self.folder / "facts.json", json.dumps(facts) + "\n")
        write_profile(self.folder, read_profile(self.folder), self.rules)

    def _end_sampling(self) -> None:
        if self._sampler is not None:
            self._sampler.end()
            self._sampler = None

    def _write_steps(self) -> None:
        if self._timing is not None:
            steps, self._timing.steps = self._timing.steps, []
            write_steps(self.folder, steps)

    def _phases(self) -> dict[str, float]:
        timing = self._timing
        if timing is None or timing.initialisation_seconds is None:
            return {}
        now = time.monotonic()
        finished = timing.finished if timing.finished is not None else now
        return {
            "initialisation": timing.initialisation_seconds,
            "training": finished - timing.began - timing.initialisation_seconds - timing.validation_seconds,
            "validation": timing.validation_seconds,
            "finalisation": now - finished,
        }


STEPS = "imgcls::steps"


class KernelProfiler(L.Callback):
    """Records a few steps with torch.profiler: a Chrome trace and a table of operators, in `folder`.

    Open `trace.json` in a browser at chrome://tracing or ui.perfetto.dev. On a CUDA device, `device.json` holds the
    share of these steps in which it was idle, and how often the host waited for it (see device_use).

    Args:
        folder: `debug/profile/kernels` in the run folder.
        first: number of this process's batches to skip, until everything is warm.
        batches: number of batches to record; fewer if the training ends before.
    """

    def __init__(self, folder: Path, *, first: int = 5, batches: int = 3) -> None:
        self.folder, self.first, self.batches = folder, first, batches
        self._batch = 0
        self._profile: Any = None
        self._window: Any = None

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if self._batch == self.first and trainer.is_global_zero:
            self._profile = torch.profiler.profile(record_shapes=True)
            self._profile.start()
            self._window = torch.profiler.record_function(STEPS)
            self._window.__enter__()

    def on_train_batch_end(self, *args: Any) -> None:
        self._batch += 1
        if self._batch == self.first + self.batches:
            self._write()

    def on_train_end(self, *args: Any) -> None:
        self._write()

    def on_exception(self, *args: Any) -> None:
        self._write()

    def _write(self) -> None:
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        self._window.__exit__(None, None, None)
        profile.stop()
        with atomic_path(self.folder / "trace.json") as file:
            profile.export_chrome_trace(str(file))
        use = device_use(profile.events(), STEPS)
        if use is not None:
            atomic_write_text(self.folder / "device.json", json.dumps(use) + "\n")
        rows = [
            {
                "operator": operator.key,
                "calls": operator.count,
                "cpu_self_ms": round(operator.self_cpu_time_total / 1000, 4),
                "cpu_total_ms": round(operator.cpu_time_total / 1000, 4),
                "device_self_ms": round(operator.self_device_time_total / 1000, 4),
                "device_total_ms": round(operator.device_time_total / 1000, 4),
            }
            for operator in profile.key_averages()
        ]
        rows.sort(key=lambda row: -(row["cpu_self_ms"] + row["device_self_ms"]))
        atomic_write_text(self.folder / "operators.csv", as_csv(rows))


def _loader(datamodule: Any) -> dict[str, Any]:
    names = {"workers": "num_workers", "store": "store_kind", "batch_size": "batch_size"}
    values = {name: getattr(datamodule, attribute, None) for name, attribute in names.items()}
    values["held"] = _storage(datamodule)
    return {"cores": available_cores()} | {
        name: value for name, value in values.items() if isinstance(value, int | str)
    }


def _storage(datamodule: Any) -> str | None:
    """Where the training images are, whatever was configured; None if the data module is not from imgcls."""
    if isinstance(datamodule, FeatureDataModule):
        return "features"
    if not isinstance(datamodule, ImageDataModule):
        return None
    store = datamodule.store_of("train")
    if not isinstance(store, ArrayStore):
        return "none"
    return "disk" if store.folder is not None else "memory"
