"""How much of the best trial's value is luck: it was chosen by the images that measured it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.portable.calibration import judge
from imgcls.runs.folds import FOLDS
from imgcls.runs.reading import read_outputs

MEASURED = {"val/accuracy": 1.0, "val/loss": -1.0}
"""The metrics that are means over images, with the sign that makes more of them better."""
REPLICATES = 500
MAX_TRIALS = 1000


@dataclass(frozen=True)
class Correction:
    """What the value of the chosen trial would be on other images.

    Attributes:
        trials: that it was chosen from.
        images: that measured them.
        value: the value that it was chosen for.
        expected: the value to expect of a trial that is chosen in this way.
    """

    trials: int
    images: int
    value: float
    expected: float

    def sentence(self, name: str) -> str:
        """The correction of the metric `name` in a sentence."""
        gap = abs(self.value - self.expected)
        if name == "val/accuracy":
            size, rest = f"{100 * gap:.1f} points", f"{self.expected:.1%}"
        else:
            size, rest = f"{gap:.3g}", f"{self.expected:.4g}"
        return (
            f"The best of {self.trials} trials on {self.images:,} images is too good by about {size}, by resampling "
            f"these images: expect {name} {rest}."
        )


def correct(scores: np.ndarray, seed: int = 0) -> Correction:
    """The correction for the trial with the highest mean of `scores`, float (T, N), of T trials on the same N images.

    Each replicate draws N images with replacement, chooses the best trial on them, and measures it on the images that
    were not drawn (Tsamardinos, Greasidou and Borboudakis 2018).
    """
    rng = np.random.default_rng(seed)
    trials, images = scores.shape
    held_out = []
    for _ in range(REPLICATES):
        counts = np.bincount(rng.integers(0, images, images), minlength=images)
        rest = counts == 0
        if rest.any():
            chosen = int(np.argmax(scores @ counts))
            held_out.append(float(scores[chosen, rest].mean()))
    value = float(scores.mean(axis=1).max())
    return Correction(trials, images, value, min(value, float(np.mean(held_out))))


def correction_of(folders: Sequence[Path], name: str) -> Correction | None:
    """The correction of the best of the trials in these run folders by the metric `name`.

    None with fewer than two trials that have the outputs for the same validation images, or for a metric that is no
    mean over images.
    """
    if name not in MEASURED:
        return None
    scores: list[np.ndarray] = []
    first: np.ndarray | None = None
    for folder in folders[:MAX_TRIALS]:
        outputs = _validation(folder)
        if outputs is None:
            continue
        logits, labels = outputs
        first = labels if first is None else first
        if not np.array_equal(first, labels):
            return None  # the split is searched over
        judged = judge(logits, labels)
        scores.append(judged.correct.astype(float) if name == "val/accuracy" else -judged.losses)
    if len(scores) < 2 or not len(scores[0]) or not np.isfinite(scores).all():
        return None
    found = correct(np.stack(scores))
    sign = MEASURED[name]
    return Correction(found.trials, found.images, sign * found.value, sign * found.expected)


def _validation(folder: Path) -> tuple[np.ndarray, Any] | None:
    """Logits and labels of the validation images, of a cross-validation those of all folds."""
    folds = sorted((folder / FOLDS).glob("*"), key=lambda path: (len(path.name), path.name))
    parts = [outputs for part in folds or [folder] if (outputs := read_outputs(part, "val")) is not None]
    if len(parts) < max(1, len(folds)) or any(labels.ndim != 1 for _, labels in parts):
        return None
    logits, labels = zip(*parts, strict=True)
    return np.concatenate(logits), np.concatenate(labels)
