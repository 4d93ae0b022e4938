"""The profile of a run: what the profile rules check, and the file that says where the time went.

`profile.json` holds

- `summary`: seconds in `initialisation`, `training`, `validation` and `finalisation`, and their `share` (0 to 1);
- `system`: for each resource `name`, `unit`, `max`, `p99`, `p95`, `p50`, `min`;
- `timeline`: up to 400 moments, each `seconds` since the first, `cpu`, `memory`, `gpu` and `gpu_memory` in %;
- `steps`: `count`; `seconds` (max, p99, p95, p50, min); `parts`: for `data_wait`, `forward`, `backward` and `optimiser`
  the mean `seconds` of a step and their `share` (0 to 1); `series`: up to 400 (batch, seconds);
- `loader`: how the images were loaded in this run;
- `rules`: outcomes, each as in `rules.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from imgcls.callbacks.timing import StepTime
from imgcls.debug.rules import Outcome, Rule
from imgcls.debug.sampler import Sample, read_samples
from imgcls.debug.storage import write_rule_files
from imgcls.runs.reading import read_json
from imgcls.system.files import atomic_write_text

MAX_POINTS = 400  # of a series in the file
PARTS = ("data_wait", "forward", "backward", "optimiser")


@dataclass(frozen=True)
class Profile:
    """Everything that profile rules check."""

    samples: tuple[Sample, ...] = ()
    steps: tuple[StepTime, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds: initialisation, training, validation, finalisation."""
    loader: Mapping[str, Any] = field(default_factory=dict)
    """`workers`, `cores`, `batch_size`, `store` (as configured) and `held` (where the images were: memory, disk,
    features or none), as far as they are known."""

    def part(self, name: str) -> float:
        """Share (0 to 1) of `name`, one of PARTS, in the time of all steps; 0 without steps."""
        total = sum(step.seconds for step in self.steps)
        return sum(getattr(step, name) for step in self.steps) / total if total else 0.0


def read_profile(folder: Path) -> Profile:
    """The profile below `folder`: of a run of imgcls, or the profiler output of a SageMaker job."""
    facts = read_json(folder / "facts.json")
    return Profile(
        tuple(read_samples(folder)), tuple(read_steps(folder)), facts.get("phases", {}), facts.get("loader", {})
    )


def describe(profile: Profile, rules: Mapping[str, Rule]) -> tuple[dict[str, Any], list[Outcome]]:
    """The content of `profile.json`, and the outcomes of `rules` on `profile`."""
    outcomes = [rule.check(profile) for rule in rules.values()]
    return {**summary(profile), "rules": [asdict(outcome) for outcome in outcomes]}, outcomes


def write_profile(folder: Path, profile: Profile, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Check `rules` on `profile`; write `profile.json` and a file per rule in `folder`; return the former's content."""
    content, outcomes = describe(profile, rules)
    atomic_write_text(folder / "profile.json", json.dumps(content, indent=1) + "\n")
    write_rule_files(folder, outcomes)
    return content


def summary(profile: Profile) -> dict[str, Any]:
    """The sections of SageMaker's ProfilerReport that are numbers."""
    total = sum(profile.phases.values())
    phases = {
        name: {"seconds": round(seconds, 3), "share": round(seconds / total, 4) if total else 0.0}
        for name, seconds in profile.phases.items()
    }
    return {
        "summary": phases,
        "system": _system(profile.samples),
        "timeline": _timeline(profile.samples),
        "steps": _steps(profile),
        "loader": dict(profile.loader),
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie, interpolated; 0 without values."""
    return float(np.quantile(values, share)) if values else 0.0


def mean(values: Sequence[float]) -> float:
    """The mean; 0 without values."""
    return fmean(values) if values else 0.0


def gpu_series(samples: Sequence[Sample], *, memory: bool = False) -> dict[int, list[float]]:
    """Utilisation, or memory in use, of each GPU over time, in %."""
    rows = [sample.gpu_memory if memory else sample.gpu for sample in samples]
    count = max(map(len, rows), default=0)
    return {gpu: [row[gpu] for row in rows if len(row) > gpu] for gpu in range(count)}


def _spread(values: Sequence[float], digits: int = 2) -> dict[str, float]:
    shares = {"max": 1.0, "p99": 0.99, "p95": 0.95, "p50": 0.5, "min": 0.0}
    return {name: round(quantile(values, share), digits) for name, share in shares.items()}


def _system(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    if not samples:
        return []
    series = {
        ("CPU", "%"): [mean(sample.cpu) for sample in samples],
        ("I/O wait", "%"): [sample.io_wait for sample in samples],
        ("memory", "%"): [sample.memory for sample in samples],
        ("disk", "bytes/s"): [sample.disk for sample in samples],
        ("network", "bytes/s"): [sample.network for sample in samples],
        **{(f"GPU {gpu}", "%"): values for gpu, values in gpu_series(samples).items()},
        **{(f"memory of GPU {gpu}", "%"): values for gpu, values in gpu_series(samples, memory=True).items()},
    }
    return [{"name": name, "unit": unit, **_spread(values)} for (name, unit), values in series.items()]


def _timeline(samples: Sequence[Sample]) -> list[dict[str, float]]:
    return [
        {
            "seconds": round(sample.timestamp - samples[0].timestamp, 2),
            "cpu": round(mean(sample.cpu), 1),
            "memory": round(sample.memory, 1),
            **(
                {"gpu": round(mean(sample.gpu), 1), "gpu_memory": round(mean(sample.gpu_memory), 1)}
                if sample.gpu
                else {}
            ),
        }
        for sample in _thin_out(samples)
    ]


def _steps(profile: Profile) -> dict[str, Any]:
    steps = profile.steps
    parts = {
        name: {
            "seconds": round(mean([getattr(step, name) for step in steps]), 6),
            "share": round(profile.part(name), 4),
        }
        for name in PARTS
    }
    return {
        "count": len(steps),
        "seconds": _spread([step.seconds for step in steps], 6),
        "parts": parts,
        "series": [[step.batch, round(step.seconds, 6)] for step in _thin_out(steps)],
    }


def _thin_out(values: Sequence[Any]) -> Sequence[Any]:
    return values[:: -(-len(values) // MAX_POINTS) or 1]


def write_steps(folder: Path, steps: Sequence[StepTime]) -> None:
    """JSON lines in a file named by the first batch; a resumed run overwrites the batches that it repeats."""
    if steps:
        lines = "".join(json.dumps(asdict(step)) + "\n" for step in steps)
        atomic_write_text(folder / "framework" / f"{steps[0].batch:012}.json", lines)


def read_steps(folder: Path) -> list[StepTime]:
    """The steps written by `write_steps`; each batch once, as it was measured last."""
    steps: dict[int, StepTime] = {}
    for file in sorted(folder.glob("framework/*.json"), key=lambda file: file.stat().st_mtime_ns):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError):
                step = StepTime(**json.loads(line))
                steps[step.batch] = step
    return [steps[batch] for batch in sorted(steps)]
