"""`launch=local`: on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imgcls.runs import Run


@dataclass(frozen=True)
class Local:
    """Trains in this process, or in one process for each of several devices."""

    def __call__(self, cfg: DictConfig, overrides: list[str] | None = None) -> Run:
        from imgcls.fitting import fit

        return fit(cfg, overrides)
