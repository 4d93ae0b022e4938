"""`python -m imgcls.audit run=DIR`: what is wrong with the data of a run, and why its model errs.

usage: python -m imgcls.audit run=DIR [data.option=value …] [trust=true]

Lists labels that are probably wrong, copies of an image with two labels, poor images, and classes that may be two. Each
error on the validation images gets a cause, and each cause what correcting its images is worth. Writes audit.csv, which
data=table reads, into the run folder, and a section of its report. `trust=true`: see docs/run-folder.md.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls.cli import Option, announce, boolean, read_options, run_command
from imgcls.errors import UserError
from imgcls.runs.provenance import read_configuration
from imgcls.runs.run import checkpoint_file, run_in
from imgcls.system.checks import flag
from imgcls.system.logs import log_to_terminal

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imgcls.audit.findings import Audit
    from imgcls.data.module import ImageDataModule
    from imgcls.models.network import Network
    from imgcls.runs.run import Run
    from imgcls.training.devices import Devices

log = logging.getLogger(__name__)

OPTIONS = {"run": Option(), "trust": Option(False, flag, boolean)}


def audit_run(run: Run | str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Audit:
    """Audit the data of `run`, explain the errors of its model, and write both into the run folder.

    Args:
        run: a run with a checkpoint, or its folder.
        overrides: `data.…=…`, where the images are elsewhere now.
        trust: see `imgcls.evaluate`.

    Raises:
        UserError: the run has no model, its images have several labels, or other classes than the model.
    """
    run = run_in(run)
    from imgcls.evaluate import configuration_of

    cfg = configuration_of(run, "val", overrides, trust)

    from imgcls.report.page import write_report
    from imgcls.training.auditing import audit_images, stored_classes, write_audit
    from imgcls.training.build import build_data
    from imgcls.training.devices import choose_devices

    devices = choose_devices(cfg.trainer.accelerator, 1)
    images = build_data(cfg, devices, plain=True)
    images.setup()
    if list(images.class_names) != run.class_names:
        raise UserError(f"{run.folder}: the data set has other classes than the model was trained with.")
    network = _backbone(run, cfg, images, devices)
    found = audit_images(images, network, devices.torch_device(), predicted=stored_classes(run.folder, images))
    write_audit(found, run.folder, images, report=True)
    write_report(run.folder)
    return found


def _backbone(run: Run, cfg: DictConfig, images: ImageDataModule, devices: Devices) -> Network:
    """The network with the pretrained weights that `run` started from, or, without any, with its own.

    The trained backbone has learnt the wrong labels too.
    """
    from imgcls.training.build import build_network, restore_classifier
    from imgcls.training.checkpoint_io import read_checkpoint

    stored = read_configuration(run.folder).get("model", {})
    weights = stored.get("weights")
    if stored.get("freeze") != "backbone" and (stored.get("pretrained") if weights is None else Path(weights).exists()):
        start = cfg.copy()
        start.model.pretrained, start.model.weights = stored.get("pretrained", False), weights
        try:
            return build_network(start, images)
        except UserError as error:
            log.warning("%s The features are those of the trained backbone instead.", error)
    state = read_checkpoint(checkpoint_file(run, "best"))["state_dict"]
    return restore_classifier(cfg, images, devices, state).network


def main() -> None:
    """Run the command line."""
    run_command(lambda: _command(sys.argv[1:]))


def _command(arguments: Sequence[str]) -> None:
    options, overrides, _ = read_options(arguments, OPTIONS, usage=__doc__ or "", overrides=("data.",))
    if options["run"] is None:
        raise UserError(
            "Give the run folder: run=DIR. To audit data before a training: imgcls prepare audit=true data=…"
        )
    announce("loading PyTorch, Lightning and timm")
    import lightning  # noqa: F401 - sets up its loggers, which are silenced below

    from imgcls.audit.tables import as_text

    with log_to_terminal():
        run = run_in(options["run"])
        found = audit_run(run, overrides, trust=options["trust"])
    print(as_text(found))
    print(f"table       {run.folder / 'audit.csv'}\nreport      {run.report_file}")


if __name__ == "__main__":
    main()
