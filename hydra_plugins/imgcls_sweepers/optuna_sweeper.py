"""`hydra/sweeper=optuna`: the class that Hydra requires under this name. It only delegates to imgcls."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """See `imgcls.sweeps.hydra`. Hydra scans this module at every start, so it imports nothing heavy."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context until `sweep`."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials that `arguments` describe."""
        from imgcls.sweeps.hydra import sweep

        assert self.hydra_context is not None
        assert self.config is not None
        return sweep(self.hydra_context, self.task_function, self.config, arguments)
