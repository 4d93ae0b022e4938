"""What AWS asks IAM for a call, and what a policy answers: the resources are those that AWS evaluates.

Sources: the Service Authorization Reference, and refusals in public trackers where AWS evaluates another resource than
its pages say (CloudWatch Logs: a log group is asked for as `log-group:NAME:log-stream:`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from imgcls.launch.rehearsal.aws import Call

HERE = "us-east-1:123456789012"
ACCOUNT = "123456789012"
SERVICES = {
    "service-quotas": "servicequotas",
    "monitoring": "cloudwatch",
    "sagemaker-runtime": "sagemaker",
    "runtime.sagemaker": "sagemaker",
}
ACTIONS = {  # operations whose permission has another name
    "s3:HeadObject": "s3:GetObject",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:DeleteObjects": "s3:DeleteObject",
    **{f"s3:{what}": "s3:PutObject" for what in ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")},
    "lambda:Invoke": "lambda:InvokeFunction",
}
KINDS = {  # of SageMaker's resources, by the field that names them
    "TrainingJobName": "training-job",
    "HyperParameterTuningJobName": "hyper-parameter-tuning-job",
    "EndpointName": "endpoint",
    "EndpointConfigName": "endpoint-config",
    "ModelName": "model",
    "TransformJobName": "transform-job",
    "ModelPackageGroupName": "model-package-group",
}
WITHOUT_PERMISSION = {"sts:GetCallerIdentity"}
WITHOUT_RESOURCES = {
    "application-autoscaling:DescribeScalableTargets",
    "cloudwatch:PutMetricData",
    "ecr:GetAuthorizationToken",
    "lambda:ListFunctions",
    "pricing:GetProducts",
    "servicequotas:ListAWSDefaultServiceQuotas",
    "servicequotas:ListServiceQuotas",
    *(f"ec2:Describe{what}" for what in ("DhcpOptions", "NetworkInterfaces", "SecurityGroups", "Subnets", "Vpcs")),
    *(f"sagemaker:List{what}" for what in ("EndpointConfigs", "Endpoints", "Models")),
    *(f"sagemaker:ListModelPackage{what}" for what in ("s", "Groups")),
    *(f"sagemaker:List{what}Jobs" for what in ("HyperParameterTuning", "Training")),
}
BY_AWS = {  # what SageMaker does with a role that a rehearsal cannot show
    "cloudwatch:PutMetricData",
    "ecr:GetAuthorizationToken",
    "ecr:BatchCheckLayerAvailability",
    "ecr:BatchGetImage",
    "ecr:GetDownloadUrlForLayer",
    "logs:DescribeLogStreams",
    "s3:AbortMultipartUpload",
}


@dataclass(frozen=True)
class Question:
    """Whether `action` is allowed on `resource`, in a request with these values of condition keys."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


def allowing(policy: Mapping[str, Any], question: Question) -> set[str]:
    """The statements of `policy` that allow it: none is a refusal."""
    return {statement["Sid"] for statement in policy["Statement"] if _applies(statement, question)}


def questions(call: Call, paths: Mapping[str, str] | None = None) -> list[Question]:
    """What AWS asks IAM before it answers `call`.

    Args:
        call: of any service that imgcls uses.
        paths: path of a role by name, if it has one.
    """
    operation = re.sub(r"20\d{6}$", "", call.operation)
    service = SERVICES.get(call.service, call.service)
    action = ACTIONS.get(f"{service}:{operation}", f"{service}:{operation}")
    if action in WITHOUT_PERMISSION:
        return []
    if action in WITHOUT_RESOURCES:
        return [Question(action, "*")]
    readers = {"s3": _s3, "sagemaker": _sagemaker, "logs": _logs, "lambda": _lambda, "cloudwatch": _cloudwatch}
    if service == "iam":
        return list(_iam(action, call.params, paths or {}))
    if service == "application-autoscaling":
        return list(_scaling(action, call.params))
    return list(readers[service](action, call.params))


def check(policy: Mapping[str, Any], calls: Iterable[Call], besides: Collection[str] = ()) -> None:
    """Every call is allowed, and every action of every statement is needed, for a call or for what is in `besides`."""
    used: set[tuple[str, str]] = set()
    paths: dict[str, str] = {}
    for call in calls:
        if call.operation == "CreateRole":
            paths[call.params["RoleName"]] = call.params.get("Path", "/")
        for question in questions(call, paths):
            statements = allowing(policy, question)
            assert statements, f"no statement allows {question}"
            used |= {(statement, question.action) for statement in statements}
    for statement in policy["Statement"]:
        actions = set(statement["Action"])
        assert not [action for action in actions if "*" in action]
        superfluous = {action for action in actions if (statement["Sid"], action) not in used} - set(besides)
        assert not superfluous, f"{statement['Sid']} has more than is called: {superfluous}"
        if statement["Resource"] == "*":
            assert actions <= WITHOUT_RESOURCES, statement["Sid"]


def _applies(statement: Mapping[str, Any], question: Question) -> bool:
    return (
        any(_like(question.action.lower(), action.lower()) for action in _as_list(statement["Action"]))
        and any(_like(question.resource, resource) for resource in _as_list(statement["Resource"]))
        and all(
            any(_compare(operator, question.context.get(key), value) for value in _as_list(values))
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        )
    )


def _compare(operator: str, actual: str | None, expected: str) -> bool:
    """A key that the request does not have fails, as in IAM."""
    if actual is None:
        return False
    return {"StringEquals": actual == expected, "Bool": actual.lower() == expected.lower()}.get(
        operator, _like(actual, expected)
    )


def _like(text: str, pattern: str) -> bool:
    """IAM's wildcards: any characters, and one character."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), text, re.DOTALL) is not None


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _s3(action: str, params: Mapping[str, Any]) -> Iterator[Question]:
    bucket = f"arn:aws:s3:::{params['Bucket']}"
    keys = [entry["Key"] for entry in params.get("Delete", {}).get("Objects", ())] or [params.get("Key")]
    for key in keys:
        yield Question(action, f"{bucket}/{key}" if key else bucket)
    if "SSEKMSKeyId" in params:
        yield Question("kms:GenerateDataKey", params["SSEKMSKeyId"])
        if action == "s3:PutObject" and "ServerSideEncryption" not in params:
            yield Question("kms:Decrypt", params["SSEKMSKeyId"])


def _sagemaker(action: str, params: Mapping[str, Any]) -> Iterator[Question]:
    if "ResourceArn" in params:
        yield Question(action, params["ResourceArn"])
        return
    named = [f"arn:aws:sagemaker:{HERE}:{kind}/{params[key]}" for key, kind in KINDS.items() if key in params]
    if action.endswith("CreateEndpointConfig"):
        named = named[-1:]
    elif action.endswith("CreateTransformJob"):  # whose model AWS does not ask about
        named = [f"arn:aws:sagemaker:{HERE}:transform-job/{params['TransformJobName']}"]
    elif action.endswith("CreateModelPackage"):
        named.append(f"arn:aws:sagemaker:{HERE}:model-package/{params['ModelPackageGroupName']}/*")
    elif "ModelPackage" in action and not named:
        named = [params.get("ModelPackageArn") or params["ModelPackageName"]]
    for resource in named:
        yield Question(action, resource)
    if params.get("Tags"):
        yield Question("sagemaker:AddTags", named[0])
    parts = [params, *(params[key] for key in ("TrainingJobDefinition",) if key in params)]
    for part in parts:
        for key in ("RoleArn", "ExecutionRoleArn"):
            if key in part:
                yield Question("iam:PassRole", part[key], {"iam:PassedToService": "sagemaker.amazonaws.com"})
        disk = part.get("ResourceConfig", {}).get("VolumeKmsKeyId")
        if disk:
            yield Question("kms:CreateGrant", disk, {"kms:GrantIsForAWSResource": "true"})


def _logs(action: str, params: Mapping[str, Any]) -> Iterator[Question]:
    yield Question(
        action, f"arn:aws:logs:{HERE}:log-group:{params['logGroupName']}:log-stream:{params.get('logStreamName', '')}"
    )


def _lambda(action: str, params: Mapping[str, Any]) -> Iterator[Question]:
    name = params.get("FunctionName") or params["Resource"].split(":function:")[1]
    resource = f"arn:aws:lambda:{HERE}:function:{name}"
    yield Question(action, f"{resource}:{params['Qualifier']}" if "Qualifier" in params else resource)
    if params.get("Tags"):
        yield Question("lambda:TagResource", resource)
    if "Role" in params:
        yield Question("iam:PassRole", params["Role"], {"iam:PassedToService": "lambda.amazonaws.com"})


def _iam(action: str, params: Mapping[str, Any], paths: Mapping[str, str]) -> Iterator[Question]:
    if action == "iam:ListRoles":
        yield Question(action, f"arn:aws:iam::{ACCOUNT}:role{params.get('PathPrefix', '/')}")
        return
    name = params["RoleName"]
    yield Question(action, f"arn:aws:iam::{ACCOUNT}:role{params.get('Path') or paths.get(name, '/')}{name}")


def _cloudwatch(action: str, params: Mapping[str, Any]) -> Iterator[Question]:
    if "ResourceARN" in params:
        yield Question(action, params["ResourceARN"])
        return
    for name in params.get("AlarmNames") or [params.get("AlarmName", "*")]:
        yield Question(action, f"arn:aws:cloudwatch:{HERE}:alarm:{name}")
        if params.get("Tags"):
            yield Question("cloudwatch:TagResource", f"arn:aws:cloudwatch:{HERE}:alarm:{name}")


def _scaling(action: str, params: Mapping[str, Any]) -> Iterator[Question]:
    context = {"application-autoscaling:service-namespace": params["ServiceNamespace"]}
    yield Question(action, f"arn:aws:application-autoscaling:{HERE}:scalable-target/0123", context)
    alarm = f"arn:aws:cloudwatch:{HERE}:alarm:TargetTracking-{params['ResourceId']}-AlarmHigh-0123"
    if params.get("PolicyType") == "TargetTrackingScaling":  # AWS makes its alarms with the caller's permissions
        yield Question("cloudwatch:PutMetricAlarm", alarm)
    if action.endswith(("DeregisterScalableTarget", "DeleteScalingPolicy")):
        yield Question("cloudwatch:DeleteAlarms", alarm)
