"""Everything that imgcls made is found by its tags, and goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imgcls.deploy.__main__ import command
from imgcls.deploy.inventory import list_resources
from imgcls.errors import UserError
from tests.aws_account import needs_moto
from tests.deploy.conftest import QUICK, Account, deploy

pytestmark = needs_moto


@pytest.fixture
def busy(account: Account, run: Path) -> Account:
    """Two endpoints of ours with all that can belong to one, and things of somebody else."""
    deploy("test=false", "max_instances=2")
    deploy("test=false", "instance_count=2")
    command(["lambda", "name=dogs", "make_role=true", "poll=0.01", "url=iam", "provisioned=1"])
    command(["run=runs/dogs", "name=dogs-2", *QUICK, "test=false", "mode=serverless"])
    cloud = account.cloud()
    client = cloud.client("sagemaker")
    client.create_model(ModelName="imgcls-theirs", ExecutionRoleArn="arn:aws:iam::123456789012:role/x")
    made = {"VariantName": "v", "ModelName": "imgcls-theirs", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    client.create_endpoint_config(EndpointConfigName="imgcls-theirs", ProductionVariants=[made])
    client.create_endpoint(EndpointName="imgcls-theirs", EndpointConfigName="imgcls-theirs")
    cloud.client("application-autoscaling").register_scalable_target(
        ServiceNamespace="sagemaker",
        ResourceId="endpoint/imgcls-theirs/variant/v",
        ScalableDimension="sagemaker:variant:DesiredInstanceCount",
        MinCapacity=1,
        MaxCapacity=2,
    )
    cloud.client("iam").create_role(
        RoleName="imgcls-elsewhere",
        Path="/imgcls/",
        AssumeRolePolicyDocument="{}",
        Tags=[{"Key": "imgcls", "Value": "role"}, {"Key": "imgcls:region", "Value": "eu-west-1"}],
    )
    return account


def kinds(account: Account, endpoint: str | None = None) -> list[str]:
    return sorted(resource.kind for resource in list_resources(account.cloud(), endpoint))


ONE = ["alarm", "endpoint", "endpoint-config", "endpoint-config", "function", "model", "role", "scaling"]
OTHER = ["endpoint", "endpoint-config", "model"]


def test_list_delete_and_delete_all(
    busy: Account, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kinds(busy, "imgcls-dogs") == ONE
    assert kinds(busy) == sorted([*ONE, *OTHER])
    busy.cloud().client("sagemaker").create_training_job(
        TrainingJobName="imgcls-job",
        AlgorithmSpecification={"TrainingImage": "x", "TrainingInputMode": "File"},
        RoleArn="arn:aws:iam::123456789012:role/endpoints",
        OutputDataConfig={"S3OutputPath": "s3://x/y"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    busy.aws.job("imgcls-job").training_job_status = "InProgress"
    capsys.readouterr()
    command(["list"])
    printed = capsys.readouterr().out
    assert "InService, 2 x ml.m5.large" in printed
    assert "InService, serverless, 3072 MB" in printed
    assert "1 to 2 instances" in printed
    assert "imgcls-dogs is billed per hour" in printed
    assert "delete it with: python -m imgcls.deploy delete name=imgcls-dogs" in printed
    assert "1 training or tuning jobs are running and billed: python -m imgcls.jobs" in printed
    assert "theirs" not in printed
    assert "elsewhere" not in printed

    with pytest.raises(UserError, match=r"there is no terminal for the confirmation\. Give yes=true"):
        command(["delete", "name=dogs"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: "n")
    with pytest.raises(UserError, match=r"Nothing was removed\."):
        command(["delete", "name=dogs"])
    assert kinds(busy, "imgcls-dogs") == ONE
    monkeypatch.setattr("builtins.input", lambda text: "y")
    command(["delete", "name=dogs", "poll=0.01"])
    removed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("removed ")]
    assert removed[0].split() == ["removed", "endpoint", "imgcls-dogs"]
    assert "removed function         imgcls-dogs" in removed
    assert kinds(busy) == OTHER
    assert archives(busy) == ["imgcls-dogs-2"]

    command(["delete", "--all", "yes=true", "poll=0.01"])
    assert not kinds(busy)
    assert not archives(busy)
    assert busy.endpoints == ["imgcls-theirs"], "what has no tag of ours stays"
    capsys.readouterr()
    command(["delete", "--all", "yes=true"])
    assert "There are no resources of imgcls in us-east-1." in capsys.readouterr().out
    command(["list"])
    assert "There are no resources of imgcls in us-east-1." in capsys.readouterr().out


def archives(account: Account) -> list[str]:
    found = (
        account.cloud()
        .client("s3")
        .list_objects_v2(Bucket="sagemaker-us-east-1-123456789012", Prefix="imgcls/endpoints/")
    )
    return sorted({one["Key"].split("/")[2] for one in found.get("Contents", [])})


def test_an_endpoint_is_deleted_with_the_permission_to_delete_it_alone(
    busy: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who may not even list what there is gets rid of what is billed."""
    from botocore.exceptions import ClientError

    session = busy.aws.session

    def refuse(model: Any, **_: Any) -> None:
        if model.name not in ("DeleteEndpoint", "GetCallerIdentity"):
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "No."}}, model.name)

    def made(who: str = "person") -> Any:
        one = session(who)
        one.events.register("before-call", refuse)
        return one

    busy.aws.session = made
    command(["delete", "name=dogs", "yes=true", "poll=0.01"])
    busy.aws.session = session
    assert busy.endpoints == ["imgcls-dogs-2", "imgcls-theirs"]
    printed = capsys.readouterr().out
    assert "removed endpoint         imgcls-dogs" in printed
    assert "You may not list endpoints, functions, autoscaling, alarms, " in printed


def test_a_killed_removal_is_resumed(busy: Account) -> None:
    """Removing fails at each thing in turn; the list still has what is left, until nothing is."""
    from botocore.exceptions import ClientError

    stops = ["DeleteRole", "DeleteModel", "DeleteEndpointConfig", "DeregisterScalableTarget", "DeleteEndpoint"]
    session = busy.aws.session

    def stopping(operation: str) -> Any:
        def refuse(model: Any, **_: Any) -> None:
            if model.name == operation:
                raise ClientError({"Error": {"Code": "AccessDenied", "Message": "No."}}, operation)

        def made(who: str = "person") -> Any:
            one = session(who)
            one.events.register("before-call", refuse)
            return one

        return made

    for operation in reversed(stops):
        busy.aws.session = stopping(operation)
        with pytest.raises(UserError, match=r"Could not .*: No\. Ask for this permission"):
            command(["delete", "name=dogs", "yes=true", "poll=0.01"])
        assert kinds(busy, "imgcls-dogs")
    busy.aws.session = session
    command(["delete", "name=dogs", "yes=true", "poll=0.01"])
    assert kinds(busy) == OTHER
