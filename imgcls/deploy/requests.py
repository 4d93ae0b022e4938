"""The requests that make a model and an endpoint configuration: from the options, and from what is there already."""

from __future__ import annotations

import re
from typing import Any

from imgcls.aws.instances import has_gpu
from imgcls.deploy.names import VARIANT
from imgcls.deploy.options import ASYNCHRONOUS, REAL_TIME, SERVERLESS, Options
from imgcls.deploy.state import Deployed
from imgcls.errors import UserError, nearest
from imgcls.system.extras import need

Request = dict[str, Any]

INSTANCE_TYPE = "ml.m5.large"
FRAMEWORK = "2.6.0"
PYTHON = "py312"
MEMORY, CONCURRENCY, QUEUED_CONCURRENCY = 3072, 5, 4
OF_AWS = re.compile(r"\.dkr\.ecr\.[\w-]+\.amazonaws\.[\w.]+/pytorch-inference(?:-arm64)?:")
CANARY = 10  # percent of the requests at first
STEP = 10  # percent of the requests at a time
UPDATE, LONGEST_UPDATE = 1800, 28800  # seconds, besides the watching; the most that AWS takes
OURS = {
    "SAGEMAKER_PROGRAM": "inference.py",
    "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
    "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
}
ONE_WORKER = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}  # of a serverless endpoint, for want of memory


def mode_of(config: Request) -> str:
    """Which kind of endpoint a configuration makes."""
    if config.get("AsyncInferenceConfig"):
        return ASYNCHRONOUS
    variants = config.get("ProductionVariants") or [{}]
    return SERVERLESS if variants[0].get("ServerlessConfig") else REAL_TIME


def chosen_mode(options: Options, there: Deployed | None) -> str:
    """The mode that is asked for, or that the endpoint has. Raises UserError where they differ."""
    if there is None or not there.config:
        return options.mode or REAL_TIME
    has = mode_of(there.config)
    if options.mode not in (None, has):
        raise UserError(
            f"mode={options.mode}: the endpoint {there.name} is {has}, which cannot be changed. "
            "Give another name=…, or delete it first."
        )
    return has


def machine(options: Options, there: Deployed | None) -> str:
    """The instance type that is asked for, or that the endpoint has."""
    return str(options.instance_type or (there.variant.get("InstanceType") if there else None) or INSTANCE_TYPE)


def most_machines(options: Options, there: Deployed | None) -> int:
    """How many machines the options can lead to."""
    count = options.instance_count or (there.variant.get("InitialInstanceCount") if there else None) or 1
    return max(int(count), options.max_instances or 0)


def model_request(
    options: Options, there: Deployed | None, *, archive: str, role: str, image: str, mode: str
) -> Request:
    """CreateModel's fields, but for the name and tags.

    Args:
        options: of the deployment.
        there: the endpoint as it is.
        archive: s3://… of the model.tar.gz.
        role: ARN of the role that the endpoint has.
        image: URI of the container's image.
        mode: of the endpoint.
    """
    kept = (there.container.get("Environment") if there else None) or {}
    own = {**OURS, **(ONE_WORKER if mode == SERVERLESS else {})}
    container = {"Image": image, "ModelDataUrl": archive, "Environment": {**kept, **options.environment, **own}}
    request: Request = {"PrimaryContainer": container, "ExecutionRoleArn": role}
    vpc = (there.model.get("VpcConfig") if there else None) or {}
    if options.subnets:
        vpc = {"Subnets": options.subnets, "SecurityGroupIds": options.security_groups}
    if vpc:
        request["VpcConfig"] = vpc
    isolated = options.network_isolation
    if isolated is None and there is not None:
        isolated = there.model.get("EnableNetworkIsolation")
    if isolated:
        request["EnableNetworkIsolation"] = True
    return request


def config_request(
    options: Options, there: Deployed | None, *, model: str, mode: str, output: str, captured: str
) -> Request:
    """CreateEndpointConfig's fields, but for the name and tags.

    Args:
        options: of the deployment.
        there: the endpoint as it is.
        model: the model's name.
        mode: of the endpoint.
        output: s3://… of an asynchronous endpoint's answers, where the options name none.
        captured: s3://… of captured requests.
    """
    before = there.config if there else {}
    variant: Request = {"VariantName": VARIANT, "ModelName": model}
    if mode == SERVERLESS:
        variant["ServerlessConfig"] = serverless(options, (there.variant if there else {}).get("ServerlessConfig"))
    else:
        kind = machine(options, there)
        variant["InstanceType"] = kind
        count = options.instance_count or (there.variant.get("InitialInstanceCount") if there else None)
        variant["InitialInstanceCount"] = int(count or max(1, options.min_instances or 1))
        variant["InitialVariantWeight"] = 1.0
        patience = options.startup_timeout or (there.variant if there else {}).get(
            "ContainerStartupHealthCheckTimeoutInSeconds"
        )
        if patience:
            variant["ContainerStartupHealthCheckTimeoutInSeconds"] = patience
    request: Request = {"ProductionVariants": [variant]}
    key = options.kms_key or before.get("KmsKeyId")
    if key and mode != SERVERLESS and not has_own_disk(variant["InstanceType"]):
        request["KmsKeyId"] = key
    if mode == ASYNCHRONOUS:
        request["AsyncInferenceConfig"] = queued(options, before.get("AsyncInferenceConfig") or {}, output, key)
    capture = before.get("DataCaptureConfig") or {}
    if options.capture:
        capture = capturing(options.capture, captured, key)
    if capture.get("EnableCapture") and options.capture != 0:
        request["DataCaptureConfig"] = capture
    return request


def serverless(options: Options, before: Request | None) -> Request:
    """Memory and concurrency, as asked for or as they are."""
    kept = before or {}
    memory = options.memory or kept.get("MemorySizeInMB") or MEMORY
    concurrency = options.concurrency or kept.get("MaxConcurrency") or CONCURRENCY
    provisioned = options.provisioned if options.provisioned is not None else kept.get("ProvisionedConcurrency")
    request: Request = {"MemorySizeInMB": memory, "MaxConcurrency": concurrency}
    if provisioned:
        if provisioned > concurrency:
            raise UserError(f"provisioned={provisioned}: must not be more than concurrency={concurrency}.")
        request["ProvisionedConcurrency"] = provisioned
    return request


def queued(options: Options, before: Request, output: str, key: str | None) -> Request:
    """Where the answers go, who hears of them, how many are computed at a time."""
    kept, client = before.get("OutputConfig") or {}, before.get("ClientConfig") or {}
    place = (options.output or kept.get("S3OutputPath") or output).rstrip("/")
    answers: Request = {"S3OutputPath": place, "S3FailurePath": f"{place}/failed"}
    if key:
        answers["KmsKeyId"] = key
    topics = dict(kept.get("NotificationConfig") or {})
    topics.update({"SuccessTopic": options.success_topic} if options.success_topic else {})
    topics.update({"ErrorTopic": options.error_topic} if options.error_topic else {})
    if topics:
        answers["NotificationConfig"] = topics
    many = options.concurrency or client.get("MaxConcurrentInvocationsPerInstance") or QUEUED_CONCURRENCY
    return {"ClientConfig": {"MaxConcurrentInvocationsPerInstance": many}, "OutputConfig": answers}


def capturing(percent: int, place: str, key: str | None) -> Request:
    """Requests and answers that are kept in S3."""
    request: Request = {
        "EnableCapture": True,
        "InitialSamplingPercentage": percent,
        "DestinationS3Uri": place,
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
    }
    return {**request, "KmsKeyId": key} if key else request


def has_own_disk(kind: str) -> bool:
    """Whether machines of the type have a disk of their own, which they encrypt themselves: AWS takes no key there."""
    family = kind.split(".")[1]
    return has_gpu(kind) or re.search(r"\d[a-z]*d", family) is not None


def deployment_request(options: Options, mode: str, count: int, alarms: list[str]) -> Request:
    """How an update goes: blue/green, watched by alarms. Empty for serverless endpoints, which know none of it.

    Raises UserError where there are too few machines for it.
    """
    if mode == SERVERLESS:
        return {}
    kinds = {"all": "ALL_AT_ONCE", "canary": "CANARY", "linear": "LINEAR"}
    routing: Request = {"Type": kinds[options.traffic], "WaitIntervalInSeconds": options.bake}
    if options.traffic != "all" and count < 2:
        raise UserError(f"traffic={options.traffic} needs two machines at least: instance_count=2.")
    if options.traffic == "canary":
        routing["CanarySize"] = {"Type": "CAPACITY_PERCENT", "Value": CANARY}
    elif options.traffic == "linear":
        routing["LinearStepSize"] = {"Type": "CAPACITY_PERCENT", "Value": STEP}
    steps = 100 // STEP if options.traffic == "linear" else 1
    policy = {
        "TrafficRoutingConfiguration": routing,
        "TerminationWaitInSeconds": options.bake,
        "MaximumExecutionTimeoutInSeconds": min(LONGEST_UPDATE, UPDATE + (steps + 1) * options.bake),
    }
    request: Request = {"BlueGreenUpdatePolicy": policy}
    if alarms:
        request["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": name} for name in alarms]}
    return request


def image_for(options: Options, there: Deployed | None, region: str, mode: str) -> str:
    """The image that is asked for, that the endpoint has, or AWS's for the machine. Raises UserError."""
    if options.image:
        return options.image
    kind = machine(options, there) if mode != SERVERLESS else INSTANCE_TYPE
    has = str(there.container.get("Image") or "") if there else ""
    if has and options.framework_version is None and (not OF_AWS.search(has) or kind == there_kind(there)):
        return has
    return image_uri(options.framework_version or FRAMEWORK, kind, region)


def there_kind(there: Deployed | None) -> str:
    """The machine's type that an endpoint has."""
    return str((there.variant if there else {}).get("InstanceType") or INSTANCE_TYPE)


def image_uri(version: str, kind: str, region: str) -> str:
    """AWS's PyTorch inference image. Raises UserError where there is none."""
    need("sagemaker.core.image_uris")
    from sagemaker.core import image_uris

    try:
        return str(
            image_uris.retrieve(
                "pytorch", region, version=version, instance_type=kind, image_scope="inference", py_version=PYTHON
            )
        )
    except ValueError as error:
        said = " ".join(str(error).split())
    if "unsupported region" in said.lower():
        raise UserError(f"region={region}: AWS has no PyTorch images there. Give image=URI.")
    if "version" not in said.lower():
        raise UserError(f"instance_type={kind}: AWS has no PyTorch image for it. Give another, or image=URI.")
    known = re.findall(r"\b\d+\.\d+\.\d+\b", said.partition("Supported")[2])
    raise UserError(f"framework_version={version}: AWS has no such image for endpoints. {nearest(version, known)}")
