"""The checks of the option values, which run before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.config.choices import (
    ARCHIVE_SUFFIXES,
    NORMALIZATIONS,
    ON_BAD,
    SAMPLERS,
    STORE_KINDS,
    TABLE_SUFFIXES,
    TUNING_STRATEGIES,
    WARM_STARTS,
)
from imgcls.config.combinations import check_combinations, check_metrics
from imgcls.config.starts import is_multilabel
from imgcls.errors import nearest
from imgcls.images.channels import MAX_CHANNELS
from imgcls.images.preprocessing import FITS, INTERPOLATIONS
from imgcls.models.choices import (
    ACTIVATIONS,
    ADAPTERS,
    AVERAGES,
    BATCH_NORMS,
    FREEZING,
    MODES,
    NORMS,
    STEMS,
    VALIDATION_METRICS,
    VIEWS,
)
from imgcls.models.schedules import SCHEDULES
from imgcls.system.checks import (
    Check,
    bytes_or_auto,
    check_value,
    choice,
    either,
    existing_file,
    existing_folder,
    flag,
    is_whole,
    licence_name,
    list_of,
    mapping,
    mappings,
    names,
    number,
    numbers,
    one_name,
    share_or,
    whole,
)

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile


def check_options(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first option of the plain, resolved `config` whose value cannot be right."""
    for name, check in OPTIONS.items():
        value = _look_up(config, name)
        if value is not _ABSENT:
            check_value(name, value, check)
    check_metrics(config.get("metrics"), multilabel=is_multilabel(config))
    metrics = [*VALIDATION_METRICS, *(f"val/{name}" for name in config.get("metrics") or {})]
    for name in ("checkpoint.monitor", "early_stopping.monitor"):
        value = _look_up(config, name)
        if value is not _ABSENT:
            check_value(name, value, choice(*metrics))
    check_combinations(config)


def image_root(value: Any) -> str | None:
    """An existing folder or archive, an address, or null."""
    if isinstance(value, str) and value.startswith(("http://", "https://", "hf://")):
        return None  # of shards, see check_combinations
    file = Path(str(value)).expanduser()
    if not file.is_file():
        return existing_folder(value)
    if str(value).lower().endswith(ARCHIVE_SUFFIXES):
        return None
    kinds = f"{', '.join(ARCHIVE_SUFFIXES)}, or data=FILE with a table: {', '.join(TABLE_SUFFIXES)}"
    return f"is a file: give a folder, or {kinds}. Save a spreadsheet as CSV."


def folder_name(value: Any) -> str | None:
    """The name of a folder, which need not exist, or an address."""
    return None if isinstance(value, str) and value else "must be the name of a folder, as text, such as runs/1."


def is_custom(value: Any) -> bool:
    """Whether `value` names a class or function of the user's, with its arguments."""
    return isinstance(value, Mapping) and bool(value.get("_target_"))


def custom(value: Any) -> str | None:
    """A class or function of the user's."""
    return None if is_custom(value) else "must be {_target_: package.Class}."


def spaces(value: Any) -> str | None:
    """Options and their spaces."""
    return None if isinstance(value, Mapping) else "must be options with their spaces: {optim.lr: 'interval(0.1,1)'}."


def mean_and_std(value: Any) -> str | None:
    """Means and standard deviations of the channels."""
    right = isinstance(value, list) and len(value) == 2 and all(not numbers(item) for item in value)
    right = right and len(value[0]) == len(value[1]) > 0
    return None if right else "must be [[mean, mean, mean], [std, std, std]], one number a channel."


def fold(value: Any) -> str | None:
    """A fold and the number of folds."""
    found = re.fullmatch(r"(\d+)/(\d+)(:val)?", str(value))
    right = value is None or (found is not None and 1 <= int(found[1]) <= int(found[2]) and int(found[2]) > 1)
    return None if right else "must be the number of a fold and of all folds, such as 1/5, or null."


def size(value: Any) -> str | None:
    """The side of a square, or height and width, px."""
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    right = not any(whole(8, 4096)(side) for side in sides)
    return None if right else "must be a whole number from 8 to 4096, or two: [height, width]."


def colour(value: Any) -> str | None:
    """Red, green and blue."""
    right = isinstance(value, list) and len(value) == 3 and not any(whole(0, 255)(part) for part in value)
    return None if right else "must be [red, green, blue], each from 0 to 255."


def timm_model(value: Any) -> str | None:
    """An architecture that the installed timm can build."""
    from imgcls.models.names import all_model_names, is_model

    if isinstance(value, str) and is_model(value):
        return None
    return f"timm has no model of this name. {nearest(str(value), all_model_names())}"


def devices(value: Any) -> str | None:
    """auto, a number of devices, or a list of device indices."""
    if value == "auto" or not whole(1)(value) or value == -1 or (isinstance(value, str) and value.isdigit()):
        return None
    if isinstance(value, list) and value and not any(whole(0)(index) for index in value):
        return None
    return "must be auto, a number of devices of at least 1, or a list of their indices."


OPTIONS: dict[str, Check] = {
    "run_dir": folder_name,
    "seed": whole(0, 2**32 - 1),
    "resume": choice("auto", "last", "never"),
    "test": flag,
    "report": flag,
    "quiet": flag,
    "export.calibrate": flag,
    "export.examples": flag,
    "export.known": share_or("auto", False),
    "export.license": licence_name,
    "export.onnx": choice("auto", True, False),
    "model.name": timm_model,
    "model.pretrained": flag,
    "model.weights": existing_file,
    "model.stem": choice(*STEMS),
    "model.freeze": choice(*FREEZING),
    "model.adapter": choice(*ADAPTERS),
    "model.adapter_rank": whole(1),
    "model.feature_views": whole(0, none=True),
    "model.solve_head": flag,
    "model.unfreeze_epoch": whole(1),
    "model.batch_norm": choice(*BATCH_NORMS),
    "model.drop_rate": number(0, 1),
    "model.drop_path_rate": number(0, 1),
    "preset.name": one_name,
    "preset.freeze": choice(*FREEZING),
    "preset.views": choice(*VIEWS),
    "preset.average": choice(*AVERAGES),
    "preset.length": whole(1),
    "preset.steps": whole(0),
    "preset.longest": whole(1),
    "model.channels_last": choice("auto", True, False),
    "model.compile": choice("auto", True, False, *COMPILE_MODES),
    "model.options": mapping,
    "model.views": choice(*VIEWS),
    "model.head.hidden": list_of("layer widths, such as [1000,100]", lambda item: is_whole(item) and item > 0),
    "model.head.dropout": number(0, 1),
    "model.head.activation": choice(*ACTIVATIONS),
    "model.head.norm": choice(*NORMS),
    "model.head.k": whole(1),
    "optim.lr": number(0, open_low=True, words=["auto"]),
    "optim.few_images": whole(0),
    "optim.weight_decay": number(0),
    "optim.momentum": number(0, 1),
    "optim.other_lr": number(0),
    "optim.schedule": either(choice(*SCHEDULES), custom),
    "optim.warmup_epochs": number(0),
    "optim.layer_decay": number(0, 1, open_low=True),
    "optim.backbone_lr_scale": number(0),
    "optim.norm_lr_scale": number(0),
    "optim.initial_lr_ratio": number(0, 1),
    "optim.final_lr_ratio": number(0, 1),
    "optim.decay_biases": flag,
    "optim.decoupled": flag,
    "optim.betas": numbers,
    "optim.nesterov": flag,
    "optim.ema": number(0, 0.999999, none=True),
    "loss.label_smoothing": number(0, 1),
    "loss.class_weights": either(choice(None, "balanced"), numbers),
    "loss.focal_gamma": number(0),
    "loss.negative_gamma": number(0),
    "loss.teacher": existing_folder,
    "loss.teacher_share": number(0, 1),
    "loss.teacher_temperature": number(0, open_low=True),
    "loss.teacher_views": whole(0),
    "cv.folds": whole(2, none=True),
    "cv.ensemble": flag,
    "task": choice("auto", "multilabel"),
    "thresholds.aim": choice("f1", "precision", "recall"),
    "thresholds.at_least": number(0, 1),
    "data.label_separator": one_name,
    "data.label_columns": either(names, choice(None)),
    "data.root": image_root,
    "data.unlabeled": existing_folder,
    "data.batch_size": whole(1),
    "data.micro_batch_size": whole(1, none=True),
    "data.image_size": size,
    "model.in_channels": whole(1, MAX_CHANNELS),
    "data.channels": whole(1, MAX_CHANNELS),
    "data.bits": choice(8, 16),
    "data.fit": choice(*FITS),
    "data.pad_colour": colour,
    "data.resize": whole(8, 8192, none=True),
    "data.interpolation": choice(*INTERPOLATIONS),
    "data.num_workers": either(whole(0), choice("auto")),
    "data.val_fraction": number(0, 0.9),
    "data.fold": fold,
    "data.group": one_name,
    "data.file_column": one_name,
    "data.name": one_name,
    "data.config": one_name,
    "data.revision": one_name,
    "data.image_column": one_name,
    "data.label_column": one_name,
    "data.split_column": one_name,
    "data.weight_column": one_name,
    "data.test_fraction": number(0, 0.99),
    "data.store": choice(*STORE_KINDS),
    "data.jpeg_quality": whole(1, 100),
    "data.stream": choice("auto", True, False),
    "data.stream_disk": bytes_or_auto,
    "data.shuffle_shards": whole(1),
    "data.normalization": either(choice(*NORMALIZATIONS), mean_and_std),
    "data.augment.per_image": list_of("transforms: [{_target_: package.Class}]", is_custom),
    "data.on_bad": choice(*ON_BAD),
    "data.sampler": choice(*SAMPLERS),
    "search.trials": whole(1),
    "search.workers": whole(1),
    "search.max_failures": whole(1),
    "search.attempts": whole(1),
    "search.dead_after": number(1),
    "search.cv": whole(2, none=True),
    "search.refit": flag,
    "search.first": mappings,
    "search.space": spaces,
    "search.tuning.strategy": choice(*TUNING_STRATEGIES),
    "search.tuning.stop_early": flag,
    "search.tuning.min_epochs": whole(1),
    "search.tuning.warm_start": names,
    "search.tuning.warm_start_type": choice(*WARM_STARTS),
    "search.tuning.target": number(none=True),
    "search.tuning.patience": whole(3, none=True),
    "search.tuning.converge": flag,
    "search.tuning.max_runtime": whole(120, 15768000, none=True),
    "trainer.fast_dev_run": either(flag, whole(1)),
    "trainer.max_epochs": whole(-1),
    "trainer.accelerator": choice("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.devices": devices,
    "trainer.num_nodes": whole(1),
    "trainer.gradient_clip_val": number(0, none=True),
    "trainer.gradient_clip_algorithm": choice("norm", "value"),
    "trainer.precision": choice("auto", "32-true", "32", 32, "16-mixed", 16, "bf16-mixed"),
    "debug.every": whole(1),
    "debug.warn": flag,
    "debug.profile": choice(True, False, "kernels"),
    "debug.smdebug": flag,
    "debug.sample_seconds": number(0.01),
    "checkpoint.mode": choice(*MODES),
    "checkpoint.top_k": whole(1),
    "checkpoint.average": choice(*AVERAGES),
    "checkpoint.in_background": choice("auto", True, False),
    "checkpoint.every_minutes": number(0, open_low=True, none=True),
    "checkpoint.rest_seconds": number(0),
    "early_stopping.mode": choice(*MODES),
    "early_stopping.patience": whole(1),
    "early_stopping.min_delta": number(0),
    "early_stopping.cut_schedule": flag,
}

_ABSENT = object()


def _look_up(config: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return _ABSENT
        config = config[part]
    return config
