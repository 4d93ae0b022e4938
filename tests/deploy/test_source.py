"""A finished training job is deployed, also one whose run folder is not here."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from imgcls.deploy.__main__ import command
from imgcls.errors import UserError
from tests.aws_account import needs_moto
from tests.deploy.conftest import QUICK, Account

pytestmark = needs_moto

JOB, BUCKET = "imgcls-resnet50-1f2e3d-20260101000000", "trained"


def packed(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def job(account: Account, run: Path, model: Path) -> str:
    """A job that was made elsewhere, with what it left in S3."""
    s3, sagemaker = account.cloud().client("s3"), account.cloud().client("sagemaker")
    s3.create_bucket(Bucket=BUCKET)
    pictures = {"predictions.csv": (run / "predictions.csv").read_bytes(), "metrics.json": b"{}"}
    made = {"config": {"data": {"root": str(run.parent.parent / "pictures")}}, "overrides": []}
    objects = {
        "source.tar.gz": packed({"job.json": json.dumps(made).encode()}),
        f"jobs/{JOB}/output/model.tar.gz": packed({file.name: file.read_bytes() for file in model.iterdir()}),
        f"jobs/{JOB}/output/output.tar.gz": packed(pictures),
    }
    for key, content in objects.items():
        s3.put_object(Bucket=BUCKET, Key=key, Body=content)
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/source.tar.gz"}
    sagemaker.create_training_job(
        TrainingJobName=JOB,
        AlgorithmSpecification={"TrainingImage": "x", "TrainingInputMode": "File"},
        RoleArn="arn:aws:iam::123456789012:role/x",
        InputDataConfig=[{"ChannelName": "code", "DataSource": {"S3DataSource": source}}],
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/jobs"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    shutil.rmtree(run)
    return JOB


def test_a_finished_job_becomes_an_endpoint(account: Account, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    account.aws.job(job).training_job_status = "InProgress"
    with pytest.raises(UserError, match=f"has not finished .*imgcls.jobs attach job={job}"):
        command([f"job={job}", *QUICK])
    account.aws.job(job).training_job_status = account.aws.job(job).secondary_status = "Completed"
    command([f"job={job}", *QUICK])
    assert "test: 8 of 8 images" in capsys.readouterr().out
    assert account.endpoints == [job]
    assert (Path("runs") / job / "model" / "model.json").is_file()

    read = len(account.sent("GetObject"))
    command([f"job={job}", *QUICK])
    assert "already" in capsys.readouterr().err
    assert not [one for one in account.sent("GetObject")[read:] if one["Bucket"] == BUCKET], "it is here now"
    assert json.loads((Path("runs") / job / "deploy.json").read_text())["name"] == job
