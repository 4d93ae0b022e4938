"""The outputs of a classifier for the images of any split."""

from __future__ import annotations

import lightning as L

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
