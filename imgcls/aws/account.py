"""An AWS account as imgcls uses it: region, account, bucket, role. boto3 and the SDK are imported only inside."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from imgcls.aws.naming import Places, default_bucket
from imgcls.aws.refusals import explain_refusals
from imgcls.aws.s3 import client_config
from imgcls.errors import UserError
from imgcls.system.extras import need

log = logging.getLogger(__name__)

# The SDK reports what is done with it to AWS unless its configuration says no.
SDK_SETTINGS = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}


@dataclass(frozen=True)
class Asker:
    """Who asks the account, as its messages say it.

    Args:
        options: what the names of its options begin with.
        purpose: what runs as the role.
        command: what prints the policies of the role.
    """

    options: str = "launch."
    purpose: str = "job"
    command: str = "python -m imgcls.jobs"


@dataclass
class Account:
    """Sessions, clients and names.

    Args:
        session: a boto3 session with credentials and a region.
        bucket: the bucket for everything; None: sagemaker-<region>-<account>, which the SDK uses as well.
        prefix: the folder of the bucket.
        role: name or ARN of the role that jobs run as; None: $SAGEMAKER_ROLE, or the role of this notebook.
        kms_key: the key that encrypts what is uploaded.
        asker: who asks.
    """

    session: Any
    bucket: str | None = None
    prefix: str = "imgcls"
    role: str | None = None
    kms_key: str | None = None
    asker: Asker = Asker()
    additions: dict[str, Callable[[str], dict[str, Any]]] = field(default_factory=dict)
    """Start of a job's name to what gives the fields of its request that ModelTrainer has not, for the whole name."""
    in_place: set[str] = field(default_factory=set)
    """Addresses that need no upload, because the rehearsal reads them from this machine."""
    _clients: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        events = self.session.events  # before the first client is made: later ones would not hear of it
        events.register("provide-client-params.sagemaker.CreateTrainingJob", self._add_fields)
        events.register("before-call.iam.SimulatePrincipalPolicy", _no_simulation)

    @classmethod
    def connect(
        cls, region: str | None = None, profile: str | None = None, *, asker: Asker = Asker(), **options: Any
    ) -> Account:
        """The account of the environment. Raises UserError for missing credentials, region or packages."""
        boto3 = need("boto3")
        with explain_refusals("sign in to AWS"):
            session = boto3.Session(region_name=region, profile_name=profile)
            if session.region_name is None:
                region_option = f"{asker.options}region=eu-central-1"
                raise UserError(f"There is no AWS region. Give {region_option}, or set AWS_DEFAULT_REGION.")
            if session.get_credentials() is None:
                raise UserError("There are no AWS credentials. Run `aws configure`, or set AWS_PROFILE.")
        return cls(session, asker=asker, **options)

    @property
    def region(self) -> str:
        """The region's name."""
        return str(self.session.region_name)

    def client(self, service: str) -> Any:
        """The boto3 client of `service`, made once."""
        if service not in self._clients:
            self._clients[service] = self.session.client(service, config=client_config())
        return self._clients[service]

    @cached_property
    def identity(self) -> tuple[str, str]:
        """Account number and ARN of who asks."""
        with explain_refusals("sign in to AWS"):
            answer = self.client("sts").get_caller_identity()
        return str(answer["Account"]), str(answer["Arn"])

    @property
    def number(self) -> str:
        """The account's number."""
        return self.identity[0]

    @property
    def partition(self) -> str:
        """aws, aws-cn, aws-us-gov: the second word of every ARN."""
        return self.identity[1].split(":")[1]

    @cached_property
    def places(self) -> Places:
        """Where things are in S3; the default bucket is made where it is missing. Raises UserError."""
        name = self.bucket or default_bucket(self.region, self.number)
        s3 = self.client("s3")
        with explain_refusals(f"use the bucket {name}"):
            try:
                s3.head_bucket(Bucket=name)
            except s3.exceptions.ClientError as error:
                if error.response["Error"]["Code"] not in ("404", "NoSuchBucket") or self.bucket is not None:
                    raise
                where = {} if self.region == "us-east-1" else {"LocationConstraint": self.region}
                s3.create_bucket(Bucket=name, **({"CreateBucketConfiguration": where} if where else {}))
                log.info("Made the bucket %s.", name)
        return Places(name, self.prefix.strip("/"))

    @cached_property
    def role_arn(self) -> str:
        """The ARN of the role that jobs run as. Raises UserError where there is none."""
        role = self.role or os.environ.get("SAGEMAKER_ROLE")
        if role is None:
            role = self._own_role()
        if role.startswith("arn:"):
            return role
        return f"arn:{self.partition}:iam::{self.number}:role/{role}"

    def _own_role(self) -> str:
        """The role that this process itself has, in a notebook of SageMaker."""
        arn = self.identity[1]
        if ":assumed-role/" not in arn:
            raise UserError(
                f"There is no role for the {self.asker.purpose} to run as. Give {self.asker.options}role=NAME, "
                f"or set SAGEMAKER_ROLE; `{self.asker.command} policies` prints what it must be allowed."
            )
        name = arn.split(":assumed-role/")[1].split("/")[0]
        with explain_refusals(f"look up the role {name}"):
            return str(self.client("iam").get_role(RoleName=name)["Role"]["Arn"])

    @property
    def encryption(self) -> dict[str, str]:
        """Extra arguments of uploads."""
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms_key} if self.kms_key else {}

    def sdk_session(self) -> Any:
        """A session of the SageMaker SDK that keeps to this bucket and asks nothing of its own accord."""
        settle_sdk()
        helper = need("sagemaker.core.helper.session_helper")
        bucket = self.places.bucket

        class OwnBucket(helper.Session):  # type: ignore[name-defined]
            """The SDK would list all buckets of the account to see whether its default one is there."""

            def default_bucket(self) -> str:
                return bucket

        return OwnBucket(boto_session=self.session, default_bucket=bucket, sagemaker_config=SDK_SETTINGS)

    def _add_fields(self, params: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Complete a request that ModelTrainer has written."""
        for base, fields_of in self.additions.items():
            if params["TrainingJobName"].startswith(base):
                fields = dict(fields_of(params["TrainingJobName"]))
                params["AlgorithmSpecification"]["ContainerArguments"] = fields.pop("ContainerArguments")
                params = {**params, **fields}
        return params


def settle_sdk() -> None:
    """Turn off the SDK's chatter and its check of the role, which needs a permission of its own."""
    os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")
    for name in ("sagemaker", "sagemaker.core", "sagemaker.config", "sagemaker.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _no_simulation(**_: Any) -> tuple[Any, dict[str, Any]]:
    """The SDK asks IAM before every upload whether the role may use the bucket; that is answered by the upload."""

    class Answer:
        status_code = 200

    return Answer(), {"EvaluationResults": []}
