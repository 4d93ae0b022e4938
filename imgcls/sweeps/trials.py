"""What makes a run a trial of a study, and of the best configuration the run that is tested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from imgcls.sweeps.remote_search import Search
from imgcls.sweeps.space import Choice, Space, value_text
from imgcls.sweeps.study import Claim, Study

REST_SECONDS = 15  # of training that a kill may lose; whole models are not written after each of many short epochs


def trial_overrides(study: Study, claim: Claim, reports: int | None, *, in_job: bool = False) -> list[str]:
    """The overrides of a trial: its values, its folder, no test, reports to the study.

    Args:
        study, claim: the trial and its study.
        reports: how often a trial reports to the pruner, see `imgcls.sweeps.pruning`; with folds, after each of them.
        in_job: whether it runs in a job, which cannot reach the study and so does not report.
    """
    overrides = [*claim.overrides, f"run_dir={value_text(str(claim.folder))}", "resume=auto"]
    overrides += [
        "test=false",
        "quiet=true",
        "export.onnx=false",
        f"checkpoint.rest_seconds={REST_SECONDS}",
    ]
    if study.options.cv is not None:
        overrides.append(f"cv.folds={study.options.cv}")
        reports = study.options.cv
    if len(study.options.objectives) == 1 and not in_job:
        callback = {
            "_target_": "imgcls.sweeps.pruning.Pruning",
            "folder": str(claim.folder),
            "storage": study.address,
            "study": study.name,
            "number": claim.number,
            "monitor": next(iter(study.options.objectives)),
            "pruner": pruner_config(study.options.pruner, reports),
            "reports": reports,
        }
        overrides.append(f"+callbacks.search={value_text(callback)}")
    return overrides


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Set single options of `cfg` to the values that `overrides` give them."""
    with open_dict(cfg):
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=False)


def is_option(cfg: DictConfig, name: str) -> bool:
    """Whether `name` is a single option of `cfg`, and no group."""
    missing = object()
    value = OmegaConf.select(cfg, name, default=missing)
    return value is not missing and not isinstance(value, DictConfig)


def refit_overrides(study: Search, values: Mapping[str, Any]) -> list[str]:
    """The overrides of the run that trains the best `values` again."""
    return [*study.space.overrides(values), f"run_dir={value_text(str(study.folder / 'refit'))}"]


def command_overrides(fixed: Sequence[str]) -> list[str]:
    """Those of the overrides `fixed`, which all trials share, that describe the training and not the search."""
    return [override for override in fixed if not override.lstrip("+~").startswith(("search", "run_dir=", "resume="))]


def pruner_config(pruner: Mapping[str, Any], reports: int | None) -> dict[str, Any]:
    """The configuration of a pruner, with the reports of a whole trial as `max_resource` where it has none."""
    config = dict(pruner)
    if "max_resource" in config and config["max_resource"] is None:
        config["max_resource"] = reports if reports is not None else "auto"
    return config


def reports_of(space: Space, epochs: int | None) -> int | None:
    """How often each trial reports: once per epoch of the shortest trial; None: after each epoch, without an end.

    Args:
        space: in which `trainer.max_epochs` may be searched over.
        epochs: of a trial, where it is not; -1 or None: endless.
    """
    if "trainer.max_epochs" in space:
        dimension = space["trainer.max_epochs"]
        values: Iterable[Any] = dimension.values if isinstance(dimension, Choice) else [dimension.low]
        epochs = min((int(value) for value in values if isinstance(value, int | float)), default=None)
    return epochs if epochs is not None and epochs > 0 else None
