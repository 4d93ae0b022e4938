"""What is said when a job is created: what differs there, and what it may cost."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from imgcls.launch.sagemaker import launcher
from imgcls.launch.sagemaker.launcher import SageMaker, say_versions

AWS = "763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch:{}-cpu-amzn2023-sagemaker"


def test_another_pytorch_than_here_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(launcher.metadata, "version", lambda name: "2.15.0+cu132")
    with caplog.at_level(logging.INFO):
        say_versions(AWS.format("2.14"))
        assert caplog.messages == ["The image of the job has PyTorch 2.14; on this machine it is 2.15.0."]
        say_versions(AWS.format("2.15"))
        say_versions("own/image:1")
    assert len(caplog.messages) == 1


def test_the_most_that_jobs_can_cost_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Of a search, the sum over its trials."""
    monkeypatch.setattr("imgcls.aws.costs.hourly_price", lambda account, kind: 1.5)
    account: Any = None
    with caplog.at_level(logging.INFO):
        SageMaker(instance_type="ml.g5.xlarge", instance_count=2, max_runtime=7200).say_cost(account, 20)
        SageMaker(max_runtime=3600, spot=True).say_cost(account, 1)
    assert caplog.messages == [
        "To be billed: up to 80.0 hours of ml.g5.xlarge, 120.00 USD at 1.500 USD per hour.",
        "launch.spot=true is much cheaper, and an interrupted job resumes to the same numbers.",
        "To be billed: up to 1.0 hours of ml.g4dn.xlarge, 1.50 USD at 1.500 USD per hour, before the discount of a "
        "spot job.",
    ]
