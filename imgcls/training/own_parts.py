"""The user's own parts that a configuration names by `_target_`: loss, metrics, schedule, …; see docs/own-parts.md."""

from __future__ import annotations

import hashlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from imgcls.errors import UserError, first_line, is_users_file, users_frames
from imgcls.models.distillation import Distillation
from imgcls.models.named_metrics import named_metric

Loss = Callable[[Tensor, Tensor], Tensor]


def make(place: str, config: Any, *arguments: Any, **options: Any) -> Any:
    """Instantiate `config`, the options of `place` with a `_target_`.

    Raises UserError where the class does not exist or refuses its arguments, and the error of the user's own code.
    """
    try:
        return instantiate(config, *arguments, _convert_="all", **options)
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UserError) or users_frames(cause):
            raise cause from None
        raise UserError(_refusal(place, config, error, cause)) from error


def _refusal(place: str, config: Any, error: Exception, cause: BaseException) -> str:
    target = config.get("_target_") if isinstance(config, DictConfig) else None
    inner = re.search(r"target '([^']+)'", str(error))
    target = inner[1] if inner else target
    outer = isinstance(config, DictConfig) and target == config.get("_target_")
    name = f"{place}._target_={target}" if outer else f"{place}: {target}"
    if "Error locating target" not in str(error):
        return f"{name}: {type(cause).__name__}: {first_line(cause)}"
    try:
        pkgutil.resolve_name(str(target))
        reason = first_line(error)
    except Exception as missing:
        reason = first_line(missing)
    return f"{name}: {reason}. Give package.Class, of a file in this folder or an installed package."


def make_loss(config: DictConfig, class_weights: Tensor | None, *, soft: bool, num_classes: int) -> Loss | None:
    """The loss of `loss=custom`, or with a teacher; None for the configurable cross entropy.

    Args:
        config: the options `loss.*`.
        class_weights: float32 (C,), a factor for each class; not for a custom loss.
        soft: whether the labels are soft, because images are mixed.
        num_classes: of the data set.

    Raises:
        UserError: it is not callable, or does not take soft labels but is given some.
    """
    target = config.get("_target_")
    if target is None and config.get("teacher") is not None:
        options = {name: config[name] for name in ("label_smoothing", "focal_gamma")}
        return Distillation(config.teacher_share, config.teacher_temperature, class_weights, **options)
    if target is None:
        return None
    loss: Loss = make("loss", config, **_partial(config))
    if not callable(loss):
        raise UserError(f"loss._target_={target}: it must be called as loss(logits, labels), but cannot be called.")
    if soft:
        labels = torch.full((2, num_classes), 1 / num_classes)
        try:
            loss(torch.zeros(2, num_classes), labels)
        except Exception as error:
            raise UserError(
                f"loss._target_={target} does not take the soft labels, float (N, C), of mixed images "
                f"({type(error).__name__}: {first_line(error)}). Set data.augment.mixing.mixup and cutmix to 0, "
                "or make it take them."
            ) from error
    return loss


def make_metrics(config: Any, num_classes: int, *, multilabel: bool = False) -> dict[str, Any]:
    """The metrics of the option `metrics`, a list of names or a mapping; see `named_metric`.

    One of a class that takes `num_classes` or `task` is told of the classes.
    """
    known = {
        "num_classes": num_classes,
        "num_labels": num_classes,
        "task": "multilabel" if multilabel else "multiclass",
    }
    items = config.items() if OmegaConf.is_dict(config) else ((name, name) for name in config or ())
    return {
        str(name): named_metric(metric, num_classes, multilabel=multilabel)
        if isinstance(metric, str)
        else make(f"metrics.{name}", metric, **_classes(metric, known))
        for name, metric in items
    }


def make_schedule(config: Any) -> Any:
    """`optim.schedule`: a name, or a function that builds the scheduler of an optimiser."""
    return make("optim.schedule", config, _partial_=True) if OmegaConf.is_dict(config) else config


def with_code(config: Any) -> Any:
    """The plain `config`, with the hashes of the files that hold the user's classes in it: what decides its results."""
    plain = OmegaConf.to_container(config, resolve=True)
    files = {file for target in _targets(plain) if (file := _file_of_user(target)) is not None}
    hashes = {file.name: hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() for file in sorted(files)}
    return [plain, hashes] if hashes else plain


def _targets(values: Any) -> Iterator[str]:
    inside = values.values() if isinstance(values, Mapping) else values if isinstance(values, list) else ()
    if isinstance(values, Mapping) and values.get("_target_") is not None:
        yield str(values["_target_"])
    for value in inside:
        yield from _targets(value)


def _file_of_user(target: str) -> Path | None:
    try:
        file = inspect.getsourcefile(pkgutil.resolve_name(target))
    except Exception:  # without a source, such as a function in C
        return None
    return Path(file) if file is not None and is_users_file(file) else None


def _partial(config: DictConfig) -> dict[str, bool]:
    """`_partial_` for a function, which is to be called later, and not to make an object."""
    target = _target(config)
    return {"_partial_": True} if target is not None and not inspect.isclass(target) else {}


def _classes(config: DictConfig, known: dict[str, Any]) -> dict[str, Any]:
    target = _target(config)
    taken = inspect.signature(target).parameters if target is not None else {}
    return {name: value for name, value in known.items() if name in taken and name not in config}


def _target(config: DictConfig) -> Any:
    try:
        return pkgutil.resolve_name(str(config.get("_target_")))
    except Exception:  # reported when it is instantiated
        return None
