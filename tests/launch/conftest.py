"""An AWS account on loopback, whose jobs are only written down."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

MOTO = importlib.util.find_spec("moto") is not None and importlib.util.find_spec("flask") is not None
SDK = MOTO and importlib.util.find_spec("sagemaker") is not None

needs_moto = pytest.mark.skipif(not MOTO, reason="moto and flask are not installed")
needs_sdk = pytest.mark.skipif(not SDK, reason="the SageMaker SDK or moto is not installed (the extra rehearsal)")


class Jobs:
    """What CreateTrainingJob and StopTrainingJob have got."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.aws: Any = None

    def begin(self, request: dict[str, Any]) -> None:
        self.requests.append(request)
        job = self.aws.job(request["TrainingJobName"])
        job.training_job_status, job.secondary_status = "InProgress", "Training"

    def cloud(self, **options: Any) -> Any:
        from imgcls.launch.sagemaker.cloud import Cloud

        return Cloud(self.aws.session(), **{"role": "trainer", **options})


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    from imgcls.launch.rehearsal.aws import LocalAws

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    jobs = Jobs()
    with LocalAws(jobs.begin, jobs.stopped.append) as jobs.aws:
        yield jobs
