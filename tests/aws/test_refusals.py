import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ReadTimeoutError,
)

from imgcls.aws.refusals import explain_refusals
from imgcls.errors import UserError


def refused(code, message):
    return ClientError({"Error": {"Code": code, "Message": message}}, "CreateTrainingJob")


def wrapped(error):
    try:
        try:
            raise error
        except ClientError:
            raise S3UploadFailedError(f"Failed to upload: {error}")  # noqa: B904 - as s3transfer does
    except S3UploadFailedError as failed:
        return failed


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NoCredentialsError(), "aws configure"),
        (NoRegionError(), "AWS_DEFAULT_REGION"),
        (EndpointConnectionError(endpoint_url="x"), "Check the network"),
        (ConnectTimeoutError(endpoint_url="x"), "Check the network"),
        (ReadTimeoutError(endpoint_url="x"), "Check the network"),
        (wrapped(refused("NoSuchBucket", "The bucket does not exist")), "bucket's name"),
        (refused("ResourceLimitExceeded", "The limit for ml.p3.2xlarge is 0."), "Service Quotas"),
        (refused("ExpiredTokenException", "The token has expired"), "Sign in again"),
        (refused("NoSuchBucket", "The bucket does not exist"), "bucket's name"),
        (refused("AccessDeniedException", "not authorized: s3:PutObject"), "Ask for this permission"),
        (refused("AccessDenied", "not authorized to perform: iam:PassRole"), "needs iam:PassRole"),
        (refused("ValidationException", "Could not assume role arn:x"), "trust sagemaker.amazonaws.com"),
        (refused("ValidationException", "'ml.q9' failed: instanceType"), "instance type that SageMaker offers"),
        (refused("Unheard", "of"), "AWS error code: Unheard"),
    ],
)
def test_what_aws_refuses_is_one_line_that_says_what_to_do(error, said):
    with (
        pytest.raises(UserError, match="Could not create the training job: ") as raised,
        explain_refusals("create the training job"),
    ):
        raise error
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is error


def test_other_errors_stay_as_they_are():
    with pytest.raises(KeyError), explain_refusals("create the training job"):
        raise KeyError("x")
