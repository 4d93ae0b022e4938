"""The request that the SDK sends, and what AWS's answers become; moto takes the requests, nothing is trained."""

from __future__ import annotations

import importlib.metadata as metadata
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from imgcls.callbacks.history import metric_line
from imgcls.config.composition import compose, plain
from imgcls.errors import UserError
from imgcls.launch.sagemaker.launcher import SageMaker
from imgcls.launch.sagemaker.options import JobOptions
from imgcls.launch.sagemaker.record import JobRecord
from imgcls.launch.sagemaker.training_job import METRICS, image_uri, metric_definitions
from imgcls.runs.recording import Recording
from tests.aws_account import Jobs, needs_sdk
from tests.conftest import write_pictures

EVERYTHING = [
    "data=imagefolder",
    "launch=sagemaker",
    "launch.instance_type=ml.g5.12xlarge",
    "launch.instance_count=2",
    "launch.volume_size=99",
    "launch.input_mode=FastFile",
    "launch.spot=true",
    "launch.max_runtime=3600",
    "launch.max_wait=7200",
    "launch.subnets=[subnet-1,subnet-2]",
    "launch.security_groups=[sg-1]",
    "launch.encrypt_traffic=true",
    "+launch.tags.team=vision",
    "+launch.environment.NCCL_DEBUG=INFO",
    "launch.name=try_1",
    "launch.wait=false",
    "model=resnet50",
]
ODD = {
    f"option.{number}": [number, {"quotes": 'it\'s "so" $(touch /tmp/x)'}, "a,b=c", None, 1e-7] for number in range(300)
}


def launch(account: Jobs, folder: Path, words: list[str], **more: Any) -> tuple[dict[str, Any], SageMaker]:
    """Make the job of `words`, and return its configuration."""
    config = plain(compose([*words, f"run_dir={folder}"]))
    config.update(more)
    options = {name: value for name, value in config["launch"].items() if name != "_target_"}
    launcher = SageMaker(**options)
    with Recording(folder, config, words) as recording:
        launcher.run(account.cloud(kms_key=options["kms_key"]), config, words, folder, recording)
    return config, launcher


def source(account: Jobs, request: dict[str, Any]) -> dict[str, bytes]:
    """The files of the source bundle."""
    (code,) = [one for one in request["InputDataConfig"] if one["ChannelName"] == "code"]
    bucket, _, key = code["DataSource"]["S3DataSource"]["S3Uri"].removeprefix("s3://").partition("/")
    content = account.cloud().client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar if one.isfile()}  # type: ignore[union-attr]


@needs_sdk
def test_everything_that_was_asked_for_is_in_the_request(
    account: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="imgcls")
    pictures = write_pictures(tmp_path / "pictures", {"train": 2}, ("cat", "dog"))
    words = [*EVERYTHING, f"data.root={pictures}"]
    config, _ = launch(account, tmp_path / "run", words, odd=ODD)
    (request,) = account.requests
    name = request["TrainingJobName"]
    base = JobRecord.read(tmp_path / "run").base  # type: ignore[union-attr]
    assert name.startswith("imgcls-try-1-")
    assert request["RoleArn"] == "arn:aws:iam::123456789012:role/trainer"
    image = request["AlgorithmSpecification"]["TrainingImage"]
    assert "/pytorch:2.14-cu" in image
    other = not metadata.version("torch").startswith("2.14.")
    assert ("The image of the job has PyTorch 2.14; on this machine" in caplog.text) == other
    assert request["AlgorithmSpecification"]["ContainerEntrypoint"] == ["/bin/bash"]
    assert request["AlgorithmSpecification"]["ContainerArguments"][1].endswith(
        "&& exec /opt/ml/input/data/sm_drivers/sm_train.sh"
    )
    resources = request["ResourceConfig"]
    assert (resources["InstanceType"], resources["InstanceCount"], resources["VolumeSizeInGB"]) == (
        "ml.g5.12xlarge",
        2,
        99,
    )
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"]["MaxRuntimeInSeconds"] == 3600
    assert request["StoppingCondition"]["MaxWaitTimeInSeconds"] == 7200
    assert request["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1", "subnet-2"]}
    assert request["EnableInterContainerTrafficEncryption"] is True
    assert {"Key": "imgcls", "Value": "training-job"} in request["Tags"]
    assert {"Key": "team", "Value": "vision"} in request["Tags"]
    assert request["Environment"] == {"NCCL_DEBUG": "INFO"}
    assert not request.get("HyperParameters"), "they would become shell code"
    bucket = "s3://sagemaker-us-east-1-123456789012/imgcls"
    assert request["CheckpointConfig"] == {
        "S3Uri": f"{bucket}/jobs/{base}/checkpoints",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert request["OutputDataConfig"]["S3OutputPath"] == f"{bucket}/jobs"
    definitions = request["AlgorithmSpecification"]["MetricDefinitions"]
    assert definitions == metric_definitions(METRICS)

    channels = {one["ChannelName"]: one["DataSource"]["S3DataSource"]["S3Uri"] for one in request["InputDataConfig"]}
    assert set(channels) == {"data", "code", "sm_drivers"}
    assert channels["data"].startswith(f"{bucket}/data/pictures-")
    modes = {one["ChannelName"]: one.get("InputMode") for one in request["InputDataConfig"]}
    assert modes["data"] == "FastFile"
    assert "FastFile" not in (modes["code"], modes["sm_drivers"])
    files = source(account, request)
    assert json.loads(files["job.json"])["config"] == json.loads(json.dumps(config))
    assert "imgcls/conf/train.yaml" in files

    made = account.aws.calls
    assert {call.operation for call in made if call.service == "iam"} == {"GetRole"}
    assert not [call for call in made if call.operation == "ListBuckets"]
    assert name == JobRecord.read(tmp_path / "run").job  # type: ignore[union-attr]


@needs_sdk
def test_local_disks_take_no_key_and_have_their_size(
    account: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = "arn:aws:kms:us-east-1:123456789012:key/k"
    words = [
        "data=digits",
        "launch=sagemaker",
        "launch.wait=false",
        "launch.image=own/image:1",
        f"launch.kms_key={key}",
    ]
    launch(account, tmp_path / "gpu", [*words, "launch.volume_size=200"])
    launch(account, tmp_path / "cpu", [*words, "launch.instance_type=ml.m5.xlarge"])
    gpu, cpu = account.requests
    assert gpu["ResourceConfig"]["InstanceType"] == "ml.g4dn.xlarge"
    assert "VolumeKmsKeyId" not in gpu["ResourceConfig"]
    assert cpu["ResourceConfig"]["VolumeKmsKeyId"] == gpu["OutputDataConfig"]["KmsKeyId"] == key
    assert "launch.volume_size has no effect: ml.g4dn.xlarge has a local disk" in caplog.text


@needs_sdk
def test_the_same_command_finds_its_job(account: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["data=digits", "launch=sagemaker", "launch.wait=false", "launch.image=own/image:1"]
    folder = tmp_path / "run"
    launch(account, folder, words)
    launch(account, folder, words)
    assert len(account.requests) == 1, "it attached to the job that runs"
    record = JobRecord.read(folder)
    assert record is not None
    record.job = None  # as if killed before AWS's answer was written down
    record.write(folder)
    launch(account, folder, words)
    assert len(account.requests) == 1

    job = account.aws.job(account.requests[0]["TrainingJobName"])
    job.training_job_status, job.secondary_status = "Stopped", "Stopped"
    monkeypatch.setattr("sagemaker.train.model_trainer._get_unique_name", lambda base: f"{base}-later")
    launch(account, folder, words)
    first, second = account.requests
    assert second["TrainingJobName"] != first["TrainingJobName"]
    assert second["CheckpointConfig"] == first["CheckpointConfig"], "it goes on from there"


@needs_sdk
@pytest.mark.parametrize(
    ("code", "message", "said"),
    [
        ("ResourceLimitExceeded", "The account-level service limit is 0 Instances", "Ask for a higher quota"),
        ("ValidationException", "Could not assume role arn:x", "must exist and trust sagemaker"),
        ("AccessDeniedException", "not authorized to perform: iam:PassRole", "needs iam:PassRole"),
        ("ValidationException", "instanceType 'ml.g9' failed to satisfy", "Choose an instance type"),
    ],
)
def test_what_aws_refuses_is_said_in_a_line(account: Jobs, tmp_path: Path, code: str, message: str, said: str) -> None:
    from botocore.exceptions import ClientError

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": code, "Message": message}}, "CreateTrainingJob")

    cloud = account.cloud()
    cloud.session.events.register("before-call.sagemaker.CreateTrainingJob", refuse)
    config = plain(compose(["data=digits", "launch=sagemaker", "launch.image=own/image:1"]))
    launcher = SageMaker(image="own/image:1")
    with pytest.raises(UserError, match=f"Could not create the training job: .*{said}") as raised:
        launcher.new_job(cloud, config, [], tmp_path)
    assert "\n" not in str(raised.value)
    record = JobRecord.read(tmp_path)
    assert record is not None
    assert record.job is None


@needs_sdk
def test_images_are_those_of_the_sdks_table() -> None:
    def image(version: str, kind: str = "ml.m5.xlarge") -> str:
        return image_uri(JobOptions(framework_version=version, instance_type=kind), "eu-west-1")

    assert image("2.10.0").endswith("pytorch-training:2.10.0-cpu-py313")
    assert "2.14-cu" in image("2.14", "ml.g5.xlarge")
    assert image("2.14.0") == image("2.14"), "AWS writes it without the last number"
    with pytest.raises(UserError, match=r"Did you mean 2\.9\.0"):
        image("2.9.7")
    with pytest.raises(UserError, match=r"launch\.framework_version=9\.9: AWS has no such PyTorch training image"):
        image("9.9")
    with pytest.raises(UserError, match=r"launch\.region=nowhere"):
        image_uri(JobOptions(), "nowhere")


ROW = {
    "epoch": 12,
    "step": 400,
    "lr": 1.5e-05,
    "train/loss": 1234567.0,
    "val/accuracy": 0.0,
    "val/accuracy_top5": 1.0,
    "val/loss": -0.25,
    "seconds": 2.5,
}


def read(name: str, line: str) -> list[float]:
    (definition,) = metric_definitions([name])
    return [float(value) for value in re.findall(definition["Regex"], line)]


@pytest.mark.parametrize("name", [name for name in ROW if name not in ("epoch", "step")])
@pytest.mark.parametrize("before", ["", "[rank0]: ", "2026-01-01 algo-1 | "])
def test_each_value_is_read_as_printed(name: str, before: str) -> None:
    assert read(name, before + metric_line(ROW)) == [float(f"{ROW[name]:.6g}")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_no_value(value: float) -> None:
    assert read("val/loss", metric_line({**ROW, "val/loss": value})) == []


def test_no_other_name_and_no_other_line_is_read() -> None:
    assert read("accuracy", metric_line(ROW)) == []
    assert read("val/loss", "epoch=1 val/loss=0.5") == []
    assert read("val.loss", metric_line(ROW)) == []


def test_more_than_sagemaker_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 40"):
        metric_definitions(f"val/{number}" for number in range(41))
    with pytest.raises(ValueError, match="too long"):
        metric_definitions(["x" * 500])
