"""The policies of IAM hold what the calls need, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imgcls.jobs import _main
from imgcls.launch.rehearsal.aws import Call
from imgcls.launch.sagemaker import policies
from imgcls.launch.sagemaker.policies import Names
from tests.aws_account import Jobs, Search, needs_moto, needs_sdk
from tests.documents import commands
from tests.launch.sagemaker.test_training_job import launch
from tests.permissions import BY_AWS, Question, allowing, check

pytestmark = needs_moto

WORDS = ["launch=sagemaker", "launch.image=own/image:1"]
BESIDES = BY_AWS | {"pricing:GetProducts", "servicequotas:ListAWSDefaultServiceQuotas"}  # moto answers no such call


def names(account: Jobs) -> Names:
    return Names(
        "aws",
        "us-east-1",
        "123456789012",
        bucket="sagemaker-us-east-1-123456789012",
        role="role/trainer",
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
    check(policy, [call for call in signed_in.aws.calls if call.who == "person" and not _of_the_test(call)], BESIDES)
    assert capsys.readouterr().out


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
    for repository in ("pytorch-training", "pytorch"):  # of framework_version=2.10.0 and 2.14
        image = Question("ecr:BatchGetImage", f"arn:aws:ecr:us-east-1:763104351884:repository/{repository}")
        assert allowing(printed["role"], image)
    network = ["subnets=subnet-1", "security_groups=sg-1"]
    _main(["policies", "data=s3://other/set", *network])
    printed = json.loads(capsys.readouterr().out)
    assert allowing(printed["role"], Question("s3:GetObject", "arn:aws:s3:::other/set/1.jpg"))
    subnet = "arn:aws:ec2:us-east-1:123456789012:subnet/subnet-1"
    assert allowing(printed["role"], Question("ec2:CreateNetworkInterface", subnet))
    _main(["policies", "image=123456789012.dkr.ecr.us-east-1.amazonaws.com/mine:1"])
    printed = json.loads(capsys.readouterr().out)
    own = Question("ecr:BatchGetImage", "arn:aws:ecr:us-east-1:123456789012:repository/mine")
    assert allowing(printed["role"], own)


@pytest.mark.parametrize("given", ["service-role/Trainer", "arn:aws:iam::123456789012:role/service-role/Trainer"])
def test_a_role_keeps_its_path(signed_in: Jobs, capsys: pytest.CaptureFixture[str], given: str) -> None:
    """As those of the console, which without their path are other roles."""
    pytest.importorskip("sagemaker.core")
    _main(["policies", f"role={given}"])
    person = json.loads(capsys.readouterr().out)["person"]
    role = "arn:aws:iam::123456789012:role/service-role/Trainer"
    assert allowing(person, Question("iam:PassRole", role, {"iam:PassedToService": "sagemaker.amazonaws.com"}))
    assert allowing(person, Question("iam:GetRole", role))


def test_keys_vpcs_and_data_of_others_have_their_statements(account: Jobs) -> None:
    from dataclasses import replace

    key = "arn:aws:kms:us-east-1:123456789012:key/k"
    network = {"subnets": ["subnet-1", "subnet-2"], "security_groups": ["sg-1"]}
    more = replace(names(account), kms_key=key, data=["s3://other/set"], **network)
    role = policies.role_policy(more)
    assert allowing(role, Question("kms:Decrypt", key))
    assert allowing(role, Question("s3:GetObject", "arn:aws:s3:::other/set/1.jpg"))
    assert not allowing(role, Question("s3:GetObject", "arn:aws:s3:::other/secret/1.jpg"))
    assert allowing(policies.person_policy(more), Question("kms:GenerateDataKey", key))
    assert not allowing(policies.role_policy(names(account)), Question("ec2:DescribeVpcs", "*"))


def test_keys_are_granted_to_services_and_interfaces_made_in_the_subnets(account: Jobs) -> None:
    from dataclasses import replace

    key, ec2 = "arn:aws:kms:us-east-1:123456789012:key/k", "arn:aws:ec2:us-east-1:123456789012"
    more = replace(names(account), kms_key=key, subnets=["subnet-1"], security_groups=["sg-1"])
    role = policies.role_policy(more)
    service, person = {"kms:GrantIsForAWSResource": "true"}, {"kms:GrantIsForAWSResource": "false"}
    assert allowing(role, Question("kms:CreateGrant", key, service))
    assert not allowing(role, Question("kms:CreateGrant", key, person))
    assert not allowing(role, Question("kms:CreateGrant", key))
    for resource in ("network-interface/eni-1", "subnet/subnet-1", "security-group/sg-1"):
        assert allowing(role, Question("ec2:CreateNetworkInterface", f"{ec2}:{resource}"))
    for resource in ("subnet/subnet-2", "security-group/sg-2"):
        assert not allowing(role, Question("ec2:CreateNetworkInterface", f"{ec2}:{resource}"))
    for action in ("DeleteNetworkInterface", "CreateNetworkInterfacePermission"):
        interface = f"{ec2}:network-interface/eni-1"
        assert allowing(role, Question(f"ec2:{action}", interface, {"ec2:Subnet": f"{ec2}:subnet/subnet-1"}))
        assert not allowing(role, Question(f"ec2:{action}", interface, {"ec2:Subnet": f"{ec2}:subnet/subnet-2"}))


def test_the_job_may_create_the_log_group_that_aws_asks_for(account: Jobs) -> None:
    group = "arn:aws:logs:us-east-1:123456789012:log-group:/aws/sagemaker/TrainingJobs:log-stream:"
    role = policies.role_policy(names(account))
    for action in ("CreateLogGroup", "DescribeLogStreams"):
        assert allowing(role, Question(f"logs:{action}", group))
    assert not allowing(policies.person_policy(names(account)), Question("logs:GetLogEvents", f"{group}other/algo-1"))


def test_the_role_trusts_sagemaker_for_this_account_alone(account: Jobs) -> None:
    (statement,) = policies.trust_policy(names(account))["Statement"]
    assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": "123456789012"}}
