"""The checks of options that do not go together, which run before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.config.choices import TABLE_SUFFIXES
from imgcls.config.starts import MEMORY, is_multilabel, unfit_for_memory, unsolvable
from imgcls.errors import UserError, nearest
from imgcls.models.choices import MULTILABEL_METRICS, check_views, metric_names
from imgcls.system.extras import check_installed, check_logger, check_onnx, check_smdebug

TABLE = "imgcls.data.table.Table"
SHARDS = "imgcls.data.shards.Shards"
HUGGINGFACE = "imgcls.data.huggingface.HuggingFace"
WITHOUT_FILES = ("imgcls.data.digits.Digits", "imgcls.data.synthetic.Synthetic")


def check_combinations(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first options that do not go together, each of which has a valid value."""
    checks = (
        *(_check_data, _check_task, _check_teacher, _check_folds, _check_frozen, _check_adapter, _check_head),
        *(_check_extras, _check_rules, _check_mixing, _check_optim, _check_sharded, _check_loss, _check_length),
    )
    for check in checks:
        check(config)


def _check_data(config: Mapping[str, Any]) -> None:
    """Raise UserError for data that is not there, or that other options do not fit."""
    model, data = config.get("model", {}), config.get("data", {})
    target, root = str(data.get("_target_")), data.get("root")
    if root is not None and target in WITHOUT_FILES:
        name = target.rpartition(".")[2].lower()
        raise UserError(
            f"data.root={root}: data={name} reads no files. For your own images: data=imagefolder data.root=…"
        )
    if re.match(r"(https?|hf)://", str(root)) and target != SHARDS:
        raise UserError(f"data.root={root}: only data=shards reads this address. Download the images first.")
    if target == TABLE:
        _check_table(data)
    if target == HUGGINGFACE:
        if (data.get("name") is None) == (root is None):
            raise UserError("data=huggingface needs data.name=NAME of the hub, or data.root=DIR, a local copy.")
        check_installed(["datasets"], "huggingface", "data=huggingface")
    crop = (data.get("augment") or {}).get("crop") or {}
    if isinstance(data.get("image_size"), list) and str(crop.get("_target_")).endswith(".PaddedCrop"):
        raise UserError(
            "augment=pad_crop is for square images. Use augment=default, or one number for data.image_size."
        )
    if data.get("store") == "jpeg" and (model.get("in_channels", 3) != 3 or data.get("bits", 8) != 8):
        raise UserError("data.store=jpeg is for RGB images of 8 bits. Use data.store=auto.")
    micro, batch = data.get("micro_batch_size"), data.get("batch_size")
    if isinstance(micro, int) and isinstance(batch, int) and micro > batch:
        raise UserError(f"data.micro_batch_size={micro}: it cannot be larger than data.batch_size={batch}.")


def _check_frozen(config: Mapping[str, Any]) -> None:
    """Raise UserError for what a frozen backbone does not go with."""
    model = config.get("model") or {}
    if model.get("freeze") != "backbone":
        return
    if not model.get("pretrained") and model.get("weights") is None:
        raise UserError(
            "model.freeze=backbone freezes random weights. "
            "Load trained ones with model.pretrained=true or model.weights=FILE."
        )
    if _features_are_stored(model) and model.get("views") == "where_unsure":
        raise UserError(
            "model.views=where_unsure: which images are unsure depends on the head, and the features of a frozen "
            "backbone are stored before it is trained. Use model.views=flip or flip_shift, or model.feature_views=null."
        )
    if model.get("stem") == "small":
        raise UserError(
            "model.stem=small with model.freeze=backbone would freeze a first convolution with random weights. "
            "Use model.freeze=head_first, or model.stem=standard."
        )


def _features_are_stored(model: Mapping[str, Any]) -> bool:
    """Whether the head is trained on stored features of a frozen backbone instead of images."""
    return model.get("freeze") == "backbone" and model.get("feature_views") is not None


def _check_head(config: Mapping[str, Any]) -> None:
    """Raise UserError for options that a head which keeps features, or is solved, does not go with."""
    model = config.get("model") or {}
    memory = MEMORY.get(str((model.get("head") or {}).get("_target_")))
    if memory is not None:
        if (reason := unfit_for_memory(config)) is not None:
            raise UserError(f"head={memory} keeps features of a frozen backbone, of one view and one label. {reason}.")
    elif model.get("solve_head") is True and (reason := unsolvable(model, config.get("loss") or {})) is not None:
        raise UserError(f"model.solve_head=true: {reason}, or model.solve_head=false.")


def _check_extras(config: Mapping[str, Any]) -> None:
    """Raise UserError for options whose packages are missing."""
    if (config.get("export") or {}).get("onnx") is True:
        check_onnx("export.onnx=true")
    check_logger(config.get("logger") or {})
    if (config.get("debug") or {}).get("smdebug") is True:
        check_smdebug()


def _check_rules(config: Mapping[str, Any]) -> None:
    """Raise UserError for a rule that is to stop the training and does not exist."""
    debug = config.get("debug") or {}
    for name in debug.get("stop_on") or []:
        if name not in debug.get("rules", {}):
            raise UserError(f"debug.stop_on: there is no rule {name!r}. {nearest(str(name), debug.get('rules', {}))}")


def _check_mixing(config: Mapping[str, Any]) -> None:
    """Raise UserError for mixup or CutMix of features."""
    mixing = ((config.get("data") or {}).get("augment") or {}).get("mixing") or {}
    if (mixing.get("mixup") or mixing.get("cutmix")) and _features_are_stored(config.get("model") or {}):
        raise UserError(
            "Mixing works on images, not on the features of a frozen backbone. "
            "Use model.feature_views=null, which runs the frozen backbone in every epoch, or no mixup and cutmix."
        )


def _check_optim(config: Mapping[str, Any]) -> None:
    """Raise UserError for options of another optimiser, or of decoupled hyperparameters without their values."""
    optim = config.get("optim") or {}
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


def _check_loss(config: Mapping[str, Any]) -> None:
    """Raise UserError for a loss of the user's own that would get the options of the default one."""
    loss = config.get("loss") or {}
    if loss.get("_target_") is not None and {"label_smoothing", "class_weights", "focal_gamma"} <= loss.keys():
        raise UserError(f"loss._target_={loss['_target_']}: choose loss=custom, so that it gets its own options only.")


def _check_length(config: Mapping[str, Any]) -> None:
    """Raise UserError for an endless training with a schedule that has an end."""
    schedule = (config.get("optim") or {}).get("schedule")
    endless = (config.get("trainer") or {}).get("max_epochs") in (-1, None)
    if endless and schedule != "constant" and not isinstance(schedule, Mapping):
        raise UserError(
            "trainer.max_epochs=-1 trains endlessly, so a schedule has no end to anneal to. "
            "Use optim.schedule=constant or give a number of epochs."
        )


def check_metrics(metrics: Any, *, multilabel: bool) -> None:
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
    if model.get("adapter") != "lora":
        return
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
    known = (config.get("export") or {}).get("known", "auto")
    if several and known not in ("auto", False):
        raise UserError(f"export.known={known} is for images with one label each, not for task=multilabel.")
    model = config.get("model") or {}
    check_views(model.get("views", "one"), multilabel=several)
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
    if _features_are_stored(model):
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
    """Raise UserError for options that need all weights in each process, which FSDP does not have."""
    if (config.get("trainer") or {}).get("strategy") != "fsdp":
        return
    optim, model, debug = (config.get(name) or {} for name in ("optim", "model", "debug"))
    unfit = {
        "optim=muon": str(optim.get("_target_")).endswith(".Muon"),
        "optim.ema": optim.get("ema") is not None,
        "optim.lookahead": optim.get("lookahead") is not None,
        "optim.layer_decay": optim.get("layer_decay", 1) != 1,
        "model.freeze": model.get("freeze", "none") != "none",
        "model.views": model.get("views") == "where_unsure",
        "debug": debug.get("_target_") is not None,
    }
    found = [name for name, there in unfit.items() if there]
    if found:
        instead = {"debug": "debug=off", "optim=muon": "another optimiser"}.get(found[0], f"another {found[0]}")
        raise UserError(
            f"trainer.strategy=fsdp gives each process a share of the weights, which {found[0]} needs whole. "
            f"Use {instead}, or trainer.strategy=ddp."
        )
