"""The profile of a run: what its rules look at, and the file that says where the time went.

`profile.json` holds

- `summary`: seconds in `initialisation`, `training`, `validation` and `finalisation`, and their `share` (0 to 1);
- `system`: for each resource `name`, `unit`, `max`, `p99`, `p95`, `p50`, `min`;
- `timeline`: at most 400 moments, each `seconds` since the first, `cpu`, `memory`, `gpu` and `gpu_memory` in %;
- `steps`: `count`; `seconds` (max, p99, p95, p50, min); `parts`: for `data_wait`, `forward`, `backward` and `optimiser`
  the `seconds` of a step in the mean and their `share` (0 to 1); `series`: at most 400 (batch, seconds);
- `loader`: how the pictures were loaded, as the run had it;
- `rules`: outcomes, each as in `rules.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from imgcls.callbacks.timing import StepTime
from imgcls.debug.sampler import Sample, read_samples
from imgcls.system.files import atomic_write_text

if TYPE_CHECKING:
    from imgcls.debug.rules import Outcome, Rule

MOST_POINTS = 400  # of a series in the file
PARTS = ("data_wait", "forward", "backward", "optimiser")


@dataclass(frozen=True)
class Profile:
    """Everything that profile rules look at."""

    samples: tuple[Sample, ...] = ()
    steps: tuple[StepTime, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds: initialisation, training, validation, finalisation."""
    loader: Mapping[str, Any] = field(default_factory=dict)
    """`workers`, `cores`, `batch_size`, `store` (as asked for) and `held` (where the pictures were: memory, disk,
    features or none), as far as they are known."""

    def part(self, name: str) -> float:
        """Share (0 to 1) of `name`, one of PARTS, in the time of all steps; 0 without steps."""
        whole = sum(step.seconds for step in self.steps)
        return sum(getattr(step, name) for step in self.steps) / whole if whole else 0.0


def read_profile(folder: Path) -> Profile:
    """The profile below `folder`: of a run of imgcls, or the profiler output of a SageMaker job."""
    facts: dict[str, Any] = {}
    if (folder / "facts.json").is_file():
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return Profile(
        tuple(read_samples(folder)), tuple(read_steps(folder)), facts.get("phases", {}), facts.get("loader", {})
    )


def described(profile: Profile, rules: Mapping[str, Rule]) -> tuple[dict[str, Any], list[Outcome]]:
    """The content of `profile.json`, and what `rules` find in `profile`."""
    outcomes = [rule.check(profile) for rule in rules.values()]
    return {**summary(profile), "rules": [asdict(one) for one in outcomes]}, outcomes


def write_profile(folder: Path, profile: Profile, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Let `rules` look at `profile`; write `profile.json` and a file for each rule in `folder`; return the former."""
    content, outcomes = described(profile, rules)
    atomic_write_text(folder / "profile.json", json.dumps(content, indent=1) + "\n")
    for outcome in outcomes:
        atomic_write_text(folder / "rules" / f"{outcome.rule}.json", json.dumps(outcome.as_sagemaker()) + "\n")
    return content


def summary(profile: Profile) -> dict[str, Any]:
    """The sections of SageMaker's ProfilerReport that are numbers."""
    whole = sum(profile.phases.values())
    phases = {
        name: {"seconds": round(seconds, 3), "share": round(seconds / whole, 4) if whole else 0.0}
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
    if not values:
        return 0.0
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def mean(values: Sequence[float]) -> float:
    """Their mean; 0 without values."""
    return fmean(values) if values else 0.0


def _spread(values: Sequence[float], digits: int = 2) -> dict[str, float]:
    shares = {"max": 1.0, "p99": 0.99, "p95": 0.95, "p50": 0.5, "min": 0.0}
    return {name: round(quantile(values, share), digits) for name, share in shares.items()}


def _system(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    if not samples:
        return []
    series: dict[tuple[str, str], list[float]] = {
        ("CPU", "%"): [mean(one.cpu) for one in samples],
        ("I/O wait", "%"): [one.io_wait for one in samples],
        ("memory", "%"): [one.memory for one in samples],
        ("disk", "bytes/s"): [one.disk for one in samples],
        ("network", "bytes/s"): [one.network for one in samples],
    }
    for place in range(max(len(one.gpu) for one in samples)):
        series[f"GPU {place}", "%"] = [one.gpu[place] for one in samples if len(one.gpu) > place]
    for place in range(max(len(one.gpu_memory) for one in samples)):
        series[f"memory of GPU {place}", "%"] = [
            one.gpu_memory[place] for one in samples if len(one.gpu_memory) > place
        ]
    return [{"name": name, "unit": unit, **_spread(values)} for (name, unit), values in series.items()]


def _timeline(samples: Sequence[Sample]) -> list[dict[str, float]]:
    return [
        {
            "seconds": round(one.timestamp - samples[0].timestamp, 2),
            "cpu": round(mean(one.cpu), 1),
            "memory": round(one.memory, 1),
            **({"gpu": round(mean(one.gpu), 1), "gpu_memory": round(mean(one.gpu_memory), 1)} if one.gpu else {}),
        }
        for one in _thinned(samples)
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
        "series": [[step.batch, round(step.seconds, 6)] for step in _thinned(steps)],
    }


def _thinned(values: Sequence[Any]) -> Sequence[Any]:
    every = -(-len(values) // MOST_POINTS) or 1
    return values[::every]


def write_steps(folder: Path, steps: Sequence[StepTime]) -> None:
    """JSON lines in a file named by the first batch; a resumed run writes batches that it repeats over."""
    if steps:
        lines = "".join(json.dumps(asdict(step)) + "\n" for step in steps)
        atomic_write_text(folder / "framework" / f"{steps[0].batch:012}.json", lines)


def read_steps(folder: Path) -> list[StepTime]:
    """What `write_steps` wrote; each batch once, as it was measured last."""
    found: dict[int, StepTime] = {}
    for file in sorted(folder.glob("framework/*.json"), key=lambda file: file.stat().st_mtime_ns):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError):
                step = StepTime(**json.loads(line))
                found[step.batch] = step
    return [found[batch] for batch in sorted(found)]
