"""The valid values of model options, for their implementations and checks; imported without torch.

Those of the schedules are in `imgcls.models.schedules`, which does not need torch either.
"""

from __future__ import annotations

from imgcls.errors import UserError
from imgcls.system.checks import check_value, choice

STEMS = ("standard", "small")
FREEZING = ("none", "backbone", "head_first")
ADAPTERS = ("none", "lora")
AVERAGES = ("none", "greedy", "start")
BATCH_NORMS = ("auto", "train", "frozen")
VIEWS = ("one", "flip", "flip_shift", "where_unsure")
ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "tanh": "Tanh", "identity": "Identity"}
"""Activations of a head, and their names in torch.nn."""
NORMS = {"none": "Identity", "batch": "BatchNorm1d", "layer": "LayerNorm"}
"""Norms of a head, and their names in torch.nn."""
MODES = ("max", "min")
"""Whether higher or lower values of a metric are better."""
VALIDATION_METRICS = {
    "val/accuracy": "max",
    "val/accuracy_top5": "max",
    "val/macro_f1": "max",
    "val/loss": "min",
    "val/ece": "min",
    "val/map": "max",
    "val/micro_f1": "max",
    "val/subset_accuracy": "max",
}
"""The metrics of an epoch, each with its mode; the last three, and not accuracy, with task=multilabel."""
SINGLE_LABEL_METRICS = ("val/accuracy", "val/accuracy_top5", "val/macro_f1", "val/loss", "val/ece")
MULTILABEL_METRICS = ("val/map", "val/macro_f1", "val/micro_f1", "val/subset_accuracy", "val/loss", "val/ece")
AVERAGES_OF_CLASSES = ("macro", "micro", "weighted")
COUNTED = (
    *("accuracy", "f1_score", "hamming_distance", "jaccard_index", "negative_predictive_value", "precision", "recall"),
    "specificity",
)
"""Named metrics of the true and false positives of each class, averaged over the classes."""
COUNTED_OVERALL = ("balanced_accuracy", "cohen_kappa", "matthews_corrcoef")
RANKED = ("auroc", "average_precision")
"""Named metrics of the order of all images by their score for a class, averaged over the classes."""
LIBRARY = {
    "single": ("calibration_error", "eer", "hinge_loss", "logauc"),
    "multilabel": (*("coverage_error", "exact_match", "logauc", "ranking_average_precision", "ranking_loss"),),
}
"""Named metrics that torchmetrics computes, by task."""
ALIASES = {"f1": "f1_score", "jaccard": "jaccard_index", "matthews": "matthews_corrcoef"}
LOWER_IS_BETTER = ("calibration_error", "coverage_error", "eer", "hamming_distance", "hinge_loss", "ranking_loss")


def split_metric(name: str) -> tuple[str, str]:
    """A named metric without its average, and that average, which is macro where it is not given.

    >>> split_metric("weighted_f1"), split_metric("auroc")
    (('f1_score', 'weighted'), ('auroc', 'macro'))
    """
    first, _, rest = name.partition("_")
    average, plain = (first, rest) if first in AVERAGES_OF_CLASSES else ("macro", name)
    return ALIASES.get(plain, plain), average


def metric_names(*, multilabel: bool) -> list[str]:
    """The names that the option `metrics` takes."""
    counted = [*COUNTED, *(short for short, name in ALIASES.items() if name in COUNTED)]
    overall = [name for name in COUNTED_OVERALL if not multilabel or name == "matthews_corrcoef"]
    return [
        *(prefix + name for prefix in ("", *(f"{average}_" for average in AVERAGES_OF_CLASSES)) for name in counted),
        *overall,
        *(short for short, name in ALIASES.items() if name in overall),
        *RANKED,
        *(f"{average}_{name}" for average in ("macro", "weighted") for name in RANKED),
        *LIBRARY["multilabel" if multilabel else "single"],
    ]


def metric_mode(name: str) -> str:
    """Whether higher (max) or lower (min) values of a metric of an epoch, `val/…`, are better."""
    plain = split_metric(name.removeprefix("val/"))[0]
    return VALIDATION_METRICS.get(name, "min" if plain in LOWER_IS_BETTER else "max")


def check_views(views: str, *, multilabel: bool) -> None:
    """Raise UserError unless `views` is one of `VIEWS` that the task has."""
    check_value("views", views, choice(*VIEWS))
    if views == "where_unsure" and multilabel:
        raise UserError("views=where_unsure is for images of one label each. Use views=flip or flip_shift.")
