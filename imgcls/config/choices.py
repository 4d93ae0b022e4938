"""The values of data and search options, shared by their implementations and their checks; without Hydra."""

from __future__ import annotations

SAMPLERS = ("shuffle", "balanced")
STORE_KINDS = ("auto", "memory", "disk", "device", "jpeg", "none")
NORMALIZATIONS = ("pretrained", "imagenet", "dataset")
ON_BAD = ("skip", "error")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
TUNING_STRATEGIES = {"bayesian": "Bayesian", "random": "Random", "hyperband": "Hyperband", "grid": "Grid"}
"""The strategies of a tuning job, with SageMaker's names."""
WARM_STARTS = {"identical": "IdenticalDataAndAlgorithm", "transfer": "TransferLearning"}
"""What a tuning job shares with the earlier ones it learns from, with SageMaker's names."""
