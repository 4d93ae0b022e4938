"""What the trials of a tuning job are asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from imgcls.aws.naming import Places
from imgcls.launch.sagemaker.options import JobOptions
from imgcls.sweeps.sagemaker.job import TuningPlan, trial_request

KEY = "arn:aws:kms:us-east-1:123456789012:key/k"


def request(input_mode: str = "File", **options: Any) -> dict[str, Any]:
    account: Any = SimpleNamespace(role_arn="arn:aws:iam::1:role/r", places=Places("b", "p"))
    search: Any = SimpleNamespace(objectives=["val/accuracy"])
    nothing: Any = None
    job = JobOptions(**options)
    plan = TuningPlan("imgcls-tune-x", nothing, [], {}, 1, [], job, search, nothing, {}, input_mode)
    return trial_request(account, plan, "image", {"code": "s3://b/code", "data": "s3://b/data"})


def test_local_disks_take_no_key() -> None:
    assert request(kms_key=KEY, instance_type="ml.m5.xlarge")["ResourceConfig"]["VolumeKmsKeyId"] == KEY
    for kind in ("ml.g4dn.xlarge", "ml.g5.xlarge"):
        made = request(kms_key=KEY, instance_type=kind)
        assert "VolumeKmsKeyId" not in made["ResourceConfig"], kind
        assert made["OutputDataConfig"]["KmsKeyId"] == KEY


def test_trials_have_the_options_of_jobs() -> None:
    network = {"subnets": ["subnet-1"], "security_groups": ["sg-1"], "network_isolation": True}
    made = request("FastFile", spot=True, max_runtime=60, environment={"NCCL_DEBUG": "INFO"}, **network)
    assert made["EnableManagedSpotTraining"] is True
    assert made["StoppingCondition"] == {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 120}
    assert made["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert made["EnableNetworkIsolation"] is True
    assert made["Environment"]["NCCL_DEBUG"] == "INFO"
    modes = {channel["ChannelName"]: channel["InputMode"] for channel in made["InputDataConfig"]}
    assert modes == {"code": "File", "data": "FastFile"}
