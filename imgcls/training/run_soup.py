"""The greedy soup of several runs, which becomes a run folder of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from imgcls.callbacks.checkpoints import BEST
from imgcls.config.trust import restore_configuration
from imgcls.data.module import ImageDataModule
from imgcls.data.stores.fingerprint import fingerprint
from imgcls.errors import UserError
from imgcls.models.classifier import Classifier
from imgcls.runs.provenance import read_configuration, read_overrides
from imgcls.runs.recording import Recording
from imgcls.runs.run import Run, load
from imgcls.system.files import atomic_write_text
from imgcls.system.logs import log_to_file
from imgcls.training import results
from imgcls.training.build import build_data, build_trainer, restore_classifier
from imgcls.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from imgcls.training.data_identity import read_identity, record_data
from imgcls.training.devices import Devices, choose_devices
from imgcls.training.label_results import set_thresholds
from imgcls.training.outputs import outputs_of
from imgcls.training.pipeline import run_test
from imgcls.training.soup import Scorer, greedy_soup, statistics_differ

log = logging.getLogger(__name__)

SAME = (
    *("model.name", "model.stem", "model.head", "model.options", "model.pretrained", "model.weights"),
    *("data.image_size", "data.resize", "data.fit", "data.pad_colour", "data.interpolation", "data.normalization"),
    *("checkpoint.monitor", "checkpoint.mode"),
)
"""The options that all runs must share: where their weights began, how they see images, and what is better."""
CHANNELS = {"model.in_channels": 3, "data.bits": 8}
"""Those that they must share too, with the values of runs that were made before there were these options."""


def make_soup(
    runs: Sequence[Run], output: Path, overrides: Sequence[str] = (), *, onnx: bool = True, trust: bool = False
) -> Run:
    """Average the best weights of `runs` greedily, and write the run folder `output`.

    The runs are sorted by their validation metric, and each joins the average unless that becomes worse on the
    validation images (Wortsman et al. 2022). The data set is that of the best run.

    Args:
        runs: finished ones, which began from the same weights.
        output: a folder without a run.
        overrides: `data.…=…`, where the data set has moved.
        onnx: also write `model.onnx`, where the extra `onnx` is installed.
        trust: instantiate classes that are not imgcls's own.

    Returns:
        The new run, whose `soup.json` lists the members, best first.

    Raises:
        UserError: fewer than two runs, runs that do not fit together, other validation images than theirs, or `output`
            holds a run.
    """
    check_runs(runs)
    if (output / "config.yaml").is_file():
        raise UserError(f"output={output} already holds a run. Choose another folder.")
    stored = read_configuration(runs[0].folder)
    cfg = restore_configuration(stored, overrides, trust=trust)
    cfg.export.onnx = onnx
    devices = replace(choose_devices(cfg.trainer.accelerator, "auto"), indices=1)
    images = build_data(cfg, devices)
    images.setup(None)
    _check_validation(runs[0], images)
    states = [read_checkpoint(run.folder / "checkpoints" / BEST)["state_dict"] for run in runs]
    classifier = restore_classifier(cfg, images, devices, states[0])
    monitor = stored["checkpoint"]["monitor"], stored["checkpoint"]["mode"]
    trainer = build_trainer(cfg, devices, images, classifier, [])
    score = Scorer(trainer, classifier, images, *monitor, statistics_differ(states))
    scores = [score(state, 1) for state in states]
    order = sorted(range(len(runs)), key=lambda place: -scores[place])
    chosen, state = greedy_soup([states[place] for place in order], score)
    final = score(state, len(chosen))
    sign = 1 if monitor[1] == "max" else -1
    members = [
        {"run": str(runs[place].folder), "score": sign * scores[place], "averaged": rank in chosen}
        for rank, place in enumerate(order)
    ]
    best = runs[order[0]]
    config = {**read_configuration(best.folder), "run_dir": str(output)}
    with (
        Recording(output, config, read_overrides(best.folder), resume="never") as recording,
        log_to_file(output / "log.txt"),
    ):
        names = ", ".join(str(member["run"]) for member in members if member["averaged"])
        if len(chosen) > 1:
            log.info("The soup averages %d of %d runs: %s.", len(chosen), len(runs), names)
        else:
            log.info("No average is as good on validation as the best run: the soup has the weights of %s.", names)
        soup = {"monitor": monitor[0], "mode": monitor[1], "score": sign * final, "members": members}
        atomic_write_text(output / "soup.json", json.dumps(soup, indent=2) + "\n")
        content = {**read_checkpoint(best.folder / "checkpoints" / BEST), "state_dict": classifier.state_dict()}
        AtomicCheckpointIO().save_checkpoint(content, output / "checkpoints" / BEST)
        record_data(output, images)
        _write_results(cfg, output, images, classifier, devices, {**score.metrics, "averaged_runs": len(chosen)})
        recording.update(state="finished")
    return load(output)


def check_runs(runs: Sequence[Run]) -> None:
    """Raise UserError unless `runs` are several finished runs that can be averaged."""
    if len({run.folder.resolve() for run in runs}) < 2:
        raise UserError("A soup needs several runs: run=DIR run=DIR …")
    for run in runs:
        if not (run.folder / "checkpoints" / BEST).is_file() or run.status.get("state") != "finished":
            raise UserError(f"{run.folder} has not finished, or has no checkpoints/{BEST}.")
    first, *others = runs
    config, identity = read_configuration(first.folder), read_identity(first.folder)
    for run in others:
        other = read_configuration(run.folder)
        for name in (*SAME, *CHANNELS):
            values = [_look_up(each, name, CHANNELS.get(name)) for each in (config, other)]
            if values[0] != values[1]:
                raise UserError(
                    f"{first.folder} and {run.folder} cannot be averaged: {name} is {values[0]} and {values[1]}."
                )
        random = not _look_up(config, "model.pretrained") and _look_up(config, "model.weights") is None
        if random and config.get("seed") != other.get("seed"):
            raise UserError(
                f"{first.folder} and {run.folder} cannot be averaged: each began from random weights of its own."
            )
        compared = read_identity(run.folder)
        if identity["class_names"] != compared["class_names"]:
            raise UserError(f"{first.folder} and {run.folder} cannot be averaged: their classes differ.")
        if "val" not in identity["splits"] or identity["splits"]["val"] != compared["splits"].get("val"):
            raise UserError(
                f"{first.folder} and {run.folder} cannot be averaged: they were not validated on the same images. "
                "Use the same data.seed and data.val_fraction."
            )


def _check_validation(run: Run, images: ImageDataModule) -> None:
    val = images.source.val
    if val is None or [len(val), fingerprint(val, images.cache)] != read_identity(run.folder)["splits"]["val"]:
        raise UserError(f"The validation images in {images.root} are not those of {run.folder}.")


def _write_results(
    cfg: DictConfig,
    folder: Path,
    images: ImageDataModule,
    classifier: Classifier,
    devices: Devices,
    metrics: dict[str, Any],
) -> None:
    """Write what every finished run has: calibration, test, the portable model and the report."""
    trainer = build_trainer(cfg, devices, images, classifier, [])
    if images.multilabel:
        set_thresholds(classifier, images, cfg.thresholds.aim, cfg.thresholds.at_least)
    validation = None if images.multilabel else outputs_of(trainer, classifier, images, "val")
    metrics |= run_test(trainer, classifier, images)
    metrics["parameters"] = sum(parameter.numel() for parameter in classifier.network.parameters())
    results.write(folder, cfg, images, classifier, metrics, validation)

    from imgcls.report.page import try_report

    try_report(folder)


def _look_up(config: Any, name: str, default: Any = None) -> Any:
    for part in name.split("."):
        config = (config or {}).get(part)
    return default if config is None else config
