"""The IAM policies allow what the calls need, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imgcls.deploy import policies
from imgcls.deploy.__main__ import command
from imgcls.deploy.policies import Names
from tests.aws_account import needs_moto
from tests.deploy.conftest import Account, deploy
from tests.documents import commands
from tests.permissions import BY_AWS, Question, allowing, check

pytestmark = needs_moto

HERE = "us-east-1:123456789012"
BUCKET = "sagemaker-us-east-1-123456789012"
ANSWERS = "s3://answers/of-dogs"
FOR_OTHERS = {  # what AWS asks for besides the operation's own permission, or does on the caller's behalf
    "s3:AbortMultipartUpload",
    "s3:ListBucket",  # without it S3 says of what is not there yet that it is forbidden
    "iam:CreateServiceLinkedRole",
    "iam:ListRoleTags",  # of the functions' roles that an administrator has created with make_role=true
    "pricing:GetProducts",  # moto has no service for it
    "sagemaker:StopTransformJob",  # as the command advises
    "sagemaker:UpdateEndpointWeightsAndCapacities",
}
OF_THE_ROLE = BY_AWS | {
    *(f"logs:{what}" for what in ("CreateLogGroup", "CreateLogStream", "DescribeLogStreams", "PutLogEvents")),
    "s3:ListBucket",
    "sns:Publish",
}


def names(**more: Any) -> Names:
    given = {"role": "role/endpoints", "function": "imgcls-dogs", "default_bucket": True, **more}
    return Names("aws", "us-east-1", "123456789012", "imgcls-dogs", bucket=BUCKET, **given)


def test_the_policies_hold_what_the_calls_need_and_no_more(account: Account, run: Path) -> None:
    s3 = account.cloud().client("s3")
    s3.create_bucket(Bucket="answers")
    s3.put_object(Bucket="answers", Key="new/a.jpg", Body=Path("pictures/00.jpg").read_bytes())
    account.aws.calls.clear()
    words = ["max_instances=2", "min_instances=0", "samples=1"]
    deploy("mode=asynchronous", f"output={ANSWERS}", *words)
    deploy("instance_type=ml.c5.large", "samples=1")
    command(["rollback", "name=dogs", "poll=0.01"])
    command(["test", "run=runs/dogs", "samples=1", "poll=0.01"])
    command(["list"])
    command(["delete", "name=dogs", "yes=true", "poll=0.01"])
    deploy("samples=1")
    front = ["lambda", "name=dogs", "poll=0.01", "role=imgcls-functions"]
    command([*front, "provisioned=1", "url=public"])
    command([*front, "url=iam"])
    command(front)
    command(["delete", "name=dogs", "yes=true", "poll=0.01"])
    deploy("samples=1")
    command(["lambda", "name=dogs", "poll=0.01", "role=imgcls-functions", "pictures=pictures"])
    command(["register", "run=runs/dogs", "name=dogs", "image=own/image:1", "approve=true"])
    command(["packages"])
    command(["register", "run=runs/dogs", "name=gone", "image=own/image:1"])
    command(["delete", "package=gone", "yes=true"])
    command(["package=dogs", "name=dogs", "poll=0.01", "role=endpoints", "pictures=pictures", "samples=1"])
    command(["batch", "s3://answers/new", "package=dogs", "poll=0.01", "role=endpoints"])
    account.broken = "no"
    with pytest.raises(Exception, match="no"):
        deploy("instance_count=2")
    account.cloud().client("logs").create_log_group(logGroupName="/aws/sagemaker/Endpoints/imgcls-dogs")
    logs = account.cloud().client("logs")
    logs.create_log_stream(logGroupName="/aws/sagemaker/Endpoints/imgcls-dogs", logStreamName="AllTraffic/i")
    with pytest.raises(Exception, match="no"):
        deploy("instance_count=3")
    calls = [call for call in account.aws.calls if not call.operation.startswith("CreateLog")]

    batch = "s3://answers/new"
    person = policies.person_policy(names(output=ANSWERS, batch=batch))
    check(person, [call for call in calls if call.who == "person"], FOR_OTHERS)
    role = policies.role_policy(
        names(output=ANSWERS, batch=batch, images=["arn:aws:ecr:us-east-1:763104351884:repository/p"])
    )
    check(role, [call for call in calls if call.who == "role"], OF_THE_ROLE)


def test_the_function_may_ask_its_endpoint_and_nothing_else() -> None:
    statements = {one["Sid"]: one for one in policies.lambda_policy(names())["Statement"]}
    assert statements["InvokeEndpoint"]["Resource"] == [f"arn:aws:sagemaker:{HERE}:endpoint/imgcls-dogs"]
    assert statements["InvokeEndpoint"]["Action"] == ["sagemaker:InvokeEndpoint"]
    group = f"arn:aws:logs:{HERE}:log-group:/aws/lambda/imgcls-dogs:log-stream:"  # as AWS asks for it
    assert allowing(policies.lambda_policy(names()), Question("logs:CreateLogGroup", group))
    assert allowing(policies.lambda_policy(names()), Question("logs:PutLogEvents", f"{group}2026/11/28/[1]0123"))
    assert len(statements) == 2


def test_what_is_not_used_is_not_allowed() -> None:
    """Keys, VPCs, topics and captured requests have their statements where there are any."""
    key, topic = "arn:aws:kms:us-east-1:123456789012:key/k", "arn:aws:sns:us-east-1:123456789012:done"
    least = {one["Sid"] for one in policies.role_policy(names())["Statement"]}
    most = policies.role_policy(
        names(kms_key=key, subnets=["subnet-1"], security_groups=["sg-1"], topics=[topic], capture=True, output=ANSWERS)
    )
    added = {one["Sid"]: one for one in most["Statement"] if one["Sid"] not in least}
    assert set(added) == {
        *("ReadQuestions", "WriteAnswers", "ListAnswers", "NotifyOfAnswers", "Capture", "UseKey"),
        *("GrantKey", "DescribeNetwork", "CreateNetworkInterfaces", "ChangeNetworkInterfaces"),
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


def test_a_policy_that_is_too_large_for_iam_is_printed_in_parts(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sagemaker.core")
    everything = ["mode=asynchronous", "kms_key=arn:aws:kms:us-east-1:123456789012:key/k", "images=s3://answers/new"]
    for more, count in ([], 1), (everything, 2):
        command(["policies", "name=dogs", "role=service-role/endpoints", "function_role=team/functions", *more])
        printed = json.loads(capsys.readouterr().out)
        parts = [document for name, document in printed.items() if name.startswith("person")]
        assert len(parts) == count
        assert all(len(json.dumps(part, separators=(",", ":"))) <= 6144 for part in parts)
        for role, service in (("service-role/endpoints", "sagemaker"), ("team/functions", "lambda")):
            passed = {"iam:PassedToService": f"{service}.amazonaws.com"}
            question = Question("iam:PassRole", f"arn:aws:iam::123456789012:role/{role}", passed)
            assert any(allowing(part, question) for part in parts)
    names = [statement["Sid"] for part in parts for statement in part["Statement"]]
    assert len(set(names)) == len(names)
    assert {"Batches", "UseKey", "ReadAnswers", "Functions"} <= set(names)


def test_metrics_of_batches_have_a_namespace_of_their_own() -> None:
    for batch in (None, "s3://answers/new"):
        context = {"cloudwatch:namespace": "/aws/sagemaker/TransformJobs"}
        question = Question("cloudwatch:PutMetricData", "*", context)
        assert bool(allowing(policies.role_policy(names(batch=batch)), question)) is (batch is not None)


def test_the_person_cannot_become_an_administrator() -> None:
    """No new role, no policy of a role, and no role but the two that the administrator has created."""
    person = policies.person_policy(names())
    actions = {action for statement in person["Statement"] for action in statement["Action"]}
    assert {action for action in actions if action.startswith("iam:")} == {
        *("iam:GetRole", "iam:CreateServiceLinkedRole", "iam:ListRoleTags", "iam:ListRoles", "iam:PassRole")
    }
    to_lambda = {"iam:PassedToService": "lambda.amazonaws.com"}
    for role, passed in [("imgcls-functions", True), ("imgcls/imgcls-dogs-us-east-1", False), ("admin", False)]:
        question = Question("iam:PassRole", f"arn:aws:iam::123456789012:role/{role}", to_lambda)
        assert bool(allowing(person, question)) is passed, role
