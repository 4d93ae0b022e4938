"""`python -m imgcls.train`: train what the configuration describes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from imgcls.cli import announce, run_command
from imgcls.config.command_line import in_plain_sweep, overrides_of, run_hydra
from imgcls.runs.run import print_summary
from imgcls.system.interrupts import RESUME_ADVICE, Interrupted


def train(cfg: DictConfig) -> float | None:
    """Run `cfg` where `cfg.launch` says; return the validation metric that a sweep compares."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from imgcls.launch import launch

    overrides = overrides_of(cfg)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        from imgcls.data.stores.sharing import keep_data

        keep_data()  # for the next run in this process
    try:
        run = launch(cfg, overrides)
    except KeyboardInterrupt:  # before or after the training, which ends with Interrupted
        if not (Path(cfg.run_dir).expanduser() / "config.yaml").is_file():
            raise
        interrupted = Interrupted(signal.SIGINT)
        interrupted.advice = _how_to_resume(cfg)
        raise interrupted from None
    except Interrupted as error:
        if error.advice == RESUME_ADVICE:
            error.advice = _how_to_resume(cfg)
        raise
    if not cfg.quiet:
        print_summary(run)
    value: Any = run.metrics.get(cfg.checkpoint.monitor)
    return value


def _how_to_resume(cfg: DictConfig) -> str:
    """The command that resumes the run of `cfg`, or the sweep that it is part of."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from imgcls.runs.resuming import resume_command

    hydra = HydraConfig.get()
    if in_plain_sweep():
        option, folder = "hydra.sweep.dir", str(hydra.sweep.dir)
    elif hydra.mode == RunMode.MULTIRUN or os.environ.get("RANK"):
        return RESUME_ADVICE  # a search finds its study by itself; torchrun has options of its own
    else:
        option, folder = "run_dir", str(cfg.run_dir)
    return f"To resume:\n  {resume_command(sys.argv[1:], option, folder)}"


def main() -> None:
    """Run the command line."""
    if all(not text.startswith("-") or text in ("-m", "--multirun") for text in sys.argv[1:]):
        announce("reading the configuration, then loading PyTorch, Lightning and timm")
    run_command(_run)


def _run() -> None:
    """Run the configuration, or all of a multirun, of which a failed run leaves the table of the others."""
    interrupted = False
    try:
        run_hydra(train)
    except (Interrupted, KeyboardInterrupt):
        interrupted = True
        raise
    finally:
        if "imgcls.sweeps.multirun" in sys.modules and not interrupted:
            from imgcls.sweeps.multirun import conclude

            conclude()


if __name__ == "__main__":
    main()
