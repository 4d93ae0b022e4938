"""The Lambda function in front of an endpoint."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from imgcls.deploy.__main__ import command
from imgcls.deploy.function import role_name, zipped
from imgcls.errors import UserError
from tests.aws_account import needs_moto
from tests.deploy.conftest import Account, deploy

pytestmark = needs_moto

DOGS = "imgcls-dogs"
FRONT = ["lambda", "name=dogs", "poll=0.01"]


def test_a_function_asks_the_endpoint(account: Account, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="There is no endpoint imgcls-dogs"):
        command([*FRONT, "make_role=true"])
    deploy("test=false")
    command([*FRONT, "make_role=true", "provisioned=2", "url=iam", "tags.team=vision", "pictures=pictures"])
    said = capsys.readouterr()
    assert f"{DOGS}, version 1, alias live: invokes {DOGS}." in said.out
    assert "with AWS signatures" in said.out
    assert "test: 00.jpg is " in said.out, "the function's code has really asked the endpoint"
    assert "provisioned concurrency 2, billed per hour" in said.err
    [made] = account.sent("CreateFunction")
    assert made["Environment"]["Variables"] == {"ENDPOINT_NAME": DOGS, "TIMEOUT": "25"}
    assert made["Tags"] == {"team": "vision", "imgcls": "function", "imgcls:endpoint": DOGS}
    assert made["Role"] == f"arn:aws:iam::123456789012:role/imgcls/{DOGS}-us-east-1"
    document = json.loads(account.sent("PutRolePolicy")[0]["PolicyDocument"])
    assert {action for one in document["Statement"] for action in one["Action"]} == {
        "sagemaker:InvokeEndpoint",
        "logs:CreateLogGroup",
        "logs:CreateLogStream",
        "logs:PutLogEvents",
    }
    assert document["Statement"][0]["Resource"] == [f"arn:aws:sagemaker:us-east-1:123456789012:endpoint/{DOGS}"]

    command([*FRONT, "make_role=true", "timeout=60"])
    assert "version 2, alias live" in capsys.readouterr().out
    assert account.sent("UpdateFunctionConfiguration")[0]["Environment"]["Variables"]["TIMEOUT"] == "55"
    assert len(account.sent("CreateRole")) == 1
    assert len(account.sent("DeleteFunctionUrlConfig")) == 1, "no address was asked for this time"
    assert len(account.sent("DeleteProvisionedConcurrencyConfig")) == 1


def test_everybody_comes_in_only_when_that_is_said(
    account: Account, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy("test=false")
    account.cloud().client("iam").create_role(RoleName="front", AssumeRolePolicyDocument="{}")
    command([*FRONT, "role=front", "url=public"])
    said = capsys.readouterr()
    assert "anyone who knows the URL can use" in said.err
    assert account.sent("CreateFunctionUrlConfig")[0]["AuthType"] == "NONE"
    allowed = account.sent("AddPermission")
    assert [one["Action"] for one in allowed] == ["lambda:InvokeFunctionUrl", "lambda:InvokeFunction"]
    assert allowed[1]["InvokedViaFunctionUrl"] is True
    command([*FRONT, "role=front", "url=iam"])
    assert account.sent("UpdateFunctionUrlConfig")[0]["AuthType"] == "AWS_IAM"
    client = account.cloud().client("lambda")
    with pytest.raises(client.exceptions.ResourceNotFoundException):  # those who came in before do no longer
        client.get_policy(FunctionName=DOGS, Qualifier="live")


@pytest.mark.parametrize("operation", ["CreateFunction", "UpdateFunctionConfiguration"])
def test_a_role_that_lambda_does_not_know_yet_is_waited_for(
    account: Account, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], operation: str
) -> None:
    """For a new function, and for one that had another role."""
    from botocore.exceptions import ClientError

    deploy("test=false")
    if operation == "UpdateFunctionConfiguration":
        command([*FRONT, "role=imgcls-functions"])
    session, refused = account.aws.session, []

    def refuse(model: object, **_: object) -> None:
        if getattr(model, "name", "") == operation and not refused:
            refused.append(model)
            text = "The role defined for the function cannot be assumed by Lambda."
            raise ClientError({"Error": {"Code": "InvalidParameterValueException", "Message": text}}, operation)

    def slow(who: str = "person") -> object:
        made = session(who)
        made.events.register("before-call", refuse)
        return made

    monkeypatch.setattr(account.aws, "session", slow)
    command([*FRONT, "make_role=true"])
    assert refused
    assert "Waiting until Lambda knows the role." in capsys.readouterr().err


def test_an_asynchronous_endpoint_has_no_function(account: Account, run: Path) -> None:
    deploy("test=false", "mode=asynchronous")
    with pytest.raises(UserError, match="imgcls-dogs is asynchronous"):
        command([*FRONT, "make_role=true"])
    assert not account.sent("CreateRole")


def test_somebody_elses_role_is_left_alone(account: Account, run: Path) -> None:
    deploy("test=false")
    account.cloud().client("iam").create_role(RoleName=f"{DOGS}-us-east-1", AssumeRolePolicyDocument="{}")
    with pytest.raises(UserError, match=r"The role imgcls-dogs-us-east-1 was not created by imgcls"):
        command([*FRONT, "make_role=true"])
    assert len(role_name("x" * 64, "eu-central-1")) == 64


def test_the_code_is_one_file_and_the_same_every_time() -> None:
    assert zipped() == zipped()
    with zipfile.ZipFile(io.BytesIO(zipped())) as code:
        assert code.namelist() == ["lambda_function.py"]


def test_somebody_elses_function_is_left_alone(account: Account, run: Path) -> None:
    deploy("test=false")
    client, iam = account.cloud().client("lambda"), account.cloud().client("iam")
    role = iam.create_role(RoleName="front", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    client.create_function(
        FunctionName=DOGS, Runtime="python3.13", Role=role, Handler="a.b", Code={"ZipFile": zipped()}
    )
    with pytest.raises(UserError, match="was not created by imgcls"):
        command([*FRONT, "role=front"])
