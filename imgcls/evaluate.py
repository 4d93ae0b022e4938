"""`python -m imgcls.evaluate run=DIR`: measure a run's model on any images.

usage: python -m imgcls.evaluate run=DIR [split=test|val|train|all] [checkpoint=best|last|FILE]
                                 [views=one|flip|flip_shift|where_unsure] [output=FILE] [trust=true] [data=GROUP]
                                 [data.option=value …]

Without `data…` the run's data set is measured again. Another one's classes are matched to the model's by name, and the
model must have all of them; one class is enough. A single folder of classes is split as for training, so that `test` is
a fifth of it; `all` is all of its images. `run=` may also be a folder that `imgcls.export` wrote into `exports/` of the
run: then the answers of its format are measured, with the model's temperature. `views` selects the views whose features
are averaged, see model.views. `output=FILE` writes the metrics as JSON. `trust=true` runs classes that are not imgcls's
own, see docs/run-folder.md. Several processes, started by torchrun, evaluate a share of the images each; the first one
prints the metrics of all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls.cli import Option, announce, boolean, make_callable, read_options, run_command
from imgcls.errors import UserError
from imgcls.models.choices import VIEWS, check_views
from imgcls.portable.description import DESCRIPTION, read_description
from imgcls.runs.folds import read_summary
from imgcls.runs.provenance import read_configuration
from imgcls.runs.run import checkpoint_file, run_in
from imgcls.system.checks import check_value, choice, flag
from imgcls.system.files import atomic_write_text
from imgcls.system.logs import log_to_terminal, without_lightning_messages
from imgcls.system.shares import Share

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imgcls.models.metrics import Outputs
    from imgcls.models.network import Network
    from imgcls.runs.run import Run

SPLITS = ("test", "val", "train", "all")
OPTIONS = {
    "run": Option(),
    "split": Option("test", choice(*SPLITS)),
    "checkpoint": Option("best"),
    "output": Option(),
    "views": Option(None, choice(*VIEWS)),
    "trust": Option(False, flag, boolean),
}


def evaluate(
    run: Run | str | Path,
    split: str = "test",
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
    views: str | None = None,
    *,
    trust: bool = False,
) -> dict[str, float]:
    """Loss and metrics of `run` on a split of its own or another data set, as means over images.

    Args:
        run: a run with a checkpoint, or its folder.
        split: 'test', 'val', 'train' (the training images without augmentation), or 'all' images of these three.
        checkpoint: 'best', 'last', or the path of a checkpoint of this run.
        overrides: `data=…` and `data.…=…`, for another data set.
        views: of each image that are averaged, see `imgcls.models.views`; None: those of the run.
        trust: instantiate classes that are not imgcls's own, and fetch from the addresses in the run's `config.yaml`.

    Returns:
        Metrics named `loss`, `accuracy`, `accuracy_top5`, `macro_f1`, `ece`, and `images`.
    """
    return measure(run, split, checkpoint, overrides, views, trust=trust)[0]


@without_lightning_messages()
def measure(
    run: Run | str | Path,
    split: str = "test",
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
    views: str | None = None,
    *,
    trust: bool = False,
) -> tuple[dict[str, float], Outputs]:
    """What `evaluate` returns, and the model's outputs for each image, in the order of the split."""
    check_value("split", split, choice(*SPLITS))
    run, exported = _run_of_export(run)
    cfg = configuration_of(run, split, overrides, trust)
    if views is not None:
        from imgcls.config.starts import is_multilabel

        check_views(views, multilabel=is_multilabel(cfg))
        if exported is not None:
            raise UserError("views= is for a run: an exported model has the views that it was exported with.")
        cfg.model.views = views
    if exported is not None:
        cfg.trainer.precision = "32-true"

    import torch

    from imgcls import portable
    from imgcls.portable.engine_network import EngineNetwork
    from imgcls.training.build import build_classifier, build_data, build_trainer, restore_classifier
    from imgcls.training.checkpoint_io import read_checkpoint
    from imgcls.training.devices import devices_of_torchrun

    devices = devices_of_torchrun("cpu" if exported else cfg.trainer.accelerator)
    cfg.trainer.num_nodes = devices.num_nodes
    whole: Network | None = None
    if exported is not None:
        whole = EngineNetwork(portable.load(exported))
    elif read_summary(run.folder):
        whole = portable.load(run.model_folder, views=views).network
    state = {} if whole else read_checkpoint(checkpoint_file(run, checkpoint))["state_dict"]
    datamodule = build_data(cfg, devices)
    datamodule.test_on(split, run.class_names)
    if whole is not None:
        classifier = build_classifier(cfg, whole, datamodule, devices, 1.0)
    else:
        classifier = restore_classifier(cfg, datamodule, devices, state)
    if classifier.multilabel:
        classifier.thresholds.copy_(torch.tensor(run.model.thresholds))
    trainer = build_trainer(cfg, devices, datamodule, classifier, callbacks=[])
    tested = trainer.test(classifier, datamodule=datamodule, verbose=False)[0]
    metrics = {
        "images": len(classifier.test_outputs.index),
        **{name.removeprefix("test/"): float(value) for name, value in sorted(tested.items())},
    }
    return metrics, classifier.test_outputs


def _run_of_export(run: Run | str | Path) -> tuple[Run, Path | None]:
    """The run, and, where `run` is an exported folder in it (`exports/onnx-int8`), that folder."""
    if isinstance(run, str | Path) and "://" not in str(run):
        folder = Path(run).expanduser().resolve()
        if (folder / DESCRIPTION).is_file() and read_description(folder).get("export"):
            if not (folder.parents[1] / "config.yaml").is_file():
                raise UserError(f"{run} is not in exports/ of its run, whose data set evaluate needs.")
            return run_in(folder.parents[1]), folder
    return run_in(run), None


def configuration_of(run: Run, split: str, overrides: Sequence[str], trust: bool) -> DictConfig:
    """The configuration that measures `run` on `split`, with the preprocessing of its model."""
    from omegaconf import OmegaConf

    from imgcls.config.trust import restore_configuration

    cfg = restore_configuration(read_configuration(run.folder), overrides, trust=trust)
    if split != "val" and any(override.startswith("data=") for override in overrides):
        cfg.data.val_fraction = 0.0
    preprocessing = run.model.preprocessing  # the model must see images as in training
    stored = preprocessing.as_dict()
    cfg.data.normalization = [stored.pop("mean"), stored.pop("std")]
    for name, value in stored.items():
        OmegaConf.update(cfg, f"data.{name}", value, force_add=True)  # a run of an earlier version has no `fit`
    return cfg


def main() -> None:
    """Run the command line."""
    run_command(lambda: _command(sys.argv[1:]))


def _command(arguments: Sequence[str]) -> None:
    options, overrides, _ = read_options(arguments, OPTIONS, usage=__doc__ or "", overrides=("data",))
    if options["run"] is None:
        raise UserError("Give the run folder: run=DIR")
    announce("loading PyTorch, Lightning and timm")
    is_first = Share.of_this_process().rank == 0
    with log_to_terminal() if is_first else nullcontext():
        measured = evaluate(
            options["run"], options["split"], options["checkpoint"], overrides, options["views"], trust=options["trust"]
        )
    if not is_first:
        return
    for name, value in measured.items():
        print(f"{name:15} {value:.6g}")
    if options["output"]:
        atomic_write_text(Path(options["output"]).expanduser(), json.dumps(measured, indent=2) + "\n")


make_callable(__name__, evaluate)

if __name__ == "__main__":
    main()
