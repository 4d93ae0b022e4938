"""IAM policies of an endpoint, its Lambda function, and the person who deploys them.

A `*` is used only for resources that AWS does not let a policy name, with the reason beside it; actions are all named.
 https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imgcls.aws.iam import UNNAMED, Account, Statement, allow, container, policy, trust, use_key
from imgcls.aws.naming import NAME_PREFIX
from imgcls.deploy.names import ROLE_PATH

ENDPOINT_LOGS, BATCH_LOGS = "/aws/sagemaker/Endpoints", "/aws/sagemaker/TransformJobs"
WRITE_LOG = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
SCALING_ROLE = (
    "aws-service-role/sagemaker.application-autoscaling.amazonaws.com/"
    "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
)


@dataclass(frozen=True)
class Names(Account):
    """The names that the policies are for.

    Args:
        endpoint: its name.
        function: name of the Lambda function in front.
        function_role: the role of functions, `role/path/name`, which has the policy `lambda_policy`.
        output: S3 URI of an asynchronous endpoint's answers; None for other endpoints.
        topics: ARNs of the SNS topics that are notified of answers.
        capture: whether requests are captured.
        batch: S3 URI of a folder of images that are classified in batches; None: there are no batches.
    """

    endpoint: str
    function: str = ""
    function_role: str = "role/imgcls-functions"
    output: str | None = None
    topics: Sequence[str] = ()
    capture: bool = False
    batch: str | None = None

    @property
    def archives(self) -> str:
        """ARN of the archives of the endpoint."""
        return self.objects("endpoints", self.endpoint)

    @property
    def answers(self) -> tuple[str, str]:
        """ARNs of the bucket and the objects of an asynchronous endpoint's answers."""
        return self.folder_arns(str(self.output))


def trust_policy(names: Names) -> dict[str, Any]:
    """The trust policy of the endpoint's role: SageMaker may assume it, for this account alone."""
    return trust("sagemaker.amazonaws.com", names.account)


def lambda_trust() -> dict[str, Any]:
    """The trust policy of the function's role: Lambda may assume it, for functions of the same account alone."""
    return trust("lambda.amazonaws.com")


def role_policy(names: Names) -> dict[str, Any]:
    """What an endpoint needs: its model, image, log, metrics and output folders."""
    group = names.arn("logs", f"log-group:{ENDPOINT_LOGS}/{names.endpoint}:*")
    spaces = ["AWS/SageMaker", f"{ENDPOINT_LOGS}*", *([f"{BATCH_LOGS}*"] if names.batch is not None else [])]
    statements = [
        allow("ReadModel", ["s3:GetObject"], [names.archives]),
        allow("ListBucket", ["s3:ListBucket"], [names.bucket_arn]),
        allow("WriteLog", WRITE_LOG, [group]),
        # PutMetricData does not support resources, but a condition on its namespaces.
        allow("SendMetrics", ["cloudwatch:PutMetricData"], UNNAMED)
        | {"Condition": {"StringLike": {"cloudwatch:namespace": spaces}}},
        *container(names),
    ]
    if names.output is not None:
        bucket, objects = names.answers
        statements += [
            allow("ReadQuestions", ["s3:GetObject"], [names.objects("async", names.endpoint)]),
            allow("WriteAnswers", ["s3:AbortMultipartUpload", "s3:PutObject"], [objects]),
            allow("ListAnswers", ["s3:ListBucket"], [bucket]),
        ]
    if names.batch is not None:
        bucket, objects = names.folder_arns(names.batch)
        jobs = names.arn("logs", f"log-group:{BATCH_LOGS}:*")
        statements += [
            allow("ReadImages", ["s3:GetObject"], [objects, names.objects("batch", names.endpoint)]),
            allow("ListImages", ["s3:ListBucket"], [bucket]),
            allow("WriteBatch", ["s3:AbortMultipartUpload", "s3:PutObject"], [names.objects("batch", names.endpoint)]),
            allow("WriteBatchLog", WRITE_LOG, [jobs]),
        ]
    if names.topics:
        statements.append(allow("NotifyOfAnswers", ["sns:Publish"], list(names.topics)))
    if names.capture:
        place = names.objects("captured", names.endpoint)
        statements.append(allow("Capture", ["s3:AbortMultipartUpload", "s3:PutObject"], [place]))
    return policy(statements)


def lambda_policy(names: Names) -> dict[str, Any]:
    """What the function needs: the endpoint and its log."""
    group = names.arn("logs", f"log-group:/aws/lambda/{names.function}:*")
    return policy(
        [
            allow(
                "InvokeEndpoint", ["sagemaker:InvokeEndpoint"], [names.arn("sagemaker", f"endpoint/{names.endpoint}")]
            ),
            allow(
                "WriteLog", [f"logs:{what}" for what in ("CreateLogGroup", "CreateLogStream", "PutLogEvents")], [group]
            ),
        ]
    )


def person_policy(names: Names) -> dict[str, Any]:
    """What you need to deploy, test, update, roll back, list and delete, and to put a function in front.

    Functions get a role that exists: whoever may create roles and pass them to a function can become an administrator.
    """
    parts = (_endpoints, _registry, _batch, _storage, _around, _function)
    return policy([statement for part in parts for statement in part(names)])


def _endpoints(names: Names) -> list[Statement]:
    arns = {kind: names.arn("sagemaker", f"{kind}/{NAME_PREFIX}*") for kind in ("endpoint", "endpoint-config", "model")}
    invoke = ["InvokeEndpoint", *(["InvokeEndpointAsync"] if names.output is not None else [])]
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
            list(arns.values()),
        ),
        allow("Invoke", [f"sagemaker:{action}" for action in invoke], [arns["endpoint"]]),
        allow(
            "List",
            [
                "sagemaker:ListEndpointConfigs",
                "sagemaker:ListEndpoints",
                "sagemaker:ListHyperParameterTuningJobs",
                "sagemaker:ListModels",
                "sagemaker:ListTrainingJobs",
            ],
            UNNAMED,  # these have no resources
        ),
        allow("FindRole", ["iam:GetRole"], [names.iam(names.role)]),
        allow("PassRole", ["iam:PassRole"], [names.iam(names.role)])
        | {"Condition": {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}},
    ]


def _registry(names: Names) -> list[Statement]:
    versions = names.arn("sagemaker", f"model-package/{NAME_PREFIX}*")
    groups = names.arn("sagemaker", f"model-package-group/{NAME_PREFIX}*")
    group_actions = (
        *("AddTags", "CreateModelPackageGroup", "DeleteModelPackageGroup"),
        "DescribeModelPackageGroup",
    )
    version_actions = ("DeleteModelPackage", "DescribeModelPackage", "UpdateModelPackage")
    return [
        allow("Groups", [f"sagemaker:{action}" for action in group_actions], [groups]),
        # for a version of a group AWS asks about both
        allow("Register", ["sagemaker:CreateModelPackage"], [groups, versions]),
        allow("Versions", [f"sagemaker:{action}" for action in version_actions], [versions]),
        # these have no resources
        allow("ListVersions", ["sagemaker:ListModelPackageGroups", "sagemaker:ListModelPackages"], UNNAMED),
    ]


def _batch(names: Names) -> list[Statement]:
    if names.batch is None:
        return []
    bucket, objects = names.folder_arns(names.batch)
    jobs = names.arn("sagemaker", f"transform-job/{NAME_PREFIX}*")
    actions = ("AddTags", "CreateTransformJob", "DescribeTransformJob", "StopTransformJob")
    return [
        allow("Batches", [f"sagemaker:{action}" for action in actions], [jobs]),
        allow("ReadImages", ["s3:GetObject"], [objects]),
        allow("ListImages", ["s3:ListBucket"], [bucket]),
        allow("BatchFiles", ["s3:GetObject", "s3:PutObject"], [names.objects("batch")]),
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
            allow("WriteQuestions", ["s3:PutObject"], [names.objects("async")]),
            allow("ReadAnswers", ["s3:GetObject"], [objects]),
        ]
        if bucket != names.bucket_arn:
            # without it S3 answers 403 instead of 404 while there is no answer yet
            statements.append(allow("ListAnswers", ["s3:ListBucket"], [bucket]))
    if names.default_bucket:
        statements.append(allow("CreateBucket", ["s3:CreateBucket"], [names.bucket_arn]))
    if names.kms_key:
        statements += use_key(names.kms_key)
    return statements


def _around(names: Names) -> list[Statement]:
    """Autoscaling, alarms, logs, prices."""
    group = names.arn("logs", f"log-group:{ENDPOINT_LOGS}/{NAME_PREFIX}*:*")
    of_sagemaker = {"Condition": {"StringEquals": {"application-autoscaling:service-namespace": "sagemaker"}}}
    return [
        allow(
            "Scale",
            [
                "application-autoscaling:DeregisterScalableTarget",
                "application-autoscaling:PutScalingPolicy",
                "application-autoscaling:RegisterScalableTarget",
            ],
            [names.arn("application-autoscaling", "scalable-target/*")],  # AWS chooses the names of targets
        )
        | of_sagemaker,
        allow("ListScaling", ["application-autoscaling:DescribeScalableTargets"], UNNAMED),  # without resources
        allow("ScalingRole", ["iam:CreateServiceLinkedRole"], [names.iam(f"role/{SCALING_ROLE}")])
        | {"Condition": {"StringEquals": {"iam:AWSServiceName": "sagemaker.application-autoscaling.amazonaws.com"}}},
        allow(
            "Alarms",
            [f"cloudwatch:{what}" for what in ("DeleteAlarms", "ListTagsForResource", "PutMetricAlarm", "TagResource")],
            [names.arn("cloudwatch", f"alarm:{NAME_PREFIX}*")],
        ),
        # which autoscaling creates and deletes with your permissions
        allow(
            "AlarmsOfScaling",
            ["cloudwatch:DeleteAlarms", "cloudwatch:PutMetricAlarm"],
            [names.arn("cloudwatch", f"alarm:TargetTracking-endpoint/{NAME_PREFIX}*")],
        ),
        # Listing alarms by a name prefix needs permission for all alarms.
        allow("ListAlarms", ["cloudwatch:DescribeAlarms"], [names.arn("cloudwatch", "alarm:*")]),
        allow("ReadLog", ["logs:DescribeLogStreams", "logs:GetLogEvents"], [group]),
        allow("ReadPrices", ["pricing:GetProducts"], UNNAMED),  # without resources
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
    return [
        allow("Functions", [*actions, "lambda:ListTags", "lambda:PublishVersion", "lambda:TagResource"], [own]),
        allow("ListFunctions", ["lambda:ListFunctions"], UNNAMED),  # without resources
        allow("ListRoles", ["iam:ListRoles"], [names.iam(f"role{ROLE_PATH}")]),
        allow("ListRoleTags", ["iam:ListRoleTags"], [names.iam(f"role{ROLE_PATH}{NAME_PREFIX}*")]),
        allow("FindFunctionRole", ["iam:GetRole"], [names.iam(names.function_role)]),
        allow("PassFunctionRole", ["iam:PassRole"], [names.iam(names.function_role)])
        | {"Condition": {"StringEquals": {"iam:PassedToService": "lambda.amazonaws.com"}}},
    ]
