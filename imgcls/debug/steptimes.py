"""How long one training batch took, and the files that hold it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from imgcls.files import atomic_write_text


@dataclass(frozen=True)
class StepTime:
    """The seconds of one training batch, by the host's clock."""

    batch: int
    """Training batches of the run before this one."""
    began: float
    """Seconds since 1970 when the wait for its pictures began."""
    data_wait: float
    forward: float
    backward: float
    optimiser: float
    """Clipping, step and learning rate; near 0 where the gradients are only accumulated."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.data_wait + self.forward + self.backward + self.optimiser


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
