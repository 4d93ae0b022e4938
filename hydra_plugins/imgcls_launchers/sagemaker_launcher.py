"""`hydra/launcher=sagemaker`: the class that Hydra requires under this name. It only delegates to imgcls."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SageMakerLauncher(Launcher):
    """See `imgcls.sweeps.sagemaker.hydra_launcher`. Hydra scans this module at every start.

    Args:
        jobs: training jobs at the same time.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context until `launch`."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train each of `job_overrides` in its own job."""
        from imgcls.sweeps.sagemaker.hydra_launcher import launch

        return launch(self.hydra_context, self.config, self.jobs, job_overrides, initial_job_idx)
