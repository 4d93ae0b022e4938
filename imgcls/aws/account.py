"""The AWS account that imgcls uses: region, bucket, role. boto3 and the SDK are imported only inside functions."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from imgcls.aws.naming import Places, default_bucket
from imgcls.aws.owner import SSO_ROLE, caller_identity
from imgcls.aws.refusals import NO_BUCKET, PERMISSION, error_code, explain_refusals
from imgcls.aws.s3 import client_config
from imgcls.errors import UserError
from imgcls.system.extras import need

log = logging.getLogger(__name__)

# Unless it is configured otherwise, the SDK sends telemetry to AWS.
SDK_SETTINGS = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}


@dataclass(frozen=True)
class Caller:
    """The command that uses the account, for its error messages.

    Args:
        option_prefix: prefix of its option names.
        purpose: what runs with the role.
        service: what must be trusted by the role.
        command: prints the policies of the role.
    """

    option_prefix: str = "launch."
    purpose: str = "job"
    service: str = "sagemaker.amazonaws.com"
    command: str = "python -m imgcls.jobs"


@dataclass
class Account:
    """Sessions, clients and names.

    Args:
        session: a boto3 session with credentials and a region.
        bucket: None: sagemaker-<region>-<account>, the SDK's default.
        prefix: the folder in the bucket.
        role: name or ARN of the role that jobs run with; None: $SAGEMAKER_ROLE, or the role of this notebook.
        kms_key: the key that encrypts uploads.
        caller: the command that uses the account.
    """

    session: Any
    bucket: str | None = None
    prefix: str = "imgcls"
    role: str | None = None
    kms_key: str | None = None
    caller: Caller = Caller()
    additions: dict[str, Callable[[str], dict[str, Any]]] = field(default_factory=dict)
    """Prefix of a job's name to a function from its full name to the request fields that ModelTrainer lacks."""
    created: set[str] = field(default_factory=set)
    """Names of the training jobs that AWS has answered for."""
    in_place: set[str] = field(default_factory=set)
    """Addresses that are not uploaded, because the rehearsal reads them from this machine."""
    _clients: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        events = self.session.events  # must precede the first client: clients copy the handlers
        events.register("provide-client-params.sagemaker.CreateTrainingJob", self._add_fields)
        events.register("after-call.sagemaker.CreateTrainingJob", self._note_created)
        events.register("before-call.iam.SimulatePrincipalPolicy", _skip_simulation)

    @classmethod
    def connect(
        cls, region: str | None = None, profile: str | None = None, *, caller: Caller = Caller(), **options: Any
    ) -> Account:
        """The account of the environment. Raises UserError if credentials, region or packages are missing."""
        boto3 = need("boto3")
        silence_sdk()
        with explain_refusals("sign in to AWS"):
            session = boto3.Session(region_name=region, profile_name=profile)
            if session.region_name is None:
                region_option = f"{caller.option_prefix}region=eu-central-1"
                raise UserError(f"There is no AWS region. Give {region_option}, or set AWS_DEFAULT_REGION.")
            if session.get_credentials() is None:
                raise UserError("There are no AWS credentials. Run `aws configure`, or set AWS_PROFILE.")
        return cls(session, caller=caller, **options)

    @property
    def region(self) -> str:
        """Name of the region."""
        return str(self.session.region_name)

    def client(self, service: str) -> Any:
        """The boto3 client of `service`, made once."""
        if service not in self._clients:
            self._clients[service] = self.session.client(service, config=client_config())
        return self._clients[service]

    @property
    def can_renew(self) -> bool:
        """Whether another sign-in can change the credentials of this process: those of the environment stay."""
        credentials = self.session.get_credentials()
        return credentials is not None and credentials.method not in ("env", "explicit")

    def renew(self) -> None:
        """Read the credentials again, which another sign-in has changed."""
        boto3 = need("boto3")
        self.session = boto3.Session(region_name=self.region, profile_name=self.session.profile_name)
        self._clients.clear()
        self.__post_init__()

    @cached_property
    def identity(self) -> tuple[str, str]:
        """Account number, and ARN of the signed-in user or role."""
        with explain_refusals("sign in to AWS"):
            answer = self.client("sts").get_caller_identity()
        return str(answer["Account"]), str(answer["Arn"])

    @property
    def caller_identity(self) -> str:
        """Who is signed in, see `imgcls.aws.owner`."""
        return caller_identity(self.identity[1])

    @property
    def number(self) -> str:
        """Number of the account."""
        return self.identity[0]

    @property
    def partition(self) -> str:
        """aws, aws-cn or aws-us-gov: the second field of every ARN."""
        return self.identity[1].split(":")[1]

    @cached_property
    def places(self) -> Places:
        """Locations in S3; the default bucket is created if it is missing. Raises UserError."""
        name = self.bucket or default_bucket(self.region, self.number)
        s3 = self.client("s3")
        with explain_refusals(f"use the bucket {name}"):
            try:
                where = s3.head_bucket(Bucket=name).get("BucketRegion")
                if where is not None and where != self.region:
                    prefix, purpose = self.caller.option_prefix, self.caller.purpose
                    raise UserError(
                        f"{prefix}bucket={name}: this bucket is in {where}, but the {purpose} would run in "
                        f"{self.region}. Give {prefix}region={where}, or another bucket."
                    )
            except s3.exceptions.ClientError as error:
                if error_code(error) not in NO_BUCKET or self.bucket is not None:
                    raise
                where = {} if self.region == "us-east-1" else {"LocationConstraint": self.region}
                s3.create_bucket(Bucket=name, **({"CreateBucketConfiguration": where} if where else {}))
                log.info("Created the bucket %s.", name)
        return Places(name, self.prefix.strip("/"))

    @cached_property
    def role_arn(self) -> str:
        """ARN of the role that jobs run with. Raises UserError if there is none."""
        return self.find_role(self.role or os.environ.get("SAGEMAKER_ROLE") or self._current_role())

    def find_role(self, role: str, service: str | None = None) -> str:
        """ARN of the role that `role` names, with or without its path, or is the ARN of.

        Args:
            role: name, path/name or ARN.
            service: what the role must trust; None: the caller's service.

        Raises:
            UserError: there is no such role, or it does not trust the service; unchecked without iam:GetRole.
        """
        path, _, name = role.rpartition(":role/")[2].rpartition("/")
        trusted = service or self.caller.service
        with explain_refusals(f"look up the role {role}"):
            try:
                found = self.client("iam").get_role(RoleName=name)["Role"]
            except Exception as error:
                if error_code(error) in PERMISSION:
                    return role if role.startswith("arn:") else self._built_role(role)
                if error_code(error) != "NoSuchEntity":
                    raise
                found = None
        arn = str(found["Arn"]) if found else ""
        expected = role if role.startswith("arn:") else self._built_role(role)
        if found is None or ((path or role.startswith("arn:")) and arn != expected):
            if role.startswith("arn:") and f"::{self.number}:" not in role:
                return role  # of another account
            near = f" Is it {arn}?" if arn else f" `{self.caller.command} policies` prints what it needs."
            raise UserError(f"There is no role {role} in the account {self.number}.{near}")
        if not _trusts(found.get("AssumeRolePolicyDocument"), trusted):
            raise UserError(
                f"The role {role} does not trust {trusted}, so it cannot be used. "
                f"`{self.caller.command} policies` prints the trust policy that it needs."
            )
        return arn

    def _built_role(self, name: str) -> str:
        return f"arn:{self.partition}:iam::{self.number}:role/{name}"

    def _current_role(self) -> str:
        """Name of the role of this process, in a SageMaker notebook."""
        arn = self.identity[1]
        if ":assumed-role/" not in arn:
            raise UserError(
                f"There is no role for the {self.caller.purpose}. Give {self.caller.option_prefix}role=NAME or set "
                f"SAGEMAKER_ROLE; `{self.caller.command} policies` prints the policies it needs."
            )
        name = arn.split(":assumed-role/")[1].split("/")[0]
        if name.startswith(SSO_ROLE):
            raise UserError(
                f"You are signed in as {name}, the role of a person, which no {self.caller.purpose} can use. Give "
                f"{self.caller.option_prefix}role=NAME or set SAGEMAKER_ROLE."
            )
        return name

    @property
    def encryption(self) -> dict[str, str]:
        """Extra arguments of uploads."""
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms_key} if self.kms_key else {}

    def sdk_session(self) -> Any:
        """A session of the SageMaker SDK that uses this bucket and makes no extra requests."""
        configure_sdk()
        helper = need("sagemaker.core.helper.session_helper")
        silence_sdk()
        bucket = self.places.bucket

        class BucketSession(helper.Session):  # type: ignore[name-defined]
            """The SDK would list all buckets of the account to check that its default bucket exists."""

            def default_bucket(self) -> str:
                return bucket

        return BucketSession(boto_session=self.session, default_bucket=bucket, sagemaker_config=SDK_SETTINGS)

    def _add_fields(self, params: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add the fields that ModelTrainer lacks to its request."""
        for base, fields_of in self.additions.items():
            if params["TrainingJobName"].startswith(base):
                fields = dict(fields_of(params["TrainingJobName"]))
                params["AlgorithmSpecification"]["ContainerArguments"] = fields.pop("ContainerArguments")
                modes = fields.pop("InputMode", {})
                for channel in params.get("InputDataConfig", ()):
                    if channel["ChannelName"] in modes:
                        channel["InputMode"] = modes[channel["ChannelName"]]
                params = {**params, **fields}
        return params

    def _note_created(self, parsed: dict[str, Any], **_: Any) -> None:
        """Note the job of an answer to CreateTrainingJob."""
        if arn := parsed.get("TrainingJobArn"):
            self.created.add(arn.rpartition("/")[2])


def _trusts(document: Any, service: str) -> bool:
    """Whether a trust policy names `service`; true for one that cannot be read."""
    statements = document.get("Statement") if isinstance(document, dict) else None
    if not statements:
        return True
    for statement in [statements] if isinstance(statements, dict) else statements:
        principal = statement.get("Principal")
        services = principal.get("Service", []) if isinstance(principal, dict) else [principal]
        if statement.get("Effect") == "Allow" and {service, "*"} & set(
            [services] if isinstance(services, str) else services
        ):
            return True
    return False


def configure_sdk() -> None:
    """Silence the SDK, and turn off its check of the role, which needs an extra permission."""
    os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")
    silence_sdk()


def silence_sdk() -> None:
    """Keep the SDK's and botocore's own lines out of the terminal, where their errors are explained already.

    The SDK's modules have loggers with levels of their own, which exist once they are imported.
    """
    for name in ("boto3", "botocore", "s3transfer", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    imported = [name for name in logging.root.manager.loggerDict if name.startswith("sagemaker")]
    for name in ("sagemaker", "sagemaker.core", "sagemaker.config", "sagemaker.train", *imported):
        logging.getLogger(name).setLevel(logging.ERROR)


def _skip_simulation(**_: Any) -> tuple[Any, dict[str, Any]]:
    """Before every upload the SDK asks IAM whether the role may use the bucket; the upload itself shows that."""

    class Answer:
        status_code = 200

    return Answer(), {"EvaluationResults": []}
