"""Runs a configuration to its end: in a locked run folder, on one or several devices, within their memory."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path

import torch
from omegaconf import DictConfig

from imgcls.config.composition import check, plain
from imgcls.errors import UserError, first_line
from imgcls.runs.reading import read_json, read_status
from imgcls.runs.recording import Recording
from imgcls.runs.resuming import as_begun, keep_split
from imgcls.runs.run import Run, load
from imgcls.system.interrupts import StopSignals
from imgcls.system.logs import log_to_file
from imgcls.system.machine import all_processes
from imgcls.system.process import importing
from imgcls.training.devices import OutOfMemory, devices_of_training, is_out_of_memory
from imgcls.training.processes import is_worker, train_in_processes

log = logging.getLogger(__name__)


def fit(cfg: DictConfig, overrides: list[str] | None = None) -> Run:
    """Train what `cfg` describes and return the finished run.

    An unfinished run of the same configuration in the run folder is resumed; a finished one is returned as it is.
    Raises UserError for what the user can fix and Interrupted when a signal stopped the run.
    """
    check(cfg)
    folder = Path(cfg.run_dir).expanduser()
    cfg = as_begun(keep_split(cfg, folder), folder, overrides or [])
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    folds = (cfg.get("cv") or {}).get("folds")
    if folds and all_processes() > 1:
        raise UserError("cv.folds trains each fold on the devices of one machine. Start it without torchrun.")
    if rank > 0:  # started from outside, for example by torchrun: rank 0 owns the run folder
        if read_status(folder).get("state") != "finished":  # else rank 0 does not train, and would be waited for
            _fit_with_enough_memory(cfg, folder, None)
        return load(folder)
    with Recording(folder, plain(cfg), overrides or [], cfg.resume) as recording:
        if recording.finished:
            log.info("%s already holds this run, finished. resume=auto does not change it.", folder)
            return load(folder)
        with importing():
            import imgcls.training.pipeline  # noqa: F401 - Lightning sets up its loggers when it is imported

        with log_to_file(folder / "log.txt", terminal=not cfg.quiet):
            try:
                if folds:
                    from imgcls.training.folds import cross_validate

                    cross_validate(cfg, overrides or [], folder, fit)
                else:
                    _fit_with_enough_memory(cfg, folder, recording)
            except BaseException as error:
                recording.record_failure(error)  # before the report of its progress, which shows why it ended
                if cfg.report and ((folder / "metrics.csv").is_file() or (folder / "debug").is_dir()):
                    from imgcls.report.page import try_report

                    try_report(folder)
                raise
        recording.update(state="finished", **_stop_reason(folder))
        return load(folder)


def _stop_reason(folder: Path) -> dict[str, str]:
    """The status fields of a run that a rule has ended."""
    stop = read_json(folder / "debug" / "stopped.json")
    return {"stopped_by": stop["rule"], "reason": f"stopped by {stop['rule']}: {stop['sentence']}"} if stop else {}


def _fit_with_enough_memory(cfg: DictConfig, folder: Path, recording: Recording | None) -> None:
    """Train; if a device runs out of memory, halve the micro-batch and resume from the last checkpoint.

    The optimiser still sees the same batches, because the gradients of the parts are accumulated.
    """
    micro: int | None = cfg.data.get("micro_batch_size")
    if recording is not None:
        micro = recording.status.get("micro_batch_size", micro)
    while True:
        try:
            _fit_once(cfg, folder, micro)
            return
        except OutOfMemory as error:
            failed, reason = error.size, str(error)
        gc.collect()
        if failed <= 1:
            raise UserError(
                f"The device does not have enough memory for one image ({reason}). "
                "Choose a smaller data.image_size or model."
            )
        micro = failed // 2
        if recording is not None:
            recording.update(micro_batch_size=micro)
        log.warning(
            "Out of memory with %d images at a time: using %d now, and accumulating gradients to the same batch of %d.",
            failed,
            micro,
            cfg.data.batch_size,
        )


def _fit_once(cfg: DictConfig, folder: Path, micro: int | None) -> None:
    devices = devices_of_training(cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes)
    if devices.total == 1 or is_worker():
        train_here(cfg, folder, micro)
    elif devices.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={devices.num_nodes}: start the same command on each machine with torchrun, "
            "and one run_dir that all of them share."
        )
    else:
        train_in_processes(plain(cfg), folder, devices.per_node, micro)


def train_here(cfg: DictConfig, folder: Path, micro: int | None = None) -> None:
    """Train in this process, which may be one of several. Raises OutOfMemory if the device has too little memory."""
    from imgcls.training.pipeline import train

    with StopSignals() as stop:
        try:
            train(cfg, folder, stop, micro)
            return
        except Exception as error:
            if "more than 1 value per channel" in str(error):
                raise UserError(
                    "A batch norm got a single value per channel: raise data.batch_size, data.micro_batch_size or "
                    "data.image_size, or choose a model without batch norms."
                ) from error
            if not is_out_of_memory(error):
                raise
            devices = devices_of_training(cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes)
            size, reason = micro or -(-cfg.data.batch_size // devices.total), first_line(error)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise OutOfMemory(size, reason)
