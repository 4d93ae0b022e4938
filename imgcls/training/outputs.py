"""The outputs of a classifier for the images of any split."""

from __future__ import annotations

import lightning as L
from omegaconf import DictConfig

from imgcls.callbacks.checkpoints import Checkpoints
from imgcls.callbacks.last_validation import LastValidation
from imgcls.data.batched import BatchedData
from imgcls.models.classifier import Classifier
from imgcls.models.metrics import Outputs


def outputs_of(trainer: L.Trainer, classifier: Classifier, data: BatchedData, split: str) -> Outputs:
    """The outputs of `classifier` for the images of `split`, which no logger takes for those of the test."""
    data.tested, classifier.logs_test = split, False
    try:
        trainer.test(classifier, datamodule=data, verbose=False)
    finally:
        data.tested, classifier.logs_test = "test", True
    return classifier.test_outputs


def outputs_for_calibration(
    cfg: DictConfig, trainer: L.Trainer, classifier: Classifier, data: BatchedData, checkpoints: Checkpoints
) -> Outputs | None:
    """The outputs of `classifier`, which holds the chosen weights, for the validation images; None without calibration.

    Where these are the weights of the last epoch as they were, its validation has computed them already.
    """
    if not cfg.export.get("calibrate", True) or data.source.val is None or classifier.multilabel:
        return None
    if checkpoints.average == "none" and cfg.model.adapter == "none":
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            kept = callback.of(checkpoints.best_epoch) if isinstance(callback, LastValidation) else None
            if kept is not None:
                return kept
    return outputs_of(trainer, classifier, data, "val")
