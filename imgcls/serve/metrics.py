"""The metrics for Prometheus: requests and their durations, batches and their sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from imgcls.portable import PortableModel

SECONDS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
MAX_CLASSES = 1000  # whose predictions are counted: each is a time series of its own


class Metrics:
    """The metrics of a server, in a separate registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("imgcls_requests", "Invocations by status of the answer", ["status"], registry=registry)
        self.models = Counter("imgcls_model_requests", "Answered invocations by model", ["model"], registry=registry)
        self.seconds = Histogram(
            "imgcls_request_seconds", "From the head of a request to its answer", buckets=SECONDS, registry=registry
        )
        self.pictures = Counter("imgcls_pictures", "Classified images", registry=registry)
        self.unknown = Counter("imgcls_unknown_pictures", "Images that the model does not know", registry=registry)
        self.predicted = Counter("imgcls_predicted", "Images by their class, or label", ["class"], registry=registry)
        self.confidence = Histogram(
            "imgcls_confidence", "Probability of the likeliest class", buckets=CONFIDENCES, registry=registry
        )
        self.batches = Histogram(
            "imgcls_batch_pictures", "Images per batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.model_seconds = Histogram(
            "imgcls_model_seconds", "Seconds per batch in the model", buckets=SECONDS, registry=registry
        )
        self.in_progress = Gauge("imgcls_requests_in_progress", "Invocations in progress", registry=registry)

    def batch(self, size: int, seconds: float) -> None:
        """Count a batch that went through the model."""
        self.pictures.inc(size)
        self.batches.observe(size)
        self.model_seconds.observe(seconds)

    def answers(self, outputs: Sequence[np.ndarray], model: PortableModel) -> None:
        """Count what `model` has said of images, from their (C,) or (C + 1,) outputs."""
        classes = len(model.class_names)
        for row in outputs:
            probabilities = model.activation(row[None, :classes])[0]
            if len(row) > classes:
                self.unknown.inc(bool(row[classes] > 1))
            if model.thresholds is None:
                given = [int(probabilities.argmax())]
                self.confidence.observe(float(probabilities[given[0]]))
            else:
                given = np.flatnonzero(probabilities >= np.array(model.thresholds)).tolist()
            if classes <= MAX_CLASSES:
                for index in given:
                    self.predicted.labels(model.class_names[index]).inc()
