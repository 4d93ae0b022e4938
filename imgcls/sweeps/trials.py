"""What makes a run a trial of a study, and what a trained best configuration has in common with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from imgcls.sweeps.remote_search import Search
from imgcls.sweeps.space import Choice, Space, value_text
from imgcls.sweeps.study import Claim, Study

REST = 15  # seconds of a trial that a kill may cost, for not writing whole models after epochs that take a moment


def trial_words(study: Study, claim: Claim, reports: int | None, *, elsewhere: bool = False) -> list[str]:
    """The overrides of a trial: its values, its folder, no look at the test pictures, reports to the study.

    Args:
        study: the study.
        claim: the trial.
        reports: how often a trial reports to the pruner, see `imgcls.sweeps.pruning`.
        elsewhere: whether it runs in a job that does not reach the study; then it does not report.
    """
    words = [*claim.words, f"run_dir={value_text(str(claim.folder))}", "resume=auto"]
    words += ["test=false", "quiet=true", "export.onnx=false", f"checkpoint.rest_seconds={REST}"]
    if len(study.options.objectives) == 1 and not elsewhere:
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
        words.append(f"+callbacks.search={value_text(callback)}")
    return words


def put_in(cfg: DictConfig, words: Sequence[str]) -> None:
    """Set in `cfg` what the overrides `words` say of single options."""
    with open_dict(cfg):
        for override in OverridesParser.create().parse_overrides(list(words)):
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=False)


def refit_words(study: Search, values: Mapping[str, Any]) -> list[str]:
    """The overrides of the run that trains the best `values` once more."""
    return [*study.space.words(values), f"run_dir={value_text(str(study.folder / 'refit'))}"]


def command_words(fixed: Sequence[str]) -> list[str]:
    """Of the words that all trials share those that say what is trained, without how it was searched."""
    return [word for word in fixed if not word.lstrip("+~").startswith(("search", "run_dir=", "resume="))]


def pruner_config(pruner: Mapping[str, Any], reports: int | None) -> dict[str, Any]:
    """The configuration of a pruner whose `max_resource`, where it is not given, is what a whole trial reports."""
    config = dict(pruner)
    if "max_resource" in config and config["max_resource"] is None:
        config["max_resource"] = reports if reports is not None else "auto"
    return config


def reports_of(space: Space, epochs: int | None) -> int | None:
    """How often each trial reports: once an epoch, or as often as the one with the fewest epochs has them.

    Args:
        space: where `trainer.max_epochs` may be searched over.
        epochs: of a trial, where it is not; -1 or None: it trains without an end.
    """
    if "trainer.max_epochs" in space:
        dimension = space["trainer.max_epochs"]
        values: Iterable[Any] = dimension.values if isinstance(dimension, Choice) else [dimension.low]
        epochs = min((int(value) for value in values if isinstance(value, int | float)), default=None)
    return epochs if epochs is not None and epochs > 0 else None
