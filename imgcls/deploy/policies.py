"""What an endpoint, its Lambda function, and the person who deploys them must be allowed: IAM policies.

A `*` stands only for resources that AWS does not let a policy name (each is explained where it is); actions are all
named. https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imgcls.aws.iam import UNNAMED, Account, Statement, allow, network, policy, trust
from imgcls.aws.naming import NAME_PREFIX
from imgcls.aws.s3 import split_folder
from imgcls.deploy.names import REGION_TAG, ROLE_PATH

ENDPOINT_LOGS = "/aws/sagemaker/Endpoints"
SCALING_ROLE = (
    "aws-service-role/sagemaker.application-autoscaling.amazonaws.com/"
    "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
)


@dataclass(frozen=True)
class Names(Account):
    """The names that the policies are for.

    Args:
        partition: aws, aws-cn, …
        region: where the endpoint is.
        account: its number.
        endpoint: its name.
        bucket: of the archives.
        prefix: the folder of the bucket.
        role: of the endpoint, by name.
        function: the Lambda function in front.
        images: ARNs of the container repositories that may be pulled.
        kms_key: ARN of the key, if one is used.
        vpc: whether the endpoint is in a VPC.
        output: s3://… of an asynchronous endpoint's answers; None: it is none.
        topics: ARNs of the SNS topics that hear of them.
        capture: whether requests are kept.
        default_bucket: whether the bucket may have to be made.
    """

    endpoint: str
    bucket: str = ""
    prefix: str = "imgcls"
    role: str = ""
    function: str = ""
    images: Sequence[str] = ()
    kms_key: str | None = None
    vpc: bool = False
    output: str | None = None
    topics: Sequence[str] = ()
    capture: bool = False
    default_bucket: bool = False

    @property
    def bucket_arn(self) -> str:
        """Of the bucket itself."""
        return f"arn:{self.partition}:s3:::{self.bucket}"

    def objects(self, *folder: str) -> str:
        """ARN of all objects of a folder below the prefix."""
        return f"{self.bucket_arn}/{'/'.join(part for part in (self.prefix, *folder) if part)}/*"

    @property
    def archives(self) -> str:
        """ARN of the archives of the endpoint."""
        return self.objects("endpoints", self.endpoint)

    @property
    def answers(self) -> tuple[str, str]:
        """ARNs of the bucket and the objects of an asynchronous endpoint's answers."""
        bucket, prefix = split_folder(str(self.output))
        arn = f"arn:{self.partition}:s3:::{bucket}"
        return arn, f"{arn}/{prefix}/*" if prefix else f"{arn}/*"

    def iam(self, resource: str) -> str:
        """ARN of something of IAM, which knows no regions."""
        return f"arn:{self.partition}:iam::{self.account}:{resource}"


def trust_policy() -> dict[str, Any]:
    """Who may take the endpoint's role on: SageMaker."""
    return trust("sagemaker.amazonaws.com")


def lambda_trust() -> dict[str, Any]:
    """Who may take the function's role on: Lambda."""
    return trust("lambda.amazonaws.com")


def role_policy(names: Names) -> dict[str, Any]:
    """What an endpoint needs: its model, its image, its log and metrics, and where it writes."""
    group = names.arn("logs", f"log-group:{ENDPOINT_LOGS}/{names.endpoint}")
    statements = [
        allow("ReadModel", ["s3:GetObject"], [names.archives]),
        allow("ListBucket", ["s3:ListBucket"], [names.bucket_arn]),
        allow(
            "WriteLog",
            ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
            [group, f"{group}:log-stream:*"],
        ),
        # PutMetricData knows no resources, but its namespaces can be named.
        allow("SendMetrics", ["cloudwatch:PutMetricData"], UNNAMED)
        | {"Condition": {"StringLike": {"cloudwatch:namespace": ["AWS/SageMaker", f"{ENDPOINT_LOGS}*"]}}},
        allow("SignInToImages", ["ecr:GetAuthorizationToken"], UNNAMED),  # knows no resources
    ]
    if names.images:
        pull = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        statements.append(allow("PullImage", pull, list(names.images)))
    if names.output is not None:
        bucket, objects = names.answers
        statements += [
            allow("ReadQuestions", ["s3:GetObject"], [names.objects("async", names.endpoint)]),
            allow("WriteAnswers", ["s3:AbortMultipartUpload", "s3:PutObject"], [objects]),
            allow("ListAnswers", ["s3:ListBucket"], [bucket]),
        ]
    if names.topics:
        statements.append(allow("TellOfAnswers", ["sns:Publish"], list(names.topics)))
    if names.capture:
        place = names.objects("captured", names.endpoint)
        statements.append(allow("Capture", ["s3:AbortMultipartUpload", "s3:PutObject"], [place]))
    if names.kms_key:
        statements.append(allow("UseKey", ["kms:CreateGrant", "kms:Decrypt", "kms:GenerateDataKey"], [names.kms_key]))
    if names.vpc:
        statements += network(names)
    return policy(statements)


def lambda_policy(names: Names) -> dict[str, Any]:
    """What the function needs: the endpoint, and its log."""
    group = names.arn("logs", f"log-group:/aws/lambda/{names.function}")
    return policy(
        [
            allow("AskEndpoint", ["sagemaker:InvokeEndpoint"], [names.arn("sagemaker", f"endpoint/{names.endpoint}")]),
            allow("MakeLog", ["logs:CreateLogGroup"], [group]),
            allow("WriteLog", ["logs:CreateLogStream", "logs:PutLogEvents"], [f"{group}:log-stream:*"]),
        ]
    )


def person_policy(names: Names) -> dict[str, Any]:
    """What you need to deploy, test, update, roll back, list and delete, and to put a function in front."""
    return policy([*_endpoints(names), *_storage(names), *_around(names), *_function(names)])


def _endpoints(names: Names) -> list[Statement]:
    own = {kind: names.arn("sagemaker", f"{kind}/{NAME_PREFIX}*") for kind in ("endpoint", "endpoint-config", "model")}
    return [
        allow(
            "Endpoints",
            [
                f"sagemaker:{verb}{what}"
                for verb in ("Create", "Delete", "Describe")
                for what in ("Endpoint", "EndpointConfig", "Model")
            ]
            + ["sagemaker:AddTags", "sagemaker:ListTags", "sagemaker:UpdateEndpoint"]
            + ["sagemaker:UpdateEndpointWeightsAndCapacities"],  # which scaling does on your behalf
            list(own.values()),
        ),
        allow("Ask", ["sagemaker:InvokeEndpoint", "sagemaker:InvokeEndpointAsync"], [own["endpoint"]])
        if names.output is not None
        else allow("Ask", ["sagemaker:InvokeEndpoint"], [own["endpoint"]]),
        allow(
            "List",
            [
                "sagemaker:ListEndpointConfigs",
                "sagemaker:ListEndpoints",
                "sagemaker:ListHyperParameterTuningJobs",
                "sagemaker:ListModels",
                "sagemaker:ListTrainingJobs",
            ],
            UNNAMED,  # they know no resources
        ),
        allow("PassRole", ["iam:PassRole"], [names.iam(f"role/{names.role}")])
        | {"Condition": {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}},
    ]


def _storage(names: Names) -> list[Statement]:
    statements = [
        allow("ListBucket", ["s3:ListBucket"], [names.bucket_arn]),
        allow(
            "Archives",
            ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"],
            [names.objects("endpoints")],
        ),
    ]
    if names.output is not None:
        bucket, objects = names.answers
        statements += [
            allow("AskLater", ["s3:PutObject"], [names.objects("async")]),
            allow("ReadAnswers", ["s3:GetObject"], [objects]),
        ]
        if bucket != names.bucket_arn:
            # without it S3 says of an answer that is not there yet that it is forbidden
            statements.append(allow("ListAnswers", ["s3:ListBucket"], [bucket]))
    if names.default_bucket:
        statements.append(allow("MakeBucket", ["s3:CreateBucket"], [names.bucket_arn]))
    if names.kms_key:
        statements.append(allow("UseKey", ["kms:CreateGrant", "kms:Decrypt", "kms:GenerateDataKey"], [names.kms_key]))
    return statements


def _around(names: Names) -> list[Statement]:
    """Autoscaling, alarms, logs, prices."""
    group = names.arn("logs", f"log-group:{ENDPOINT_LOGS}/{NAME_PREFIX}*")
    of_sagemaker = {"Condition": {"StringEquals": {"application-autoscaling:service-namespace": "sagemaker"}}}
    return [
        allow(
            "Scale",
            [
                "application-autoscaling:DeregisterScalableTarget",
                "application-autoscaling:PutScalingPolicy",
                "application-autoscaling:RegisterScalableTarget",
            ],
            [names.arn("application-autoscaling", "scalable-target/*")],  # AWS gives targets names of its own
        )
        | of_sagemaker,
        allow("ListScaling", ["application-autoscaling:DescribeScalableTargets"], UNNAMED),  # knows no resources
        allow("ScalingRole", ["iam:CreateServiceLinkedRole"], [names.iam(f"role/{SCALING_ROLE}")])
        | {"Condition": {"StringEquals": {"iam:AWSServiceName": "sagemaker.application-autoscaling.amazonaws.com"}}},
        allow(
            "Alarms",
            [f"cloudwatch:{what}" for what in ("DeleteAlarms", "ListTagsForResource", "PutMetricAlarm", "TagResource")],
            [names.arn("cloudwatch", f"alarm:{NAME_PREFIX}*")],
        ),
        # A list by the start of the names is a list of all alarms.
        allow("ListAlarms", ["cloudwatch:DescribeAlarms"], [names.arn("cloudwatch", "alarm:*")]),
        allow("ReadLog", ["logs:DescribeLogStreams", "logs:GetLogEvents"], [group, f"{group}:log-stream:*"]),
        allow("AskPrices", ["pricing:GetProducts"], UNNAMED),  # knows no resources
    ]


def _function(names: Names) -> list[Statement]:
    own = names.arn("lambda", f"function:{NAME_PREFIX}*")
    verbs = {
        "Function": ("Create", "Delete", "Get", "Invoke"),
        "FunctionCode": ("Update",),
        "FunctionConfiguration": ("Get", "Update"),
        "FunctionUrlConfig": ("Create", "Delete", "Get", "Update"),
        "ProvisionedConcurrencyConfig": ("Delete", "Get", "Put"),
        "Alias": ("Create", "Update"),
        "Permission": ("Add", "Remove"),
    }
    actions = [f"lambda:{verb}{what}" for what, some in verbs.items() for verb in some]
    role = names.iam(f"role{ROLE_PATH}{NAME_PREFIX}*")
    return [
        allow("Functions", [*actions, "lambda:ListTags", "lambda:PublishVersion", "lambda:TagResource"], [own]),
        allow("ListFunctions", ["lambda:ListFunctions"], UNNAMED),  # knows no resources
        allow(
            "FunctionRoles",
            [f"iam:{verb}Role" for verb in ("Delete", "Get", "Tag")]
            + [f"iam:{what}" for what in ("DeleteRolePolicy", "ListRolePolicies", "ListRoleTags", "PutRolePolicy")],
            [role],
        ),
        allow("MakeFunctionRoles", ["iam:CreateRole"], [role])
        | {"Condition": {"StringEquals": {f"aws:RequestTag/{REGION_TAG}": names.region}}},
        allow("ListRoles", ["iam:ListRoles"], [names.iam(f"role{ROLE_PATH}")]),
        allow("PassFunctionRoles", ["iam:PassRole"], [role])
        | {"Condition": {"StringEquals": {"iam:PassedToService": "lambda.amazonaws.com"}}},
    ]
