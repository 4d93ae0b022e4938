"""The valid values of model options, for their implementations and checks; imported without torch.

Those of the schedules are in `imgcls.models.schedules`, which does not need torch either.
"""

from __future__ import annotations

STEMS = ("standard", "small")
FREEZING = ("none", "backbone", "head_first")
AVERAGES = ("none", "greedy", "start")
BATCH_NORMS = ("auto", "train", "frozen")
VIEWS = ("one", "flip", "flip_shift")
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
