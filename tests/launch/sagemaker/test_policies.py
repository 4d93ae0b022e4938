"""The policies of IAM hold what the calls need, and no more."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest

from imgcls.jobs import _main
from imgcls.launch.rehearsal.aws import Call
from imgcls.launch.sagemaker import policies
from imgcls.launch.sagemaker.policies import Names
from tests.aws_account import Jobs, Search, needs_moto, needs_sdk
from tests.documents import commands
from tests.launch.sagemaker.test_training_job import launch

pytestmark = needs_moto

WORDS = ["launch=sagemaker", "launch.image=own/image:1"]
ACTIONS = {  # operations of boto3 whose permission has another name
    "HeadObject": "s3:GetObject",
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "DeleteObjects": "s3:DeleteObject",
}
WITHOUT_PERMISSION = {"sts:GetCallerIdentity"}
BY_AWS = {  # what SageMaker does with the role that a rehearsal cannot show, and what moto has no service for
    "cloudwatch:PutMetricData",
    "ecr:GetAuthorizationToken",
    "ecr:BatchCheckLayerAvailability",
    "ecr:BatchGetImage",
    "ecr:GetDownloadUrlForLayer",
    "logs:DescribeLogStreams",
    "s3:AbortMultipartUpload",
    "iam:PassRole",
    "sagemaker:AddTags",
    "pricing:GetProducts",
}


def needed(call: Call) -> tuple[str, str]:
    """The permission of a call, and the resource it is for."""
    action = ACTIONS.get(call.operation, f"{call.service}:{call.operation}")
    if call.service == "s3":
        bucket, key = call.params["Bucket"], call.params.get("Key")
        if call.operation == "DeleteObjects":
            key = call.params["Delete"]["Objects"][0]["Key"]
        return action, f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
    if call.service == "sagemaker":
        kinds = {"TrainingJobName": "training-job", "HyperParameterTuningJobName": "hyper-parameter-tuning-job"}
        names = [f"{kind}/{call.params[field]}" for field, kind in kinds.items() if field in call.params]
        return action, f"arn:aws:sagemaker:us-east-1:123456789012:{names[0]}" if names else "*"
    if call.service == "logs":
        group = f"arn:aws:logs:us-east-1:123456789012:log-group:{call.params['logGroupName']}"
        stream = call.params.get("logStreamName")
        return action, f"{group}:log-stream:{stream}" if stream else group
    return action, "*"


def allowed(policy: dict[str, Any], action: str, resource: str) -> set[str]:
    """The statements of `policy` that allow it."""
    return {
        statement["Sid"]
        for statement in policy["Statement"]
        if action in statement["Action"]
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in _list(statement["Resource"]))
    }


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def names(account: Jobs) -> Names:
    return Names(
        "aws",
        "us-east-1",
        "123456789012",
        bucket="sagemaker-us-east-1-123456789012",
        role="trainer",
        images=["arn:aws:ecr:us-east-1:763104351884:repository/pytorch-training"],
        default_bucket=True,
    )


@needs_sdk
def test_the_policies_hold_what_the_calls_need_and_no_more(
    signed_in: Jobs, search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures" / "train" / "cat"
    pictures.mkdir(parents=True)
    for number in range(2):
        (pictures / f"{number}.jpg").write_text("x")
    (tmp_path / "w.safetensors").write_text("x")
    words = [*WORDS, "launch.wait=false", "data=imagefolder", f"data.root={tmp_path / 'pictures'}"]
    launch(signed_in, tmp_path / "run", [*words, f"model.weights={tmp_path / 'w.safetensors'}"])
    (pictures / "0.jpg").unlink()
    launch(signed_in, tmp_path / "second", words)
    job = f"job={signed_in.requests[-1]['TrainingJobName']}"
    logs, group = signed_in.aws.session("role").client("logs"), "/aws/sagemaker/TrainingJobs"
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName=f"{job.removeprefix('job=')}/algo-1-1")
    _main(["stop", job])
    _main(["list"])
    signed_in.finish(signed_in.requests[-1], {"val/accuracy": 0.5})
    _main(["attach", f"run={tmp_path / 'second'}"])
    signed_in.aws.run_job = lambda request: signed_in.finish(request, {"val/accuracy": 0.5})
    tuning = ["hydra/sweeper=sagemaker", "optim.lr=0.1,0.01", "search.trials=1", "search.study=s", "launch.poll=0.1"]
    assert search(*tuning, *WORDS, "data=digits", "launch.role=trainer") == 0
    _main(["stop", "run=sweeps/s"])

    policy = policies.person_policy(names(signed_in))
    compare(policy, [call for call in signed_in.aws.calls if call.who == "person"])
    assert capsys.readouterr().out


def compare(policy: dict[str, Any], calls: list[Call]) -> None:
    used: set[str] = set()
    made: set[str] = set(BY_AWS)
    for call in calls:
        action, resource = needed(call)
        if action in WITHOUT_PERMISSION or _of_the_test(call):
            continue
        statements = allowed(policy, action, resource)
        assert statements, f"no statement allows {action} on {resource}"
        used |= statements
        made.add(action)
    actions = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert actions <= made, f"never called: {actions - made}"
    unused = {one["Sid"] for one in policy["Statement"] if not set(one["Action"]) & BY_AWS} - used
    assert not unused
    for statement in policy["Statement"]:
        assert not [action for action in statement["Action"] if "*" in action]
        if statement["Resource"] == "*":
            assert set(statement["Action"]) <= KNOW_NO_RESOURCES


KNOW_NO_RESOURCES = {
    "sagemaker:ListTrainingJobs",
    "sagemaker:ListHyperParameterTuningJobs",
    "cloudwatch:PutMetricData",
    "ecr:GetAuthorizationToken",
    "pricing:GetProducts",
}


def _of_the_test(call: Call) -> bool:
    """`Jobs.finish` puts what a job would."""
    return call.operation == "PutObject" and "/output/" in call.params["Key"]


def test_policies_are_printed_for_the_account(signed_in: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sagemaker.core")
    (command,) = [command for command in commands() if command.module == "jobs" and "policies" in command.line]
    _main(command.words)
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"trust", "role", "person"}
    text = json.dumps(printed)
    assert "arn:aws:iam::123456789012:role/imgcls-training" in text
    assert "arn:aws:ecr:us-east-1:763104351884:repository/pytorch-training" in text


def test_keys_vpcs_and_data_of_others_have_their_statements(account: Jobs) -> None:
    from dataclasses import replace

    key = "arn:aws:kms:us-east-1:123456789012:key/k"
    more = replace(names(account), kms_key=key, vpc=True, data=["s3://other/set"])
    role = policies.role_policy(more)
    assert allowed(role, "kms:Decrypt", key)
    assert allowed(role, "s3:GetObject", "arn:aws:s3:::other/set/1.jpg")
    assert not allowed(role, "s3:GetObject", "arn:aws:s3:::other/secret/1.jpg")
    assert allowed(role, "ec2:CreateNetworkInterface", "arn:aws:ec2:us-east-1:123456789012:subnet/subnet-1")
    assert allowed(policies.person_policy(more), "kms:GenerateDataKey", key)
    assert not allowed(policies.role_policy(names(account)), "ec2:DescribeVpcs", "*")
