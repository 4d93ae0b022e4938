"""What is said when a job is created: what differs there, and what it may cost."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from imgcls.config.composition import compose, plain
from imgcls.errors import UserError
from imgcls.launch.rehearsal import aws
from imgcls.launch.sagemaker import launcher
from imgcls.launch.sagemaker.launcher import SageMaker, say_versions
from tests.aws_account import Jobs, needs_sdk
from tests.conftest import write_pictures

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


@needs_sdk
def test_nothing_is_uploaded_for_a_job_that_aws_would_refuse(
    account: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = {"Quotas": [{"QuotaName": "ml.g5.xlarge for training job usage", "Value": 0}]}
    defaults = "ServiceQuotasV20190624.ListAWSDefaultServiceQuotas"
    monkeypatch.setitem(aws.EMPTY_ANSWERS, defaults, json.dumps(quota).encode())
    account.aws.add_role("front", "lambda.amazonaws.com")
    far = {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}}
    account.cloud().client("s3").create_bucket(Bucket="far", **far)
    (tmp_path / "wheels").mkdir()
    pictures = write_pictures(tmp_path / "pictures", {"train": 1}, ("cat", "dog"))
    config = plain(compose(["data=imagefolder", f"data.root={pictures}", "launch=sagemaker"]))
    refused: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"role": "nobody"}, {}, "There is no role nobody"),
        ({"role": "front"}, {}, "does not trust sagemaker"),
        ({"bucket": "far"}, {}, "this bucket is in eu-west-1"),
        ({}, {"instance_type": "ml.m5.huge"}, "does not train on this type"),
        ({}, {"instance_type": "ml.g5.xlarge"}, "is 0 instances"),
        ({}, {"framework_version": "9.9"}, "has no such PyTorch training image"),
        ({}, {"wheels": str(tmp_path / "wheels")}, "holds no wheel of"),
    ]
    for connection, options, said in refused:
        with pytest.raises(UserError, match=said):
            SageMaker(**options).new_job(account.cloud(**connection), config, [], tmp_path / "run")
    sent = {call.operation for call in account.aws.calls}
    assert not sent & {"PutObject", "CreateTrainingJob"}, sent
