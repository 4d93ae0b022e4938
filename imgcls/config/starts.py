"""The defaults that depend on where the weights start and on what else is set: the resolvers of `conf/`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imgcls.config.groups import config_dir

LINEAR = "imgcls.models.heads.Linear"
MEMORY = {"imgcls.models.heads.Prototype": "prototype", "imgcls.models.heads.Knn": "knn"}
"""The heads that keep features of a frozen backbone, by their classes."""
STEPS = ("max_epochs", "min_epochs", "max_steps", "max_time", "limit_train_batches")
"""The options of the trainer that say how many steps the head is trained for."""


def by_start(frozen: Any, finetuned: Any, scratch: Any, *, _root_: DictConfig) -> Any:
    """The default for a frozen backbone, for fine-tuning, or for training from random weights."""
    model = _root_.model
    if model.freeze == "backbone":
        return frozen
    return finetuned if model.pretrained or model.weights is not None else scratch


def default_lr(then: Any, otherwise: Any, *, _root_: DictConfig) -> Any:
    """The default that depends on whether trained weights are fine-tuned with the default learning rate."""
    return then if _is_default("optim.lr", _root_) and by_start(False, True, False, _root_=_root_) else otherwise


def if_default(option: str, then: Any, otherwise: Any, *, _root_: DictConfig) -> Any:
    """The default that depends on whether an option, such as `trainer.max_epochs`, has its default."""
    return then if _is_default(option, _root_) else otherwise


def _is_default(option: str, root: DictConfig) -> bool:
    """Whether the option has a default that depends on other options, and is therefore not a plain value."""
    group, _, name = option.partition(".")
    return str(plain(root[group]).get(name)).startswith("${")


def by_task(single: Any, multilabel: Any, *, _root_: DictConfig) -> Any:
    """The default for images of one label, or of several."""
    return multilabel if is_multilabel(_root_) else single


def is_multilabel(config: Any) -> bool:
    """Whether the options say that an image can have several labels."""
    data = config.get("data") or {}
    return config.get("task") == "multilabel" or bool(data.get("label_separator") or data.get("label_columns"))


def solves_head(*, _root_: DictConfig) -> bool:
    """The default of `model.solve_head`: whether a linear head is solved on the features of trained weights.

    Fine-tuning then starts from the solution (Kumar et al. 2022), unless `optim.lr=auto` searches for a rate, which
    needs a loss that falls. On a frozen backbone the solution is the result; there the head is trained in steps where
    anything is set that only steps can do: an optimiser or its options, a number of epochs or steps, views, dropout, a
    focal loss or one of your own.
    """
    model, trainer = _root_.model, _root_.trainer
    if model.head.get("_target_") in MEMORY:
        return True
    if unsolvable({**plain(model), "freeze": model.freeze}, plain(_root_.loss)) is not None:
        return False
    if is_multilabel(_root_):
        return False
    if model.freeze != "backbone":
        return bool(model.freeze == "none" and _root_.optim.lr != "auto")
    if model.drop_rate or model.head.get("dropout"):
        return False
    original = _file("trainer/default")
    raw = OmegaConf.to_container(trainer, resolve=False)
    assert isinstance(raw, dict)
    same_length = all(raw.get(name) == original[name] for name in STEPS)
    return same_length and OmegaConf.to_container(_root_.optim, resolve=False) == _file("optim/_base", "optim/adamw")


def unsolvable(model: Mapping[str, Any], loss: Mapping[str, Any]) -> str | None:
    """Why the head of these options is not the solution of a convex problem; None if it is."""
    if not model.get("pretrained") and model.get("weights") is None:
        return "random weights have no features yet. Use model.pretrained=true or model.weights=FILE"
    if model.get("stem") == "small":
        return "the first convolution of model.stem=small has random weights. Use model.stem=standard"
    if (model.get("head") or {}).get("_target_") != LINEAR:
        return "only a linear head can be solved. Use head=linear"
    if loss.get("_target_") is not None:
        return "only the cross entropy can be solved. Use loss=default"
    if loss.get("focal_gamma"):
        return "the focal loss has no unique solution. Use loss.focal_gamma=0"
    if model.get("freeze") == "backbone" and model.get("feature_views") != 0:
        return "it needs one view of each image. Use model.feature_views=0"
    return None


def unfit_for_memory(config: Mapping[str, Any]) -> str | None:
    """Why the head of this configuration, which keeps features of a frozen backbone, cannot do so; None if it can.

    A configuration without trained weights is one that evaluates a run, where nothing is kept.
    """
    model = config.get("model") or {}
    if not model.get("pretrained") and model.get("weights") is None:
        return None
    if model.get("freeze") != "backbone":
        return "Use model.freeze=backbone"
    if model.get("feature_views") != 0:
        return "Use model.feature_views=0"
    if model.get("solve_head") is not True:
        return "It is filled, not trained: use model.solve_head=true"
    return "Use head=linear for images of several labels" if is_multilabel(config) else None


def plain(node: DictConfig) -> dict[str, Any]:
    """The values of `node` as they were written, without resolving those that depend on others."""
    content = OmegaConf.to_container(node, resolve=False)
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


@functools.cache
def _file(*names: str) -> dict[str, Any]:
    """The options in these files of `conf/`, the later ones first."""
    merged: dict[str, Any] = {}
    for name in names:
        merged |= plain(OmegaConf.load(config_dir() / f"{name}.yaml"))  # type: ignore[arg-type]
    merged.pop("defaults", None)
    return merged
