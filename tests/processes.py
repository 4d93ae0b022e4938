"""Trainings in several processes on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy


class Forked(DDPStrategy):
    """Processes that are forked from this one: a new one would import torch and Lightning for ten seconds.

    A forked process has none of the threads of its parent, and would wait for those of OpenMP for ever. So it computes
    in one thread. The number of threads in this process stays as it is.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(start_method="fork", process_group_backend="gloo", **options)

    def setup_environment(self) -> None:
        torch.set_num_threads(1)
        super().setup_environment()
