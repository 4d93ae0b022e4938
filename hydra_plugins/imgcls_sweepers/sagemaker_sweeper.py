"""`hydra/sweeper=sagemaker`: the class that Hydra requires under this name. It only delegates to imgcls."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SageMakerSweeper(Sweeper):
    """See `imgcls.sweeps.sagemaker.sweep`. Hydra scans this module at every start."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context until `sweep`."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Create a tuning job from `arguments` and wait for it."""
        from imgcls.sweeps.sagemaker.sweep import sweep

        assert self.hydra_context is not None
        assert self.config is not None
        return sweep(self.hydra_context, self.task_function, self.config, arguments)
