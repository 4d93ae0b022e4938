"""Errors of AWS as one or two lines that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from imgcls.errors import UserError

QUOTA = ("ResourceLimitExceeded", "LimitExceededException")
CREDENTIALS = (
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
)
SIGN_IN_ERRORS = (  # botocore's, where a cached sign-in has run out
    "UnauthorizedSSOTokenError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "CredentialRetrievalError",
    "LoginRefreshRequired",
)
PERMISSION = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403")
NO_BUCKET = ("NoSuchBucket", "404")
BOTOCORE = ("botocore", "boto3", "s3transfer")  # whose errors are explained
ADVICE_BY_CLASS = {
    "NoCredentialsError": "There are no AWS credentials. Run `aws configure`, or set AWS_PROFILE.",
    "PartialCredentialsError": "The AWS credentials are incomplete. Run `aws configure`, or set AWS_PROFILE.",
    "NoRegionError": "There is no AWS region. Set AWS_DEFAULT_REGION, for example to eu-central-1.",
    **dict.fromkeys(SIGN_IN_ERRORS, "Sign in again: `aws sso login` or `aws login`."),
    "ProfileNotFound": "Set AWS_PROFILE to a profile of ~/.aws/config.",
    "ConnectionError": "Check the network and the AWS region.",  # botocore's, with its subclasses
    "HTTPClientError": "Check the network and the AWS region.",
}


@contextmanager
def explain_refusals(doing: str) -> Iterator[None]:
    """Turn errors of botocore into a UserError; `doing` is what was tried, as in "create the training job"."""
    try:
        yield
    except Exception as error:
        explained = explain(error, doing)
        if explained is None:
            raise
        raise explained from error


def explain(error: Exception, doing: str) -> UserError | None:
    """The UserError for `error`; None if it does not come from botocore."""
    if not type(error).__module__.startswith(BOTOCORE):
        return None
    # Errors of file transfers hold the response of AWS only in the error that they wrap.
    answers = (getattr(refused, "response", None) for refused in (error, error.__context__))
    refusal: dict[str, Any] = next((answer.get("Error", {}) for answer in answers if isinstance(answer, dict)), {})
    code, message = (" ".join(str(refusal.get(field, "")).split()) for field in ("Code", "Message"))
    message = message or " ".join(str(error).split())
    kinds = (kind.__name__ for kind in type(error).__mro__)
    advice = _advice(code, message) if code else next((ADVICE_BY_CLASS[k] for k in kinds if k in ADVICE_BY_CLASS), "")
    return UserError(f"Could not {doing}: {message.rstrip('.')}. {advice}".rstrip())


def error_code(error: BaseException | None) -> str:
    """AWS's code of an error that botocore raised; empty for other errors."""
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))


def is_refusal(error: BaseException) -> bool:
    """Whether AWS has not answered or has refused, and not what was asked for has failed."""
    return type(error.__cause__).__module__.startswith(BOTOCORE)


def is_denied(error: BaseException) -> bool:
    """Whether AWS refuses for lack of a permission; `error` is botocore's or the UserError made of it."""
    return error_code(error) in PERMISSION or error_code(error.__cause__) in PERMISSION


def _advice(code: str, message: str) -> str:
    if code in QUOTA:
        return "Ask for a higher quota in Service Quotas, or choose another instance type or fewer instances."
    if code in CREDENTIALS:
        return "The AWS credentials are not valid or have expired. Sign in again, or set AWS_PROFILE."
    if code in NO_BUCKET:
        return "Check the bucket's name and region."
    if code in PERMISSION and "PassRole" in message:
        return "Your user needs iam:PassRole for this role."
    if code in PERMISSION:
        return "Ask for this permission, or use a role that has it."
    if code == "ValidationException" and "assume" in message.lower():
        return "The role must exist and trust sagemaker.amazonaws.com."
    if code == "ValidationException" and "instance" in message.lower():
        return "Choose an instance type that SageMaker offers for this purpose in this region."
    return f"AWS error code: {code}."
