"""The checks of the option values, which run before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.channels import MAX_CHANNELS
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
from imgcls.config.starts import MEMORY, is_multilabel, unfit_for_memory, unsolvable
from imgcls.errors import UserError, nearest
from imgcls.models.choices import (
    ACTIVATIONS,
    ADAPTERS,
    AVERAGES,
    BATCH_NORMS,
    FREEZING,
    MODES,
    MULTILABEL_METRICS,
    NORMS,
    STEMS,
    VALIDATION_METRICS,
    VIEWS,
    metric_names,
)
from imgcls.models.schedules import SCHEDULES
from imgcls.preprocessing import FITS, INTERPOLATIONS
from imgcls.system.checks import (
    Check,
    check_value,
    choice,
    either,
    existing_file,
    existing_folder,
    flag,
    is_whole,
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
from imgcls.system.extras import check_installed, check_logger, check_onnx, check_smdebug

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile

TABLE = "imgcls.data.table.Table"
HUGGINGFACE = "imgcls.data.huggingface.HuggingFace"
WITHOUT_FILES = ("imgcls.data.digits.Digits", "imgcls.data.synthetic.Synthetic")


def check_options(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first option of the plain, resolved `config` whose value cannot be right."""
    for name, check in OPTIONS.items():
        value = _look_up(config, name)
        if value is not _ABSENT:
            check_value(name, value, check)
    _check_metrics(config.get("metrics"), multilabel=is_multilabel(config))
    metrics = [*VALIDATION_METRICS, *(f"val/{name}" for name in config.get("metrics") or {})]
    for name in ("checkpoint.monitor", "early_stopping.monitor"):
        value = _look_up(config, name)
        if value is not _ABSENT:
            check_value(name, value, choice(*metrics))
    _check_together(config)


def _check_together(config: Mapping[str, Any]) -> None:
    model, data = config.get("model", {}), config.get("data", {})
    if data.get("root") is not None and data.get("_target_") in WITHOUT_FILES:
        name = str(data["_target_"]).rpartition(".")[2].lower()
        raise UserError(
            f"data.root={data['root']}: data={name} reads no files. For your own images: data=imagefolder data.root=…"
        )
    if str(data.get("_target_")) == TABLE:
        _check_table(data)
    if str(data.get("_target_")) == HUGGINGFACE:
        if (data.get("name") is None) == (data.get("root") is None):
            raise UserError("data=huggingface needs data.name=NAME of the hub, or data.root=DIR, a local copy.")
        check_installed(["datasets"], "huggingface", "data=huggingface")
    crop = (data.get("augment") or {}).get("crop") or {}
    if isinstance(data.get("image_size"), list) and str(crop.get("_target_")).endswith(".PaddedCrop"):
        raise UserError(
            "augment=pad_crop is for square images. Use augment=default, or one number for data.image_size."
        )
    micro, batch = data.get("micro_batch_size"), data.get("batch_size")
    if isinstance(micro, int) and isinstance(batch, int) and micro > batch:
        raise UserError(f"data.micro_batch_size={micro}: it cannot be larger than data.batch_size={batch}.")
    _check_task(config)
    _check_teacher(config)
    _check_folds(config)
    if model.get("freeze") == "backbone" and not model.get("pretrained") and model.get("weights") is None:
        raise UserError(
            "model.freeze=backbone freezes random weights. "
            "Load trained ones with model.pretrained=true or model.weights=FILE."
        )
    if config.get("export", {}).get("onnx") is True:
        check_onnx("export.onnx=true")
    if model.get("freeze") == "backbone" and model.get("stem") == "small":
        raise UserError(
            "model.stem=small with model.freeze=backbone would freeze a first convolution with random weights. "
            "Use model.freeze=head_first, or model.stem=standard."
        )
    if model.get("adapter") == "lora":
        _check_adapter(config)
    memory = MEMORY.get(str((model.get("head") or {}).get("_target_")))
    if memory is not None:
        if (reason := unfit_for_memory(config)) is not None:
            raise UserError(f"head={memory} keeps features of a frozen backbone, of one view and one label. {reason}.")
    elif model.get("solve_head") is True and (reason := unsolvable(model, config.get("loss") or {})) is not None:
        raise UserError(f"model.solve_head=true: {reason}, or model.solve_head=false.")
    check_logger(config.get("logger") or {})
    debug = config.get("debug") or {}
    for name in debug.get("stop_on") or []:
        if name not in debug.get("rules", {}):
            raise UserError(f"debug.stop_on: there is no rule {name!r}. {nearest(str(name), debug.get('rules', {}))}")
    if debug.get("smdebug") is True:
        check_smdebug()
    mixing = (data.get("augment") or {}).get("mixing") or {}
    mixes = mixing.get("mixup") or mixing.get("cutmix")
    if mixes and model.get("freeze") == "backbone" and model.get("feature_views") is not None:
        raise UserError(
            "Mixing works on images, not on the features of a frozen backbone. "
            "Use model.feature_views=null, which runs the frozen backbone in every epoch, or no mixup and cutmix."
        )
    optim = config.get("optim", {})
    if "decoupled" in optim and not str(optim.get("_target_")).endswith(".SGD"):
        raise UserError(
            "optim.decoupled is an option of optim=sgd, which this recipe is tuned for. Use optim=sgd, or take its "
            "options out: '~optim.decoupled' '~optim.momentum'."
        )
    if optim.get("decoupled") is True:
        if optim.get("lr") == "auto":
            raise UserError("optim.lr=auto searches for torch's own learning rate. Use optim.decoupled=false with it.")
        if not optim.get("lr") or optim.get("momentum") == 1:
            raise UserError("optim.decoupled=true needs optim.lr above 0 and optim.momentum below 1.")
    if config.get("trainer", {}).get("strategy") == "fsdp":
        _check_sharded(config)
    loss = config.get("loss") or {}
    if loss.get("_target_") is not None and {"label_smoothing", "class_weights", "focal_gamma"} <= loss.keys():
        raise UserError(f"loss._target_={loss['_target_']}: choose loss=custom, so that it gets its own options only.")
    endless = config.get("trainer", {}).get("max_epochs") in (-1, None)
    schedule = config.get("optim", {}).get("schedule")
    if endless and schedule != "constant" and not isinstance(schedule, Mapping):
        raise UserError(
            "trainer.max_epochs=-1 trains endlessly, so a schedule has no end to anneal to. "
            "Use optim.schedule=constant or give a number of epochs."
        )


def _check_metrics(metrics: Any, *, multilabel: bool) -> None:
    """Raise UserError unless `metrics` are names of metrics, or a mapping of such or of classes."""
    if metrics is not None and not isinstance(metrics, list | Mapping):
        raise UserError(f"metrics={metrics}: must be a list of names, such as [auroc,cohen_kappa], or null.")
    valid = metric_names(multilabel=multilabel)
    for name in metrics.values() if isinstance(metrics, Mapping) else metrics or ():
        if not isinstance(name, str):
            if isinstance(metrics, Mapping) and isinstance(name, Mapping):
                continue
            raise UserError(f"metrics: {name} is no name. A class is given as +metrics.NAME._target_=package.Class.")
        if name not in valid:
            raise UserError(f"metrics: {name!r} is not known. {nearest(name, valid)}")


def _check_adapter(config: Mapping[str, Any]) -> None:
    """Raise UserError for options that adapters do not go with, or without `peft`."""
    model = config.get("model") or {}
    if not model.get("pretrained") and model.get("weights") is None:
        raise UserError("model.adapter=lora adapts trained weights: model.pretrained=true or model.weights=FILE.")
    if model.get("freeze") == "backbone":
        raise UserError("model.adapter=lora trains beside the backbone, which model.freeze=backbone excludes. Use one.")
    if model.get("stem") == "small":
        raise UserError("model.adapter=lora would freeze the random weights of model.stem=small. Use one of them.")
    if (config.get("trainer") or {}).get("strategy") == "fsdp":
        raise UserError("model.adapter=lora needs all weights in each process. Use trainer.strategy=auto.")
    check_installed(["peft"], "lora", "model.adapter=lora")


def _check_task(config: Mapping[str, Any]) -> None:
    """Raise UserError for metrics and heads that the task does not have."""
    monitors = {name: (config.get(name) or {}).get("monitor") for name in ("checkpoint", "early_stopping")}
    several = is_multilabel(config)
    custom = [f"val/{name}" for name in config.get("metrics") or {}]
    for name, monitor in monitors.items():
        if several and monitor is not None and monitor not in (*MULTILABEL_METRICS, *custom):
            raise UserError(f"{name}.monitor={monitor}: with several labels there are {', '.join(MULTILABEL_METRICS)}.")
        if not several and monitor in ("val/map", "val/micro_f1", "val/subset_accuracy"):
            raise UserError(f"{name}.monitor={monitor} is a metric of task=multilabel.")
    model = config.get("model") or {}
    memory = str((model.get("head") or {}).get("_target_")) in MEMORY  # whose own check comes later
    if several and model.get("solve_head") is True and not memory:
        raise UserError("model.solve_head=true is for images of one label. Use model.solve_head=false.")


def _check_teacher(config: Mapping[str, Any]) -> None:
    """Raise UserError for what a teacher does not fit."""
    model, data, loss = (config.get(name) or {} for name in ("model", "data", "loss"))
    teacher, unlabeled = loss.get("teacher"), data.get("unlabeled")
    if loss.get("_target_") is not None:
        teacher = None
    if teacher is None and unlabeled is not None:
        raise UserError(f"data.unlabeled={unlabeled}: images without labels need a teacher: loss.teacher=RUN.")
    if teacher is None:
        return
    for name, value in (("loss.teacher", teacher), ("data.unlabeled", unlabeled)):
        if "://" in str(value):
            raise UserError(f"{name}={value}: give a folder on this machine.")
    if is_multilabel(config):
        raise UserError("loss.teacher is for images of one label each, not for task=multilabel.")
    if model.get("freeze") == "backbone" and model.get("feature_views") is not None:
        raise UserError(
            "loss.teacher teaches from images, not from the features of a frozen backbone. "
            "Use model.feature_views=null, which runs the frozen backbone in every epoch, or another model.freeze."
        )


def _check_folds(config: Mapping[str, Any]) -> None:
    """Raise UserError for what a cross-validation cannot do."""
    cv, data, trainer = (config.get(name) or {} for name in ("cv", "data", "trainer"))
    if cv.get("ensemble") and not cv.get("folds"):
        raise UserError("cv.ensemble=true is the mean of the folds' models. Say how many folds: cv.folds=5.")
    if not cv.get("folds"):
        return
    if data.get("fold") is not None:
        raise UserError(f"cv.folds trains all folds, data.fold={data['fold']} a single one. Leave one of them out.")
    if data.get("unlabeled") is not None:
        raise UserError("data.unlabeled adds images to a single training. Leave it out, or cv.folds.")
    if trainer.get("fast_dev_run"):
        raise UserError("trainer.fast_dev_run tries a single run. Leave out cv.folds.")
    if (trainer.get("num_nodes") or 1) > 1:
        raise UserError("cv.folds trains each fold on the devices of one machine. Use trainer.num_nodes=1.")


def _check_table(data: Mapping[str, Any]) -> None:
    """Raise UserError where there is no table; what is in S3 or at the end of its path in the root is found later."""
    table, root = data.get("table"), data.get("root")
    if table is None:
        raise UserError("data=table needs data.table=FILE, a table with the columns file and label.")
    if not str(table).lower().endswith(TABLE_SUFFIXES):
        raise UserError(f"data.table={table}: must be a file of {', '.join(TABLE_SUFFIXES)}.")
    if root is None and "://" not in str(table) and not Path(str(table)).expanduser().is_file():
        raise UserError(f"data.table={table}: no such file.")


def _check_sharded(config: Mapping[str, Any]) -> None:
    """Raise UserError for options that need all weights in each process."""
    optim, model, debug = (config.get(name) or {} for name in ("optim", "model", "debug"))
    unfit = {
        "optim.ema": optim.get("ema") is not None,
        "optim.lookahead": optim.get("lookahead") is not None,
        "optim.layer_decay": optim.get("layer_decay", 1) != 1,
        "model.freeze": model.get("freeze", "none") != "none",
        "debug": debug.get("_target_") is not None,
    }
    found = [name for name, there in unfit.items() if there]
    if found:
        raise UserError(
            f"trainer.strategy=fsdp gives each process a share of the weights, which {found[0]} needs whole. "
            f"Use {'debug=off' if found[0] == 'debug' else f'another {found[0]}'}, or trainer.strategy=ddp."
        )


def image_root(value: Any) -> str | None:
    """An existing folder or archive, an s3:// address, or null."""
    file = Path(str(value)).expanduser()
    if not file.is_file():
        return existing_folder(value)
    archives = ", ".join(ARCHIVE_SUFFIXES)
    return None if str(value).lower().endswith(ARCHIVE_SUFFIXES) else f"is a file: give a folder, or {archives}."


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
    "seed": whole(0, 2**32 - 1),
    "resume": choice("auto", "last", "never"),
    "test": flag,
    "report": flag,
    "quiet": flag,
    "export.calibrate": flag,
    "export.known": share_or("auto", False),
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
