"""`python -m imgcls.train`: train what the configuration describes."""

from __future__ import annotations

import sys
from typing import Any

from omegaconf import DictConfig

from imgcls.cli import guarded
from imgcls.config.command_line import overrides_of, run_hydra
from imgcls.runs.run import print_summary


def train(cfg: DictConfig) -> float | None:
    """Run `cfg` where `cfg.launch` says; return the validation metric that a sweep compares."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from imgcls.launch import launch

    overrides = overrides_of(cfg)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        from imgcls.data.stores.sharing import keep_data

        keep_data()  # for the next run in this process
    run = launch(cfg, overrides)
    if not cfg.quiet:
        print_summary(run)
    value: Any = run.metrics.get(cfg.checkpoint.monitor)
    return value


def main() -> None:
    """Run the command line."""
    sys.exit(guarded(lambda: run_hydra(train)))


if __name__ == "__main__":
    main()
