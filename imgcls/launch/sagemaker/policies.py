"""IAM policies of the jobs' role, and of the person who creates jobs.

A `*` is used only for resources that AWS does not let a policy name, with the reason beside it; actions are all named.
The actions: https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonsagemaker.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgcls.aws.iam import UNNAMED, Account, allow, container, policy, split, trust, use_key
from imgcls.aws.naming import NAME_PREFIX, default_bucket
from imgcls.aws.rules import role_resource
from imgcls.aws.s3 import split_folder
from imgcls.errors import UserError
from imgcls.launch.sagemaker.progress import LOG_GROUP

VERSIONS_OF_REPOSITORIES = ("2.14", "2.10.0")  # one of each repository that framework_version selects from


@dataclass(frozen=True)
class Names(Account):
    """The names that the policies are for.

    Args:
        data: s3://bucket/prefix of data sets that are used in place.
    """

    data: Sequence[str] = ()

    @property
    def log_group(self) -> str:
        """ARN of the log group of all jobs, as AWS evaluates it: with an ending, even where no stream is named."""
        return self.arn("logs", f"log-group:{LOG_GROUP}:*")

    @property
    def log_streams(self) -> str:
        """ARN of the log streams of imgcls's jobs."""
        return self.arn("logs", f"log-group:{LOG_GROUP}:log-stream:{NAME_PREFIX}*")


def trust_policy(names: Names) -> dict[str, Any]:
    """The trust policy of the jobs' role: SageMaker may assume it, for this account alone."""
    return trust("sagemaker.amazonaws.com", names.account)


def role_policy(names: Names) -> dict[str, Any]:
    """What a job needs: its channels, results, checkpoints, log, metrics and image."""
    statements = [
        allow("ReadInputs", ["s3:GetObject"], [names.objects(folder) for folder in ("data", "weights", "jobs")]),
        allow("WriteResults", ["s3:PutObject", "s3:AbortMultipartUpload"], [names.objects("jobs")]),
        allow("ListBucket", ["s3:ListBucket"], [names.bucket_arn]),
        allow("WriteLog", ["logs:CreateLogStream", "logs:PutLogEvents"], [names.log_streams]),
        allow("CreateLogGroup", ["logs:CreateLogGroup", "logs:DescribeLogStreams"], [names.log_group]),
        # PutMetricData does not support resources, but its namespace can be named.
        allow("SendMetrics", ["cloudwatch:PutMetricData"], UNNAMED)
        | {"Condition": {"StringEquals": {"cloudwatch:namespace": LOG_GROUP}}},
        *container(names),
    ]
    for number, uri in enumerate(names.data):
        bucket, objects = names.folder_arns(uri)
        statements += [
            allow(f"ReadData{number}", ["s3:GetObject"], [objects]),
            allow(f"ListData{number}", ["s3:ListBucket"], [bucket]),
        ]
    return policy(statements)


def person_policy(names: Names) -> dict[str, Any]:
    """What you need to create, follow, stop and list jobs and tuning jobs, and to download their results."""
    jobs = names.arn("sagemaker", f"training-job/{NAME_PREFIX}*")
    statements = [
        allow(
            "Jobs",
            ["sagemaker:AddTags", *(f"sagemaker:{verb}TrainingJob" for verb in ("Create", "Describe", "Stop"))],
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
        # these do not support resources
        allow("ListJobs", ["sagemaker:ListHyperParameterTuningJobs", "sagemaker:ListTrainingJobs"], UNNAMED),
        allow("FindRole", ["iam:GetRole"], [names.iam(names.role)]),
        allow("PassRole", ["iam:PassRole"], [names.iam(names.role)])
        | {"Condition": {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}},
        allow("ListBucket", ["s3:ListBucket"], [names.bucket_arn]),
        allow(
            "Upload",
            ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"],
            [names.objects(folder) for folder in ("data", "weights", "jobs")],
        ),
        allow("Clean", ["s3:DeleteObject"], [names.objects(folder) for folder in ("data", "weights", "jobs")]),
        allow("ReadLog", ["logs:GetLogEvents"], [names.log_streams]),
        allow("ListLogs", ["logs:DescribeLogStreams"], [names.log_group]),
        allow("ReadQuotas", ["servicequotas:ListServiceQuotas", "servicequotas:ListAWSDefaultServiceQuotas"], UNNAMED),
        allow("ReadPrices", ["pricing:GetProducts"], UNNAMED),  # without resources
    ]
    if names.default_bucket:
        statements.append(allow("CreateBucket", ["s3:CreateBucket"], [names.bucket_arn]))
    if names.kms_key:
        statements += use_key(names.kms_key)
    return policy(statements)


def print_policies(options: Mapping[str, Any]) -> None:
    """Print the policies for the account of the environment."""
    from imgcls.aws.account import Account, Caller
    from imgcls.launch.sagemaker.options import JobOptions
    from imgcls.launch.sagemaker.training_job import image_uri

    account = Account.connect(options["region"], options["profile"], caller=Caller(option_prefix=""))
    role = role_resource("role", options["role"])
    for address in options["data"]:
        split_folder(address, "data")
    images = (
        [options["image"]]
        if options["image"]
        else [image_uri(JobOptions(framework_version=version), account.region) for version in VERSIONS_OF_REPOSITORIES]
    )
    names = Names(
        account.partition,
        account.region,
        account.number,
        bucket=options["bucket"] or default_bucket(account.region, account.number),
        prefix=options["prefix"].strip("/"),
        role=role,
        images=[repository_arn(image, account.partition) for image in images],
        kms_key=options["kms_key"],
        subnets=options["subnets"],
        security_groups=options["security_groups"],
        default_bucket=not options["bucket"],
        data=options["data"],
    )
    parts = {"trust": trust_policy(names), "role": role_policy(names), **split("person", person_policy(names))}
    print(json.dumps(parts, indent=2))


def repository_arn(image: str, partition: str) -> str:
    """ARN of the repository of a container image's URI.

    >>> repository_arn("763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch-training:2.10.0-gpu-py313", "aws")
    'arn:aws:ecr:eu-west-1:763104351884:repository/pytorch-training'
    """
    registry, _, name = image.partition("/")
    if not re.fullmatch(r"\d{12}\.dkr\.ecr[\w.-]*", registry):
        raise UserError(
            f"image={image}: must be in a registry of ECR, as in ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG."
        )
    account, _, _, region = registry.split(".")[:4]
    return f"arn:{partition}:ecr:{region}:{account}:repository/{name.split('@')[0].split(':')[0]}"
