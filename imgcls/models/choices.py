"""The values that options of models can have, for those who implement them and for those who check; without torch.

The schedules of the learning rate are in `imgcls.models.schedules`, which needs no torch either.
"""

from __future__ import annotations

STEMS = ("standard", "small")
FREEZING = ("none", "backbone", "head_first")
VIEWS = ("one", "flip", "flip_shift")
ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "tanh": "Tanh", "identity": "Identity"}
"""Of a head; what torch.nn calls them."""
NORMS = {"none": "Identity", "batch": "BatchNorm1d", "layer": "LayerNorm"}
"""Of a head; what torch.nn calls them."""
MODES = ("max", "min")
"""Which way a metric is better."""
VALIDATION_METRICS = {
    "val/accuracy": "max",
    "val/accuracy_top5": "max",
    "val/macro_f1": "max",
    "val/loss": "min",
    "val/ece": "min",
}
"""What an epoch is measured by, each with its mode."""
