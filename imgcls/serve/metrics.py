"""What Prometheus is told: requests, how long they took, how full the batches are."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Metrics"]

SECONDS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "imgcls_requests", "Invocations by the status of their answer", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "imgcls_request_seconds", "From the request's head to its answer", buckets=SECONDS, registry=self.registry
        )
        self.pictures = Counter("imgcls_pictures", "Pictures that were classified", registry=self.registry)
        self.batches = Histogram(
            "imgcls_batch_pictures", "Pictures of a batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.model_seconds = Histogram(
            "imgcls_model_seconds", "Seconds of a batch in the model", buckets=SECONDS, registry=self.registry
        )
        self.in_progress = Gauge("imgcls_requests_in_progress", "Invocations not yet answered", registry=self.registry)

    def batch(self, size: int, seconds: float) -> None:
        """A batch went through the model."""
        self.pictures.inc(size)
        self.batches.observe(size)
        self.model_seconds.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)
