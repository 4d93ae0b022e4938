"""The account: what is missing is said in a line."""

from __future__ import annotations

import os

import pytest

from imgcls.aws.account import Account, Caller
from imgcls.errors import UserError
from tests.aws_account import Jobs, needs_moto

pytestmark = needs_moto


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that knows nothing of AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_missing_settings(nothing: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no AWS region\. Give launch\.region"):
        Account.connect()
    with pytest.raises(UserError, match=r"no AWS region\. Give region="):
        Account.connect(caller=Caller(option_prefix=""))
    with pytest.raises(UserError, match=r"no AWS credentials\. Run `aws configure`"):
        Account.connect("eu-west-1")
    with pytest.raises(UserError, match=r"The config profile .nobody. could not be found\. Set AWS_PROFILE"):
        Account.connect("eu-west-1", "nobody")
    nothing.setenv("AWS_ACCESS_KEY_ID", "x")
    nothing.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert Account.connect("eu-west-1").region == "eu-west-1"
    nothing.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="Could not connect to the endpoint"):
        _ = Account.connect("eu-west-1").number


def test_the_role(account: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGEMAKER_ROLE", raising=False)
    with pytest.raises(UserError, match=r"There is no role.*launch\.role=NAME.*imgcls\.jobs policies"):
        _ = account.cloud(role=None).role_arn
    deploy = Caller(option_prefix="", purpose="endpoint", command="python -m imgcls.deploy")
    with pytest.raises(UserError) as caught:
        _ = account.cloud(role=None, caller=deploy).role_arn
    assert str(caught.value) == (
        "There is no role for the endpoint. Give role=NAME or set SAGEMAKER_ROLE; "
        "`python -m imgcls.deploy policies` prints the policies it needs."
    )
    for role in ("team", "path/team2", "of-the-environment"):
        account.aws.add_role(role)
    assert account.cloud(role="team").role_arn == "arn:aws:iam::123456789012:role/team"
    arn = "arn:aws:iam::123456789012:role/path/team2"
    assert account.cloud(role=arn).role_arn == arn
    monkeypatch.setenv("SAGEMAKER_ROLE", "of-the-environment")
    assert account.cloud(role=None).role_arn.endswith("role/of-the-environment")
    monkeypatch.delenv("SAGEMAKER_ROLE")
    cloud = account.cloud(role=None)  # in a notebook of SageMaker
    made = cloud.client("iam").create_role(RoleName="notebook", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    cloud.__dict__["identity"] = ("123456789012", "arn:aws:sts::123456789012:assumed-role/notebook/SageMaker")
    assert cloud.role_arn == made


def test_a_role_is_looked_up_before_anything_is_uploaded(account: Jobs) -> None:
    """Those of SageMaker's console have a path, which an ARN made from the name alone lacks."""
    console = "AmazonSageMaker-ExecutionRole-20261128T100000"
    account.aws.add_role(f"service-role/{console}")
    account.aws.add_role("front", "lambda.amazonaws.com")
    arn = f"arn:aws:iam::123456789012:role/service-role/{console}"
    assert account.cloud(role=console).role_arn == arn
    assert account.cloud(role=f"service-role/{console}").role_arn == arn
    with pytest.raises(UserError, match=rf"There is no role other/{console} .*Is it {arn}\?"):
        _ = account.cloud(role=f"other/{console}").role_arn
    with pytest.raises(UserError, match=r"There is no role nobody in the account 123456789012"):
        _ = account.cloud(role="nobody").role_arn
    with pytest.raises(UserError, match=r"The role front does not trust sagemaker\.amazonaws\.com"):
        _ = account.cloud(role="front").role_arn
    assert account.cloud(role="front").find_role("front", "lambda.amazonaws.com").endswith("role/front")


def test_without_permission_to_look_a_role_up_its_arn_is_built(account: Jobs) -> None:
    cloud = account.cloud(role="nobody")

    def deny(**_: object) -> None:
        answer = {"Error": {"Code": "AccessDenied", "Message": "no"}}
        raise cloud.client("iam").exceptions.ClientError(answer, "GetRole")

    cloud.client("iam").meta.events.register("before-call.iam.GetRole", deny)
    assert cloud.role_arn == "arn:aws:iam::123456789012:role/nobody"


def test_a_person_signed_in_with_sso_is_no_role_of_jobs(account: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGEMAKER_ROLE", raising=False)
    cloud = account.cloud(role=None)
    cloud.__dict__["identity"] = ("123456789012", "arn:aws:sts::123456789012:assumed-role/AWSReservedSSO_Dev_0a/me")
    with pytest.raises(UserError, match=r"signed in as AWSReservedSSO_Dev_0a.*Give launch\.role=NAME"):
        _ = cloud.role_arn


def test_the_bucket(account: Jobs) -> None:
    with pytest.raises(UserError, match=r"Could not use the bucket mine: .*Check the bucket's name"):
        _ = account.cloud(bucket="mine").places
    places = account.cloud().places
    assert places.bucket == "sagemaker-us-east-1-123456789012"
    assert places.uri("data", "set") == "s3://sagemaker-us-east-1-123456789012/imgcls/data/set"
    far = account.cloud().client("s3")
    far.create_bucket(Bucket="far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    with pytest.raises(UserError, match=r"bucket=far: this bucket is in eu-west-1, .* Give launch\.region=eu-west-1"):
        _ = account.cloud(bucket="far").places
    far.delete_bucket(Bucket="far")
    buckets = account.cloud().client("s3").list_buckets()["Buckets"]
    assert [one["Name"] for one in buckets] == [places.bucket], "the default one is made"
    assert account.cloud(prefix="/a/b/").places.key("x") == "a/b/x"

    cloud = account.cloud()

    def forbid(**_: object) -> None:
        raise cloud.client("s3").exceptions.ClientError(
            {"Error": {"Code": "403", "Message": "Forbidden"}}, "HeadBucket"
        )

    cloud.client("s3")
    cloud.client("s3").meta.events.register("before-call.s3.HeadBucket", forbid)
    with pytest.raises(UserError, match=r"Could not use the bucket sagemaker-.*Forbidden\. Ask for this permission"):
        _ = cloud.places


def test_the_lines_of_botocore_and_the_sdk_stay_out(account: Jobs, nothing: pytest.MonkeyPatch) -> None:
    import logging

    child = logging.getLogger("sagemaker.core.resources")
    child.setLevel(logging.INFO)  # as the SDK sets it when it is imported
    nothing.setenv("AWS_ACCESS_KEY_ID", "x")
    nothing.setenv("AWS_SECRET_ACCESS_KEY", "x")
    logging.getLogger("botocore").setLevel(logging.NOTSET)
    Account.connect("eu-west-1")
    assert not child.isEnabledFor(logging.WARNING)
    assert not logging.getLogger("botocore.credentials").isEnabledFor(logging.INFO)
