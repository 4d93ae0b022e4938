"""The IAM policies allow what the calls need, and no more."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest

from imgcls.deploy import policies
from imgcls.deploy.__main__ import command
from imgcls.deploy.policies import Names
from imgcls.launch.rehearsal.aws import Call
from tests.aws_account import needs_moto
from tests.deploy.conftest import Account, deploy
from tests.documents import commands

pytestmark = needs_moto

HERE = "us-east-1:123456789012"
BUCKET = "sagemaker-us-east-1-123456789012"
ANSWERS = "s3://answers/of-dogs"
ACTIONS = {  # operations whose permission has another name
    "HeadObject": "s3:GetObject",
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "Invoke": "lambda:InvokeFunction",
    "ListFunctions20150331": "lambda:ListFunctions",
}
WITHOUT_PERMISSION = {"sts:GetCallerIdentity"}
FOR_OTHERS = {  # what AWS asks for besides the operation's own permission, or does on the caller's behalf
    "s3:AbortMultipartUpload",
    "s3:ListBucket",  # without it S3 says of what is not there yet that it is forbidden
    "iam:PassRole",
    "iam:TagRole",
    "iam:CreateServiceLinkedRole",
    "lambda:TagResource",
    "cloudwatch:TagResource",
    "sagemaker:UpdateEndpointWeightsAndCapacities",
}
BY_AWS = {  # what SageMaker does with the role that nothing here can show
    "cloudwatch:PutMetricData",
    "ecr:GetAuthorizationToken",
    "ecr:BatchCheckLayerAvailability",
    "ecr:BatchGetImage",
    "ecr:GetDownloadUrlForLayer",
    "logs:CreateLogGroup",
    "logs:CreateLogStream",
    "logs:DescribeLogStreams",
    "logs:PutLogEvents",
    "s3:AbortMultipartUpload",
    "s3:ListBucket",
    "sns:Publish",
}
KNOW_NO_RESOURCES = {
    "application-autoscaling:DescribeScalableTargets",
    "cloudwatch:PutMetricData",
    "ecr:GetAuthorizationToken",
    "lambda:ListFunctions",
    "pricing:GetProducts",
    "sagemaker:ListEndpointConfigs",
    "sagemaker:ListEndpoints",
    "sagemaker:ListHyperParameterTuningJobs",
    "sagemaker:ListModels",
    "sagemaker:ListTrainingJobs",
}


def needed(call: Call) -> tuple[str, list[str]]:
    """The permission of a call, and the resources it is for."""
    words, operation = call.params, call.operation.removesuffix("20150331").removesuffix("20170331")
    service = {"monitoring": "cloudwatch"}.get(call.service, call.service.replace("sagemaker-runtime", "sagemaker"))
    service = "sagemaker" if "runtime" in call.service else service
    action = ACTIONS.get(operation, f"{service}:{operation}")
    if service == "s3":
        key = words.get("Key")
        return action, [f"arn:aws:s3:::{words['Bucket']}" + (f"/{key}" if key else "")]
    if service == "sagemaker":
        if "ResourceArn" in words:
            return action, [words["ResourceArn"]]
        kinds = {"EndpointName": "endpoint", "EndpointConfigName": "endpoint-config", "ModelName": "model"}
        found = [f"arn:aws:sagemaker:{HERE}:{kind}/{words[name]}" for name, kind in kinds.items() if name in words]
        return action, found or ["*"]
    if service == "logs":
        group = f"arn:aws:logs:{HERE}:log-group:{words['logGroupName']}"
        stream = words.get("logStreamName")
        return action, [f"{group}:log-stream:{stream}" if stream else group]
    if service == "lambda":
        name = words.get("FunctionName") or words.get("Resource", "").rpartition(":")[2]
        return action, [f"arn:aws:lambda:{HERE}:function:{name}" if name else "*"]
    if service == "iam":
        role = words.get("RoleName", "")
        return action, [f"arn:aws:iam::123456789012:role/imgcls/{role}"]
    if service == "cloudwatch":
        if "ResourceARN" in words:
            return action, [words["ResourceARN"]]
        names = words.get("AlarmNames") or [words.get("AlarmName")]
        return action, [f"arn:aws:cloudwatch:{HERE}:alarm:{name or '*'}" for name in names]
    if service == "application-autoscaling" and not operation.startswith("Describe"):
        return action, [f"arn:aws:application-autoscaling:{HERE}:scalable-target/0"]
    return action, ["*"]


def compare(policy: dict[str, Any], calls: list[Call], besides: set[str]) -> None:
    """Every call is allowed by a statement, and every action of every statement is called."""
    used: set[tuple[str, str]] = set()
    for call in calls:
        action, resources = needed(call)
        if action in WITHOUT_PERMISSION:
            continue
        for resource in resources:
            allowing = {
                (statement["Sid"], action)
                for statement in policy["Statement"]
                if action in statement["Action"] and matches(resource, statement["Resource"])
            }
            assert allowing, f"no statement allows {action} on {resource}"
            used |= allowing
    for statement in policy["Statement"]:
        actions = set(statement["Action"])
        assert not [action for action in actions if "*" in action]
        superfluous = {action for action in actions if (statement["Sid"], action) not in used} - besides
        assert not superfluous, f"{statement['Sid']} has more than is called: {superfluous}"
        if statement["Resource"] == "*":
            assert actions <= KNOW_NO_RESOURCES


def matches(resource: str, patterns: Any) -> bool:
    return any(
        fnmatch.fnmatchcase(resource, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns)
    )


def names(**more: Any) -> Names:
    given = {"role": "endpoints", "function": "imgcls-dogs", "default_bucket": True, **more}
    return Names("aws", "us-east-1", "123456789012", "imgcls-dogs", bucket=BUCKET, **given)


def test_the_policies_hold_what_the_calls_need_and_no_more(account: Account, run: Path) -> None:
    account.aws.calls.clear()
    account.cloud().client("s3").create_bucket(Bucket="answers")
    account.aws.calls.clear()
    words = ["max_instances=2", "min_instances=0", "samples=1"]
    deploy("mode=asynchronous", f"output={ANSWERS}", *words)
    deploy("instance_type=ml.c5.large", "samples=1")
    command(["rollback", "name=dogs", "poll=0.01"])
    command(["test", "run=runs/dogs", "samples=1", "poll=0.01"])
    front = ["lambda", "name=dogs", "poll=0.01", "make_role=true"]
    command([*front, "provisioned=1", "url=public"])
    command([*front, "url=iam"])
    command(front)
    command(["list"])
    command(["delete", "name=dogs", "yes=true", "poll=0.01"])
    deploy("samples=1")
    command(["lambda", "name=dogs", "poll=0.01", "make_role=true", "pictures=pictures"])
    account.broken = "no"
    with pytest.raises(Exception, match="no"):
        deploy("instance_count=2")
    account.cloud().client("logs").create_log_group(logGroupName="/aws/sagemaker/Endpoints/imgcls-dogs")
    logs = account.cloud().client("logs")
    logs.create_log_stream(logGroupName="/aws/sagemaker/Endpoints/imgcls-dogs", logStreamName="AllTraffic/i")
    with pytest.raises(Exception, match="no"):
        deploy("instance_count=3")
    calls = [call for call in account.aws.calls if not call.operation.startswith("CreateLog")]

    pricing = {"pricing:GetProducts"}  # its client is another one
    person = policies.person_policy(names(output=ANSWERS))
    compare(person, [call for call in calls if call.who == "person"], FOR_OTHERS | pricing)
    role = policies.role_policy(names(output=ANSWERS, images=["arn:aws:ecr:us-east-1:763104351884:repository/p"]))
    compare(role, [call for call in calls if call.who == "role"], BY_AWS)


def test_the_function_may_ask_its_endpoint_and_nothing_else() -> None:
    statements = {one["Sid"]: one for one in policies.lambda_policy(names())["Statement"]}
    assert statements["InvokeEndpoint"]["Resource"] == [f"arn:aws:sagemaker:{HERE}:endpoint/imgcls-dogs"]
    assert statements["InvokeEndpoint"]["Action"] == ["sagemaker:InvokeEndpoint"]
    written = [resource for name in ("CreateLog", "WriteLog") for resource in statements[name]["Resource"]]
    assert all(resource.startswith(f"arn:aws:logs:{HERE}:log-group:/aws/lambda/imgcls-dogs") for resource in written)
    assert len(statements) == 3


def test_what_is_not_used_is_not_allowed() -> None:
    """Keys, VPCs, topics and captured requests have their statements where there are any."""
    key, topic = "arn:aws:kms:us-east-1:123456789012:key/k", "arn:aws:sns:us-east-1:123456789012:done"
    least = {one["Sid"] for one in policies.role_policy(names())["Statement"]}
    most = policies.role_policy(names(kms_key=key, vpc=True, topics=[topic], capture=True, output=ANSWERS))
    added = {one["Sid"]: one for one in most["Statement"] if one["Sid"] not in least}
    assert set(added) == {
        *("ReadQuestions", "WriteAnswers", "ListAnswers", "NotifyOfAnswers", "Capture", "UseKey"),
        *("DescribeNetwork", "NetworkInterfaces"),
    }
    assert added["NotifyOfAnswers"]["Resource"] == [topic]
    assert added["UseKey"]["Resource"] == [key]
    assert added["Capture"]["Resource"] == [f"arn:aws:s3:::{BUCKET}/imgcls/captured/imgcls-dogs/*"]
    assert added["WriteAnswers"]["Resource"] == ["arn:aws:s3:::answers/of-dogs/*"]
    person = {one["Sid"] for one in policies.person_policy(names())["Statement"]}
    assert not person & {"WriteQuestions", "ReadAnswers", "ListAnswers", "UseKey"}


def test_policies_are_printed_for_the_account(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sagemaker.core")
    [shown] = [one for one in commands() if one.module == "deploy" and "policies" in one.line]
    command(shown.words)
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"trust", "role", "person", "lambda_trust", "lambda"}
    text = json.dumps(printed)
    assert "arn:aws:iam::123456789012:role/imgcls-endpoints" in text
    assert "arn:aws:ecr:us-east-1:763104351884:repository/pytorch-inference" in text
    assert "endpoint/imgcls-dogs" in text
