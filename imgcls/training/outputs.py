"""The outputs of a classifier for the images of any split."""

from __future__ import annotations

import lightning as L
from omegaconf import DictConfig

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


def calibrates(cfg: DictConfig, data: BatchedData) -> bool:
    """Whether the exported model is calibrated by its outputs for the validation images."""
    return cfg.export.get("calibrate", True) and data.source.val is not None and not data.multilabel


def keeps_weights(cfg: DictConfig) -> bool:
    """Whether the model has the weights of one of its epochs as they were, no mixture of them."""
    return cfg.checkpoint.get("average", "none") == "none" and cfg.model.get("adapter") != "lora"


def outputs_for_calibration(
    trainer: L.Trainer, classifier: Classifier, data: BatchedData, best_epoch: int | None
) -> Outputs:
    """The outputs of `classifier`, which holds the chosen weights, for the validation images.

    Where these are the weights of the last epoch, its validation has computed them already.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        kept = callback.outputs_after(best_epoch) if isinstance(callback, LastValidation) else None
        if kept is not None and len(kept.index) == len(data.source.val or ()):  # not of a part of the images
            return kept
    return outputs_of(trainer, classifier, data, "val")
