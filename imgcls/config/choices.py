"""The values that options of data sets and searches can have, for who implements and who checks them; without Hydra."""

from __future__ import annotations

SAMPLERS = ("shuffle", "balanced")
STORE_KINDS = ("auto", "memory", "disk", "device", "none")
NORMALIZATIONS = ("pretrained", "imagenet", "dataset")
ON_BAD = ("skip", "error")
TUNING_STRATEGIES = {"bayesian": "Bayesian", "random": "Random", "hyperband": "Hyperband", "grid": "Grid"}
"""Of a tuning job; what SageMaker calls them."""
WARM_STARTS = {"identical": "IdenticalDataAndAlgorithm", "transfer": "TransferLearning"}
"""What a tuning job shares with the earlier ones that it learns from; what SageMaker calls it."""
