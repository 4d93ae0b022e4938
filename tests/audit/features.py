"""Features of classes that are easy, but not trivial, to tell apart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WIDTH = 24


def clouds(count: int, classes: int, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Features float32 (count, WIDTH) around a centre per class, and their labels."""
    centres = np.random.default_rng(7).normal(size=(classes, WIDTH))
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    features = centres[labels] + spread * random.normal(size=(count, WIDTH))
    return torch.from_numpy(features.astype(np.float32)), labels


def with_wrong_labels(labels: np.ndarray, classes: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The labels with this share of them another one at random, and which are."""
    random = np.random.default_rng(seed)
    wrong = random.random(len(labels)) < share
    return np.where(wrong, (labels + random.integers(1, classes, len(labels))) % classes, labels), wrong
