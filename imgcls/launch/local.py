"""`launch=local`: on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imgcls.runs.run import Run


@dataclass(frozen=True)
class Local:
    """Trains in this process, or in one process per device.

    A `run_dir` in S3 is a folder in the cache that is copied to S3 as it grows.
    """

    def __call__(self, cfg: DictConfig, overrides: list[str] | None = None) -> Run:
        from imgcls.aws.s3 import is_remote
        from imgcls.system.process import importing

        with importing():
            from imgcls.training.fit import fit

        if not is_remote(cfg.run_dir):
            return fit(cfg, overrides)
        from imgcls.aws.mirror import local_folder, mirror_folder

        address, cfg = cfg.run_dir, cfg.copy()
        cfg.run_dir = str(local_folder(address))
        if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) > 0:  # the first process copies the folder
            return fit(cfg, overrides)
        with mirror_folder(address):
            return fit(cfg, overrides)
