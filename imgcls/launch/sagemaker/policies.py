"""What the role of the jobs, and the person who makes them, must be allowed: IAM policies for the names at hand.

A `*` stands only for resources that AWS does not let a policy name (each is explained where it is); actions are all
named. Who may call which: https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonsagemaker.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgcls.aws.iam import UNNAMED, Account, allow, network, policy, trust
from imgcls.aws.naming import NAME_PREFIX, default_bucket
from imgcls.aws.rules import check_role_name
from imgcls.aws.s3 import split_folder
from imgcls.launch.sagemaker.progress import LOG_GROUP


@dataclass(frozen=True)
class Names(Account):
    """The names that the policies are for.

    Args:
        partition: aws, aws-cn, …
        region: where the jobs are.
        account: its number.
        bucket: of everything.
        prefix: the folder of the bucket.
        role: of the jobs, by name.
        images: ARNs of the container repositories that may be pulled.
        kms_key: ARN of the key, if one is used.
        vpc: whether jobs run in a VPC.
        data: s3://bucket/prefix of data sets that are taken as they are.
        default_bucket: whether the bucket may have to be made.
    """

    bucket: str
    prefix: str
    role: str
    images: Sequence[str] = ()
    kms_key: str | None = None
    vpc: bool = False
    data: Sequence[str] = ()
    default_bucket: bool = False

    @property
    def bucket_arn(self) -> str:
        """Of the bucket itself."""
        return f"arn:{self.partition}:s3:::{self.bucket}"

    def objects(self, folder: str) -> str:
        """ARN of all objects of a folder below the prefix."""
        return f"{self.bucket_arn}/{'/'.join(part for part in (self.prefix, folder) if part)}/*"

    @property
    def role_arn(self) -> str:
        """Of the jobs' role."""
        return f"arn:{self.partition}:iam::{self.account}:role/{self.role}"

    @property
    def log_streams(self) -> str:
        """ARN of the log streams of imgcls's jobs."""
        return self.arn("logs", f"log-group:{LOG_GROUP}:log-stream:{NAME_PREFIX}*")


def trust_policy() -> dict[str, Any]:
    """Who may take the role on: SageMaker."""
    return trust("sagemaker.amazonaws.com")


def role_policy(names: Names) -> dict[str, Any]:
    """What a job needs: its channels, its results and checkpoints, its log and metrics, its image."""
    statements = [
        allow("ReadInputs", ["s3:GetObject"], [names.objects(folder) for folder in ("data", "weights", "jobs")]),
        allow("WriteResults", ["s3:PutObject", "s3:AbortMultipartUpload"], [names.objects("jobs")]),
        allow("ListBucket", ["s3:ListBucket"], [names.bucket_arn]),
        allow(
            "WriteLog",
            ["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"],
            [names.arn("logs", f"log-group:{LOG_GROUP}"), names.log_streams],
        ),
        allow("CreateLogGroup", ["logs:CreateLogGroup"], [names.arn("logs", f"log-group:{LOG_GROUP}")]),
        # PutMetricData does not support resources, but its namespace can be named.
        allow("SendMetrics", ["cloudwatch:PutMetricData"], UNNAMED)
        | {"Condition": {"StringEquals": {"cloudwatch:namespace": LOG_GROUP}}},
        allow("SignInToRegistry", ["ecr:GetAuthorizationToken"], UNNAMED),  # does not support resources
    ]
    if names.images:
        pull = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        statements.append(allow("PullImage", pull, list(names.images)))
    for number, place in enumerate(names.data):
        bucket, prefix = split_folder(place)
        arn = f"arn:{names.partition}:s3:::{bucket}"
        statements += [
            allow(f"ReadData{number}", ["s3:GetObject"], [f"{arn}/{prefix}/*" if prefix else f"{arn}/*"]),
            allow(f"ListData{number}", ["s3:ListBucket"], [arn]),
        ]
    if names.kms_key:
        statements.append(allow("UseKey", ["kms:Decrypt", "kms:GenerateDataKey", "kms:CreateGrant"], [names.kms_key]))
    if names.vpc:
        statements += network(names)
    return policy(statements)


def person_policy(names: Names) -> dict[str, Any]:
    """What you need to make, follow, stop and list jobs and tuning jobs, and to bring their results home."""
    jobs = names.arn("sagemaker", f"training-job/{NAME_PREFIX}*")
    statements = [
        allow(
            "Jobs",
            [
                "sagemaker:AddTags",
                "sagemaker:CreateTrainingJob",
                "sagemaker:DescribeTrainingJob",
                "sagemaker:StopTrainingJob",
            ],
            [jobs],
        ),
        allow(
            "TuningJobs",
            [
                "sagemaker:AddTags",
                "sagemaker:CreateHyperParameterTuningJob",
                "sagemaker:DescribeHyperParameterTuningJob",
                "sagemaker:ListTrainingJobsForHyperParameterTuningJob",
                "sagemaker:StopHyperParameterTuningJob",
            ],
            [names.arn("sagemaker", f"hyper-parameter-tuning-job/{NAME_PREFIX}*")],
        ),
        # these know no resources
        allow("ListJobs", ["sagemaker:ListHyperParameterTuningJobs", "sagemaker:ListTrainingJobs"], UNNAMED),
        allow("PassRole", ["iam:PassRole"], [names.role_arn])
        | {"Condition": {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}},
        allow("ListBucket", ["s3:ListBucket"], [names.bucket_arn]),
        allow(
            "Upload",
            ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"],
            [names.objects(folder) for folder in ("data", "weights", "jobs")],
        ),
        allow("RemoveOldImages", ["s3:DeleteObject"], [names.objects("data")]),
        allow(
            "ReadLog",
            ["logs:DescribeLogStreams", "logs:GetLogEvents"],
            [names.arn("logs", f"log-group:{LOG_GROUP}"), names.log_streams],
        ),
        allow("ReadPrices", ["pricing:GetProducts"], UNNAMED),  # does not support resources
    ]
    if names.default_bucket:
        statements.append(allow("CreateBucket", ["s3:CreateBucket"], [names.bucket_arn]))
    if names.kms_key:
        statements.append(allow("UseKey", ["kms:Decrypt", "kms:GenerateDataKey"], [names.kms_key]))
    return policy(statements)


def print_policies(options: Mapping[str, Any]) -> None:
    """The policies for the account of the environment, with the commands that use them."""
    from imgcls.aws.account import Account, Caller
    from imgcls.launch.sagemaker.options import JobOptions
    from imgcls.launch.sagemaker.training_job import image_uri

    account = Account.connect(options["region"], options["profile"], caller=Caller(option_prefix=""))
    role = options["role"]
    check_role_name("role", role)
    names = Names(
        account.partition,
        account.region,
        account.number,
        options["bucket"] or default_bucket(account.region, account.number),
        options["prefix"].strip("/"),
        role,
        images=[repository_arn(image_uri(JobOptions(), account.region), account.partition)],
        kms_key=options["kms_key"],
        default_bucket=not options["bucket"],
    )
    parts = {"trust": trust_policy(), "role": role_policy(names), "person": person_policy(names)}
    print(json.dumps(parts, indent=2))


def repository_arn(image: str, partition: str) -> str:
    """ARN of the repository of an image's URI.

    >>> repository_arn("763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch-training:2.10.0-gpu-py313", "aws")
    'arn:aws:ecr:eu-west-1:763104351884:repository/pytorch-training'
    """
    registry, _, name = image.partition("/")
    account, _, _, region = registry.split(".")[:4]
    return f"arn:{partition}:ecr:{region}:{account}:repository/{name.split('@')[0].split(':')[0]}"
