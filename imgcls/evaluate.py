"""`python -m imgcls.evaluate run=DIR`: measure a run's model on any pictures.

usage: python -m imgcls.evaluate run=DIR [split=test|val|train] [checkpoint=best|last|FILE] [output=FILE]
                                 [data=GROUP] [data.option=value …]

Without `data…` the run's own data set is measured again. With another one, its classes are matched to the model's by
name; every class that it has must be known to the model. `output=FILE` keeps the metrics as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls.cli import guarded, parse_arguments
from imgcls.errors import UserError, nearest
from imgcls.files import atomic_write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from imgcls.data.module import ImageDataModule
    from imgcls.runs import Run

SPLITS = ("test", "val", "train")


def evaluate(
    run: Run, split: str = "test", checkpoint: str = "best", overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Loss and metrics of `run` on a split of its own or another data set, as means over pictures.

    Args:
        run: a run with a checkpoint.
        split: 'test', 'val' or 'train' (the training pictures without augmentation).
        checkpoint: 'best', 'last', or the path of a checkpoint of this run.
        overrides: `data=…` and `data.…=…` words for another data set.

    Returns:
        Metrics named `loss`, `accuracy`, `accuracy_top5`, `macro_f1`, `ece`, and `images`.
    """
    if split not in SPLITS:
        raise UserError(f"split={split}: {nearest(split, SPLITS)}")
    cfg = _configuration(run, overrides)

    import lightning as L

    from imgcls.checkpoints import read_checkpoint
    from imgcls.devices import choose_devices
    from imgcls.training import build_classifier, build_data, build_trainer

    devices = replace(choose_devices(cfg.trainer.accelerator, "auto"), indices=1)
    datamodule = build_data(cfg, devices)
    names = list(datamodule.class_names)
    state = read_checkpoint(_checkpoint_file(run, checkpoint))["state_dict"]
    known = run.class_names if (run.folder / "model" / "model.json").is_file() else names
    measured = pictures_of(datamodule, split, known)
    L.seed_everything(cfg.seed, verbose=False)
    datamodule.class_names = tuple(known)
    classifier = build_classifier(cfg, datamodule, devices, learning_rate=1.0, pretrained=False)
    classifier.load_state_dict(state)
    trainer = build_trainer(cfg, devices, datamodule, classifier, callbacks=[])
    tested = trainer.test(classifier, dataloaders=measured, verbose=False)[0]
    return {
        "images": len(classifier.test_outputs.index),
        **{name.removeprefix("test/"): float(value) for name, value in sorted(tested.items())},
    }


def _configuration(run: Run, overrides: Sequence[str]) -> DictConfig:
    from omegaconf import OmegaConf

    from imgcls.config import check, compose

    cfg = run.config
    if any(word.startswith("data=") for word in overrides):
        other = compose(["data=digits", *overrides] if not overrides else list(overrides))
        other.data.image_size = cfg.data.image_size
        cfg.data = other.data
    else:
        known = set(cfg.data)
        for word in overrides:
            name, _, value = word.removeprefix("data.").partition("=")
            if name.split(".")[0] not in known:
                raise UserError(f"Unknown option 'data.{name}'. {nearest(name, map(str, known))}")
            OmegaConf.update(cfg, f"data.{name}", OmegaConf.create(f"value: {value}").value)
    check(cfg)
    return cfg


def _checkpoint_file(run: Run, checkpoint: str) -> Path:
    if checkpoint in ("best", "last"):
        return run.folder / "checkpoints" / f"{checkpoint}.ckpt"
    return Path(checkpoint).expanduser()


def pictures_of(datamodule: ImageDataModule, split: str, known: Sequence[str]) -> Any:
    """The loader of a split whose labels count in the classes `known` to the model. Raises UserError."""
    unknown = [name for name in datamodule.class_names if name not in known]
    if unknown:
        more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
        raise UserError(f"The model does not know the class {unknown[0]!r}{more}. {nearest(unknown[0], known)}")
    datamodule.setup("test")
    if getattr(datamodule.source, split) is None:
        raise UserError(f"split={split}: this data set has no such pictures.")
    datamodule.relabel([list(known).index(name) for name in datamodule.class_names])
    return datamodule.evaluation_dataloader(split)


def main() -> None:
    """The command line."""
    sys.exit(guarded(lambda: _command(sys.argv[1:])))


def _command(arguments: Sequence[str]) -> None:
    defaults = {"run": "", "split": "test", "checkpoint": "best", "output": ""}
    options, overrides, rest = parse_arguments(arguments, defaults, usage=__doc__ or "", overrides=("data",))
    if not options["run"] or rest:
        raise UserError(f"What is {rest[0]!r}?" if rest else "Which run? Give its folder: run=DIR")
    from imgcls.runs import load

    measured = evaluate(load(options["run"]), options["split"], options["checkpoint"], overrides)
    for name, value in measured.items():
        print(f"{name:15} {value:.6g}")
    if options["output"]:
        atomic_write_text(Path(options["output"]).expanduser(), json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
